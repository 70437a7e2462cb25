"""One call of a kernel, and the two calls of a validation with everything that shows without a reference."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from validators.arch import tensor_device
from validators.calls import buffers, integrity
from validators.cases.case import Case
from validators.cases.inputs import build
from validators.cases.recipes import reasons_impossible
from validators.cases.tensors import Inputs, Outputs
from validators.errors import RunFault
from validators.kernels.kernel import Kernel, KernelError
from validators.records.record import Check
from validators.records.wording import how_to_declare


@dataclass(frozen=True)
class Claim:
    """Outputs of one validation before they are judged."""

    inputs: Inputs
    outputs: Outputs
    checks: tuple[Check, ...] = ()
    kernel_seconds: float = 0.0
    again: Outputs | None = None
    """Outputs of the second call, where their bits differ and the kernel may do that."""


class KernelFault(RunFault):
    """The kernel raised, or returned something that is no output; one sentence. hint: another, what to do, or "".
    fault: "raised" where the kernel raised."""

    def __init__(self, sentence: str, hint: str = "", fault: str = "") -> None:
        super().__init__(sentence)
        self.hint, self.fault = hint, fault

    @property
    def reasons(self) -> tuple[str, ...]:
        """The sentence, and the hint if there is one."""
        return (str(self), self.hint) if self.hint else (str(self),)


def run_kernel(kernel: Kernel, case: Case, device: str, *, deterministic: bool = True) -> Claim:
    """Build the inputs and call the kernel twice into poisoned, guarded buffers; raises KernelFault.

    deterministic: whether two runs have to give the same bits; see ``Kernel`` and ``Contract``.
    """
    kernel = kernel.on(device)
    inputs = build(case, device=tensor_device(device))
    before = integrity.snapshot(inputs)
    first, guards1, seconds1 = call(kernel, inputs, buffers.POISONS[0])
    # A kernel may hand out the same static tensor again; judging that would compare the second call with itself.
    kept = copy_outputs(first) if not kernel.in_place else first
    second, guards2, seconds2 = call(kernel, inputs, buffers.POISONS[1])
    try:
        shape = integrity.check_outputs(inputs, first, strict=False)
        integrity.check_outputs(inputs, second, strict=False)
        first = kept
    except integrity.OutputError as error:
        raise KernelFault(str(error)) from error
    checks = [shape, integrity.check_unchanged(inputs, before)]
    if kernel.in_place:
        checks.append(guards1 if not guards1.ok else guards2)
    unwritten = integrity.check_unwritten(first, second, *buffers.POISONS)
    if kernel.in_place or not unwritten.ok:
        checks.append(unwritten)
    differing = integrity.describe_differences(integrity.same_bits(first, second)) if unwritten.ok else ""
    checks.append(_run_to_run(differing, deterministic))
    checks += kernel.observed()
    again = copy_outputs(second) if differing and not deterministic else None
    return Claim(inputs, first, tuple(checks), min(seconds1, seconds2), again)


def _run_to_run(differing: str, deterministic: bool) -> Check:
    words = f"two runs differ: {differing}" if differing else "two runs gave the same bits"
    if differing and not deterministic:
        return Check("run to run", None, f"{words}; declared, so each run is judged by its values", "determinism")
    return Check("run to run", not differing, words, "determinism")


def copy_outputs(outputs: Outputs) -> Outputs:
    """Copies of the output tensors; anything that is no outputs dataclass is left for ``check_outputs`` to name."""
    if not dataclasses.is_dataclass(outputs):
        return outputs
    values = {f.name: getattr(outputs, f.name) for f in dataclasses.fields(outputs)}
    copies = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in values.items()}
    return type(outputs)(**copies)


def call(kernel: Kernel, inputs: Inputs, poison: int) -> tuple[Outputs, Check, float]:
    """One call into fresh buffers: (outputs, guard check, seconds). Raises KernelFault with one sentence."""
    guarded = buffers.make_buffers(inputs, poison=poison)
    if not kernel.in_place:
        buffers.poison_allocator(inputs, poison=poison)
    start = time.perf_counter()
    try:
        outputs = kernel.call(inputs, guarded.outputs)
        settle(inputs.device)
    except KernelError as error:
        raise KernelFault(str(error), error.hint) from error
    except Exception as error:
        # A kernel may raise anything; whatever it is, it is the kernel's ERROR and not the end of the run.
        text = " ".join(str(error).split())
        hint = how_to_declare(kernel.name)
        raise KernelFault(f"the kernel raised {type(error).__name__}: {text[:300]}", hint, "raised") from error
    return outputs, guarded.check(), time.perf_counter() - start


def settle(device: torch.device) -> None:
    """Wait for a GPU, and raise what a call left behind; nothing on a CPU.

    A launch that CUDA refuses (a grid of no blocks) is told by the next check of any launch, not by waiting: three
    real kernels returned from m = 0 so, and the next tensor that was made raised in their place.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.ones(1, device=device)


def warm_up(kernel: Kernel, case: Case, device: str, say: Callable[[], None]) -> bool:
    """Call the kernel once so that its library compiles; nothing is judged, and what goes wrong shows in the case.

    False where the kernel does not take the case, so that another one must be tried. say: called before the call.
    """
    if kernel.unavailable(device.split(":")[0]) or reasons_impossible(case) or kernel.unsupported(case):
        return False
    say()
    with contextlib.suppress(KernelFault):
        call(kernel.on(device), build(case, device=tensor_device(device)), buffers.POISONS[0])
    return True
