"""How outputs of ``ptpc_gemm`` are judged: each against its set, and all together for a bias."""

from __future__ import annotations

from typing import Any

import torch

from reference.contract import GemmContract
from validators.cases.tensors import GemmInputs, GemmOutputs
from validators.judge.gemm import judge_gemm
from validators.judge.gpu.accumulate import accumulate_on
from validators.judge.op import JudgeOp
from validators.judge.statistics import FALSE_ALARM, BiasResult
from validators.records.record import Check, Comparison

BIAS_ELEMENTS = 4096
"""Fewer outputs than this say nothing about a bias below the budget of a single element."""


def _compare(inputs: GemmInputs, outputs: GemmOutputs, contract: GemmContract, *_: Any) -> list[Comparison]:
    return judge_gemm(inputs, outputs, contract)[0]


def _whole(inputs: GemmInputs, outputs: GemmOutputs, contract: GemmContract) -> tuple[list[Comparison], list[Check]]:
    comparisons, bias = judge_gemm(inputs, outputs, contract, accumulate_on(inputs.device.type))
    return comparisons, [bias_check(bias, contract)] if bias.elements >= BIAS_ELEMENTS else []


def bias_check(bias: BiasResult, contract: GemmContract) -> Check:
    """Are the rounding errors of the GEMM balanced? Judged where the contract declares rounding to nearest."""
    judged = contract.accumulator == "fp32"
    detail = (
        f"mean error in the direction of the exact value, beyond that of rounding the exact value itself, is "
        f"{bias.relative:.2g} of it over {bias.elements:,} outputs; "
        f"round-to-nearest stays within {bias.effect:.2g} except with probability {FALSE_ALARM:g}"
    )
    return Check("bias", bias.ok if judged else None, detail, "statistical")


def _none_open(inputs: GemmInputs, contract: GemmContract) -> torch.Tensor:
    return torch.zeros(inputs.row_count, dtype=torch.bool)


JUDGE = JudgeOp(compare=_compare, open_rows=_none_open, whole=_whole)
