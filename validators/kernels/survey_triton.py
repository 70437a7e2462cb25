"""One pass over the outputs of a fused norm on a GPU: row sums, the residual's bits and the screen of the codes.

An accelerator and never an authority. It settles only what is in order: what it cannot prove goes to the float64
judgement element by element, and a chunk with anything unusual in it is judged without it. ``validators.compare``
holds its first result of every kind against the judgement without it. Nothing of ``reference`` is imported: the tables
of the screen come from the caller.

One program reads one row once: x, residual, gamma, codes and the stored residual, 8 bytes an element, where the
elementwise form in PyTorch writes and reads fp32 and float64 copies of the whole chunk.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CAPACITY = 2**17
"""Unproven elements that are kept. Measured on admissible outputs: 3,259 of 21 million under aiter-hip-gfx950, and
more than 8,192 where the norm reads a residual rounded to bf16."""


@dataclass(frozen=True)
class Survey:
    """What one pass saw of m rows; on the CPU, elements in row order.

    square_sum, p_max: float64 [m], sum of z^2 (rounding of a float64 sum) and max|z*w| (exact). scale: fp32 [m].
    row, col: int64 [e] of the elements whose code is not proven; z, weight: fp32 [e]; code: uint8 [e].
    """

    square_sum: Tensor
    p_max: Tensor
    scale: Tensor
    row: Tensor
    col: Tensor
    z: Tensor
    weight: Tensor
    code: Tensor


# Triton resolves names in a kernel through the module's globals, so the lazy import has to land here.
tl: Any = None


@functools.lru_cache(maxsize=1)
def _kernel() -> Any:
    global tl
    import triton
    import triton.language

    tl = triton.language

    @triton.jit
    def survey(  # type: ignore[no-untyped-def]
        x_ptr, residual_ptr, weight_ptr, codes_ptr, stored_ptr, scale_ptr, low_ptr, high_ptr,
        sums_ptr, counts_ptr, index_ptr, values_ptr,
        x_stride, residual_stride, codes_stride, stored_stride, n, qmax,
        CAPACITY: tl.constexpr, HAS_RESIDUAL: tl.constexpr, UNROUNDED: tl.constexpr, GEMMA: tl.constexpr,
        BLOCK: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        columns = tl.arange(0, BLOCK)
        inside = columns < n
        z = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
        odd = tl.zeros([BLOCK], dtype=tl.int32)
        if HAS_RESIDUAL:
            r = tl.load(residual_ptr + row * residual_stride + columns, mask=inside, other=0.0).to(tl.float32)
            z = z + r
            stored = z.to(tl.bfloat16)
            got = tl.load(stored_ptr + row * stored_stride + columns, mask=inside, other=0)
            odd = (inside & (stored.to(tl.int16, bitcast=True) != got)).to(tl.int32)
            if not UNROUNDED:
                # What was stored, where it is right; where it is not, the chunk is judged without this pass.
                z = got.to(tl.bfloat16, bitcast=True).to(tl.float32)
        w = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
        if GEMMA:
            w = w + 1.0
        wide = z.to(tl.float64)
        square_sum = tl.sum(wide * wide, axis=0)
        product = tl.abs(wide * w.to(tl.float64))
        # A maximum may drop a NaN: whatever is not finite is counted, and the chunk judged without this pass.
        odd += (inside & ((product != product) | (product > 1e300))).to(tl.int32)
        p_max = tl.max(product, axis=0)
        t = (z * w) * (qmax / p_max).to(tl.float32)
        code = tl.load(codes_ptr + row * codes_stride + columns, mask=inside, other=0).to(tl.int32)
        proven = (t >= tl.load(low_ptr + code)) & (t <= tl.load(high_ptr + code))
        open_ = (inside & (proven == 0)).to(tl.int32)
        tl.store(sums_ptr + row * 3, square_sum)
        tl.store(sums_ptr + row * 3 + 1, p_max)
        tl.store(sums_ptr + row * 3 + 2, tl.load(scale_ptr + row).to(tl.float64))
        strange = tl.sum(odd, axis=0)
        if strange > 0:
            tl.atomic_add(counts_ptr + 1, strange)
        count = tl.sum(open_, axis=0)
        if count > 0:
            place = tl.atomic_add(counts_ptr, count) + tl.cumsum(open_, axis=0) - 1
            keep = (open_ > 0) & (place < CAPACITY)
            tl.store(index_ptr + place * 4, (row * n + columns).to(tl.int32), mask=keep)
            tl.store(index_ptr + place * 4 + 1, code, mask=keep)
            tl.store(values_ptr + place * 4 + 2, z, mask=keep)
            tl.store(values_ptr + place * 4 + 3, w, mask=keep)

    return survey


def survey(
    x: Tensor, residual: Tensor | None, weight: Tensor, codes: Tensor, stored: Tensor | None, scale: Tensor,
    tables: tuple[Tensor, Tensor], qmax: float, *, unrounded: bool, gemma: bool,
) -> Survey | None:  # fmt: skip
    """One launch and one transfer; None where a residual differs, a value is not finite, or too much is unproven.

    x, residual, stored bf16 [m, n]; weight [n]; codes uint8 [m, n]; scale fp32 [m]; all on one GPU, last dimension
    dense, fewer than 2**31 elements. tables: inner ends of each code's preimage, fp32 [256] each. unrounded: the norm
    reads fl32(x + r), not what was stored.
    """
    m, n = x.shape
    # A kernel may return views; rows may lie apart, elements of a row may not.
    weight, scale, codes = weight.contiguous(), scale.contiguous(), codes.contiguous()
    stored = None if stored is None else stored.contiguous()
    # Two transfers: the sums with the counts, then as many elements as there are (4 words each).
    sums = torch.empty(m * 3 + 1, dtype=torch.float64, device=x.device)
    counts = sums[m * 3 :].view(torch.int32)
    counts.zero_()
    found = torch.empty(CAPACITY, 4, dtype=torch.int32, device=x.device)
    block = 1 << (n - 1).bit_length()
    _kernel()[(m,)](
        x, residual, weight, codes, None if stored is None else stored.view(torch.int16), scale, *tables,
        sums, counts, found, found.view(torch.float32),
        x.stride(0), 0 if residual is None else residual.stride(0), codes.stride(0),
        0 if stored is None else stored.stride(0), n, qmax,
        CAPACITY=CAPACITY, HAS_RESIDUAL=residual is not None, UNROUNDED=unrounded, GEMMA=gemma, BLOCK=block,
        num_warps=max(1, min(16, block // 512)),
    )  # fmt: skip
    sums = sums.cpu()
    unproven, strange = sums[m * 3 :].view(torch.int32).tolist()
    if strange or unproven > CAPACITY:
        return None
    found = found[:unproven].cpu()
    # Programs append in any order.
    found = found[found[:, 0].argsort()]
    flat, values, rows = found[:, 0].long(), found.view(torch.float32), sums[: m * 3].view(m, 3)
    return Survey(
        square_sum=rows[:, 0].contiguous(), p_max=rows[:, 1].contiguous(), scale=rows[:, 2].float(),
        row=flat // n, col=flat % n, z=values[:, 2].contiguous(), weight=values[:, 3].contiguous(),
        code=found[:, 1].to(torch.uint8),
    )  # fmt: skip
