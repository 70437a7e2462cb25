"""What a public acceptance criterion looks at: outputs of a kernel next to those of a reference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from reference.formats import bytes_of, decode, encode, format_of, round_to
from validators.cases import tensors

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
    a, b = a / peak(a), b / peak(b)
    if not bool(b.any()):
        return float(not bool(a.any()))
    return float((a * b).sum() / (a.norm() * b.norm()))


def peak(values: Tensor) -> float:
    top = float(values.abs().max()) if values.numel() else 0.0
    return top if 0.0 < top < math.inf else 1.0


def _key(codes: Tensor) -> Tensor:
    wide = codes.to(torch.int16)
    return torch.where(wide >= 128, 255 - wide, wide + 128)


def largest(values: Tensor) -> float:
    return float(values.max()) if values.numel() else 0.0
