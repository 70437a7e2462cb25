"""Compare the output of a PTPC GEMM with its admissible set, in blocks, and measure its bias."""

from __future__ import annotations

import math

import torch

from reference.contract import GemmContract
from reference.formats import format_of, key_of, round_to, ulp
from reference.ptpc_gemm import Accumulate, GemmTruth, emulate, is_emulated, truth_of
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


def judge_gemm(
    inputs: GemmInputs, outputs: GemmOutputs, contract: GemmContract, accumulate: Accumulate = emulate
) -> tuple[list[Comparison], BiasResult]:
    """The comparison of ``out`` and the bias over all its judged elements. a [M, K], b [N, K] FP8.

    accumulate: how a known matrix unit is emulated; ``run`` passes a faster path on a GPU.
    """
    with torch.inference_mode():
        m, k = inputs.a.shape
        n = inputs.b.shape[0]
        tally, bias_sums = Tally("out", m, n), Bias(format_of(outputs.out.dtype), contract, k)
        kind = "cuda" if inputs.a.is_cuda else "cpu"
        rows = max(1, min(m, BLOCK_ELEMENTS[kind] // k))
        cols = max(1, min(n, BLOCK_ELEMENTS[kind] // k, OUTPUT_ELEMENTS[kind] // rows))
        known = is_emulated(contract)
        for c in range(0, n, cols):
            for r in range(0, m, rows):
                truth = truth_of(inputs, contract, slice(r, r + rows), slice(c, c + cols), accumulate)
                got = outputs.out[r : r + rows, c : c + cols].double()
                regular, nearest = _judge_block(tally, r, c, got, truth)
                if inputs.bias is None:
                    bias_sums.add(got, truth, regular & got.isfinite(), None if known else nearest)
        return [tally.result()], bias_sums.result(inputs.a, inputs.b)


def _judge_block(
    tally: Tally, first_row: int, first_col: int, got: torch.Tensor, truth: GemmTruth
) -> tuple[torch.Tensor, torch.Tensor]:
    """Judge one block; returns which elements have a finite truth, bool [m, n], and the nearest admissible outputs to
    it, float64 [m, n].

    An element inside a set that is as wide as an output is not judged, nor one beyond T's range that is admitted.
    """
    fmt, known = truth.setting.out, is_emulated(truth.setting.contract)
    inside, spilled = truth.admits(got), truth.spilled
    if bool(spilled.any()):
        seen = got[spilled]
        tally.note(
            f"beyond the range of {fmt.name}: Inf" if bool(seen.isinf().all()) else f"beyond the range of {fmt.name}"
        )
    regular = ~spilled & ~truth.value.isnan()
    judged = ~(spilled & inside)
    wide = truth.wide & inside
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
        # Where the exact value is beyond T's range, differences from it are no numbers.
        sizes = (steps.abs() if known else use).nan_to_num(nan=math.inf)
        _violations(tally, (first_row, first_col), bad, got, truth, steps=steps, budget=budget, sizes=sizes)
    return regular, nearest


def _violations(
    tally: Tally,
    first: tuple[int, int],
    bad: torch.Tensor,
    got: torch.Tensor,
    truth: GemmTruth,
    *,
    steps: torch.Tensor,
    budget: torch.Tensor,
    sizes: torch.Tensor,
) -> None:
    """Count the elements of bad, bool [m, n]; first: row and column of the block. sizes: what ranks them."""
    fmt, (row, col) = truth.setting.out, bad.nonzero().unbind(1)
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
            got_bits=bits_of(float(got[at]), fmt.name),
            err=float(err[at]),
            budget=float(budget[at]),
            err_ulp=float(steps[at]),
            terms={
                "accumulate and scales": float(truth.error[at]),
                "store": float(0.5 * ulp(truth.value[at], fmt)),
            },
        )

    tally.candidates(sizes[row, col], err[row, col].nan_to_num(nan=math.inf), make)


def bits_of(value: float, name: str) -> str:
    """Bytes of a value of T in hex."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[name]
    scalar = torch.tensor(value, dtype=dtype)
    if name == "fp32":
        return f"0x{int(scalar.view(torch.int32)) & 0xFFFFFFFF:08x}"
    return f"0x{int(scalar.view(torch.int16)) & 0xFFFF:04x}"
