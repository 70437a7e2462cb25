"""How public projects judge the same kernels: each one's acceptance criterion as a predicate.

A criterion sees what its test sees: a kernel's outputs and reference outputs with the rounding points of its own
reference. What the sources leave open is settled in the criterion's favour: references have the floor that the kernel
declares, NaN equals NaN, and rows with NaN or Inf among the inputs are left out. References of the norm and the
quantizer are fp32 PyTorch; a GEMM's is exact and rounded once, and no fp32 product is nearer to a right kernel.
Some tests also look at the norm before it is quantized; a fused kernel does not show it, so that part falls away.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from reference.formats import decode, encode, format_of, round_fp32, round_to
from tests.studies.peers_seen import ProductSeen, RowsSeen, Style, close, cosine, far, largest, peak, share

ADD, QUANT, GEMM = "add_rmsnorm_quant", "per_token_quant", "ptpc_gemm"


# Norm and quantization --------------------------------------------------------------------------


def _aiter_triton_norm(o: RowsSeen) -> bool:
    return o.residual(0.1, 0.1) and close(o.D, o.d, 0.1, 0.1)


def _aiter_allreduce(o: RowsSeen) -> bool:
    limit = 0.05
    residual = 0.0 if o.r is None or o.R is None else share(far(o.R, o.r, 5e-2, 5e-2))
    return share(far(o.D, o.d, 5e-2, 5e-2)) < limit and residual < limit


def _sglang_own_scale(o: RowsSeen) -> bool:
    fp8 = format_of(o.inputs.fp8_dtype)
    # This test's reference is fp32 arithmetic on the kernel's scale; float64 would disagree with it at ties.
    expected = decode(encode(round_fp32(o.y * round_fp32(1.0 / o.s)).clamp(-fp8.max, fp8.max), fp8), fp8)
    return close(o.v, expected, 1e-3, 1e-3)


def _bit_equal(o: RowsSeen) -> bool:
    return torch.equal(o.c, o.C) and torch.equal(o.s, o.S)


def _sglang_cosine(o: RowsSeen) -> bool:
    return o.residual(1e-3, 1e-3) and cosine(o.d, o.D) > 0.999


def _sglang_match(o: RowsSeen) -> bool:
    residual = 0.0 if o.r is None or o.R is None else largest((o.r - o.R).abs())
    return residual < 0.01 and largest((o.s - o.S).abs()) < 0.01 * largest(o.S) and share(o.v == o.V) > 0.90


def _sglang_28101(o: RowsSeen) -> bool:
    rounded = round_to(o.y, format_of(torch.bfloat16))
    return o.residual(1e-2, 1e-2) and close(o.s, o.S, 1e-3, 1e-8) and close(o.d, rounded, 8e-2, 8e-2)


def _vllm_fused(o: RowsSeen) -> bool:
    codes = close(o.V, o.v, 1e-5, 1e-6) or close(o.D, o.d, 5e-2, 5e-2)
    residual = o.r is None or o.R is None or close(o.R, o.r, 1e-5, 1e-8)
    return close(o.S, o.s, 1e-5, 1e-8) and codes and residual


def _vllm_ulp(o: RowsSeen) -> bool:
    return int((o.steps > 0).sum()) <= o.c.numel() // 100_000 + 8 and o.residual(1e-2, 1e-2)


def _vllm_aiter(o: RowsSeen) -> bool:
    q = (o.d - o.D).abs() / o.D.abs().clamp(min=1e-5)
    if not (float(q.mean()) < 0.05 and share(q > 0.5) <= 0.01):
        return False
    if o.r is None or o.R is None:
        return True
    e = (o.r - o.R).abs()
    return share(e <= 1e-3 + 1e-3 * o.R.abs()) >= 0.99999 and largest(e) <= 3e-3 and float(e.mean()) <= 2.5e-4


def _flashinfer_dynamic(o: RowsSeen) -> bool:
    return o.residual(1e-2, 0.8) and close(o.s, o.S, 1e-3, 1e-3) and close(o.d, o.D, 0.05, 0.05 * largest(o.S))


def _transformer_engine(o: RowsSeen) -> bool:
    error = (o.v - o.V).abs()
    wrong = (error > 0.01) & ((o.V == 0) | (error / o.V.abs() > 0.01)) & (o.steps > 1)
    off = (o.s - o.S).abs()
    return not bool(wrong.any()) and not bool(((off > 1e-6) & (off / o.S.abs() > 5e-6)).any())


def _ck_codes(o: RowsSeen) -> bool:
    same_sign_step = (o.c >= 128) == (o.C >= 128)
    near = ((o.v - o.V).abs() <= 0.1) | (same_sign_step & ((o.c.int() - o.C.int()).abs() <= 1))
    return bool((o.v.isfinite() & near).all())


def _ck_norm(o: RowsSeen) -> bool:
    near = ((o.v - o.V).abs() <= 0.01) | (o.c == o.C)
    return bool((o.v.isfinite() & near).all()) and o.residual(1e-2, 1e-2)


# GEMM -------------------------------------------------------------------------------------------


def _aiter_catastrophe(o: ProductSeen) -> bool:
    wrong = far(o.ref, o.out, 1e-2, 1e-2)
    if not bool(wrong.any()):
        return True
    if not bool(o.out.isfinite().all() and o.ref.isfinite().all()):
        return False
    return float((o.ref - o.out).abs()[wrong].max()) <= 0.5 * max(float(o.out.abs().max()), 1.0)


def _sglang_bound(o: ProductSeen) -> bool:
    bound = o.p.exact.abs() * 2.0**-8 + o.p.magnitude * 2.0**-20 + 1e-6
    return not bool(((o.out - o.p.exact).abs() > bound).any() or (o.out.isnan() & ~o.p.exact.isnan()).any())


def _deepgemm(o: ProductSeen) -> bool:
    keep = o.p.h.isfinite()
    x, y = o.out[keep], o.p.h[keep]
    x, y = x / peak(y), y / peak(y)
    total = float((x * x + y * y).sum())
    return total == 0.0 or 1.0 - 2.0 * float((x * y).sum()) / total < 1e-3


def _torch_rowwise(o: ProductSeen) -> bool:
    return close(o.out, o.ref, 7e-2, 7e-2) and cosine(o.out, o.ref) >= 0.999


def _signal_to_noise(o: ProductSeen) -> bool:
    keep = o.p.h.isfinite()
    h, noise = o.p.h[keep], (o.p.h - o.out)[keep]
    h, noise = h / peak(h), noise / peak(h)
    return float(noise.norm()) == 0.0 or 20.0 * math.log10(float(h.norm() / noise.norm()) or 1e-300) >= 25.0


def _ck_gemm(o: ProductSeen) -> bool:
    limit = max(o.p.k * 2.0**-24, 2.0**-4)
    top = float(o.ref[o.ref.isfinite()].abs().max()) if bool(o.ref.isfinite().any()) else 0.0
    return close(o.out, o.ref, limit, top * limit) and not bool((~o.out.isfinite() & o.ref.isfinite()).any())


def _frobenius(o: ProductSeen) -> bool:
    keep = o.ref.isfinite()
    top = peak(o.ref[keep])
    return float(((o.out - o.ref)[keep] / top).norm()) <= 0.1 * float((o.ref[keep] / top).norm())


def _rocblas_near(o: ProductSeen) -> bool:
    tau = {7: 1 / 100, 10: 1 / 900}[o.p.mantissa]
    return close(o.out, o.ref, 0.0, o.p.k * tau)


def _equal(o: ProductSeen) -> bool:
    return not bool(((o.out != o.ref) & ~(o.out.isnan() & o.ref.isnan())).any())


Rule = Callable[[RowsSeen], bool] | Callable[[ProductSeen], bool]


@dataclass(frozen=True)
class Criterion:
    """A peer's criterion. name: project and test. ops: those it is applied to. accept: the predicate.

    data: its inputs, "randn" (weight randn), "near one" (weight 1 + 0.1 randn) or "integers". style: its reference.
    """

    name: str
    ops: tuple[str, ...]
    accept: Rule
    data: str = "randn"
    style: Style = "fp32"


def criteria() -> list[Criterion]:
    """Every criterion, norm and quantization first.

    One whose reference rounds elsewhere than the zoo's contract comes a second time with a reference that does not, so
    that a bad result need not be blamed on the pairing.
    """
    found = []
    for criterion in _as_published():
        found.append(criterion)
        if criterion.style != "fp32":
            found.append(replace(criterion, name=criterion.name + REPAIRED, style="fp32"))
    return found


REPAIRED = ", fp32 reference"


def _as_published() -> list[Criterion]:
    rows = (ADD, QUANT)
    return [
        Criterion("AITER-LOG", rows, lambda o: True, style="eager"),
        Criterion("AITER-TRI-Q", (QUANT,), lambda o: close(o.s, o.S, 0.1, 0.1) and close(o.v, o.V, 0.1, 0.1)),
        Criterion("AITER-TRI-RMS", (ADD,), _aiter_triton_norm),
        Criterion("AITER-AR", (ADD,), _aiter_allreduce, style="eager"),
        Criterion("SGL-Q-OWN", (QUANT,), _sglang_own_scale),
        Criterion("SGL-Q-BIT", (QUANT,), _bit_equal),
        Criterion("SGL-COS", (ADD,), _sglang_cosine, "near one", "eager"),
        Criterion("SGL-MATCH", (ADD,), _sglang_match, "near one", "eager"),
        Criterion("SGL-28101", (ADD,), _sglang_28101, "near one", "eager"),
        Criterion("VLLM-FUSED", (ADD,), _vllm_fused, "near one", "vllm"),
        Criterion("VLLM-ULP", (ADD,), _vllm_ulp, "near one", "vllm"),
        Criterion("VLLM-AITER", (ADD,), _vllm_aiter, "near one", "vllm"),
        Criterion("VLLM-Q", (QUANT,), lambda o: close(o.s, o.S, 1.3e-6, 1e-5) and close(o.v, o.V, 1.3e-6, 1e-5)),
        Criterion("FI-NORM", (ADD,), lambda o: close(o.v, o.V, 1.0, 1.0) and o.residual(1e-3, 1e-3)),
        Criterion("FI-CHECK", rows, lambda o: 100 * share(far(o.v, o.V, 0.1, 0.1)) <= 1),
        Criterion("FI-DYN", (ADD,), _flashinfer_dynamic),
        Criterion("TE-CPP", rows, _transformer_engine),
        Criterion("TE-EXACT", rows, _bit_equal),
        Criterion("CK-FP8", rows, _ck_codes),
        Criterion("CK-RMS2", (ADD,), _ck_norm),
        Criterion("AITER-CAT", (GEMM,), _aiter_catastrophe),
        Criterion("AITER-TUNED", (GEMM,), lambda o: True),
        Criterion("AITER-TRI-GEMM", (GEMM,), lambda o: close(o.ref, o.out, 1e-2, 0.01)),
        Criterion("AITER-TUNER", (GEMM,), lambda o: share(far(o.ref, o.out, 1e-2, 1e-2)) <= 0.05),
        Criterion("SGL-GEMM", (GEMM,), lambda o: close(o.ref, o.out, 0.02, 1.0)),
        Criterion("SGL-GFX95", (GEMM,), _sglang_bound),
        Criterion("VLLM-GEMM", (GEMM,), lambda o: close(o.out, o.ref, 0.5, 0.15)),
        Criterion("VLLM-SKINNY", (GEMM,), lambda o: close(o.out, o.ref, 1e-2, 1e-2)),
        Criterion("FI-MM", (GEMM,), lambda o: cosine(o.out, o.p.h) > 0.99),
        Criterion("TE-MODULE", (GEMM,), lambda o: close(o.out, o.ref, 0.125, 0.0675)),
        Criterion("DG", (GEMM,), _deepgemm),
        Criterion("PT-ROW", (GEMM,), _torch_rowwise),
        Criterion("AO", (GEMM,), _signal_to_noise),
        Criterion("CK-GEMM", (GEMM,), _ck_gemm),
        Criterion("HIP-NORM", (GEMM,), _frobenius),
        Criterion("ROCBLAS-NEAR", (GEMM,), _rocblas_near),
        Criterion("TE-EXACT-GEMM", (GEMM,), _equal),
        Criterion("HIP-UNIT / ONEDNN", (GEMM,), _equal, "integers"),
    ]
