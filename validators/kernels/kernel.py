"""What a kernel under test is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from validators.cases.case import Case
from validators.cases.tensors import Outputs
from validators.errors import UserError
from validators.records.provenance import Provenance, Source, provenance
from validators.records.record import Check


class KernelError(UserError):
    """A kernel that cannot be found, loaded or called; its message is one sentence. hint: another, what to do."""

    def __init__(self, sentence: str, hint: str = "") -> None:
        super().__init__(sentence)
        self.hint = hint


def _no_versions() -> Mapping[str, str]:
    return {}


def _nothing_chosen(case: Case) -> Mapping[str, str]:
    return {}


def _no_source() -> Source | None:
    return None


def _lacks_nothing(case: Case) -> str:
    return ""


def _supports_everything(case: Case) -> str | None:
    return None


def _saw_nothing() -> tuple[Check, ...]:
    return ()


def _one_reading() -> Mapping[str, Callable[[Any, Any], Outputs]]:
    return {}


def _same_everywhere(device: str) -> Mapping[str, Any]:
    return {}


def _available(device: str) -> str | None:
    return None


@dataclass(frozen=True)
class Kernel:
    """An adapter under test.

    name: ``provider/function``, e.g. ``aiter_hip/add_rmsnorm_quant``. op: one of ``OPS``. contract: name
    of the declared preset, or None (then it is identified from the outputs). call(inputs, buffers):
    computes the op; both are of the op's own types. ``buffers`` has poisoned and guarded output tensors of the right
    shape and dtype; a kernel that writes in place (in_place=True) fills and returns them, any other ignores them
    and returns its own tensors. unavailable(device) -> one sentence why the kernel cannot run at all on
    device "cpu" / "cuda" on this machine, or None. unsupported(case) -> one sentence why this case is
    outside what the kernel offers, or None: the one place where its limits are stated. versions() -> library
    versions for the record. source() -> the digests of the kernel's own files, or None where that is not cheap to
    know. lacks(case) -> of an unsupported case the feature that it needs, a key of ``supports``, or "".
    emulated: True if this is a stand-in that shows the pipeline, not a kernel that anybody ships.
    fake: True while its library is a test double; such records never count for a sign-off.
    compiles: True if its library builds machine code at the first call, for minutes where nothing is prebuilt; that
    call is then made once outside the time limits. deterministic: False if two runs may give other bits by design
    (split-K with atomics); then every run is judged value by value. chosen(case) -> what the library picks for this
    case (a GEMM library, a kernel's name), for the record. for_device(device) -> the fields that are others on that
    device; see ``on``. observed() -> checks that the kernel made itself while it ran, such as those of an interpreter.
    interpreted: True where machine code is interpreted.
    readings() -> after a run, ``call`` under each other reading of what its documents leave open, by name.
    """

    name: str
    op: str
    contract: str | None
    call: Callable[[Any, Any], Outputs]
    in_place: bool = False
    unavailable: Callable[[str], str | None] = _available
    unsupported: Callable[[Case], str | None] = _supports_everything
    versions: Callable[[], Mapping[str, str]] = _no_versions
    emulated: bool = False
    fake: bool = False
    compiles: bool = False
    deterministic: bool = True
    chosen: Callable[[Case], Mapping[str, str]] = _nothing_chosen
    notes: str = ""
    options: Mapping[str, object] = field(default_factory=dict)
    source: Callable[[], Source | None] = _no_source
    lacks: Callable[[Case], str] = _lacks_nothing
    for_device: Callable[[str], Mapping[str, Any]] = _same_everywhere
    observed: Callable[[], tuple[Check, ...]] = _saw_nothing
    readings: Callable[[], Mapping[str, Callable[[Any, Any], Outputs]]] = _one_reading
    interpreted: bool = False
    answers: dict[tuple[str, ...], Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What was found out by running this kernel, kept for the next call. A changed copy starts without it."""

    def refuses(self, device: str) -> str | None:
        """``unavailable``, and the reason of a kernel that is no machine code on a device that interprets it."""
        if device.startswith("amdgcn:") and not self.on(device).interpreted:
            return f"is no machine code, and {device} interprets machine code"
        return self.unavailable(device)

    def on(self, device: str) -> Kernel:
        """This kernel as it is on ``device``."""
        changes = self.for_device(device)
        return replace(self, for_device=_same_everywhere, **changes) if changes else self

    def provenance(self, device: str | None) -> Provenance:
        """That of a record made here, with what tells this kernel from another of its name: library versions, and
        where it is known the digest of its source."""
        return replace(provenance(device), kernel_versions=dict(self.versions()), kernel_source=self.source())
