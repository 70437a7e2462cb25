"""The pipeline: validate(kernel, case) -> Record. No pytest, no printing."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from reference.contract import GemmContract, NormQuantContract, get_contract
from validators.calls import integrity, invariance
from validators.cases.case import Case
from validators.cases.inputs import build
from validators.cases.memory import beyond_memory
from validators.cases.recipes import lane_of, reasons_impossible
from validators.cases.tensors import GemmInputs, GemmOutputs, Inputs, Outputs
from validators.judge.compare import compare, open_rows
from validators.judge.gemm import judge_gemm
from validators.judge.gpu.accumulate import accumulate_on
from validators.judge.gpu.survey import survey_on
from validators.judge.statistics import FALSE_ALARM, BiasResult
from validators.judge.verdict import decide, strength
from validators.kernels.kernel import Kernel, KernelError
from validators.records.record import Check, Comparison, Record, Status
from validators.signoff.limits import DECLARED, IMPOSSIBLE, MACHINE, how_to_declare

if TYPE_CHECKING:
    from validators.explain.identify import IdentifyResult

INVARIANCE_ELEMENTS = 2**22
"""Batch invariance calls the kernel six more times; on larger cases the smaller ones of the same lane speak for it."""
BIAS_ELEMENTS = 4096
"""Fewer outputs than this say nothing about a bias below the budget of a single element."""


@dataclass(frozen=True)
class Claim:
    """Outputs of one validation before they are judged."""

    inputs: Inputs
    outputs: Outputs
    checks: tuple[Check, ...]
    kernel_seconds: float


class KernelFault(RuntimeError):
    """The kernel raised, or returned something that is no output; one sentence. hint: another, what to do, or ""."""

    def __init__(self, sentence: str, hint: str = "") -> None:
        super().__init__(sentence)
        self.hint = hint

    @property
    def reasons(self) -> tuple[str, ...]:
        """The sentence, and the hint if there is one."""
        return (str(self), self.hint) if self.hint else (str(self),)


def validate(kernel: Kernel, case: Case, *, contract: str | None = None, device: str = "cpu") -> Record:
    """Run the kernel on the case and judge it. Never raises for what a kernel does; see ``Record``.

    contract: name of a preset that overrides the kernel's declaration, or "identify" to find it from outputs.
    device: "cpu", "cuda" or "cuda:1".
    """
    start = time.perf_counter()
    frame = _Frame(kernel, case, device)
    if reason := kernel.unavailable(device.split(":")[0]):
        return frame.record(Status.UNTESTED, (reason,), None, "declared", start)
    if reason := reasons_impossible(case):
        return frame.record(Status.UNSUPPORTED, (reason,), None, "declared", start, limit=IMPOSSIBLE)
    try:
        reason = kernel.unsupported(case)
    except Exception as error:
        said = str(error) if isinstance(error, KernelError) else f"{type(error).__name__}: {error}"
        words = f"whether the kernel offers this case cannot be asked: {' '.join(said.split())}"
        return frame.record(Status.ERROR, (words,), kernel.contract, "declared", start)
    if reason:
        return frame.record(Status.UNSUPPORTED, (reason,), kernel.contract, "declared", start, limit=DECLARED)
    if reason := beyond_memory(case, device):
        return frame.record(Status.UNSUPPORTED, (reason,), kernel.contract, "declared", start, limit=MACHINE)
    identified: tuple[str, ...] = ()
    try:
        chosen, origin, identified = choose_contract(kernel, case, contract, device)
    except KernelFault as fault:
        return frame.record(Status.ERROR, fault.reasons, None, "identified", start)
    try:
        claim = run_kernel(kernel, case, device)
    except KernelFault as fault:
        return frame.record(Status.ERROR, fault.reasons, chosen.name if chosen else None, origin, start)
    # Outputs that fit no contract are compared with the nearest one, so that the report can say what is wrong.
    judged_by = chosen or get_contract(kernel.op, identification(kernel, case, device).candidates[0].contract)
    comparisons, statistical = judge(claim, judged_by)
    checks = [*claim.checks, *statistical, *_invariances(kernel, case, claim, judged_by)]
    status, reasons = decide(comparisons, checks)
    if chosen is None:
        status = Status.FAILED
        reasons = (f"the outputs fit no contract of the closed list; nearest is {judged_by.name}", *reasons)
    explanations: tuple[str, ...] = ()
    if status is Status.FAILED:
        from validators.explain.explanation import diagnose

        explanations, near = diagnose(claim.inputs, claim.outputs, judged_by, comparisons, checks)
        if near and chosen is not None:
            reasons = (f"the outputs follow {near}", *reasons)
    name = chosen.name if chosen else None
    return frame.record(
        status,
        reasons,
        name,
        origin,
        start,
        identified=identified,
        comparisons=tuple(comparisons),
        checks=tuple(checks),
        explanations=explanations,
        strength=strength(comparisons),
        kernel_seconds=claim.kernel_seconds,
    )


_identified: dict[tuple[str, ...], IdentifyResult] = {}


def choose_contract(
    kernel: Kernel, case: Case, given: str | None, device: str
) -> tuple[NormQuantContract | GemmContract | None, str, tuple[str, ...]]:
    """(contract or None, where it comes from, evidence lines if identified)."""
    if given not in (None, "identify"):
        return get_contract(kernel.op, str(given)), "given", ()
    if given is None and kernel.contract is not None:
        return get_contract(kernel.op, kernel.contract), "declared", ()
    result = identification(kernel, case, device)
    best = result.best
    return (None if best is None else get_contract(kernel.op, best)), "identified", tuple(result.lines())


def identification(kernel: Kernel, case: Case, device: str) -> IdentifyResult:
    """What ``identify`` finds for the kernel and the types of the case. Raises KernelFault."""
    from validators.explain.identify import identify

    # Once a process and type: identification calls the kernel on cases of its own and judges every preset.
    key = kernel.name, kernel.op, device, case.dtype, case.fp8
    if key not in _identified:
        _identified[key] = identify(kernel, device=device, dtype=case.dtype, fp8=case.fp8)
    return _identified[key]


def run_kernel(kernel: Kernel, case: Case, device: str) -> Claim:
    """Build the inputs and call the kernel twice into poisoned, guarded buffers; raises KernelFault."""
    inputs = build(case, device=device)
    before = integrity.snapshot(inputs)
    first, guards1, seconds1 = call(kernel, inputs, integrity.POISONS[0])
    # A kernel may hand out the same static tensor again; judging that would compare the second call with itself.
    kept = copy_outputs(first) if not kernel.in_place else first
    second, guards2, seconds2 = call(kernel, inputs, integrity.POISONS[1])
    try:
        shape = integrity.check_outputs(inputs, first, kernel.op, strict=False)
        integrity.check_outputs(inputs, second, kernel.op, strict=False)
        first = kept
    except integrity.OutputError as error:
        raise KernelFault(str(error)) from error
    checks = [shape, integrity.check_unchanged(inputs, before)]
    if kernel.in_place:
        checks.append(guards1 if not guards1.ok else guards2)
    unwritten = integrity.check_unwritten(first, second, *integrity.POISONS)
    if kernel.in_place or not unwritten.ok:
        checks.append(unwritten)
    differing = integrity.describe_differences(integrity.same_bits(first, second)) if unwritten.ok else ""
    checks.append(
        Check(
            "run to run",
            not differing,
            f"two runs differ: {differing}" if differing else "two runs gave the same bits",
            "determinism",
        )
    )
    return Claim(inputs, first, tuple(checks), min(seconds1, seconds2))


def copy_outputs(outputs: Outputs) -> Outputs:
    """Copies of the output tensors; anything that is no outputs dataclass is left for ``check_outputs`` to name."""
    if not dataclasses.is_dataclass(outputs):
        return outputs
    values = {f.name: getattr(outputs, f.name) for f in dataclasses.fields(outputs)}
    copies = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in values.items()}
    return type(outputs)(**copies)  # type: ignore[arg-type]


def call(kernel: Kernel, inputs: Inputs, poison: int) -> tuple[Outputs, Check, float]:
    """One call into fresh buffers: (outputs, guard check, seconds). Raises KernelFault with one sentence."""
    buffers = integrity.make_buffers(inputs, poison=poison)
    if not kernel.in_place:
        integrity.poison_allocator(inputs, poison=poison)
    start = time.perf_counter()
    try:
        outputs = kernel.call(inputs, buffers.outputs)
        settle(device_of(inputs))
    except KernelError as error:
        raise KernelFault(str(error), error.hint) from error
    except Exception as error:
        text = " ".join(str(error).split())
        hint = how_to_declare(kernel.name)
        raise KernelFault(f"the kernel raised {type(error).__name__}: {text[:300]}", hint) from error
    return outputs, buffers.check(), time.perf_counter() - start


def device_of(inputs: Inputs) -> torch.device:
    """Where the tensors of ``inputs`` lie."""
    return inputs.a.device if isinstance(inputs, GemmInputs) else inputs.x.device


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
        call(kernel, build(case, device=device), integrity.POISONS[0])
    return True


def judge(claim: Claim, contract: NormQuantContract | GemmContract) -> tuple[list[Comparison], list[Check]]:
    """Comparisons of the claim's outputs, and the statistical checks."""
    if isinstance(claim.inputs, GemmInputs) and isinstance(contract, GemmContract):
        assert isinstance(claim.outputs, GemmOutputs)
        accumulate = accumulate_on(claim.inputs.a.device.type)
        comparisons, bias = judge_gemm(claim.inputs, claim.outputs, contract, accumulate)
        return comparisons, [bias_check(bias, contract)] if bias.elements >= BIAS_ELEMENTS else []
    assert not isinstance(claim.inputs, GemmInputs)
    survey = survey_on(claim.inputs.x.device.type)
    return compare(claim.inputs, claim.outputs, contract, survey=survey), []


def bias_check(bias: BiasResult, contract: GemmContract) -> Check:
    """Are the rounding errors of the GEMM balanced? Judged where the contract declares rounding to nearest."""
    judged = contract.accumulator == "fp32"
    detail = (
        f"mean error in the direction of the exact value, beyond that of rounding the exact value itself, is "
        f"{bias.relative:.2g} of it over {bias.elements:,} outputs; "
        f"round-to-nearest stays within {bias.effect:.2g} except with probability {FALSE_ALARM:g}"
    )
    return Check("bias", bias.ok if judged else None, detail, "statistical")


def _invariances(kernel: Kernel, case: Case, claim: Claim, contract: NormQuantContract | GemmContract) -> list[Check]:
    checks = []
    judged, rows = contract.batch_invariant, functools.partial(open_rows, claim.inputs, contract)
    if case.m * max(case.n, case.k) <= INVARIANCE_ELEMENTS:
        checks.append(invariance.batch_invariance(kernel, claim.inputs, claim.outputs, judged=judged, open_rows=rows))
    if case.layout != "contiguous":
        checks.append(
            invariance.layout_equals_contiguous(kernel, claim.inputs, claim.outputs, judged=judged, open_rows=rows)
        )
    return checks


@dataclass(frozen=True)
class _Frame:
    """What every record of this validation has in common."""

    kernel: Kernel
    case: Case
    device: str

    def record(
        self,
        status: Status,
        reasons: tuple[str, ...],
        contract: str | None,
        origin: str,
        start: float,
        *,
        limit: str = "",
        **fields: object,
    ) -> Record:
        from validators.arch import architecture
        from validators.records.store import provenance

        kernel, case = self.kernel, self.case
        flags = "" if origin == "declared" else f" --contract {contract or 'identify'}"
        flags += "" if self.device == "cpu" else f" --device {self.device}"
        return Record(
            status=status,
            reasons=reasons,
            kernel=kernel.name,
            op=kernel.op,
            case=case.id,
            lane=lane_of(case),
            contract=contract,
            contract_from=origin,
            device=self.device,
            arch=architecture(self.device),
            emulated=kernel.emulated,
            fake=kernel.fake,
            seconds=time.perf_counter() - start,
            reproduce=f"python -m validators run --op {kernel.op} --kernel {shlex.quote(kernel.name)} "
            f"--case {case.id}{flags}",
            provenance={
                **provenance(self.device),
                **kernel.identity(),
                **({"limit": limit} if limit else {}),
                **({"chosen": chosen} if (chosen := dict(kernel.chosen(case))) else {}),
            },
            peak_bytes=torch.cuda.max_memory_allocated() if self.device.startswith("cuda") else 0,
            **fields,  # type: ignore[arg-type]
        )
