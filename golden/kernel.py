"""One golden of a kernel: run it, judge it under its contract, compare its bits; and judge stored outputs alone."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import torch

from golden.outcome import Outcome, State
from golden.sets import elsewhere
from golden.store import GoldenError, Row, Tensor
from golden.tensors import Drift, drift_of, from_stored, stored_outputs
from reference.contract import Contract, get_contract
from validators import arch
from validators.calls.call import Claim, KernelFault, run_kernel
from validators.cases.case import Case
from validators.cases.inputs import build, digest
from validators.cases.op import op_named
from validators.errors import UserError
from validators.kernels import registry
from validators.kernels.kernel import Kernel
from validators.records.command_line import command_line
from validators.records.evidence import Golden
from validators.records.provenance import provenance
from validators.records.record import Check, Comparison, Record
from validators.records.record import Status as Verdict
from validators.records.verdict import decide, strength
from validators.run import judge

LANE = "goldens"
"""Lane of a golden's record: it says that bits are as accepted, and never counts for a case of the suite's lanes."""


@dataclasses.dataclass(frozen=True)
class Judged:
    """Outputs of a kernel with their verdict. outputs: by name, on the CPU."""

    outputs: dict[str, torch.Tensor]
    comparisons: tuple[Comparison, ...]
    checks: tuple[Check, ...]
    verdict: Verdict
    reasons: tuple[str, ...]
    inputs: str
    seconds: float


def find(name: str | None, op: str) -> Kernel | None:
    """The kernel of the suite's registry, or None. A user's own kernel has no golden: nobody else could check it."""
    return next((k for k in registry.all_kernels() if k.name == name and k.op == op), None)


def run(kernel: Kernel, case: Case, contract: Contract, device: str) -> Judged:
    """Run and judge; raises KernelFault where there are no outputs."""
    claim = run_kernel(kernel, case, device)
    comparisons, statistical = judge(claim, contract)
    checks = (*claim.checks, *statistical)
    verdict, reasons = decide(comparisons, checks)
    outputs = stored_outputs(claim.outputs)
    return Judged(outputs, tuple(comparisons), checks, verdict, reasons, digest(claim.inputs), claim.kernel_seconds)


def judge_stored(row: Row, tensors: dict[str, Tensor]) -> tuple[Verdict, tuple[str, ...]]:
    """Verdict of outputs that are stored whole, under the row's contract; no kernel runs."""
    inputs = build(Case.parse(row.case))
    if digest(inputs) != row.inputs:
        raise GoldenError(f"golden {row.id}: its inputs have other bits here than where it was proposed")
    named: dict[str, Any] = {name: from_stored(t, row.outputs[name].dtype) for name, t in tensors.items()}
    try:
        outputs = op_named(row.op).inputs.OUTPUTS(**named)
        contract = get_contract(row.op, str(row.contract))
        comparisons, statistical = judge(Claim(inputs, outputs), contract)
    except (UserError, TypeError, KeyError, RuntimeError, ValueError) as error:
        raise GoldenError(f"golden {row.id}: its outputs cannot be judged: {error}") from None
    return decide(comparisons, statistical)


def check(row: Row, tensors: dict[str, Tensor], device: str | None) -> Outcome:
    """Outcome of a kernel golden. device: where its architecture is, None if this machine has no such device."""
    start = time.perf_counter()
    kernel = find(row.kernel, row.op)
    if kernel is None:
        return _not_here(row, None, device, f"no kernel {row.kernel} for {row.op} in this suite")
    if device is None:
        return _not_here(row, kernel, device, f"needs {row.arch}, which this machine has not")
    if reason := kernel.unavailable(device.split(":")[0]):
        return _not_here(row, kernel, device, reason)
    case = Case.parse(row.case)
    if reason := kernel.unsupported(case):
        return _failed(row, kernel, device, start, Verdict.UNSUPPORTED, f"the kernel no longer offers it: {reason}")
    now = digest(build(case, device=device))
    if now != row.inputs:
        sentence = f"the input generator makes other bits: {now[:12]} and not {row.inputs[:12]}"
        return _failed(row, kernel, device, start, Verdict.UNTESTED, sentence)
    try:
        judged = run(kernel, case, get_contract(row.op, str(row.contract)), device)
    except KernelFault as fault:
        return _failed(row, kernel, device, start, Verdict.ERROR, str(fault))
    except KeyError as error:
        return _failed(row, kernel, device, start, Verdict.UNTESTED, str(error.args[0]))
    return _compare(row, tensors, kernel, device, judged, start)


def _compare(
    row: Row, tensors: dict[str, Tensor], kernel: Kernel, device: str, judged: Judged, start: float
) -> Outcome:
    if set(judged.outputs) != set(row.outputs):
        sentence = f"outputs are {', '.join(sorted(judged.outputs))} now and were {', '.join(sorted(row.outputs))}"
        return _failed(row, kernel, device, start, Verdict.ERROR, sentence)
    try:
        found = [drift_of(name, row.outputs[name], tensors[name], judged.outputs[name]) for name in row.outputs]
    except GoldenError as error:
        return _failed(row, kernel, device, start, Verdict.ERROR, str(error))
    drifts: tuple[Drift, ...] = tuple(d for d in found if d is not None)
    words = "; ".join(d.sentence() for d in drifts)
    state = State.DRIFTED if drifts else State.UNCHANGED
    if judged.verdict is not Verdict.PASSED:
        # Bits that were accepted once and are now refused: the contract or the judge has changed.
        moved = f"other bits than accepted ({words})" if drifts else "the accepted bits, but"
        words = f"{moved}: {judged.verdict.value}: {'; '.join(judged.reasons)}"
        state = State.FAILED
    elif kernel.contract != row.contract:
        words = f"accepted under contract {row.contract}, and the kernel declares {kernel.contract} now" + (
            f"; {words}" if words else ""
        )
        state = State.DRIFTED
    elif drifts and (other := elsewhere(row.isa, row.library, kernel.name)):
        words = f"{other}; admissible, but {words}"
        state = State.UNTESTED
    seen = Check("golden", True if state is State.UNCHANGED else None, words or "the accepted bits", "determinism")
    record = _record(
        row,
        kernel,
        device,
        judged.verdict,
        judged.reasons,
        state,
        comparisons=judged.comparisons,
        checks=(*judged.checks, seen),
        strength=strength(judged.comparisons),
        kernel_seconds=judged.seconds,
        seconds=time.perf_counter() - start,
    )
    return Outcome(
        row.id, row.kind, kernel.name, str(row.arch), state, words, drifts, record, time.perf_counter() - start
    )


def _failed(row: Row, kernel: Kernel, device: str, start: float, verdict: Verdict, sentence: str) -> Outcome:
    seconds = time.perf_counter() - start
    record = _record(row, kernel, device, verdict, (sentence,), State.FAILED, seconds=seconds)
    return Outcome(row.id, row.kind, kernel.name, str(row.arch), State.FAILED, sentence, (), record, seconds)


def _not_here(row: Row, kernel: Kernel | None, device: str | None, sentence: str) -> Outcome:
    record = _record(row, kernel, device or "cpu", Verdict.UNTESTED, (sentence,), State.MISSING)
    return Outcome(row.id, row.kind, str(row.kernel), str(row.arch), State.MISSING, sentence, (), record)


def _record(
    row: Row,
    kernel: Kernel | None,
    device: str,
    verdict: Verdict,
    reasons: tuple[str, ...],
    state: State,
    **fields: Any,
) -> Record:
    """The verdict as a record: whether the outputs are admissible. That they drifted is not judged."""
    return Record(
        status=verdict,
        reasons=reasons,
        kernel=str(row.kernel),
        op=row.op,
        case=row.case,
        lane=LANE,
        contract=row.contract,
        contract_from="declared",
        device=device,
        arch=str(row.arch),
        emulated=row.emulated,
        fake=kernel.fake if kernel else row.fake,
        reproduce=command_line("golden", "check", id=row.id, device=None if device == "cpu" else device),
        stage="goldens",
        golden=Golden(row.id, state.value),
        provenance=kernel.provenance(device) if kernel else provenance(device),
        **fields,
    )


def versions_of(kernel: Kernel | None, device: str) -> dict[str, str]:
    """What a golden's bits may depend on: libraries, Python, CPU, GPU and its driver."""
    where = provenance(device)
    found = dict(kernel.versions() if kernel else arch.versions())
    found |= {"python": where.python, "platform": where.platform, "cpu": where.cpu}
    if where.gpu:
        found["gpu"] = where.gpu
        found |= _driver()
    return {str(k): str(v) for k, v in found.items()}


def _driver() -> dict[str, str]:
    for name in ("/proc/driver/nvidia/version", "/sys/module/amdgpu/version"):
        try:
            return {"driver": " ".join(Path(name).read_text().splitlines()[0].split())}
        except (OSError, IndexError):
            continue
    return {}
