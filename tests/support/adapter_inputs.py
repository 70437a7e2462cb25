"""Small inputs for adapters of real kernels, and what every FP8 result of theirs must be."""

from __future__ import annotations

import pytest
import torch

from validators.cases.tensors import GemmInputs, GemmOutputs, NormQuantInputs, NormQuantOutputs
from validators.kernels.kernel import Kernel

FN, FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz
NO_BUFFERS = GemmOutputs(torch.empty(0))
needs_cpu_only = pytest.mark.skipif(torch.cuda.is_available(), reason="words the refusal of a machine without a GPU")


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.uint8)


def kernel(provider: object, name: str, op: str) -> Kernel:
    found = [k for k in provider.kernels() if k.name == name and k.op == op]  # type: ignore[attr-defined]
    assert len(found) == 1
    return found[0]


def norm_inputs(
    m: int = 8,
    n: int = 64,
    dtype: torch.dtype = torch.bfloat16,
    fp8: torch.dtype = FN,
    layout: str = "contiguous",
    residual: bool = True,
    gamma: torch.dtype | None = None,
    gemma: bool = False,
) -> NormQuantInputs:
    generator = torch.Generator().manual_seed(m * n)

    def tensor() -> torch.Tensor:
        wide = torch.randn((m, 2 * n if layout == "strided" else n), generator=generator).to(dtype)[:, :n]
        return wide.view(2, m // 2, n) if layout == "3d" else wide

    x, r = tensor(), tensor()
    weight = torch.randn(n, generator=generator) / 8 + (0.0 if gemma else 1.0)
    return NormQuantInputs(x, r if residual else None, weight.to(gamma or dtype), 1e-5, fp8, gemma)


def poisoned(inputs: NormQuantInputs) -> NormQuantOutputs:
    shape = inputs.x.shape
    return NormQuantOutputs(
        torch.full(shape, 0x7F, dtype=torch.uint8).view(inputs.fp8_dtype),
        torch.full((*shape[:-1], 1), float("nan")),
        None if inputs.residual is None else torch.full(shape, float("nan"), dtype=inputs.x.dtype),
    )


def gemm_inputs(m: int, n: int, k: int, fp8: torch.dtype = FN, bias: bool = False) -> GemmInputs:
    generator = torch.Generator().manual_seed(k)

    def values(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return GemmInputs(
        values(m, k).to(fp8),
        values(m, 1).abs() + 0.5,
        values(n, k).to(fp8),
        values(n, 1).abs() + 0.5,
        values(n).bfloat16() if bias else None,
        torch.bfloat16,
    )


def exact_norm(inputs: NormQuantInputs) -> torch.Tensor:
    """y in float64 from the sum as T stores it."""
    z = inputs.x.double()
    if inputs.residual is not None:
        z = (inputs.x.float() + inputs.residual.float()).to(inputs.x.dtype).double()
    weight = inputs.weight.double() + float(inputs.gemma)
    return z / torch.sqrt(z.square().mean(-1, keepdim=True) + inputs.eps) * weight


def assert_quantizes(codes: torch.Tensor, scale: torch.Tensor, y: torch.Tensor, fp8: torch.dtype) -> None:
    """Shapes and dtypes, the row maximum at ±Q, and every code within one step of e4m3 of y/scale."""
    qmax = torch.finfo(fp8).max
    assert (codes.dtype, codes.shape) == (fp8, y.shape)
    assert (scale.dtype, scale.shape) == (torch.float32, (*y.shape[:-1], 1))
    decoded, target = codes.double(), y / scale.double()
    assert torch.equal(decoded.abs().amax(-1), torch.full(y.shape[:-1], qmax, dtype=torch.float64))
    # one step is at most 2^-3 of a normal value, and at most 2^-9 below 2^-6
    assert bool(((decoded - target).abs() <= target.abs() / 8 + 2.0**-9).all())
    assert len(bits(codes).unique()) > 16, "the case is trivial"
