"""The whole arithmetic of one output element, step by step: what ``python -m validators explain`` prints.

A verdict says that an element is wrong; this says where on the way from the inputs to its bits. Every number comes from
the functions of ``reference`` that the verdict is made of, evaluated on the element's own row (and column), so the last
line agrees with the comparison. Pure text from tensors; only ``explain_case`` runs a kernel.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from reference import budgets
from reference.add_rmsnorm_quant import (
    NormTruth,
    code_t_bounds,
    norm_truth,
    quant_truth,
    residual_flushes,
    rounded_y,
    y_nominal,
)
from reference.contract import Contract, GemmContract, NormQuantContract
from reference.formats import FloatFormat, bytes_of, code_preimages, decode, encode, format_of, order_key
from reference.quantize import Row, ScaleTruth, codes_admissible, scale_admissible, t_bounds
from validators.calls.call import KernelFault, run_kernel
from validators.cases.tensors import (
    GemmInputs,
    GemmOutputs,
    Inputs,
    NormQuantInputs,
    NormQuantOutputs,
    Outputs,
    as_ints,
    named_tensors,
)
from validators.errors import UserError
from validators.explain.element_gemm import explain_out
from validators.explain.identify import choose_contract
from validators.explain.lines import Text, interval, number, row_of, terms, with_bits
from validators.judge.compare import settled
from validators.judge.gemm import bits_of
from validators.judge.sets import oracle_of, values_of

_MOST_CODES = 8


class ElementError(UserError):
    """An element, an output or a contract that the case does not have; its message is one sentence."""


def element_report(
    inputs: Inputs,
    outputs: Outputs,
    contract: Contract,
    row: int,
    col: int,
    output: str | None = None,
) -> str:
    """The arithmetic of element (row, col) of ``output``, ending in the verdict on it.

    inputs, outputs: of one op, on any one device; rows of a 3-D case are counted over [M, N]. output: codes (default),
    scale (any column of the row will do) or residual_out; for ``ptpc_gemm`` out. Raises ElementError for an element
    outside the output, an output that the op does not have, or a contract of another op.
    """
    if outputs.op != inputs.op:
        raise ElementError(f"outputs of type {type(outputs).__name__} do not belong to {type(inputs).__name__}")
    tensors = named_tensors(outputs)
    known, rows = list(tensors), inputs.row_count
    chosen = output or known[0]
    if chosen not in known:
        raise ElementError(f"this case has no output {chosen!r}; known: {', '.join(known)}")
    # A scale is the row's: any column of the row will do.
    cols = max(t.shape[-1] for t in tensors.values())
    if not (0 <= row < rows and 0 <= col < cols):
        raise ElementError(f"({row}, {col}) is outside the output, which has {rows} rows and {cols} columns")
    if inputs.op not in contract.ops:
        raise ElementError(f"contract {contract.name!r} does not belong to these inputs")
    text = Text([f"{chosen} of row {row}, column {col}, under contract {contract.name}"])
    with torch.inference_mode():
        chosen_contract = settled(inputs, outputs, contract)
        _LINES.get(inputs.op, _by_sets)(text, inputs, outputs, chosen_contract, row, col, chosen)
    return "\n".join(text.lines)


# ---- add_rmsnorm_quant and per_token_quant


@dataclass(frozen=True)
class _Row:
    """One row of a quantizing op: x fp32-convertible [1, N]; code, scale as the kernel stored them."""

    x: torch.Tensor
    code: torch.Tensor
    scale: float
    fp8: FloatFormat
    storage: FloatFormat
    contract: NormQuantContract
    col: int

    @property
    def qmax(self) -> float:
        return self.contract.qmax(self.fp8.name)


def _row_lines(text: Text, inputs: Any, outputs: Any, contract: NormQuantContract, row: int, col: int) -> _Row:
    x, codes = row_of(inputs.x, row), row_of(bytes_of(outputs.codes), row)
    scale = float(row_of(outputs.scale, row)[0, 0])
    r = _Row(x, codes[0, col], scale, format_of(inputs.fp8_dtype), format_of(x.dtype), contract, col)
    text.add("x", with_bits(float(x[0, col]), r.storage.name))
    return r


def _explain_quant(
    text: Text, inputs: Inputs, outputs: Outputs, contract: NormQuantContract, row: int, col: int, output: str
) -> None:
    r = _row_lines(text, inputs, outputs, contract, row, col)
    scales = quant_truth(r.x.float(), contract, r.fp8.name, r.storage)
    y = r.x.double()
    own, ok = _scale_lines(text, r, scales, y, r.storage, None)
    if output == "scale":
        text.verdict(ok, _scale_words(ok))
        return
    size = y[0, col].abs()
    sign = -1.0 if bool(torch.signbit(y[0, col])) else 1.0
    low, high = t_bounds(size, size, own, own, contract, r.storage)
    nominal = torch.minimum(torch.maximum(size / own, low), high)
    ends = sorted((float(low) * sign, float(high) * sign))
    _code_lines(text, r, scales, float(nominal) * sign, ends[0], ends[1], cancels=False)


def _explain_norm(
    text: Text,
    inputs: NormQuantInputs,
    outputs: NormQuantOutputs,
    contract: NormQuantContract,
    row: int,
    col: int,
    output: str,
) -> None:
    r = _row_lines(text, inputs, outputs, contract, row, col)
    residual = None if inputs.residual is None else row_of(inputs.residual, row)
    truth = norm_truth(r.x, residual, inputs.weight.cpu(), inputs.eps, contract, r.fp8.name, gemma=inputs.gemma)
    if residual is not None:
        _residual_lines(text, r, residual, truth, outputs, row, judged=output == "residual_out")
        if output == "residual_out":
            return
    _norm_lines(text, r, truth, inputs)
    own, ok = _scale_lines(
        text, r, truth.scale, y_nominal(truth, contract, r.storage, gemma=inputs.gemma), truth.grid, inputs
    )
    if output == "scale":
        text.verdict(ok, _scale_words(ok))
        return
    at = torch.tensor([0]), torch.tensor([col])
    t, low, high = code_t_bounds(truth, *at, own.reshape(1), contract, r.qmax, r.storage, gemma=inputs.gemma)
    _code_lines(text, r, truth.scale, float(t), float(low), float(high), cancels=contract.cancels)


def _explain_out(
    text: Text, inputs: GemmInputs, outputs: GemmOutputs, contract: GemmContract, row: int, col: int, output: str
) -> None:
    explain_out(text, inputs, outputs, contract, row, col)


def _by_sets(text: Text, inputs: Inputs, outputs: Outputs, contract: Contract, row: int, col: int, output: str) -> None:
    """Of an op whose oracle gives the sets: inputs of the element, its set, what the kernel gave."""
    for name, tensor in named_tensors(inputs).items():
        one = row_of(tensor, row)[0, col] if name in inputs.ROWS else tensor.reshape(-1)[0]
        text.add(name, number(float(one)))
    sets = oracle_of(inputs.op).sets(inputs, contract, slice(row, row + 1))[output]
    exact, low, high = (float(part[0, col]) for part in (sets.exact, sets.low, sets.high))
    raw = named_tensors(outputs)[output]
    got = float(values_of(row_of(raw, row))[0][0, col])
    bits = int(row_of(as_ints(raw), row)[0, col]) % 256 ** raw.element_size()
    text.add("exact", number(exact))
    text.add("admissible", "NaN" if math.isnan(exact) else interval(low, high))
    text.add("got", f"{number(got)}  0x{bits:0{2 * raw.element_size()}x}")
    ok = math.isnan(got) if math.isnan(exact) else low <= got <= high
    text.verdict(None if bool(sets.open[0, col]) else ok, f"{output} {number(got)}")


def _residual_lines(
    text: Text, r: _Row, residual: torch.Tensor, truth: NormTruth, outputs: NormQuantOutputs, row: int, *, judged: bool
) -> None:
    c = r.col
    text.add("residual", with_bits(float(residual[0, c]), r.storage.name))
    total = float(r.x[0, c].float() + residual[0, c].float())
    text.add("sum", f"{with_bits(total, 'fp32')} = fl32(x + residual)")
    assert truth.residual is not None
    assert outputs.residual_out is not None
    want = float(truth.residual[0, c])
    rule = "rounded to nearest even" if r.contract.store(r.storage.name) == "rne" else "rounded toward zero"
    got = float(row_of(outputs.residual_out, row)[0, c])
    text.add(
        "residual_out", f"{with_bits(want, r.storage.name)}, the sum {rule}", f"{with_bits(got, r.storage.name)}, got"
    )
    if not judged:
        return
    same = bits_of(got, r.storage.name) == bits_of(want, r.storage.name) or (got != got and want != want)
    values = (got, want, float(r.x[0, c]), float(residual[0, c]))
    g, w, a, b = (torch.tensor(v, dtype=torch.float64) for v in values)
    flushed = bool(residual_flushes(g, w, a, b, r.contract, r.storage))
    text.verdict(
        same or flushed,
        "flushed to zero, which the contract allows"
        if flushed and not same
        else "bit for bit"
        if same
        else "the bits differ, and one value is admissible",
    )


def _norm_lines(text: Text, r: _Row, truth: NormTruth, inputs: NormQuantInputs) -> None:
    c, n, contract = r.col, r.x.shape[-1], r.contract
    z, w = truth.z[0, c], truth.weight[c]
    what = "x" if inputs.residual is None else "the sum" if contract.norm_input == "unrounded" else "residual_out"
    text.add("norm input z", f"{with_bits(float(z), 'fp32')} = {what}")
    square = float((truth.z[0].double() ** 2).sum() / n)
    rms = float(truth.rms[0])
    text.add("mean square", f"{number(square)} over {n} elements, exact; eps {inputs.eps:g}")
    budget = budgets.rms_budget(contract, n)
    text.add(
        "rms",
        f"{number(rms)} = 1/sqrt(mean square + eps)",
        f"the kernel's fp32 value in {interval(float(truth.rms_low[0]), float(truth.rms_high[0]))}, "
        f"budget {terms(budget)}",
    )
    text.add("weight w", with_bits(float(w), "fp32") + (" = fl32(1 + weight)" if inputs.gemma else ""))
    if not contract.rounds_y:
        text.add("y", f"{number(float(z.double() * w.double()) * rms)} = z * rms * w, not rounded before the quantizer")
        return
    name = r.storage.name
    cast = {"bf16": torch.bfloat16, "fp16": torch.float16}[name]
    y = z * truth.rms[0].float()
    text.add("z * rms", with_bits(float(y), "fp32"))
    if contract.round_after_normalize:
        y = y.to(cast).float()
        text.add("", f"{with_bits(float(y), name)}, rounded to {name}")
    y = y * w
    text.add("y", f"{with_bits(float(y), 'fp32')} = (z * rms) * w")
    if contract.round_after_weight:
        y = y.to(cast).float()
        text.add("", f"{with_bits(float(y), name)}, rounded to {name}")
    at = z.reshape(1), w.reshape(1)
    ends = [
        float(rounded_y(*at, side, contract, r.storage, direction, inputs.gemma))
        for side, direction in ((truth.rms_low, -1.0), (truth.rms_high, 1.0))
    ]
    text.add("", f"|y| in {interval(*ends)} over the interval of rms")


def _scale_lines(
    text: Text,
    r: _Row,
    truth: ScaleTruth,
    y: torch.Tensor,
    grid: FloatFormat | None,
    norm: NormQuantInputs | None,
) -> tuple[torch.Tensor, bool | None]:
    """amax, the admissible scales and the kernel's; returns the scale that codes are judged with, and the verdict."""
    contract, kind = r.contract, Row(int(truth.kind[0]))
    sizes = y[0].abs()
    where = int(sizes.nan_to_num(nan=torch.inf).argmax())
    text.add(
        "amax",
        f"{number(float(sizes[where]))} = |y| of column {where}; "
        f"in fp32 {interval(float(truth.amax_low[0]), float(truth.amax_high[0]))}",
    )
    if contract.amax_floor:
        text.add("", f"not below {contract.amax_floor:g}")
    rule = f"amax * fl32(1/{r.qmax:g})" if contract.scale_rule == "multiply" else f"amax / {r.qmax:g}"
    rule += f", rounded to {r.storage.name}" if contract.round_scale else ""
    text.add("scale", f"{with_bits(float(truth.nominal[0]), 'fp32')} = {rule}, row is {kind.name}")
    step = budgets.scale_step_budget(contract, r.qmax)
    if norm is not None and grid is None:
        whole = budgets.rms_budget(contract, r.x.shape[-1]) + budgets.multiply_budget(contract, gemma=norm.gemma) + step
        text.add("", f"admissible {interval(float(truth.low[0]), float(truth.high[0]))}, budget {terms(whole)}")
    else:
        text.add(
            "",
            f"admissible {interval(float(truth.low[0]), float(truth.high[0]))}"
            + (f", from an amax that is a value of {grid.name}" if grid is not None else ""),
        )
    got = torch.tensor([r.scale], dtype=torch.float64)
    ok: bool | None = bool(scale_admissible(got, truth, contract, r.qmax, grid, r.storage))
    if kind is Row.NONFINITE and contract.nonfinite == "propagate":
        ok = bool(got.isnan())
    elif kind in (Row.NONFINITE, Row.UNSPECIFIED):
        ok = None
    word = {True: "admissible", False: "NOT admissible", None: "unspecified"}[ok]
    text.add("", f"{with_bits(r.scale, 'fp32')}, got: {word}")
    regular = bool(ok) and kind is not Row.NONFINITE
    return (got if regular else truth.nominal).reshape(()), ok


def _scale_words(ok: bool | None) -> str:
    if ok is None:
        return "the contract says nothing about this row"
    return "the scale is in its set" if ok else "the scale is outside its set"


def _code_lines(text: Text, r: _Row, truth: ScaleTruth, t: float, low: float, high: float, *, cancels: bool) -> None:
    """The interval of t, the codes that it meets with their values and midpoints, and the verdict."""
    kind, contract = Row(int(truth.kind[0])), r.contract
    got = int(r.code)
    value = float(decode(r.code.reshape(1), r.fp8))
    if kind not in (Row.NORMAL, Row.FLOORED):
        text.add("got", f"0x{got:02x} = {number(value)}")
        if kind is Row.ZERO:
            text.verdict(value == 0, "every y of this row is zero, so every code must decode to zero")
        elif kind is Row.NONFINITE and contract.nonfinite == "propagate":
            text.verdict(value != value, "the row holds NaN or Inf, so every code must be NaN")
        else:
            text.verdict(None, f"the row is {kind.name}, about which the contract says nothing")
        return
    how = "rms cancels" if cancels and kind is Row.NORMAL else "by the kernel's own scale"
    how += f", rounded to {r.storage.name}" if contract.round_quotient else ""
    text.add("t = y/s", f"{number(t)} in {interval(low, high)}  ({how})")
    lowest, highest = code_preimages(r.fp8, contract.overflow, "cpu")
    ends = encode(torch.tensor([low, high], dtype=torch.float64), r.fp8, contract.overflow)
    keys = [int(k) for k in order_key(ends)]
    # One neighbour on each side, so that the midpoints that t did not cross can be seen.
    order = list(range(min(keys) - 1, max(keys) + 2))[:_MOST_CODES]
    codes = [k if k > 0 else (128 - k if k < 0 else 0) for k in order]
    candidates = [c for c in codes if 0 <= c < 256 and c not in r.fp8.nan_codes]
    bounds = torch.tensor([low, high], dtype=torch.float64)
    labelled = False
    for c in candidates + ([] if got in candidates or (got == 0x80 and 0 in candidates) else [got]):
        code = torch.tensor([c], dtype=torch.uint8)
        meets = bool(codes_admissible(code, bounds[:1], bounds[1:], r.fp8, contract)[0])
        marks = [*(["admissible"] if meets else []), *(["got"] if c == got or (c == 0 and got == 0x80) else [])]
        span = f"t from {number(float(lowest[c]))} to {number(float(highest[c]))}"
        shown = "NaN" if c in r.fp8.nan_codes else f"{number(float(decode(code, r.fp8)))}, {span}"
        text.add("" if labelled else "codes", f"0x{c:02x} = {shown}" + (f"  <- {', '.join(marks)}" if marks else ""))
        labelled = True
    code = torch.tensor([got], dtype=torch.uint8)
    admissible, single = codes_admissible(code, bounds[:1], bounds[1:], r.fp8, contract)
    nearest = encode(torch.tensor([t], dtype=torch.float64), r.fp8, contract.overflow)
    steps = int(order_key(code)[0]) - int(order_key(nearest)[0])
    if bool(admissible):
        text.verdict(True, "the only admissible code" if bool(single) else "one of several admissible codes")
    elif value != value:
        text.verdict(False, f"got NaN where 0x{int(nearest[0]):02x} is due")
    else:
        text.verdict(False, f"{steps:+d} steps from 0x{int(nearest[0]):02x}")


# ---- the command


def command(parsed: argparse.Namespace) -> int:
    """Runs the kernel on the case and prints the report of one element: 1 if it is not admissible, else 0.

    Raises ElementError, UsageError, KernelError or CaseError with one sentence.
    """
    from validators.cases.suite import find
    from validators.commands.plan import one_kernel

    case = find([parsed.case])[0]
    parsed.op = case.op
    name, kernel, device = one_kernel(parsed)
    if reason := kernel.unsupported(case):
        raise ElementError(f"kernel {name} does not offer this case: {reason}")
    try:
        contract, origin, _ = choose_contract(kernel, case, parsed.contract, device)
        if contract is None:
            raise ElementError(f"the outputs of {name} fit no contract; name one with --contract")
        claim = run_kernel(kernel, case, device)
    except KernelFault as fault:
        raise ElementError(str(fault)) from fault
    report = element_report(claim.inputs, claim.outputs, contract, parsed.row, parsed.col, parsed.output)
    print(f"{name} on {case.id}, contract {origin}")
    print(report)
    return 1 if "NOT ADMISSIBLE" in report.splitlines()[-1] else 0


_LINES: dict[str, Callable[..., None]] = {
    "add_rmsnorm_quant": _explain_norm,
    "per_token_quant": _explain_quant,
    "ptpc_gemm": _explain_out,
}
"""By op; the elements of an op that is not listed are explained by the sets that its oracle gives."""
