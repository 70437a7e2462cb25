"""The whole arithmetic of one output element, step by step: what ``python -m validators explain`` prints.

A verdict says that an element is wrong; this says where on the way from the inputs to its bits. Every number comes from
the functions of ``reference`` that the verdict is made of, evaluated on the element's own row (and column), so the last
line agrees with the comparison. Pure text from tensors; only ``explain_case`` runs a kernel.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field

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
from reference.contract import GemmContract, NormQuantContract
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
    QuantInputs,
    QuantOutputs,
)
from validators.explain.identify import choose_contract
from validators.judge.compare import settled
from validators.judge.gemm import bits_of

_LABEL = 14
_MOST_CODES = 8


class ElementError(ValueError):
    """An element, an output or a contract that the case does not have; its message is one sentence."""


@dataclass
class Text:
    """Labelled lines, in the order in which the arithmetic runs."""

    lines: list[str] = field(default_factory=list)

    def add(self, label: str, *texts: str) -> None:
        """``label`` before the first text, the others below it."""
        for i, text in enumerate(texts):
            self.lines.append("  " + (label if i == 0 else "").ljust(_LABEL) + text)

    def verdict(self, ok: bool | None, what: str) -> None:
        """The last line: ok None where the contract leaves the element unspecified."""
        word = {True: "ADMISSIBLE", False: "NOT ADMISSIBLE", None: "UNSPECIFIED"}[ok]
        self.add("verdict", f"{word}: {what}")


def element_report(
    inputs: Inputs,
    outputs: Outputs,
    contract: NormQuantContract | GemmContract,
    row: int,
    col: int,
    output: str | None = None,
) -> str:
    """The arithmetic of element (row, col) of ``output``, ending in the verdict on it.

    inputs, outputs: of one op, on any one device; rows of a 3-D case are counted over [M, N]. output: codes (default),
    scale (any column of the row will do) or residual_out; for ``ptpc_gemm`` out. Raises ElementError for an element
    outside the output, an output that the op does not have, or a contract of another op.
    """
    if isinstance(inputs, GemmInputs) and isinstance(outputs, GemmOutputs):
        rows, cols, known = len(inputs.a), len(inputs.b), ("out",)
    elif isinstance(inputs, NormQuantInputs | QuantInputs) and isinstance(outputs, NormQuantOutputs | QuantOutputs):
        rows, cols = inputs.x.numel() // inputs.x.shape[-1], inputs.x.shape[-1]
        stored = isinstance(outputs, NormQuantOutputs) and outputs.residual_out is not None
        known = ("codes", "scale", *(("residual_out",) if stored else ()))
    else:
        raise ElementError(f"outputs of type {type(outputs).__name__} do not belong to {type(inputs).__name__}")
    chosen = output or known[0]
    if chosen not in known:
        raise ElementError(f"this case has no output {chosen!r}; known: {', '.join(known)}")
    if not (0 <= row < rows and 0 <= col < cols):
        raise ElementError(f"({row}, {col}) lies outside the output, which has {rows} rows and {cols} columns")
    if isinstance(contract, GemmContract) != isinstance(inputs, GemmInputs):
        raise ElementError(f"contract {contract.name!r} does not belong to these inputs")
    text = Text([f"{chosen} of row {row}, column {col}, under contract {contract.name}"])
    with torch.inference_mode():
        if isinstance(inputs, GemmInputs) and isinstance(outputs, GemmOutputs):
            from validators.explain.element_gemm import explain_out

            assert isinstance(contract, GemmContract)
            explain_out(text, inputs, outputs, contract, row, col)
        else:
            assert isinstance(contract, NormQuantContract)
            contract = settled(inputs, outputs, contract)
            _explain_row(text, inputs, outputs, contract, row, col, chosen)  # type: ignore[arg-type]
    return "\n".join(text.lines)


def _line(tensor: torch.Tensor, row: int) -> torch.Tensor:
    """Row ``row`` of [..., N] as [1, N] on the CPU."""
    return tensor.reshape(-1, tensor.shape[-1])[row : row + 1].cpu()


def number(value: float) -> str:
    """Up to 10 significant digits; enough to tell fp32 numbers apart."""
    return f"{value:.10g}"


def with_bits(value: float, name: str) -> str:
    """``0.4375  0x3ee0 bf16``: a value of the format ``name`` (bf16, fp16, fp32) with its bits."""
    return f"{number(value)}  {bits_of(value, name)} {name}"


def interval(low: float, high: float) -> str:
    """``[low, high]``, or the one value where they are equal."""
    return number(low) if low == high else f"[{number(low)}, {number(high)}]"


def terms(budget: budgets.Budget) -> str:
    """``25 u = reduction 20.5 + mean and eps 2.5 + rsqrt 2``."""
    return f"{budget.total_u:.4g} u = " + " + ".join(f"{name} {value:.4g}" for name, value in budget.terms)


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


def _explain_row(
    text: Text,
    inputs: NormQuantInputs | QuantInputs,
    outputs: NormQuantOutputs | QuantOutputs,
    contract: NormQuantContract,
    row: int,
    col: int,
    output: str,
) -> None:
    x = _line(inputs.x, row)
    codes = _line(bytes_of(outputs.codes), row)
    scale = float(_line(outputs.scale, row)[0, 0])
    r = _Row(x, codes[0, col], scale, format_of(inputs.fp8_dtype), format_of(x.dtype), contract, col)
    text.add("x", with_bits(float(x[0, col]), r.storage.name))
    if isinstance(inputs, QuantInputs):
        scales = quant_truth(x.float(), contract, r.fp8.name, r.storage)
        y = x.double()
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
        return
    assert isinstance(outputs, NormQuantOutputs)
    residual = None if inputs.residual is None else _line(inputs.residual, row)
    truth = norm_truth(x, residual, inputs.weight.cpu(), inputs.eps, contract, r.fp8.name, gemma=inputs.gemma)
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
    got = float(_line(outputs.residual_out, row)[0, c])
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
    return "the scale lies in its set" if ok else "the scale lies outside its set"


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
