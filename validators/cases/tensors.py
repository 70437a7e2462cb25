"""Inputs and outputs of the three ops, as plain frozen dataclasses of tensors.

FP8 tensors are passed in their torch dtype (``torch.float8_e4m3fn`` or ``torch.float8_e4m3fnuz``);
the judge only ever looks at their bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch


@dataclass(frozen=True)
class NormQuantInputs:
    """Inputs of ``add_rmsnorm_quant``.

    x: [M, N] (or [B, S, N] in a 3-D case, M = B*S) bf16/fp16. residual: same shape and dtype as x, or
    None. weight: [N], dtype of x or fp32. eps: python float. fp8_dtype: dtype of the codes.
    gemma: multiply by ``1 + weight`` instead of ``weight``.
    """

    op: ClassVar[str] = "add_rmsnorm_quant"
    x: torch.Tensor
    residual: torch.Tensor | None
    weight: torch.Tensor
    eps: float
    fp8_dtype: torch.dtype
    gemma: bool = False


@dataclass(frozen=True)
class QuantInputs:
    """Inputs of ``per_token_quant``: x [M, N] (or [B, S, N]) bf16/fp16, fp8_dtype of the codes."""

    op: ClassVar[str] = "per_token_quant"
    x: torch.Tensor
    fp8_dtype: torch.dtype


@dataclass(frozen=True)
class GemmInputs:
    """Inputs of ``ptpc_gemm``.

    a: [M, K] FP8. a_scale: [M, 1] fp32. b: [N, K] FP8 (a weight, row-major, not shuffled).
    b_scale: [N, 1] fp32. bias: [N] of out_dtype, or None. out_dtype: bf16, fp16 or fp32.
    """

    op: ClassVar[str] = "ptpc_gemm"
    a: torch.Tensor
    a_scale: torch.Tensor
    b: torch.Tensor
    b_scale: torch.Tensor
    bias: torch.Tensor | None
    out_dtype: torch.dtype


@dataclass(frozen=True)
class NormQuantOutputs:
    """codes: FP8, x's shape. scale: fp32 [M, 1] ([B, S, 1] in 3-D). residual_out: x's shape and dtype, or None."""

    op: ClassVar[str] = "add_rmsnorm_quant"
    codes: torch.Tensor
    scale: torch.Tensor
    residual_out: torch.Tensor | None = None


@dataclass(frozen=True)
class QuantOutputs:
    """codes: FP8, x's shape. scale: fp32 [M, 1] ([B, S, 1] in 3-D)."""

    op: ClassVar[str] = "per_token_quant"
    codes: torch.Tensor
    scale: torch.Tensor


@dataclass(frozen=True)
class GemmOutputs:
    """out: [M, N] of out_dtype."""

    op: ClassVar[str] = "ptpc_gemm"
    out: torch.Tensor


Inputs = NormQuantInputs | QuantInputs | GemmInputs
Outputs = NormQuantOutputs | QuantOutputs | GemmOutputs
