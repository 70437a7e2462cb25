"""The arithmetic of one output of ``ptpc_gemm``, for ``validators.explain.element``."""

from __future__ import annotations

import torch

from reference import budgets
from reference.accumulators import get_unit
from reference.contract import GemmContract
from reference.formats import bytes_of, decode, format_of, key_of
from reference.ptpc_gemm import (
    GemmTruth,
    accumulator_error,
    emulate,
    epilogues,
    is_emulated,
    largest_exponent,
    operand,
    truth_of,
)
from reference.quantize import is_power_of_two
from validators.cases.tensors import GemmInputs, GemmOutputs
from validators.explain.lines import Text, interval, number, with_bits
from validators.judge.gemm import bits_of

_LARGEST = 3


def gemm_lines(
    text: Text, inputs: GemmInputs, outputs: GemmOutputs, contract: GemmContract, row: int, col: int, output: str
) -> None:
    """Adds the lines of out[row, col]: products, accumulator, scales, bias, admissible outputs, got."""
    fmt = format_of(inputs.a.dtype)
    r, c = slice(row, row + 1), slice(col, col + 1)
    a, b = bytes_of(inputs.a)[r].cpu(), bytes_of(inputs.b)[c].cpu()
    sa, sb = inputs.a_scale.reshape(-1)[r].cpu(), inputs.b_scale.reshape(-1)[c].cpu()
    bias = None if inputs.bias is None else inputs.bias[c].cpu()
    one = GemmInputs(a.view(inputs.a.dtype), sa, b.view(inputs.b.dtype), sb, bias, inputs.out_dtype)
    truth = truth_of(one, contract, slice(None), slice(None))
    products = decode(a, fmt)[0] * decode(b, fmt)[0]
    known = is_emulated(contract)
    _product_lines(text, a, b, products, truth)
    text.add("scales", f"token {with_bits(float(sa), 'fp32')}", f"channel {with_bits(float(sb), 'fp32')}")
    if known:
        _unit_lines(text, emulate(a, b, fmt, contract), truth, sa, sb, contract)
    else:
        free = is_power_of_two(sa.double())[:, None] & is_power_of_two(sb.double())[None, :]
        values = operand(a, fmt), operand(b, fmt)
        error = accumulator_error(contract, *values, truth.magnitude, free if contract.scaling == "operands" else None)
        _bound_lines(text, float(error), float(largest_exponent(*values)), inputs.a.shape[1], contract)
    exact = float(truth.accumulator) * float(sa) * float(sb)
    text.add("exact", f"{number(exact)} = sum * token * channel")
    if not known:
        text.add("", f"off by at most {number(float(truth.error))} before the store")
    if bias is not None:
        where = {
            "epilogue": "before the store",
            "after_store": "after the store",
            "either": "before or after the store",
        }
        text.add(
            "bias",
            f"{with_bits(float(bias), truth.setting.out.name)}, added {where[contract.bias]}",
            f"{number(float(truth.value))} with the exact value",
        )
    _verdict(text, outputs.out[r, c].double().cpu(), truth)


def _product_lines(text: Text, a: torch.Tensor, b: torch.Tensor, products: torch.Tensor, truth: GemmTruth) -> None:
    k = products.numel()
    text.add("sum", f"{number(float(truth.accumulator))} of {k} products, exact")
    nonzero = int((products != 0).sum())
    text.add("", f"sum|a*b| {number(float(products.abs().sum()))}, {nonzero} products are not zero")
    for index in products.abs().nan_to_num(nan=torch.inf).topk(min(_LARGEST, max(nonzero, 1))).indices.tolist():
        text.add(
            "", f"k {index}: 0x{int(a[0, index]):02x} * 0x{int(b[0, index]):02x} = {number(float(products[index]))}"
        )


def _bound_lines(text: Text, error: float, top: float, k: int, contract: GemmContract) -> None:
    if contract.accumulator == "fp32":
        operands = contract.scaling == "operands"
        factor = budgets.dequantized_sum_budget(k) if operands else budgets.fp32_sum_budget(k)
        text.add(
            "accumulator",
            f"fp32, any order: off by at most {number(factor)} * sum|a*b|"
            + (", on operands scaled first" if operands else ""),
        )
    else:
        alpha, beta = budgets.unknown_unit_budget(k)
        text.add(
            "accumulator",
            f"unknown unit: off by at most {number(alpha)} * sum|a*b| + {number(beta)} * E",
            f"E = {number(top)} = 2^(largest exponent in a + largest exponent in b)",
            budgets.UNKNOWN_ASSUMPTION,
        )
    text.add("", f"that is {number(error)} here" if error else "here nothing rounds, in any order: the sum is exact")


def _unit_lines(
    text: Text,
    accumulator: torch.Tensor,
    truth: GemmTruth,
    sa: torch.Tensor,
    sb: torch.Tensor,
    contract: GemmContract,
) -> None:
    unit = get_unit(contract.accumulator)
    value = float(accumulator)
    text.add(
        "accumulator",
        f"{with_bits(value, 'fp32')}, unit {unit.name} bit for bit",
        f"{number(value - float(truth.accumulator))} from the exact sum",
    )
    names = ("(acc * token) * channel", "(acc * channel) * token", "acc * (token * channel)")
    order = ("token_first", "channel_first", "scales_first")
    shown = [n for n, o in zip(names, order, strict=True) if contract.scale_order in ("any", o)]
    for i, (name, scaled) in enumerate(zip(shown, epilogues(accumulator, sa, sb, contract), strict=True)):
        text.add("epilogue" if i == 0 else "", f"{with_bits(float(scaled), 'fp32')} = {name}")


def _verdict(text: Text, output: torch.Tensor, truth: GemmTruth) -> None:
    """output: float64 [1, 1]."""
    fmt, got = truth.setting.out, float(output)
    low, high, value, inside = float(truth.low), float(truth.high), float(truth.value), bool(truth.admits(output))
    if value == value:
        ends = key_of(torch.tensor([low, high], dtype=torch.float64), fmt)
        count = round(float(ends[1] - ends[0])) + 1 if abs(low) + abs(high) < torch.inf else 0
        words = f", {count} value{'s' if count > 1 else ''} of {fmt.name}" if count else ""
        text.add("admissible", interval(low, high) + words)
    text.add("got", f"{number(got)}  {bits_of(got, fmt.name)} {fmt.name}")
    if value != value:
        text.verdict(inside, "a NaN among the operands makes the output NaN")
    elif bool(truth.spilled):
        text.verdict(None if inside else False, f"the exact value is beyond the range of {fmt.name}")
    elif inside and bool(truth.wide):
        text.verdict(None, "inside a set that is as wide as an output, which says nothing about it")
    elif inside:
        text.verdict(True, "the only admissible value" if low == high else "inside the admissible set")
    elif got != got:
        text.verdict(False, "got NaN where the exact value is a number")
    else:
        end = low if got < low else high
        keys = key_of(torch.tensor([got, end], dtype=torch.float64), fmt)
        text.verdict(False, f"{abs(round(float(keys[0] - keys[1])))} steps of {fmt.name} outside the admissible set")
