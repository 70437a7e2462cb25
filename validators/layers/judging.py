"""One op at one place of a walk: it is run, judged by its admissible sets, and its failure is explained."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NoReturn, TypeVar

from torch import Tensor

from reference.contract import Contract
from reference.glm4_moe import Layer
from validators.calls.call import Claim, KernelFault
from validators.calls.integrity import OutputError, check_outputs
from validators.errors import RunFault
from validators.explain.explanation import explain
from validators.layers.path import KernelPath
from validators.layers.result import Contracts, Judged, Result
from validators.layers.timing import Clock
from validators.layers.wiring import Memory, Suspects
from validators.layers.wiring import explain as explain_wiring
from validators.records.record import Check, Explanation, Status
from validators.records.verdict import decide
from validators.run import judge
from validators.words import PATH

_T = TypeVar("_T")
MOST_EXPLAINED = 3
"""Failures that are explained; what follows from the first ones needs no explanation of its own."""


class StoppedError(RunFault):
    """An arm cannot go on: a step raised or returned what is no output. The judged list says where."""


@dataclass
class Arm:
    """One path under test with what the walk knows about it: its hidden state, and the residual that it must use
    next."""

    name: Literal["fused", "unfused"]
    path: KernelPath
    hidden: Tensor
    expected: Tensor | None = None
    memory: Memory = field(default_factory=Memory)


@dataclass(frozen=True)
class Step:
    """One op of one layer of one arm, on one rank. began: what its duration is counted from. own_norm: as of
    ``Judged``."""

    arm: Arm
    layer: Layer
    name: str
    op: str
    rank: int = 0
    began: float = field(default_factory=time.perf_counter)
    own_norm: bool = False


class Bench:
    """Runs and judges steps, and keeps what it found in ``result``. suspects: the operands that a step of a layer may
    have been given by mistake."""

    def __init__(
        self, result: Result, contracts: Contracts, clock: Clock, suspects: Callable[[Step], Suspects]
    ) -> None:
        self.result, self.contracts, self.clock = result, contracts, clock
        self._suspects = suspects
        self._explained = 0

    def attempt(self, step: Step, action: Callable[[], _T]) -> _T:
        """What ``action`` gives; raises StoppedError where it raises anything."""
        try:
            with self.clock.phase(f"kernels: {step.op}"):
                return action()
        except Exception as error:
            # A path and its kernels are the user's own code, which may raise anything.
            c = self.contracts
            contracts: dict[str, Contract] = dict(zip(PATH, (c.norm, c.quant, c.gemm), strict=True))
            text = " ".join(str(error).split())[:300] or "without a message"
            self._stop(step, contracts[step.op].name, f"the step raised {type(error).__name__}: {text}")

    def judge(self, step: Step, claim: Claim, contract: Contract, checks: Sequence[Check] = ()) -> None:
        """Judge what a step gave; raises StoppedError where that is no output. checks: the walk's own."""
        with self.clock.phase(f"judging {step.op}"):
            self._judge(step, claim, contract, checks)

    def _judge(self, step: Step, claim: Claim, contract: Contract, checks: Sequence[Check]) -> None:
        try:
            shape = check_outputs(claim.inputs, claim.outputs, strict=False)
        except OutputError as error:
            self._stop(step, contract.name, str(error), own_norm=step.own_norm)
        comparisons, more = judge(claim, contract)
        found = (shape, *checks, *more)
        status, reasons = decide(comparisons, found)
        explanations: tuple[Explanation, ...] = ()
        if status is Status.FAILED and self._explained < MOST_EXPLAINED:
            self._explained += 1
            arithmetic = explain(claim.inputs, claim.outputs, contract, comparisons, list(found))
            explanations = (*self._wiring(step, claim, contract), *arithmetic)
        self.result.judged.append(
            Judged(
                arm=step.arm.name,
                layer=step.layer.index,
                step=step.name,
                op=step.op,
                contract=contract.name,
                status=status,
                reasons=reasons,
                comparisons=tuple(comparisons),
                checks=found,
                explanations=explanations,
                shape=claim.inputs.shape,
                rank=step.rank,
                seconds=time.perf_counter() - step.began,
                own_norm=step.own_norm,
            )
        )

    def _wiring(self, step: Step, claim: Claim, contract: Contract) -> tuple[Explanation, ...]:
        try:
            return explain_wiring(claim, contract, step.arm.memory, self._suspects(step))
        except KernelFault as fault:
            # A hypothesis runs the kernels on operands that they may refuse, and words are not worth the walk.
            return (Explanation("", f"the wiring was not tried: {fault}", kind="observation"),)

    def _stop(self, step: Step, contract: str, reason: str, *, own_norm: bool = False) -> NoReturn:
        arm, layer = step.arm.name, step.layer.index
        self.result.judged.append(
            Judged(
                arm=arm,
                layer=layer,
                step=step.name,
                op=step.op,
                contract=contract,
                status=Status.ERROR,
                reasons=(reason,),
                rank=step.rank,
                own_norm=own_norm,
            )
        )
        raise StoppedError(f"layer {layer}, {step.name}, {arm} path: {reason}")
