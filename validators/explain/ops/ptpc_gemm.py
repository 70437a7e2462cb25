"""How outputs of ``ptpc_gemm`` are explained."""

from __future__ import annotations

from reference.contract import GemmContract
from validators.cases.tensors import GemmInputs, GemmOutputs
from validators.explain.gemm import explain_gemm
from validators.explain.op import Asked, Diagnosis, ExplainOp
from validators.explain.units import match_shares, sentences


def _diagnose(asked: Asked) -> Diagnosis:
    return Diagnosis(*explain_gemm(asked.inputs, asked.outputs, asked.contract))


def _without_effect(contract: GemmContract, inputs: GemmInputs) -> set[str]:
    known = contract.accumulator not in ("fp32", "unknown")
    without = {"scaling"} if known else {"splits", "scale_order"}
    return without | (set() if inputs.bias is not None else {"bias"})


def _units(inputs: GemmInputs, outputs: GemmOutputs) -> tuple[str, ...]:
    return sentences(match_shares(inputs, outputs))


EXPLAIN = ExplainOp(
    diagnose=_diagnose,
    # Positive data tells units apart best: on zero-mean data promoted partial sums are often exact.
    cases=(("gaussian", {"n": 128, "k": 1024}), ("positive_mean", {"n": 128, "k": 1024})),
    without_effect=_without_effect,
    units=_units,
    changes=False,
)
