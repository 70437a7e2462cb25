"""Compare the output of a PTPC GEMM with its admissible set, in blocks, and measure its bias."""

from __future__ import annotations

import math

import torch

from reference.contract import GemmContract
from reference.formats import FORMATS, FloatFormat, format_of, key_of, round_to, ulp
from reference.ptpc_gemm import (
    Accumulate,
    GemmTruth,
    emulate,
    emulated_truth,
    gemm_truth,
    is_emulated,
    operand,
    says_nothing,
)
from validators.cases.tensors import GemmInputs, GemmOutputs
from validators.judge.gemm_bias import Bias
from validators.judge.statistics import BiasResult
from validators.judge.tally import Tally
from validators.records.record import Comparison, Element
from validators.records.wording import WIDE

BLOCK_ELEMENTS = {"cpu": 2**22, "cuda": 2**26}
"""float64 elements of one operand block, so that memory stays flat: 32 MB on a CPU, 512 MB on a GPU, where a block
has a cost of its own (hundreds of launches for its spot check) whatever its size."""
OUTPUT_ELEMENTS = {"cpu": 2**22, "cuda": 2**23}
"""float64 elements of one output block; some 20 of them are alive at a time."""


def compare_gemm(inputs: GemmInputs, outputs: GemmOutputs, contract: GemmContract) -> list[Comparison]:
    """Every output element against its admissible set."""
    return judge_gemm(inputs, outputs, contract)[0]


def judge_gemm(
    inputs: GemmInputs, outputs: GemmOutputs, contract: GemmContract, accumulate: Accumulate = emulate
) -> tuple[list[Comparison], BiasResult]:
    """The comparison of ``out`` and the bias over all its judged elements. a [M, K], b [N, K] FP8.

    accumulate: how a known matrix unit is emulated; ``run`` passes a faster path on a GPU.
    """
    with torch.inference_mode():
        m, k = inputs.a.shape
        n = inputs.b.shape[0]
        fmt, out_format = format_of(inputs.a.dtype), format_of(outputs.out.dtype)
        tally, bias_sums = Tally("out", m, n), Bias(out_format, contract, k)
        kind = "cuda" if inputs.a.is_cuda else "cpu"
        rows = max(1, min(m, BLOCK_ELEMENTS[kind] // k))
        cols = max(1, min(n, BLOCK_ELEMENTS[kind] // k, OUTPUT_ELEMENTS[kind] // rows))
        sa, sb = inputs.a_scale.reshape(-1), inputs.b_scale.reshape(-1)
        known = is_emulated(contract)
        for c in range(0, n, cols):
            b = None if known else operand(inputs.b[c : c + cols], fmt)
            for r in range(0, m, rows):
                a = None if known else operand(inputs.a[r : r + rows], fmt)
                bias = None if inputs.bias is None else inputs.bias[c : c + cols]
                part = sa[r : r + rows], sb[c : c + cols], bias, out_format, contract
                if a is None or b is None:
                    left, right = inputs.a[r : r + rows], inputs.b[c : c + cols]
                    truth = emulated_truth(left, right, fmt, *part, accumulate)
                else:
                    truth = gemm_truth(a, b, *part)
                got = outputs.out[r : r + rows, c : c + cols].double()
                judged, nearest = _judge_block(tally, r, c, got, truth, out_format.name, None if known else k)
                if inputs.bias is None:
                    bias_sums.add(got, truth, judged & got.isfinite(), None if known else nearest)
        return [tally.result()], bias_sums.result(inputs.a, inputs.b)


def _judge_block(
    tally: Tally, first_row: int, first_col: int, got: torch.Tensor, truth: GemmTruth, out_name: str, k: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Judge one block; returns which elements have a finite truth, bool [m, n], and the nearest admissible outputs to
    it, float64 [m, n]. k: products, None for a known unit.

    An element inside a set that is as wide as an output is not judged: ``reference.ptpc_gemm.says_nothing``.
    """
    fmt, known = FORMATS[out_name], k is None
    expected_nan = truth.value.isnan()
    # Beyond T's largest value a kernel may store Inf or saturate: reported only, where it does one of the two.
    spilled = (truth.high.isinf() | truth.low.isinf()) & ~expected_nan
    if bool(spilled.any()):
        seen = got[spilled]
        tally.note(
            f"beyond the range of {out_name}: Inf" if bool(seen.isinf().all()) else f"beyond the range of {out_name}"
        )
    inside = (got >= truth.low) & (got <= truth.high)
    inside = torch.where(expected_nan, got.isnan(), inside)
    regular = ~spilled & ~expected_nan
    judged = ~(spilled & _beyond(got, truth, fmt))
    if k is not None:
        wide = regular & inside & says_nothing(truth, k)
        if bool(wide.any()):
            tally.note(WIDE, 0)
            tally.wide += int(wide.sum())
            judged &= ~wide
    tally.judged += int(judged.sum())
    tally.unspecified += int((~judged).sum())
    finite = judged & regular
    tally.ambiguous += int((finite & (truth.low < truth.high)).sum())
    bad = judged & ~inside
    nearest = truth.low if known else round_to(truth.value, fmt)
    steps = (key_of(got, fmt) - key_of(nearest, fmt)).round()
    tally.step_counts(steps[finite])
    err = (got - truth.value).abs()
    budget = truth.error + 0.5 * ulp(truth.value, fmt)
    # A known unit leaves no budget: its error against the exact sum is part of the admissible value.
    use = torch.where(bad, torch.full_like(err, math.inf), torch.zeros_like(err)) if known else err / budget
    tally.use(use[finite], bad[finite])
    if bool(bad.any()):
        # Where the exact value lies beyond T's range, differences from it are no numbers.
        sizes = (steps.abs() if known else use).nan_to_num(nan=math.inf)
        _violations(tally, (first_row, first_col), bad, got, truth, out_name, steps=steps, budget=budget, sizes=sizes)
    return regular, nearest


def _violations(
    tally: Tally,
    first: tuple[int, int],
    bad: torch.Tensor,
    got: torch.Tensor,
    truth: GemmTruth,
    out_name: str,
    *,
    steps: torch.Tensor,
    budget: torch.Tensor,
    sizes: torch.Tensor,
) -> None:
    """Count the elements of bad, bool [m, n]; first: row and column of the block. sizes: what ranks them."""
    row, col = bad.nonzero().unbind(1)
    tally.violation_points(row + first[0], col + first[1])
    err = (got - truth.value).abs()
    tally.count_nonfinite(got[row, col], truth.value[row, col])

    def make(i: int) -> Element:
        at = int(row[i]), int(col[i])
        return Element(
            row=at[0] + first[0],
            col=at[1] + first[1],
            exact=float(truth.value[at]),
            low=float(truth.low[at]),
            high=float(truth.high[at]),
            got=float(got[at]),
            got_bits=bits_of(float(got[at]), out_name),
            err=float(err[at]),
            budget=float(budget[at]),
            err_ulp=float(steps[at]),
            terms={
                "accumulate and scales": float(truth.error[at]),
                "store": float(0.5 * ulp(truth.value[at], FORMATS[out_name])),
            },
        )

    tally.candidates(sizes[row, col], err[row, col].nan_to_num(nan=math.inf), make)


def _beyond(got: torch.Tensor, truth: GemmTruth, fmt: FloatFormat) -> torch.Tensor:
    """Which outputs a set that reaches beyond T's range allows, bool [m, n]: a value of the set, Inf with its sign, or
    T's largest value where the whole set lies beyond it. A zero, a NaN or the other sign are none of these."""
    most = fmt.max
    low = torch.where(truth.low == math.inf, torch.full_like(got, most), truth.low)
    high = torch.where(truth.high == -math.inf, torch.full_like(got, -most), truth.high)
    return (got >= low) & (got <= high)


def bits_of(value: float, name: str) -> str:
    """Bytes of a value of T in hex."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[name]
    scalar = torch.tensor(value, dtype=dtype)
    if name == "fp32":
        return f"0x{int(scalar.view(torch.int32)) & 0xFFFFFFFF:08x}"
    return f"0x{int(scalar.view(torch.int16)) & 0xFFFF:04x}"
