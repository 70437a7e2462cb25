"""What would explain the violations of a kernel that failed? Sentences, the most convincing first.

The order: what was never written or was overwritten; one changed field of the declared contract; a known defect that
meets every violation and contradicts nothing; two changed fields; another preset; a defect that explains a part. A
contract is asked about every element by the same judgement that gave the verdict, and a defect about the right
elements as well as the wrong ones: what contradicts them is no explanation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from reference.contract import Contract
from validators.cases.tensors import Inputs, Outputs
from validators.explain.op import Asked, Diagnosis, op_explained
from validators.judge.compare import settled
from validators.records.record import Check, Comparison, Explanation


def explain(
    inputs: Inputs,
    outputs: Outputs,
    contract: Contract,
    comparisons: Sequence[Comparison],
    checks: Sequence[Check] = (),
) -> tuple[Explanation, ...]:
    """The explanations of ``diagnose``."""
    return diagnose(inputs, outputs, contract, comparisons, checks).explanations


def diagnose(
    inputs: Inputs,
    outputs: Outputs,
    contract: Contract,
    comparisons: Sequence[Comparison],
    checks: Sequence[Check] = (),
) -> Diagnosis:
    """What would explain the violations, best first; empty if nothing known does.

    A failed integrity check (unwritten elements, overwritten guards or inputs) explains before any arithmetic does;
    a failed invariance is a symptom and comes after.
    """
    broken = {kind: [c for c in checks if c.ok is False and c.kind == kind] for kind in ("integrity", "invariance")}
    first, last = (tuple(Explanation(c.name, c.detail, kind="check") for c in found) for found in broken.values())
    failing = [c.output for c in comparisons if c.violations]
    if not failing:
        return Diagnosis(first + last)
    with torch.inference_mode():
        contract = settled(inputs, outputs, contract)
        found = op_explained(inputs.op).diagnose(Asked(inputs, outputs, contract, failing, comparisons))
    return Diagnosis(first + found.explanations + last, None if first else found.near)
