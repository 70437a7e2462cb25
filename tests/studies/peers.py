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
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from reference.formats import bytes_of, decode, encode, format_of, round_fp32, round_to
from validators.cases import tensors

ADD, QUANT, GEMM = "add_rmsnorm_quant", "per_token_quant", "ptpc_gemm"
AMAX_FLOOR = 1e-10

Style = Literal["fp32", "eager", "vllm"]
"""Rounding points of a reference. fp32: norm of the unrounded sum, nothing rounded. eager: norm of the stored sum, the
norm rounded to T. vllm: norm of the unrounded sum, rounded to T after normalise and after weight."""


class Rows(NamedTuple):
    """Reference outputs of norm or quantization: y [m, n] and scale [m, 1], uint8 codes [m, n], residual or None.

    y, scale and residual hold fp32 arithmetic in float64. finite: bool [m], rows whose inputs are all finite.
    """

    y: Tensor
    codes: Tensor
    scale: Tensor
    residual: Tensor | None
    finite: Tensor


def reference_rows(inputs: tensors.NormQuantInputs | tensors.QuantInputs, style: Style) -> Rows:
    """Reference outputs for ``inputs`` in fp32 PyTorch operations, as these tests compute them."""
    fmt, fp8 = format_of(inputs.x.dtype), format_of(inputs.fp8_dtype)
    x = inputs.x.reshape(-1, inputs.x.shape[-1])
    finite, residual, y = x.isfinite().all(1), None, x.float()
    if isinstance(inputs, tensors.NormQuantInputs):
        z = x.float()
        if inputs.residual is not None:
            added = inputs.residual.reshape(x.shape)
            finite = finite & added.isfinite().all(1)
            total = z + added.float()
            residual = round_to(total, fmt)
            z = residual.float() if style == "eager" else total
        y = z * torch.rsqrt((z * z).mean(1, keepdim=True) + inputs.eps)
        if style == "vllm":
            y = round_to(y, fmt).float()
        y = y * (inputs.weight.float() + 1.0 if inputs.gemma else inputs.weight.float())
        if style != "fp32":
            y = round_to(y, fmt).float()
    scale = y.abs().amax(1, keepdim=True).clamp(min=AMAX_FLOOR) / fp8.max
    return Rows(y.double(), encode(y * (1.0 / scale), fp8), scale.double(), residual, finite)


@dataclass(frozen=True)
class RowsSeen:
    """Outputs c, s, r of a norm or quantizer against reference outputs C, S, R, restricted to finite rows.

    c, C: uint8 [m, n]. v, V: their values, float64. s, S: float64 [m, 1]. r, R: float64 [m, n] or None.
    y: the reference before it is quantized. d, D: dequantized values.
    """

    inputs: tensors.NormQuantInputs | tensors.QuantInputs
    outputs: tensors.NormQuantOutputs | tensors.QuantOutputs
    ref: Rows

    @cached_property
    def c(self) -> Tensor:
        codes = bytes_of(self.outputs.codes)
        return codes.reshape(-1, codes.shape[-1])[self.ref.finite]

    @cached_property
    def C(self) -> Tensor:
        return self.ref.codes[self.ref.finite]

    @cached_property
    def v(self) -> Tensor:
        return decode(self.c, format_of(self.inputs.fp8_dtype))

    @cached_property
    def V(self) -> Tensor:
        return decode(self.C, format_of(self.inputs.fp8_dtype))

    @cached_property
    def s(self) -> Tensor:
        return self.outputs.scale.reshape(-1, 1).double()[self.ref.finite]

    @cached_property
    def S(self) -> Tensor:
        return self.ref.scale[self.ref.finite]

    @cached_property
    def d(self) -> Tensor:
        return self.v * self.s

    @cached_property
    def D(self) -> Tensor:
        return self.V * self.S

    @cached_property
    def y(self) -> Tensor:
        return self.ref.y[self.ref.finite]

    @cached_property
    def r(self) -> Tensor | None:
        stored = getattr(self.outputs, "residual_out", None)
        return None if stored is None else stored.reshape(self.ref.codes.shape).double()[self.ref.finite]

    @cached_property
    def R(self) -> Tensor | None:
        return None if self.ref.residual is None else self.ref.residual[self.ref.finite]

    @cached_property
    def steps(self) -> Tensor:
        """Distance of the codes in a byte order with the negative ones reversed, as the tests count it."""
        return (_key(self.c) - _key(self.C)).abs()

    def residual(self, rtol: float, atol: float) -> bool:
        """close(r, R), or true where there is no residual."""
        return self.r is None or self.R is None or close(self.r, self.R, rtol, atol)


class Product(NamedTuple):
    """Reference of a GEMM, float64: ref = exact rounded to out's type, magnitude = sum |a*sa*b*sb|, un-quantized h."""

    exact: Tensor
    ref: Tensor
    magnitude: Tensor
    h: Tensor
    k: int
    mantissa: int


def reference_product(inputs: tensors.GemmInputs, h: Tensor | None = None) -> Product:
    """Reference of ``inputs``; h [M, N] is the product before its operands were quantized, if that is known."""
    a = decode(inputs.a, format_of(inputs.a.dtype)) * inputs.a_scale.double()
    b = decode(inputs.b, format_of(inputs.b.dtype)) * inputs.b_scale.double()
    bias = 0.0 if inputs.bias is None else inputs.bias.double()
    exact, fmt = a @ b.T + bias, format_of(inputs.out_dtype)
    whole = exact if h is None else h + bias
    return Product(exact, round_to(exact, fmt), a.abs() @ b.abs().T, whole, a.shape[1], fmt.mantissa)


@dataclass(frozen=True)
class ProductSeen:
    """Output of a GEMM, float64 [M, N], against its reference."""

    outputs: tensors.GemmOutputs
    p: Product

    @cached_property
    def out(self) -> Tensor:
        return self.outputs.out.double()

    @property
    def ref(self) -> Tensor:
        return self.p.ref


def far(a: Tensor, b: Tensor, rtol: float, atol: float) -> Tensor:
    """Where |a - b| > atol + rtol*|b|, as ``isclose`` counts; NaN equals NaN, Inf equals Inf."""
    near = ((a - b).abs() <= atol + rtol * b.abs()) & b.isfinite()
    return ~(near | (a == b) | (a.isnan() & b.isnan()))


def close(a: Tensor, b: Tensor, rtol: float, atol: float) -> bool:
    """Is no element of a far from b? ``rtol`` is multiplied by the second argument."""
    return not bool(far(a, b, rtol, atol).any())


def share(wrong: Tensor) -> float:
    """Share of true elements; 0 of an empty tensor."""
    return float(wrong.double().mean()) if wrong.numel() else 0.0


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of a and b over the elements where b is finite; 1 where b is all zero and a too."""
    keep = b.isfinite()
    a, b = a[keep], b[keep]
    # Values near the end of float64's range would overflow when squared.
    a, b = a / _peak(a), b / _peak(b)
    if not bool(b.any()):
        return float(not bool(a.any()))
    return float((a * b).sum() / (a.norm() * b.norm()))


def _peak(values: Tensor) -> float:
    top = float(values.abs().max()) if values.numel() else 0.0
    return top if 0.0 < top < math.inf else 1.0


def _key(codes: Tensor) -> Tensor:
    wide = codes.to(torch.int16)
    return torch.where(wide >= 128, 255 - wide, wide + 128)


def _largest(values: Tensor) -> float:
    return float(values.max()) if values.numel() else 0.0


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
    residual = 0.0 if o.r is None or o.R is None else _largest((o.r - o.R).abs())
    return residual < 0.01 and _largest((o.s - o.S).abs()) < 0.01 * _largest(o.S) and share(o.v == o.V) > 0.90


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
    return share(e <= 1e-3 + 1e-3 * o.R.abs()) >= 0.99999 and _largest(e) <= 3e-3 and float(e.mean()) <= 2.5e-4


def _flashinfer_dynamic(o: RowsSeen) -> bool:
    return o.residual(1e-2, 0.8) and close(o.s, o.S, 1e-3, 1e-3) and close(o.d, o.D, 0.05, 0.05 * _largest(o.S))


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
    x, y = x / _peak(y), y / _peak(y)
    total = float((x * x + y * y).sum())
    return total == 0.0 or 1.0 - 2.0 * float((x * y).sum()) / total < 1e-3


def _torch_rowwise(o: ProductSeen) -> bool:
    return close(o.out, o.ref, 7e-2, 7e-2) and cosine(o.out, o.ref) >= 0.999


def _signal_to_noise(o: ProductSeen) -> bool:
    keep = o.p.h.isfinite()
    h, noise = o.p.h[keep], (o.p.h - o.out)[keep]
    h, noise = h / _peak(h), noise / _peak(h)
    return float(noise.norm()) == 0.0 or 20.0 * math.log10(float(h.norm() / noise.norm()) or 1e-300) >= 25.0


def _ck_gemm(o: ProductSeen) -> bool:
    limit = max(o.p.k * 2.0**-24, 2.0**-4)
    top = float(o.ref[o.ref.isfinite()].abs().max()) if bool(o.ref.isfinite().any()) else 0.0
    return close(o.out, o.ref, limit, top * limit) and not bool((~o.out.isfinite() & o.ref.isfinite()).any())


def _frobenius(o: ProductSeen) -> bool:
    keep = o.ref.isfinite()
    top = _peak(o.ref[keep])
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
