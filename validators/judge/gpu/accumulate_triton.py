"""Matrix units bit for bit, fast: the algorithms of ``reference.accumulators`` in integers, as Triton kernels.

An accelerator for whole outputs on a GPU, never an authority: its caller compares sampled outputs with
``reference.accumulators.emulate``, from which nothing is imported here. One program computes a tile of outputs and
walks along K; a group takes two passes over its products, the first for the largest exponent, the second for the
truncated terms, whose sums are int32:

aligned  |p| = m 2^(e-6) in units of q = 2^(E-13) is (m << 7) >> (E - e) < 2^15; 32 of them and c stay below 2^21.
mfma     half sums in units of 2^(E_h-24) are (m << 18) >> (E_h - e) < 2^26, 8 of them below 2^29 and dot below 2^30;
         joining the accumulator takes int64, once a group.

Exponents are the sums of the two exponent fields (bias left out) until the end of a group. Operands travel as bytes
with K first, so that a tile's rows are read side by side.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from validators import arch

# (group, promote, mfma) of the units that this path knows; others are the reference's alone.
FAST_UNITS: dict[str, tuple[int, int, bool]] = {
    "hopper-fast": (32, 0, False),
    "hopper-promote128": (32, 128, False),
    "ada": (16, 0, False),
    "cdna3-mfma": (16, 0, True),
}
BIAS = {"e4m3fn": 7, "e4m3fnuz": 8}
NANS = {"e4m3fn": (0x7F, 0xFF), "e4m3fnuz": (0x80,)}
CANONICAL_NAN = 0x7FFFFFFF
SPLIT_MULTIPLE = 128
TILE_M, TILE_N, WARPS = 32, 64, 4


class FastEmulationError(ValueError):
    """What the fast path cannot emulate; the message is one sentence."""


# Triton resolves names in a kernel through the module's globals, so the lazy import has to land here.
tl: Any = None


@functools.lru_cache(maxsize=1)
def _kernels() -> tuple[Any, Any]:
    global tl
    import triton
    import triton.language

    tl = triton.language

    @triton.jit
    def aligned(  # type: ignore[no-untyped-def]
        a_ptr,
        b_ptr,
        out_ptr,
        m,
        n,
        k,
        CHAIN: tl.constexpr,
        GROUP: tl.constexpr,
        BIAS2: tl.constexpr,
        PROMOTE: tl.constexpr,
        BM: tl.constexpr,
        BN: tl.constexpr,
    ):
        # a: uint8 [k, m], b: uint8 [k, n]; k is a multiple of CHAIN (products a chain), CHAIN of GROUP.
        rm = tl.program_id(0) * BM + tl.arange(0, BM)[:, None]
        rn = tl.program_id(1) * BN + tl.arange(0, BN)[None, :]
        in_m, in_n = rm < m, rn < n
        pa, pb = a_ptr + rm.to(tl.int64), b_ptr + rn.to(tl.int64)
        main = tl.zeros((BM, BN), dtype=tl.float32)
        c = tl.zeros((BM, BN), dtype=tl.float32)
        for k0 in range(0, k, GROUP):
            if PROMOTE:  # noqa: SIM102  (a compile-time condition around one at run time)
                if k0 % CHAIN == 0:
                    main += c
                    c = tl.zeros((BM, BN), dtype=tl.float32)
            top = tl.full((BM, BN), -512, dtype=tl.int32)
            for j in range(GROUP):
                a = tl.load(pa + j * m, mask=in_m, other=0).to(tl.int32)
                b = tl.load(pb + j * n, mask=in_n, other=0).to(tl.int32)
                ea = tl.where((a & 127) == 0, -256, tl.maximum((a >> 3) & 15, 1))
                eb = tl.where((b & 127) == 0, -256, tl.maximum((b >> 3) & 15, 1))
                top = tl.maximum(top, ea + eb)
            bits = c.to(tl.int32, bitcast=True)
            field = (bits >> 23) & 255
            e_c = tl.where(field == 0, -512, field - 127 + BIAS2)
            # No term at all: any exponent of a normal scale will do, the sum is 0.
            top = tl.maximum(tl.maximum(top, e_c), 0)
            significand = (bits & 0x7FFFFF) | 0x800000
            held = significand >> tl.minimum(top - e_c + 10, 31)
            total = tl.where(field == 0, 0, tl.where(bits < 0, -held, held))
            for j in range(GROUP):
                a = tl.load(pa + j * m, mask=in_m, other=0).to(tl.int32)
                b = tl.load(pb + j * n, mask=in_n, other=0).to(tl.int32)
                fa, fb = (a >> 3) & 15, (b >> 3) & 15
                ma = ((a & 7) + tl.where(fa > 0, 8, 0)) << 7
                mb = (b & 7) + tl.where(fb > 0, 8, 0)
                # A zero operand's exponent may exceed the largest of the products: its shift is kept in range.
                shift = (top - tl.maximum(fa, 1)) - tl.maximum(fb, 1)
                term = (ma * mb) >> tl.minimum(tl.maximum(shift, 0), 31)
                sign = (0 - (a >> 7)) ^ (0 - (b >> 7))
                total += (term ^ sign) - sign
            # |total| < 2^21 is exact in fp32; clearing 10 bits truncates its significand to 14.
            value = total.to(tl.float32).to(tl.int32, bitcast=True) & -1024
            scale = ((top - BIAS2 - 13 + 127) << 23).to(tl.float32, bitcast=True)
            c = value.to(tl.float32, bitcast=True) * scale
            pa += GROUP * m
            pb += GROUP * n
        if PROMOTE:
            c = main + c
        tl.store(out_ptr + rm.to(tl.int64) * n + rn, c, mask=in_m & in_n)

    @triton.jit
    def mfma(  # type: ignore[no-untyped-def]
        a_ptr, b_ptr, out_ptr, m, n, k, GROUP: tl.constexpr, BIAS2: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr
    ):
        rm = tl.program_id(0) * BM + tl.arange(0, BM)[:, None]
        rn = tl.program_id(1) * BN + tl.arange(0, BN)[None, :]
        in_m, in_n = rm < m, rn < n
        pa, pb = a_ptr + rm.to(tl.int64), b_ptr + rn.to(tl.int64)
        c = tl.zeros((BM, BN), dtype=tl.float32)
        for _ in range(0, k, GROUP):
            dot = tl.zeros((BM, BN), dtype=tl.int32)
            e_d = tl.full((BM, BN), -512, dtype=tl.int32)
            for half in range(2):
                top = tl.full((BM, BN), -512, dtype=tl.int32)
                for j in range(GROUP // 2):
                    a = tl.load(pa + (2 * j + half) * m, mask=in_m, other=0).to(tl.int32)
                    b = tl.load(pb + (2 * j + half) * n, mask=in_n, other=0).to(tl.int32)
                    ea = tl.where((a & 127) == 0, -256, tl.maximum((a >> 3) & 15, 1))
                    eb = tl.where((b & 127) == 0, -256, tl.maximum((b >> 3) & 15, 1))
                    top = tl.maximum(top, ea + eb)
                total = tl.zeros((BM, BN), dtype=tl.int32)
                for j in range(GROUP // 2):
                    a = tl.load(pa + (2 * j + half) * m, mask=in_m, other=0).to(tl.int32)
                    b = tl.load(pb + (2 * j + half) * n, mask=in_n, other=0).to(tl.int32)
                    fa, fb = (a >> 3) & 15, (b >> 3) & 15
                    ma = ((a & 7) + tl.where(fa > 0, 8, 0)) << 18
                    mb = (b & 7) + tl.where(fb > 0, 8, 0)
                    shift = (top - tl.maximum(fa, 1)) - tl.maximum(fb, 1)
                    term = (ma * mb) >> tl.minimum(tl.maximum(shift, 0), 31)
                    sign = (0 - (a >> 7)) ^ (0 - (b >> 7))
                    total += (term ^ sign) - sign
                # Arithmetic shifts are floors; before the first half dot is 0, and an empty half has total 0.
                both = tl.maximum(e_d, top)
                dot = (dot >> tl.minimum(both - e_d, 31)) + (total >> tl.minimum(both - top, 31))
                e_d = both
            bits = c.to(tl.int32, bitcast=True)
            field = (bits >> 23) & 255
            # c is 0 or normal: every sum here is 0 or at least 2^-52.
            e_c = tl.where(field == 0, -126, field - 127) + BIAS2
            top = tl.maximum(e_d, e_c)
            x = (dot.to(tl.int64) << 8) >> tl.minimum(top - e_d, 63).to(tl.int64)
            significand = ((bits & 0x7FFFFF) | 0x800000).to(tl.int64) << 1
            held = tl.where(bits < 0, 0 - significand, significand) >> tl.minimum(top - e_c, 63).to(tl.int64)
            held = tl.where((field == 0) | (e_c < top - 25), tl.zeros_like(held), held)
            t = x + (held << 8)
            # floor to 32 significant bits; |t| < 2^40 is exact in float64, whose exponent is read.
            wide = tl.abs(t).to(tl.float64).to(tl.int64, bitcast=True)
            surplus = tl.maximum(((wide >> 52) & 2047) - 1023 - 31, 0)
            t = (t >> surplus) << surplus
            scale = ((top - BIAS2 - 32 + 1023).to(tl.int64) << 52).to(tl.float64, bitcast=True)
            c = (t.to(tl.float64) * scale).to(tl.float32)
            pa += GROUP * m
            pb += GROUP * n
        tl.store(out_ptr + rm.to(tl.int64) * n + rn, c, mask=in_m & in_n)

    return aligned, mfma


def _arranged(codes: Tensor, k_map: Tensor | None, multiple: int) -> Tensor:
    """uint8 [r, K] -> [K', r] in physical order, K padded with zero codes to whole ``multiple``s and whole maps."""
    multiple = multiple if k_map is None else math.lcm(multiple, len(k_map))
    raw = torch.nn.functional.pad(codes, (0, -codes.shape[1] % multiple))
    if k_map is not None:
        raw = raw.view(raw.shape[0], -1, len(k_map))[:, :, k_map.to(raw.device)].reshape(raw.shape)
    return raw.t().contiguous()


def emulate_fast(a: Tensor, b: Tensor, fmt: Any, unit: str, *, k_map: Tensor | None = None, splits: int = 1) -> Tensor:
    """``reference.accumulators.emulate`` on a GPU: codes a [m, K], b [n, K] (uint8 or FP8 dtype) -> float32 [m, n].

    fmt: a reference FloatFormat or its name. unit: one of ``FAST_UNITS``. k_map: int64 [L], a permutation applied to
    every L consecutive k. splits: slices of whole multiples of 128 products, added in order in fp32.
    Memory: the output, a transposed copy of the codes. Raises FastEmulationError for anything else.
    """
    name = getattr(fmt, "name", fmt)
    if unit not in FAST_UNITS:
        raise FastEmulationError(f"the fast path knows {', '.join(FAST_UNITS)}, not {unit!r}")
    if name not in BIAS:
        raise FastEmulationError(f"the fast path knows {', '.join(BIAS)}, not {name!r}")
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1] or a.shape[1] == 0 or splits < 1:
        raise FastEmulationError(f"operands {tuple(a.shape)} and {tuple(b.shape)} in {splits} slices are no GEMM")
    group, promote, is_mfma = FAST_UNITS[unit]
    left, right = (x if x.dtype == torch.uint8 else x.view(torch.uint8) for x in (a, b))
    nan = torch.tensor(NANS[name], dtype=torch.uint8, device=a.device)
    rows, cols = torch.isin(left, nan), torch.isin(right, nan)
    left, right = left.masked_fill(rows, 0), right.masked_fill(cols, 0)
    length = math.ceil(math.ceil(a.shape[1] / SPLIT_MULTIPLE) / splits) * SPLIT_MULTIPLE
    out = torch.empty(a.shape[0], b.shape[0], dtype=torch.float32, device=a.device)
    for first in range(0, a.shape[1], length):
        parts = [_arranged(x[:, first : first + length], k_map, promote or group) for x in (left, right)]
        partial = out if first == 0 else torch.empty_like(out)
        _launch(parts[0], parts[1], partial, group, promote, is_mfma, 2 * BIAS[name])
        if first:
            out += partial
    bits = out.view(torch.int32)
    bits.masked_fill_(rows.any(1)[:, None], CANONICAL_NAN)
    bits.masked_fill_(cols.any(1)[None, :], CANONICAL_NAN)
    return out


def _launch(a: Tensor, b: Tensor, out: Tensor, group: int, promote: int, is_mfma: bool, bias2: int) -> None:
    aligned, mfma = _kernels()
    (k, m), n = a.shape, b.shape[1]
    grid = (-(-m // TILE_M), -(-n // TILE_N))
    common = {"GROUP": group, "BIAS2": bias2, "BM": TILE_M, "BN": TILE_N, "num_warps": WARPS}
    if is_mfma:
        mfma[grid](a, b, out, m, n, k, **common)
    else:
        aligned[grid](a, b, out, m, n, k, CHAIN=promote or group, PROMOTE=promote > 0, **common)


def unavailable(device: str) -> str | None:
    """One sentence why the fast path cannot run on ``device``, or None."""
    return arch.no_gpu(device) or arch.no_triton(interpreted=False)
