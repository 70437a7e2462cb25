"""Compare the outputs of one kernel with the admissible sets of its contract. Data only; no policy.

Which code judges an op is said by its file in ``ops``, or else by the sets that its oracle gives.
"""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import torch

from reference.contract import Contract
from validators.cases.tensors import Inputs, Outputs
from validators.errors import UserError
from validators.judge.gpu.survey import Surveyor
from validators.judge.op import op_judged
from validators.judge.tally import Tally
from validators.records.record import Comparison

AnyContract = TypeVar("AnyContract", bound=Contract)


class CompareError(UserError):
    """Inputs, outputs and contract that do not belong together; one sentence."""


def compare(
    inputs: Inputs,
    outputs: Outputs,
    contract: Contract,
    *,
    survey: Surveyor | None = None,
) -> list[Comparison]:
    """Comparisons of every output of the op that ``inputs`` belongs to.

    Tensors may be on any one device; the work is done there. survey: what ``judge.gpu.survey.survey_on`` gives for
    the device, to judge in one pass what is in order; the comparisons are the same without it. Raises CompareError if
    the contract is for another op.
    """
    with torch.inference_mode():
        return _compare(inputs, outputs, contract, survey, Tally)


def admits_all(inputs: Inputs, outputs: Outputs, contract: Contract) -> bool:
    """Whether ``compare`` finds no violation. The same judgement, which ends at the first output with one: a search
    among hundreds of contracts, nearly all of them wrong, took three times as long with whole comparisons."""
    with torch.inference_mode():
        return any(_nothing_outside(inputs, outputs, member) for member in contract.members())


class _Outside(Exception):
    """An element is outside its set, and no more was asked."""


class _UpToTheFirst(Tally):
    """A tally that ends the comparison where it is told of the first violations."""

    def violation_points(self, row: torch.Tensor, col: torch.Tensor) -> None:
        if row.numel():
            raise _Outside
        super().violation_points(row, col)


def _nothing_outside(inputs: Inputs, outputs: Outputs, member: Contract) -> bool:
    try:
        return not any(c.violations for c in _compare(inputs, outputs, member, None, _UpToTheFirst))
    except _Outside:
        return False


def _compare(
    inputs: Inputs,
    outputs: Outputs,
    contract: Contract,
    survey: Surveyor | None,
    tally: type[Tally],
) -> list[Comparison]:
    """``compare``; tally: what counts for an output of the ops that quantize."""
    if inputs.op not in contract.ops:
        raise CompareError(f"contract {contract.name!r} does not belong to op {inputs.op}")
    if outputs.op != inputs.op:
        raise CompareError(f"outputs of type {type(outputs).__name__} do not belong to {type(inputs).__name__}")
    if len(contract.members()) > 1:
        return _unsettled(inputs, outputs, contract, survey)
    return op_judged(inputs.op).compare(inputs, outputs, contract, survey, tally)


def settled(inputs: Inputs, outputs: Outputs, contract: AnyContract) -> AnyContract:
    """The one of the contract's ``members`` that the outputs follow: the first that admits them all, or else the one
    with the fewest violations."""
    members = contract.members()
    if len(members) == 1:
        return contract
    counts = []
    for member in members:
        counts.append(sum(c.violations for c in compare(inputs, outputs, member)))
        if not counts[-1]:
            break
    return members[counts.index(min(counts))]


def _unsettled(inputs: Inputs, outputs: Outputs, contract: Contract, survey: Surveyor | None) -> list[Comparison]:
    """The comparisons under the member that ``settled`` names. All outputs of a call are held against one member: the
    set is the union of the members' sets of whole outputs, and a mixture of two members is outside of it."""
    members, found, counts = contract.members(), [], []
    for member in members:
        found.append(compare(inputs, outputs, member, survey=survey))
        counts.append(sum(c.violations for c in found[-1]))
        # Later members cost another judgement each, and could not admit more.
        if not counts[-1]:
            break
    best = counts.index(min(counts))
    follows = ", ".join(f"{name}={getattr(members[best], name)}" for name, _ in contract.unsettled)
    words = f"of what {contract.name} leaves unsettled, judged by {follows}"
    last = found[best][-1]
    observed = f"{last.observed}; {words}" if last.observed else words
    return [*found[best][:-1], dataclasses.replace(last, observed=observed)]


def open_rows(inputs: Inputs, contract: Contract) -> torch.Tensor:
    """Rows whose scale and codes the contract, or one of its members, leaves open, bool [m] on the CPU; m is counted
    over flattened inputs."""
    if contract.unsettled:
        return torch.stack([open_rows(inputs, member) for member in contract.members()]).any(dim=0)
    return op_judged(inputs.op).open_rows(inputs, contract)
