"""The pipeline: validate(kernel, case) -> Record. No pytest, no printing."""

from __future__ import annotations

import dataclasses
import functools
import time
from dataclasses import dataclass

import torch

from reference.contract import Contract, get_contract
from validators.arch import INTERPRETED_DEVICES, architecture, tensor_device
from validators.calls import buffers, integrity, invariance
from validators.calls.call import Claim, KernelFault, call, run_kernel
from validators.cases.case import Case
from validators.cases.memory import beyond_memory
from validators.cases.recipes import lane_of, reasons_impossible
from validators.explain.explanation import diagnose
from validators.explain.identify import choose_contract, identification, stricter
from validators.judge.compare import compare, open_rows
from validators.judge.gpu.survey import survey_on
from validators.judge.op import op_judged
from validators.kernels.kernel import Kernel, KernelError
from validators.records.command_line import command_line, of_op
from validators.records.evidence import BY_CONTRACT, DECLARED, IMPOSSIBLE, MACHINE, Limit
from validators.records.record import Check, Comparison, Explanation, Record, Status
from validators.records.verdict import decide, left_open, strength

INVARIANCE_ELEMENTS = 2**22
"""Batch invariance calls the kernel six more times, and each open point once more; on larger cases the smaller ones of
the same lane speak for it."""


def validate(
    kernel: Kernel, case: Case, *, contract: str | None = None, device: str = "cpu", explain: bool = True
) -> Record:
    """Run the kernel on the case and judge it. Never raises for what a kernel does; see ``Record``.

    contract: name of a preset that overrides the kernel's declaration, or "identify" to find it from outputs.
    device: "cpu", "cuda" or "cuda:1". explain: False leaves explanations of a failure out, which take many times as
    long as the verdict.
    """
    start = time.perf_counter()
    kernel = kernel.on(device)
    frame = _Frame(kernel, case, device)
    if record := _not_run(frame, start):
        return record
    identified: tuple[str, ...] = ()
    try:
        chosen, origin, identified = choose_contract(kernel, case, contract, device)
    except KernelFault as fault:
        return frame.record(Status.ERROR, fault.reasons, None, "identified", start, fault=fault.fault)
    try:
        deterministic = kernel.deterministic and (chosen is None or chosen.deterministic)
        claim = run_kernel(kernel, case, device, deterministic=deterministic)
    except KernelFault as fault:
        name = chosen.name if chosen else None
        return frame.record(Status.ERROR, fault.reasons, name, origin, start, fault=fault.fault)
    # Outputs that fit no contract are compared with the nearest one, so that the report can say what is wrong.
    judged_by = chosen or get_contract(kernel.op, identification(kernel, case, device).candidates[0].contract)
    claim, comparisons, statistical, which = _judge_runs(claim, judged_by)
    judged = judged_by.batch_invariant and deterministic
    checks = [*claim.checks, *statistical, *_invariances(kernel, case, claim, judged_by, judged)]
    checks += _other_readings(kernel, claim, judged_by, decide(comparisons, statistical)[0])
    status, reasons = decide(comparisons, checks)
    reasons += which
    if chosen is None:
        status = Status.FAILED
        reasons = (f"the outputs fit no contract of the closed list; nearest is {judged_by.name}", *reasons)
    explanations: tuple[Explanation, ...] = ()
    if status is Status.FAILED and explain:
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
        limit=Limit(BY_CONTRACT) if status is Status.UNSUPPORTED else None,
        strength=strength(comparisons),
        kernel_seconds=claim.kernel_seconds,
    )


def with_stricter(kernel: Kernel, case: Case, record: Record) -> Record:
    """``record`` with the stricter contract that the outputs follow where the stated one left most elements of a case
    that PASSED several values: see ``Record.follows``. Identification runs once for a kernel."""
    stated = record.contract_from in ("declared", "given") and record.contract
    if not stated or record.status is not Status.PASSED or not left_open(record.comparisons):
        return record
    try:
        return dataclasses.replace(record, follows=stricter(kernel, case, stated, record.device))
    except KernelFault:
        return record  # the verdict holds without it


def _not_run(frame: _Frame, start: float) -> Record | None:
    """The record of a case that cannot be run, or None."""
    kernel, case = frame.kernel, frame.case
    if frame.device in INTERPRETED_DEVICES and not kernel.interpreted:
        words = f"is no machine code, and {frame.device} interprets machine code"
        return frame.record(Status.UNTESTED, (words,), None, "declared", start)
    if reason := kernel.unavailable(frame.device.split(":")[0]):
        return frame.record(Status.UNTESTED, (reason,), None, "declared", start)
    if reason := reasons_impossible(case):
        return frame.record(Status.UNSUPPORTED, (reason,), None, "declared", start, limit=Limit(IMPOSSIBLE))
    try:
        reason = kernel.unsupported(case)
    except Exception as error:
        # ``unsupported`` is the user's own code, which may raise anything.
        said = str(error) if isinstance(error, KernelError) else f"{type(error).__name__}: {error}"
        words = f"whether the kernel offers this case cannot be asked: {' '.join(said.split())}"
        return frame.record(Status.ERROR, (words,), kernel.contract, "declared", start)
    if reason:
        limit = Limit(DECLARED, kernel.lacks(case))
        return frame.record(Status.UNSUPPORTED, (reason,), kernel.contract, "declared", start, limit=limit)
    if reason := beyond_memory(case, tensor_device(frame.device)):
        return frame.record(Status.UNSUPPORTED, (reason,), kernel.contract, "declared", start, limit=Limit(MACHINE))
    return None


def _judge_runs(claim: Claim, contract: Contract) -> tuple[Claim, list[Comparison], list[Check], tuple[str, ...]]:
    """``judge`` for the first run, or for the second where they differ by design and only the second has a violation;
    with the claim that was judged and a sentence that says so."""
    comparisons, statistical = judge(claim, contract)
    if claim.again is not None and decide(comparisons, statistical)[0] is not Status.FAILED:
        second = dataclasses.replace(claim, outputs=claim.again)
        again = judge(second, contract)
        if decide(*again)[0] is Status.FAILED:
            words = "these are the values of the second of two runs; those of the first are admissible"
            return second, *again, (words,)
    return claim, comparisons, statistical, ()


def judge(claim: Claim, contract: Contract) -> tuple[list[Comparison], list[Check]]:
    """Comparisons of the claim's outputs, and the statistical checks."""
    inputs, outputs = claim.inputs, claim.outputs
    if whole := op_judged(inputs.op).whole:
        return whole(inputs, outputs, contract)
    return compare(inputs, outputs, contract, survey=survey_on(inputs.device.type)), []


def _other_readings(kernel: Kernel, claim: Claim, contract: Contract, under_first: Status) -> list[Check]:
    """Check "open points": the verdict is the same under every other reading of what the kernel's documents leave
    open. Outputs of the same bits need no second judgement."""
    readings = kernel.readings()
    if not readings:
        return []
    if claim.inputs.row_count * claim.inputs.width > INVARIANCE_ELEMENTS:
        return [
            Check("open points", None, "judged under the first reading only: smaller cases of the lane speak for it")
        ]
    differing, told = [], []
    for name, call_so in readings.items():
        outputs, _, _ = call(dataclasses.replace(kernel, call=call_so), claim.inputs, buffers.POISONS[0])
        if not integrity.describe_differences(integrity.same_bits(claim.outputs, outputs)):
            continue
        differing.append(name)
        status = decide(*judge(dataclasses.replace(claim, outputs=outputs), contract))[0]
        if status is not under_first:
            told.append(f"{status.value} under {name}")
    if told:
        words = f"undetermined by the instruction set: {under_first.value} as read first, {', '.join(told)}"
        return [Check("open points", False, words)]
    words = f"the same verdict under {', '.join(readings)}"
    return [Check("open points", True, words + (f"; other bits under {', '.join(differing)}" if differing else ""))]


def _invariances(kernel: Kernel, case: Case, claim: Claim, contract: Contract, judged: bool) -> list[Check]:
    checks = []
    rows = functools.partial(open_rows, claim.inputs, contract)
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
        **fields: object,
    ) -> Record:
        kernel, case = self.kernel, self.case
        reproduce = command_line(
            "validators",
            "run",
            kernel=of_op(kernel.op, kernel.name),
            case=case.id,
            contract=None if origin == "declared" else contract or "identify",
            device=None if self.device == "cpu" else self.device,
        )
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
            reproduce=reproduce,
            provenance=dataclasses.replace(kernel.provenance(self.device), chosen=dict(kernel.chosen(case))),
            peak_bytes=torch.cuda.max_memory_allocated() if self.device.startswith("cuda") else 0,
            **fields,  # type: ignore[arg-type]
        )
