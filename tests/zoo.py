"""The zoo of defects: every known way for a fused FP8 kernel to be wrong, as an executable kernel.

A defect is the emulated kernel with one or two stages replaced, or with another arithmetic than the one
that it declares. Whatever the suite lets through here, it would let through in a real kernel.
``zoo_norm``, ``zoo_quant`` and ``zoo_gemm`` hold the lists; this module holds what they share. ``zoo_wiring`` holds
models whose kernels are right and whose wiring is wrong.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from reference.contract import GEMM_CONTRACTS, NORM_QUANT_CONTRACTS
from validators.cases.case import Case
from validators.cases.tensors import GemmInputs, Inputs, Outputs
from validators.kernels import emulated, emulated_gemm
from validators.kernels.base import Kernel

if TYPE_CHECKING:
    from tests.zoo_wiring import WiringDefect

NORM_CONTRACT = "aiter-hip-gfx950"
GEMM_CONTRACT = "fp32"
W = TypeVar("W", emulated.Work, emulated_gemm.GemmWork)


class ZooError(ValueError):
    """A defect or a guard that does not exist; its message is one sentence."""


@dataclass(frozen=True)
class Defect:
    """A named way to be wrong.

    id: ``N04``; N norm, Q quantization, G GEMM. name: slug. kernel: in place, declares the contract that
    it breaks. reveals: ids of cases that show it. real_report: ``owner/repo#number`` of a real bug of
    this kind, or "" if it is derived. summary: one sentence.
    """

    id: str
    name: str
    op: str
    kernel: Kernel
    reveals: tuple[str, ...]
    real_report: str
    summary: str


def norm_case(recipe: str, m: int = 64, n: int = 512, **options: object) -> str:
    """Id of an ``add_rmsnorm_quant`` case."""
    return Case("add_rmsnorm_quant", m, n, recipe, **options).id  # type: ignore[arg-type]


def quant_case(recipe: str, m: int = 64, n: int = 512, **options: object) -> str:
    """Id of a ``per_token_quant`` case."""
    return Case("per_token_quant", m, n, recipe, **options).id  # type: ignore[arg-type]


def gemm_case(recipe: str, m: int = 64, n: int = 64, k: int = 256, **options: object) -> str:
    """Id of a ``ptpc_gemm`` case."""
    return Case("ptpc_gemm", m, n, recipe, k=k, **options).id  # type: ignore[arg-type]


def norm_quant_defect(
    identity: str,
    name: str,
    summary: str,
    *reveals: str,
    report: str = "",
    executes: Mapping[str, object] | None = None,
    **stages: emulated.Stage,
) -> Defect:
    """A defect of the op of its cases: stages replaced, or contract fields ``executes`` other than declared."""
    op = Case.parse(reveals[0]).op
    if {Case.parse(text).op for text in reveals} != {op}:
        raise ZooError(f"defect {identity} has cases of several ops; a kernel has one")
    executed = NORM_QUANT_CONTRACTS[NORM_CONTRACT].replace(**(executes or {}))

    def call(inputs: Inputs, buffers: Outputs) -> Outputs:
        return emulated.execute(inputs, buffers, executed, stages=stages)

    kernel = Kernel(f"defect/{identity}-{name}", op, NORM_CONTRACT, call, in_place=True, emulated=True, notes=summary)
    return Defect(identity, name, op, kernel, reveals, report, summary)


def gemm_defect(
    identity: str, name: str, summary: str, *reveals: str, report: str = "", **stages: emulated_gemm.GemmStage
) -> Defect:
    """A defect of ``ptpc_gemm``: stages replaced. It writes into its buffers."""

    def call(inputs: Inputs, buffers: Outputs) -> Outputs:
        return emulated_gemm.execute(inputs, buffers, GEMM_CONTRACTS[GEMM_CONTRACT], stages=stages)

    kernel = Kernel(
        f"defect/{identity}-{name}", "ptpc_gemm", GEMM_CONTRACT, call, in_place=True, emulated=True, notes=summary
    )
    return Defect(identity, name, "ptpc_gemm", kernel, reveals, report, summary)


def first(stage: Callable[[W], None], then: Callable[[W], None]) -> Callable[[W], None]:
    """The stage ``stage`` followed by ``then``."""

    def both(w: W) -> None:
        stage(w)
        then(w)

    return both


def lanes_lost(width: int) -> Callable[[Tensor], Tensor]:
    """Columns that the upper half of each 64-lane wave holds when a lane loads ``width`` neighbours, as zeros."""

    def drop(values: Tensor) -> Tensor:
        column = torch.arange(values.shape[-1], device=values.device)
        return torch.where((column // width) % 64 >= 32, 0.0, values)

    return drop


def clean_kernel(op: str) -> Kernel:
    """The emulated kernel that a defect of ``op`` departs from; it writes in place too."""
    if op == "ptpc_gemm":

        def call(inputs: Inputs, buffers: Outputs) -> Outputs:
            return emulated_gemm.execute(inputs, buffers, GEMM_CONTRACTS[GEMM_CONTRACT])

        return Kernel("clean/ptpc_gemm", op, GEMM_CONTRACT, call, in_place=True, emulated=True)
    if op not in emulated.STAGES:
        raise ZooError(f"unknown op {op!r}; known: {', '.join(emulated.STAGES)}, ptpc_gemm")
    contract = NORM_QUANT_CONTRACTS[NORM_CONTRACT]
    return Kernel(f"clean/{op}", op, NORM_CONTRACT, emulated.make(contract), in_place=True, emulated=True)


_Shape = tuple[int, int, int]


def _shape(inputs: Inputs) -> _Shape:
    if isinstance(inputs, GemmInputs):
        return len(inputs.a), len(inputs.b), inputs.a.shape[-1]
    return inputs.x.numel() // inputs.x.shape[-1], inputs.x.shape[-1], 0


# Name: (does the defect show for (m, n, k) and the number of earlier calls?, smallest change of them that it shows at)
_GUARDS: dict[str, tuple[Callable[[_Shape, int], bool], Callable[[_Shape], _Shape]]] = {
    "m>256": (lambda s, calls: s[0] > 256, lambda s: (max(s[0], 259), *s[1:])),
    "n%8": (lambda s, calls: s[1] % 8 != 0, lambda s: (s[0], s[1] if s[1] % 8 else s[1] + 4, s[2])),
    "m odd": (lambda s, calls: s[0] % 2 == 1, lambda s: (s[0] | 1, *s[1:])),
    "second call": (lambda s, calls: calls > 0, lambda s: s),
    # Of a GEMM alone: the others have no k.
    "k%128": (lambda s, calls: s[2] % 128 != 0, lambda s: (s[0], s[1], s[2] if s[2] % 128 else s[2] + 64)),
    # The defect's values in one block of 128 columns, the clean kernel's in the others.
    "one block": (lambda s, calls: True, lambda s: s),
}
GUARDS = tuple(_GUARDS)
BLOCK = 128


def _one_block(clean: Outputs, wrong: Outputs) -> None:
    """Columns of the second block of 128, or of the first where there is no second, of ``wrong`` into ``clean``."""
    for field in dataclasses.fields(clean):
        right, bad = getattr(clean, field.name), getattr(wrong, field.name)
        if right is not None and right.shape[-1] > 1:
            first = BLOCK if right.shape[-1] > BLOCK else 0
            size = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[right.element_size()]
            right.view(size)[..., first : first + BLOCK] = bad.view(size)[..., first : first + BLOCK]


def guarded(defect: Defect, guard: str) -> Defect:
    """``defect`` behind a condition, as real bugs are: elsewhere the kernel is clean. Guards: ``GUARDS``.

    The cases that reveal it get the nearest shape that satisfies the guard. "second call" counts the calls
    of the returned kernel, so ask for a new one for each trial. Raises ZooError for an unknown guard.
    """
    if guard not in _GUARDS:
        raise ZooError(f"unknown guard {guard!r}; known: {', '.join(GUARDS)}")
    if guard == "k%128" and defect.op != "ptpc_gemm":
        raise ZooError(f"guard {guard!r} belongs to ptpc_gemm; {defect.id} is a defect of {defect.op}")
    shows, reshape = _GUARDS[guard]
    clean = clean_kernel(defect.op)
    calls = 0

    def call(inputs: Inputs, buffers: Outputs) -> Outputs:
        nonlocal calls
        calls += 1
        if guard == "one block":
            values = {f.name: getattr(buffers, f.name) for f in dataclasses.fields(buffers)}
            own = {name: None if held is None else held.clone() for name, held in values.items()}
            wrong = defect.kernel.call(inputs, type(buffers)(**own))
            right = clean.call(inputs, buffers)
            _one_block(right, wrong)
            return right
        chosen = defect.kernel if shows(_shape(inputs), calls - 1) else clean
        return chosen.call(inputs, buffers)

    reveals = []
    for text in defect.reveals:
        case = Case.parse(text)
        m, n, k = reshape((case.m, case.n, case.k))
        reveals.append(dataclasses.replace(case, m=m, n=n, k=k).id)
    slug = f"{defect.name}-when-{guard.replace('%8', '-ragged').replace('>', '-above-').replace(' ', '-')}"
    kernel = dataclasses.replace(defect.kernel, name=f"defect/{defect.id}-{slug}", call=call)
    summary = f"{defect.summary} Only when: {guard}."
    return dataclasses.replace(defect, name=slug, kernel=kernel, reveals=tuple(reveals), summary=summary)


def all_defects() -> list[Defect]:
    """Every defect, in the order of the catalogue."""
    names = ("tests.zoo_norm", "tests.zoo_quant", "tests.zoo_gemm")
    return [defect for name in names for defect in importlib.import_module(name).defects()]


def wiring_defects() -> list[WiringDefect]:
    """Every defect of a model's wiring, where the kernels are right; they need a walk, not a case, to show."""
    from tests import zoo_wiring

    return zoo_wiring.defects()


def catalogue() -> list[tuple[str, str, str]]:
    """(id, name, summary) of every defect of the zoo, kernels first, then wiring."""
    kernels = [(d.id, d.name, d.summary) for d in all_defects()]
    return kernels + [(d.id, d.name, d.summary) for d in wiring_defects()]


def find_defect(identity: str) -> Defect:
    """The defect with that id; raises ZooError with the known ids."""
    found = {defect.id: defect for defect in all_defects()}
    if identity not in found:
        raise ZooError(f"unknown defect {identity!r}; known: {', '.join(found)}")
    return found[identity]
