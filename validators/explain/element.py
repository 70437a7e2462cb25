"""The whole arithmetic of one output element, step by step: what ``python -m validators explain`` prints.

A verdict says that an element is wrong; this says where on the way from the inputs to its bits. Every number comes from
the functions of ``reference`` that the verdict is made of, evaluated on the element's own row (and column), so the last
line agrees with the comparison. Pure text from tensors; only ``explain_case`` runs a kernel.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch

from reference.add_rmsnorm_quant import NormTruth, Residuals, rounded_y
from reference.contract import Contract, NormQuantContract
from reference.formats import bytes_of, code_preimages, decode, order_key
from reference.quantize import Codes, Row, Scales
from reference.setting import Setting
from validators.cases.tensors import (
    Inputs,
    NormQuantInputs,
    NormQuantOutputs,
    Outputs,
    as_ints,
    named_tensors,
)
from validators.errors import UserError
from validators.explain.lines import Text, interval, number, row_of, terms, with_bits
from validators.explain.op import op_explained
from validators.judge.compare import settled
from validators.judge.norm import Truth, truth_of
from validators.judge.sets import oracle_of, values_of

_MOST_CODES = 8


class ElementError(UserError):
    """An element, an output or a contract that the case does not have; its message is one sentence."""


def element_text(
    inputs: Inputs,
    outputs: Outputs,
    contract: Contract,
    row: int,
    col: int,
    output: str | None = None,
) -> Text:
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
        (op_explained(inputs.op).lines or _by_sets)(text, inputs, outputs, chosen_contract, row, col, chosen)
    return text


# ---- add_rmsnorm_quant and per_token_quant


@dataclass(frozen=True)
class _Row:
    """One row of a quantizing op: x bf16/fp16 [1, N], codes uint8 [1, N] and scale as the kernel stored them."""

    setting: Setting
    truth: Truth
    x: torch.Tensor
    codes: torch.Tensor
    scale: float
    col: int


def quant_lines(
    text: Text, inputs: Inputs, outputs: Outputs, contract: NormQuantContract, row: int, col: int, output: str
) -> None:
    """Adds the lines of an output of a quantizer: x, scale, codes."""
    r = _row_lines(text, inputs, outputs, contract, row, col)
    _scale_and_code_lines(text, r, output)


def norm_lines(
    text: Text,
    inputs: NormQuantInputs,
    outputs: NormQuantOutputs,
    contract: NormQuantContract,
    row: int,
    col: int,
    output: str,
) -> None:
    """Adds the lines of an output of the fused norm: x, residual, norm, scale, codes."""
    r = _row_lines(text, inputs, outputs, contract, row, col)
    assert isinstance(r.truth, NormTruth)
    if r.truth.residuals is not None:
        assert outputs.residual_out is not None
        got = row_of(outputs.residual_out, row)
        _residual_lines(text, r.truth.residuals, got, col, judged=output == "residual_out")
        if output == "residual_out":
            return
    _norm_lines(text, r, r.truth)
    _scale_and_code_lines(text, r, output)


def _row_lines(text: Text, inputs: Any, outputs: Any, contract: NormQuantContract, row: int, col: int) -> _Row:
    setting = Setting.of(inputs, contract)
    tensors = named_tensors(inputs).items()
    one = dataclasses.replace(inputs, **{n: row_of(t, row) if n in inputs.ROWS else t.cpu() for n, t in tensors})
    r = _Row(
        setting,
        truth_of(one, setting),
        row_of(inputs.x, row),
        row_of(bytes_of(outputs.codes), row),
        float(row_of(outputs.scale, row)[0, 0]),
        col,
    )
    text.add("x", with_bits(float(r.x[0, col]), setting.storage.name))
    return r


def _scale_and_code_lines(text: Text, r: _Row, output: str) -> None:
    own, ok = _scale_lines(text, r)
    if output == "scale":
        text.verdict(ok, _scale_words(ok))
    elif not bool(r.truth.scale.regular[0]):
        _special_lines(text, r, r.truth.scale)
    else:
        _code_lines(text, r, r.truth.codes(torch.tensor([0]), torch.tensor([r.col]), own.reshape(1)))


def _by_sets(text: Text, inputs: Inputs, outputs: Outputs, contract: Contract, row: int, col: int, output: str) -> None:
    """Of an op whose oracle gives the sets: inputs of the element, its set, what the kernel gave."""
    for name, tensor in named_tensors(inputs).items():
        one = row_of(tensor, row)[0, col] if name in inputs.ROWS else tensor.reshape(-1)[0]
        text.add(name, number(float(one)))
    sets = oracle_of(inputs.op).sets(inputs, contract, slice(row, row + 1))[output]
    exact, low, high = (float(part[0, col]) for part in (sets.exact, sets.low, sets.high))
    raw = named_tensors(outputs)[output]
    values, _ = values_of(row_of(raw, row))
    got = float(values[0, col])
    bits = int(row_of(as_ints(raw), row)[0, col]) % 256 ** raw.element_size()
    text.add("exact", number(exact))
    text.add("admissible", "NaN" if math.isnan(exact) else interval(low, high))
    text.add("got", f"{number(got)}  0x{bits:0{2 * raw.element_size()}x}")
    ok = bool(sets.admits(values)[0, col])
    text.verdict(None if bool(sets.open[0, col]) else ok, f"{output} {number(got)}")


def _residual_lines(text: Text, sets: Residuals, got: torch.Tensor, c: int, *, judged: bool) -> None:
    """got: the kernel's row, T [1, n]."""
    name = sets.setting.storage.name
    text.add("residual", with_bits(float(sets.residual[0, c]), name))
    total = float(sets.x[0, c].float() + sets.residual[0, c].float())
    text.add("sum", f"{with_bits(total, 'fp32')} = fl32(x + residual)")
    rule = "rounded to nearest even" if sets.setting.contract.store(name) == "rne" else "rounded toward zero"
    words = f"{with_bits(float(sets.stored[0, c]), name)}, the sum {rule}"
    text.add("residual_out", words, f"{with_bits(float(got[0, c]), name)}, got")
    if not judged:
        return
    if not bool(sets.differ(got)[0, c]):
        text.verdict(True, "bit for bit")
        return
    at = torch.tensor([0]), torch.tensor([c])
    ok = bool(sets.admits(got[at].double(), *at))
    nan = "bit for bit" if bool(got[at].isnan()) else "flushed to zero, which the contract allows"
    text.verdict(ok, nan if ok else "the bits differ, and one value is admissible")


def _norm_lines(text: Text, r: _Row, truth: NormTruth) -> None:
    c, setting, contract = r.col, r.setting, r.setting.contract
    z, w, n = truth.z[0, c], truth.weight[c], setting.n
    what = "x" if truth.residuals is None else "the sum" if contract.norm_input == "unrounded" else "residual_out"
    text.add("norm input z", f"{with_bits(float(z), 'fp32')} = {what}")
    square = float((truth.z[0].double() ** 2).sum() / n)
    rms = float(truth.rms[0])
    text.add("mean square", f"{number(square)} over {n} elements, exact; eps {setting.eps:g}")
    text.add(
        "rms",
        f"{number(rms)} = 1/sqrt(mean square + eps)",
        f"the kernel's fp32 value in {interval(float(truth.rms_low[0]), float(truth.rms_high[0]))}, "
        f"budget {terms(setting.rms_budget)}",
    )
    text.add("weight w", with_bits(float(w), "fp32") + (" = fl32(1 + weight)" if setting.gemma else ""))
    if not contract.rounds_y:
        text.add("y", f"{number(float(z.double() * w.double()) * rms)} = z * rms * w, not rounded before the quantizer")
        return
    name, cast = setting.storage.name, setting.dtype
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
        float(rounded_y(*at, side, setting, direction))
        for side, direction in ((truth.rms_low, -1.0), (truth.rms_high, 1.0))
    ]
    text.add("", f"|y| in {interval(*ends)} over the interval of rms")


def _scale_lines(text: Text, r: _Row) -> tuple[torch.Tensor, bool | None]:
    """amax, the admissible scales and the kernel's; returns the scale that codes are judged with, and the verdict."""
    truth, contract, qmax = r.truth.scale, r.setting.contract, r.setting.qmax
    kind, sizes = Row(int(truth.kind[0])), r.truth.y[0].abs()
    where = int(sizes.nan_to_num(nan=torch.inf).argmax())
    text.add(
        "amax",
        f"{number(float(sizes[where]))} = |y| of column {where}; "
        f"in fp32 {interval(float(truth.amax_low[0]), float(truth.amax_high[0]))}",
    )
    if contract.amax_floor:
        text.add("", f"not below {contract.amax_floor:g}")
    rule = f"amax * fl32(1/{qmax:g})" if contract.scale_rule == "multiply" else f"amax / {qmax:g}"
    rule += f", rounded to {r.setting.storage.name}" if contract.round_scale else ""
    text.add("scale", f"{with_bits(float(truth.nominal[0]), 'fp32')} = {rule}, row is {kind.name}")
    source = (
        f", budget {terms(r.truth.scale_budget)}"
        if truth.grid is None
        else f", from an amax that is a value of {truth.grid.name}"
    )
    text.add("", f"admissible {interval(float(truth.low[0]), float(truth.high[0]))}{source}")
    got = torch.tensor([r.scale], dtype=torch.float64)
    ok = None if bool(truth.open[0]) else bool(truth.admits(got))
    word = {True: "admissible", False: "NOT admissible", None: "unspecified"}[ok]
    text.add("", f"{with_bits(r.scale, 'fp32')}, got: {word}")
    regular = bool(ok) and kind is not Row.NONFINITE
    return (got if regular else truth.nominal).reshape(()), ok


def _scale_words(ok: bool | None) -> str:
    if ok is None:
        return "the contract says nothing about this row"
    return "the scale is in its set" if ok else "the scale is outside its set"


def _special_lines(text: Text, r: _Row, scales: Scales) -> None:
    """A code of a row that is judged as a whole."""
    got, due = r.codes[0, r.col], scales.due(0)
    value = float(decode(got.reshape(1), r.setting.fp8))
    text.add("got", f"0x{int(got):02x} = {number(value)}")
    if due is None:
        kind = Row(int(scales.kind[0]))
        text.verdict(None, f"the row is {kind.name}, about which the contract says nothing")
    elif math.isnan(due):
        text.verdict(math.isnan(value), "the row holds NaN or Inf, so every code must be NaN")
    else:
        text.verdict(value == due, "every y of this row is zero, so every code must decode to zero")


def _code_lines(text: Text, r: _Row, sets: Codes) -> None:
    """The interval of t, the codes that it meets with their values and midpoints, and the verdict."""
    contract, fp8 = r.setting.contract, r.setting.fp8
    got = int(r.codes[0, r.col])
    cancels = r.truth.cancels and int(r.truth.scale.kind[0]) == int(Row.NORMAL)
    how = "rms cancels" if cancels else "by the kernel's own scale"
    how += f", rounded to {r.setting.storage.name}" if contract.round_quotient else ""
    text.add("t = y/s", f"{number(float(sets.nominal))} in {interval(float(sets.low), float(sets.high))}  ({how})")
    lowest, highest = code_preimages(fp8, contract.overflow, "cpu")
    keys = [int(order_key(sets.encoded(end))) for end in (sets.low, sets.high)]
    # One neighbour on each side, so that the midpoints that t did not cross can be seen.
    order = list(range(min(keys) - 1, max(keys) + 2))[:_MOST_CODES]
    codes = [k if k > 0 else (128 - k if k < 0 else 0) for k in order]
    candidates = [c for c in codes if 0 <= c < 256 and c not in fp8.nan_codes]
    labelled = False
    for c in candidates + ([] if got in candidates or (got == 0x80 and 0 in candidates) else [got]):
        code = torch.tensor([c], dtype=torch.uint8)
        meets = bool(sets.admits(code).admissible)
        marks = [*(["admissible"] if meets else []), *(["got"] if c == got or (c == 0 and got == 0x80) else [])]
        span = f"t from {number(float(lowest[c]))} to {number(float(highest[c]))}"
        shown = "NaN" if c in fp8.nan_codes else f"{number(float(decode(code, fp8)))}, {span}"
        text.add("" if labelled else "codes", f"0x{c:02x} = {shown}" + (f"  <- {', '.join(marks)}" if marks else ""))
        labelled = True
    code = torch.tensor([got], dtype=torch.uint8)
    found, nearest = sets.admits(code), f"0x{int(sets.encoded(sets.nominal)):02x}"
    if bool(found.admissible):
        text.verdict(True, "the only admissible code" if bool(found.single) else "one of several admissible codes")
    elif got in fp8.nan_codes:
        text.verdict(False, f"got NaN where {nearest} is due")
    else:
        text.verdict(False, f"{int(sets.steps(code)):+d} steps from {nearest}")
