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

CAPACITY = 2**13
"""Unproven elements that are kept; on admissible outputs about 1 in 1e5 is not proven, so 2**25 leave some 300."""


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
            tl.store(index_ptr + place, row * n + columns, mask=keep)
            tl.store(values_ptr + place * 3, z, mask=keep)
            tl.store(values_ptr + place * 3 + 1, w, mask=keep)
            tl.store(values_ptr + place * 3 + 2, code.to(tl.float32), mask=keep)

    return survey


def survey(
    x: Tensor, residual: Tensor | None, weight: Tensor, codes: Tensor, stored: Tensor | None, scale: Tensor,
    tables: tuple[Tensor, Tensor], qmax: float, *, unrounded: bool, gemma: bool,
) -> Survey | None:  # fmt: skip
    """One launch and one transfer; None where a residual differs, a value is not finite, or too much is unproven.

    x, residual, stored bf16 [m, n]; weight [n]; codes uint8 [m, n]; scale fp32 [m]; all on one GPU, last dimension
    dense. tables: inner ends of each code's preimage, fp32 [256] each. unrounded: the norm reads fl32(x + r), not what
    was stored.
    """
    m, n = x.shape
    # One buffer, so that one transfer brings everything: float64 sums [m, 3], counts, indices, then fp32 values.
    sums_bytes, index_bytes = m * 3 * 8, CAPACITY * 8
    whole = torch.empty(sums_bytes + 8 + index_bytes + CAPACITY * 12, dtype=torch.uint8, device=x.device)

    def parts(held: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        after = sums_bytes + 8
        return (
            held[:sums_bytes].view(torch.float64),
            held[sums_bytes:after].view(torch.int32),
            held[after : after + index_bytes].view(torch.int64),
            held[after + index_bytes :].view(torch.float32),
        )

    sums, counts, index, values = parts(whole)
    counts.zero_()
    block = 1 << (n - 1).bit_length()
    _kernel()[(m,)](
        x, residual, weight, codes, None if stored is None else stored.view(torch.int16), scale, *tables,
        sums, counts, index, values,
        x.stride(0), 0 if residual is None else residual.stride(0), codes.stride(0),
        0 if stored is None else stored.stride(0), n, qmax,
        CAPACITY=CAPACITY, HAS_RESIDUAL=residual is not None, UNROUNDED=unrounded, GEMMA=gemma, BLOCK=block,
        num_warps=max(1, min(16, block // 512)),
    )  # fmt: skip
    sums, counts, index, values = parts(whole.cpu())
    unproven, strange = counts.tolist()
    if strange or unproven > CAPACITY:
        return None
    # Programs append in any order.
    at = index[:unproven].argsort()
    flat, chosen = index[:unproven][at], values.view(-1, 3)[:unproven][at]
    rows = sums.view(m, 3)
    return Survey(
        square_sum=rows[:, 0].contiguous(), p_max=rows[:, 1].contiguous(), scale=rows[:, 2].float(),
        row=flat // n, col=flat % n, z=chosen[:, 0].contiguous(), weight=chosen[:, 1].contiguous(),
        code=chosen[:, 2].to(torch.uint8),
    )  # fmt: skip
