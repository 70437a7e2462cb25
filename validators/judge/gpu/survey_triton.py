"""One pass over the outputs of a fused norm on a GPU: row sums, the residual's bits and the screen of the codes.

An accelerator and never an authority. It settles only what is in order: what it cannot prove goes to the float64
judgement element by element, and a chunk with anything unusual in it is judged without it. ``validators.judge.compare``
holds its first result of every kind, and many a later one, against the judgement without it. Nothing of ``reference``
is imported: the tables of the screen and every factor come from the caller.

One program reads one row, block by block and two or three times over, of which all but the first come from the cache:
x, residual, gamma, codes and the stored residual, 8 bytes per element, where the elementwise form in PyTorch writes and
reads fp32 and float64 copies of the whole chunk.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

CAPACITY = 2**17
"""Unproven elements that are kept; of 21 million admissible ones fewer than 100 were, or 34,000 where y is rounded to
bf16 and the division is inexact (then 0.4 % of all are on a tie)."""
ON_CPU = 2**13
"""Elements up to which they are brought to the CPU. Speed only."""
BLOCK, WARPS = 1024, 4
"""The fastest of nine on an H100, 4096 x 5120: 0.14 to 0.24 ms; 4096 and 4 take 0.24 to 1.0 ms."""


@dataclass(frozen=True)
class Rules:
    """The arithmetic that the pass carries out. eps: added to the mean square.

    unrounded: the norm reads fl32(x + r), not what was stored. truncated: the residual is stored by truncation, not by
    RNE. round_h, round_y: y is rounded to x's type after the normalisation, after the weight. gemma: the weight is
    1 + gamma. rms_bound: relative half-width of the kernel's rms. factors, weights: of rms and |w| for the lower and
    the upper end of y (``reference.add_rmsnorm_quant.end_factors``). exact: how y/s is formed where y is rounded and
    every operation is known to the bit, ``reciprocal`` or ``divide``; empty where it is only known to a bound.
    """

    qmax: float
    eps: float
    unrounded: bool
    truncated: bool
    round_h: bool
    round_y: bool
    gemma: bool
    rms_bound: float = 0.0
    factors: tuple[float, float] = (1.0, 1.0)
    weights: tuple[float, float] = (1.0, 1.0)
    exact: Literal["", "reciprocal", "divide"] = ""

    @property
    def rounds(self) -> bool:
        return self.round_h or self.round_y


@dataclass(frozen=True)
class Survey:
    """What one pass saw of m rows; on the CPU, elements in any order.

    square_sum, p_max: float64 [m], sum of z^2 (rounding of a float64 sum) and max|z*w| (exact). scale: fp32 [m].
    row, col: int32 [e] of the elements whose code is not proven; z, weight: fp32 [e]; code: uint8 [e]. These are on the
    GPU where they are many. choices: further elements, whose code holds the exact t but is not the only admissible
    one. ends: float64 [6, m], only where y is rounded: rms, its lower and upper fp32 end, max|y| at these two and at
    rms.
    """

    square_sum: Tensor
    p_max: Tensor
    scale: Tensor
    row: Tensor
    col: Tensor
    z: Tensor
    weight: Tensor
    code: Tensor
    choices: int = 0
    ends: Tensor | None = None


# Triton resolves names in a kernel through the module's globals, so the lazy import and the helpers have to land here.
tl: Any = None
_norm_input: Any = None
_size: Any = None


@functools.lru_cache(maxsize=1)
def _kernel() -> Any:
    global tl, _norm_input, _size
    import triton
    import triton.language

    tl = triton.language

    @triton.jit
    def norm_input(  # type: ignore[no-untyped-def]
        x_ptr,
        residual_ptr,
        stored_ptr,
        columns,
        inside,
        HAS_RESIDUAL: tl.constexpr,
        UNROUNDED: tl.constexpr,
        T: tl.constexpr,
    ):
        """z as the norm reads it, and fl32(x + r)."""
        total = tl.load(x_ptr + columns, mask=inside, other=0.0).to(tl.float32)
        z = total
        if HAS_RESIDUAL:
            total = total + tl.load(residual_ptr + columns, mask=inside, other=0.0).to(tl.float32)
            z = total
            if not UNROUNDED:
                # What was stored, where it is right; where it is not, the chunk is judged without this pass.
                got = tl.load(stored_ptr + columns, mask=inside, other=0)
                z = got.to(T, bitcast=True).to(tl.float32)
        return z, total

    @triton.jit
    def size(  # type: ignore[no-untyped-def]
        z, w, factor, weight, T: tl.constexpr, ROUND_H: tl.constexpr, ROUND_Y: tl.constexpr
    ):
        """|y| with the contract's rounding points at one end: factor, weight fp32."""
        if ROUND_H:
            y = (tl.abs(z) * factor).to(T).to(tl.float32) * (tl.abs(w) * weight)
        else:
            y = tl.abs(z * w) * factor
        if ROUND_Y:
            y = y.to(T).to(tl.float32)
        return y

    _norm_input, _size = norm_input, size

    @triton.jit
    def survey(  # type: ignore[no-untyped-def]
        x_ptr,
        residual_ptr,
        weight_ptr,
        codes_ptr,
        stored_ptr,
        scale_ptr,
        table_ptr,
        facts_ptr,
        rows_ptr,
        counts_ptr,
        index_ptr,
        values_ptr,
        x_stride,
        residual_stride,
        codes_stride,
        stored_stride,
        m,
        n,
        CAPACITY: tl.constexpr,
        HAS_RESIDUAL: tl.constexpr,
        UNROUNDED: tl.constexpr,
        TRUNCATED: tl.constexpr,
        ROUND_H: tl.constexpr,
        ROUND_Y: tl.constexpr,
        GEMMA: tl.constexpr,
        EXACT: tl.constexpr,
        T: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        row = tl.program_id(0).to(tl.int64)
        x_ptr += row * x_stride
        residual_ptr += row * residual_stride
        stored_ptr += row * stored_stride
        codes_ptr += row * codes_stride

        squares = tl.zeros([BLOCK], dtype=tl.float64)
        largest = tl.zeros([BLOCK], dtype=tl.float64)
        odd = tl.zeros([BLOCK], dtype=tl.int32)
        for start in range(0, n, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            inside = columns < n
            z, total = _norm_input(x_ptr, residual_ptr, stored_ptr, columns, inside, HAS_RESIDUAL, UNROUNDED, T)
            if HAS_RESIDUAL:
                got = tl.load(stored_ptr + columns, mask=inside, other=0)
                if TRUNCATED:
                    want = (total.to(tl.int32, bitcast=True) >> 16).to(tl.int16)
                else:
                    want = total.to(T).to(tl.int16, bitcast=True)
                odd += (inside & (want != got)).to(tl.int32)
            w = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
            if GEMMA:
                w = w + 1.0
            wide = z.to(tl.float64)
            product = tl.abs(wide * w.to(tl.float64))
            # A maximum may drop a NaN: whatever is not finite is counted, and the chunk judged without this pass.
            odd += (inside & ((product != product) | (product > 1e300))).to(tl.int32)
            squares += tl.where(inside, wide * wide, 0.0)
            largest = tl.maximum(largest, tl.where(inside, product, 0.0))
        square_sum = tl.sum(squares, axis=0)
        p_max = tl.max(largest, axis=0)
        irregular = tl.sum(odd, axis=0)
        if irregular > 0:
            tl.atomic_add(counts_ptr + 1, irregular)
        scale32 = tl.load(scale_ptr + row)
        scale = scale32.to(tl.float64)
        tl.store(rows_ptr + row, square_sum)
        tl.store(rows_ptr + m + row, p_max)
        tl.store(rows_ptr + 2 * m + row, scale)

        factor = tl.load(facts_ptr) / p_max
        sure = True
        if ROUND_H or ROUND_Y:
            one = square_sum * 0.0 + 1.0
            rms = one / tl.sqrt(square_sum / tl.load(facts_ptr + 8) + tl.load(facts_ptr + 1))
            # The fp32 numbers inside the interval: the next one is the next integer of the bits.
            low_end = rms * tl.load(facts_ptr + 2)
            low32 = low_end.to(tl.float32)
            low_bits = low32.to(tl.int32, bitcast=True) + (low32.to(tl.float64) < low_end).to(tl.int32)
            rms_low = low_bits.to(tl.float32, bitcast=True).to(tl.float64)
            high_end = rms * tl.load(facts_ptr + 3)
            high32 = high_end.to(tl.float32)
            high_bits = high32.to(tl.int32, bitcast=True) - (high32.to(tl.float64) > high_end).to(tl.int32)
            rms_high = high_bits.to(tl.float32, bitcast=True).to(tl.float64)
            factor_low = (rms_low * tl.load(facts_ptr + 4)).to(tl.float32)
            factor_high = (rms_high * tl.load(facts_ptr + 5)).to(tl.float32)
            weight_low = tl.load(facts_ptr + 6).to(tl.float32)
            weight_high = tl.load(facts_ptr + 7).to(tl.float32)
            unit = one.to(tl.float32)
            factor = one / scale
            inverse = tl.div_rn(unit, scale32)
            if EXACT == "":
                # The reciprocal of a power of two is exact, so that the interval is narrower than the tables say.
                sure = (scale32.to(tl.int32, bitcast=True) & 0x7FFFFF) != 0
            y_low_max = tl.zeros([BLOCK], dtype=tl.float32)
            y_high_max = tl.zeros([BLOCK], dtype=tl.float32)
            y_max = tl.zeros([BLOCK], dtype=tl.float32)

        for start in range(0, n, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            inside = columns < n
            z, total = _norm_input(x_ptr, residual_ptr, stored_ptr, columns, inside, HAS_RESIDUAL, UNROUNDED, T)
            w = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
            if GEMMA:
                w = w + 1.0
            product = z.to(tl.float64) * w.to(tl.float64)
            code = tl.load(codes_ptr + columns, mask=inside, other=0).to(tl.int32)
            if ROUND_H or ROUND_Y:
                y_low = _size(z, w, factor_low, weight_low, T, ROUND_H, ROUND_Y)
                y_high = _size(z, w, factor_high, weight_high, T, ROUND_H, ROUND_Y)
                y_mid = _size(z, w, rms.to(tl.float32), unit, T, ROUND_H, ROUND_Y)
                y_low_max = tl.maximum(y_low_max, tl.where(inside, y_low, 0.0))
                y_high_max = tl.maximum(y_high_max, tl.where(inside, y_high, 0.0))
                y_max = tl.maximum(y_max, tl.where(inside, y_mid, 0.0))
                if EXACT == "reciprocal":
                    near = (y_low * inverse).to(tl.float64)
                    far = (y_high * inverse).to(tl.float64)
                elif EXACT == "divide":
                    near = tl.div_rn(y_low, tl.broadcast_to(scale32, [BLOCK])).to(tl.float64)
                    far = tl.div_rn(y_high, tl.broadcast_to(scale32, [BLOCK])).to(tl.float64)
                else:
                    near = y_low.to(tl.float64) * factor
                    far = y_high.to(tl.float64) * factor
                middle = y_mid.to(tl.float64) * factor
                least = tl.where(product < 0, -far, near)
                most = tl.where(product < 0, -near, far)
                middle = tl.where(product < 0, -middle, middle)
            else:
                middle = product * factor
                least = middle
                most = middle
            # A screen of three tables: nearly all codes are the only admissible one, and most of the rest hold exact t.
            single = (least >= tl.load(table_ptr + code)) & (most <= tl.load(table_ptr + 256 + code))
            unsettled = inside & (single == 0)
            if tl.sum(unsettled.to(tl.int32), axis=0) > 0:
                choice = (least < tl.load(table_ptr + 512 + code)) | (most > tl.load(table_ptr + 768 + code))
                holds = (middle >= tl.load(table_ptr + 1024 + code)) & (middle <= tl.load(table_ptr + 1280 + code))
                settled = (unsettled & choice & holds & sure).to(tl.int32)
                tl.atomic_add(counts_ptr + 2, tl.sum(settled, axis=0))
                open_ = unsettled.to(tl.int32) - settled
                count = tl.sum(open_, axis=0)
                place = tl.atomic_add(counts_ptr, count) + tl.cumsum(open_, axis=0) - 1
                keep = (open_ > 0) & (place < CAPACITY)
                tl.store(index_ptr + place, tl.zeros([BLOCK], dtype=tl.int32) + row.to(tl.int32), mask=keep)
                tl.store(index_ptr + CAPACITY + place, columns, mask=keep)
                tl.store(index_ptr + 2 * CAPACITY + place, code, mask=keep)
                tl.store(values_ptr + 3 * CAPACITY + place, z, mask=keep)
                tl.store(values_ptr + 4 * CAPACITY + place, w, mask=keep)

        if ROUND_H or ROUND_Y:
            tl.store(rows_ptr + 3 * m + row, rms)
            tl.store(rows_ptr + 4 * m + row, rms_low)
            tl.store(rows_ptr + 5 * m + row, rms_high)
            tl.store(rows_ptr + 6 * m + row, tl.max(y_low_max, axis=0).to(tl.float64))
            tl.store(rows_ptr + 7 * m + row, tl.max(y_high_max, axis=0).to(tl.float64))
            tl.store(rows_ptr + 8 * m + row, tl.max(y_max, axis=0).to(tl.float64))

    return survey


@functools.lru_cache(maxsize=64)
def _facts(rules: Rules, n: int, device: torch.device) -> Tensor:
    """The kernel's float64 numbers; as arguments they would become fp32."""
    ends = (1 - rules.rms_bound, 1 + rules.rms_bound)
    made = [rules.qmax, rules.eps, *ends, *rules.factors, *rules.weights, float(n)]
    return torch.tensor(made, dtype=torch.float64).to(device)


def survey(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    codes: Tensor,
    stored: Tensor | None,
    scale: Tensor,
    table: Tensor,
    rules: Rules,
) -> Survey | None:
    """One launch and two transfers; None where a residual differs, a value is not finite, or too much is unproven.

    x, residual, stored bf16 or fp16 [m, n]; weight [n]; codes uint8 [m, n]; scale fp32 [m]; all on one GPU, last
    dimension dense, fewer than 2**31 elements. table: ``codes.survey_tables``, float64 [3, 2, 256]. Where y is
    rounded, codes are held against the kernel's own scale, which the caller has to find admissible.
    """
    m, n = x.shape
    # A kernel may return views; rows may have gaps between them, elements of a row may not.
    weight, scale, codes = weight.contiguous(), scale.contiguous(), codes.contiguous()
    stored = x if stored is None else stored.contiguous()
    words = 9 if rules.rounds else 3
    # Two transfers: the rows with the counts, then as many elements as there are (5 words each).
    rows = torch.empty(m * words + 2, dtype=torch.float64, device=x.device)
    counts = rows[m * words :].view(torch.int32)
    counts.zero_()
    found = torch.empty(5, CAPACITY, dtype=torch.int32, device=x.device)
    launch = _kernel()
    launch[(m,)](
        x,
        x if residual is None else residual,
        weight,
        codes,
        stored.view(torch.int16),
        scale,
        table,
        _facts(rules, n, x.device),
        rows,
        counts,
        found,
        found.view(torch.float32),
        x.stride(0),
        0 if residual is None else residual.stride(0),
        codes.stride(0),
        stored.stride(0),
        m,
        n,
        CAPACITY=CAPACITY,
        HAS_RESIDUAL=residual is not None,
        UNROUNDED=rules.unrounded,
        TRUNCATED=rules.truncated,
        ROUND_H=rules.round_h,
        ROUND_Y=rules.round_y,
        GEMMA=rules.gemma,
        EXACT=rules.exact if rules.rounds else "",
        T=tl.float16 if x.dtype == torch.float16 else tl.bfloat16,
        BLOCK=BLOCK,
        num_warps=WARPS,
    )
    rows = rows.cpu()
    unproven, irregular, choices, _ = rows[m * words :].view(torch.int32).tolist()
    if irregular or unproven > CAPACITY:
        return None
    found = found[:, :unproven]
    found = found.cpu() if unproven <= ON_CPU else found
    values, sums = found[3:].view(torch.float32), rows[: m * words].view(words, m)
    return Survey(
        square_sum=sums[0],
        p_max=sums[1],
        scale=sums[2].float(),
        row=found[0],
        col=found[1],
        z=values[0],
        weight=values[1],
        code=found[2].to(torch.uint8),
        choices=choices,
        ends=sums[3:] if rules.rounds else None,
    )
