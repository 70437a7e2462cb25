"""Doubles of aiter and vLLM with the signatures of the real libraries.

They compute honest values in plain PyTorch, check what the real call checks (types, contiguity, two dimensions)
and note every call, so that a test sees a wrong argument order, a wrong layout and a lost output.
Each says ``__fake__ = True``: adapters mark their kernels as fake while one of them is installed.
"""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Iterator

import pytest
import torch

FP8 = torch.float8_e4m3fn
QMAX = 448.0

# A stand-in for aiter's rmsnorm.py: same kernel and parameter names, launched by kernel[grid](...), no triton.
TRITON_FILE = """
import torch
__fake__ = True
calls = []

class Kernel:
    def __init__(self, name, arg_names):
        self.name, self.arg_names = name, arg_names

    def __getitem__(self, grid):
        def launch(**values):
            assert list(values) == self.arg_names, list(values)
            calls.append((self.name, grid, values))
            z = values["input_ptr"].float()
            if "res_in_ptr" in values:
                stored = (z + values["res_in_ptr"].float()).to(values["res_out_ptr"].dtype)
                values["res_out_ptr"].copy_(stored)
                z = stored.float()
            y = z * torch.rsqrt(z.square().mean(-1, keepdim=True) + values["epsilon"]) * values["g_ptr"].float()
            scale = y.abs().amax(-1, keepdim=True) / values["DTYPE_MAX"]
            values["y_scale_ptr"].copy_(scale[:, 0])
            values["output_ptr"].copy_((y / scale).to(values["output_ptr"].dtype))
        return launch

HEAD = ["input_ptr", "output_ptr"]
TAIL = ["aux_ptr", "input_row_stride", "output_row_stride", "aux_row_stride", "n_rows", "n_cols", "epsilon"]
LAST = ["BLOCK_SIZE", "USE_BLOCKED", "NUM_PRGMS"]
_quant_fused_add_rmsnorm_kernel = Kernel(
    "with residual",
    [*HEAD, "res_in_ptr", "res_out_ptr", "x_scale_ptr", "y_scale_ptr", "g_ptr", *TAIL, "DTYPE_MAX", "IS_SMOOTH", *LAST],
)
_quant_rms_norm_kernel = Kernel(
    "without residual",
    [*HEAD, "x_scale_ptr", "y_scale_ptr", "g_ptr", *TAIL, "scale_ub_ptr", "out_intermediate_ptr", "DTYPE_MAX",
     "IS_SMOOTH", "CLAMP_MAX", "CLAMP_OUT", "DUMP_INTERMEDIATE", *LAST],
)
"""


def quantize(y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """y: fp32 [M, N] -> (codes e4m3fn [M, N], scale [M, 1])."""
    scale = y.abs().amax(-1, keepdim=True).clamp(min=1e-10) / QMAX
    return (y / scale).clamp(-QMAX, QMAX).to(FP8), scale


def norm(z: torch.Tensor, weight: torch.Tensor, epsilon: float, gemma: bool) -> torch.Tensor:
    """RMSNorm of z [M, N] in fp32."""
    return z * torch.rsqrt(z.square().mean(-1, keepdim=True) + epsilon) * (weight.float() + float(gemma))


def unshuffle(weight: torch.Tensor) -> torch.Tensor:
    """Undoes the 16x16 weight order one element at a time, from its description and not from a permute."""
    n, k = weight.shape
    flat = weight.view(torch.uint8).reshape(-1)
    plain = torch.empty((n, k), dtype=torch.uint8)
    at = 0
    for row_tile in range(n // 16):
        for column_tile in range(k // 32):
            for half in range(2):
                for row in range(16):
                    column = column_tile * 32 + half * 16
                    plain[row_tile * 16 + row, column : column + 16] = flat[at : at + 16]
                    at += 16
    return plain.view(weight.dtype)


class FakeAiter(types.ModuleType):
    """``aiter`` with the functions that the adapters call; ``calls`` holds (name, arguments by name)."""

    __fake__ = True
    __version__ = "0.0.fake"

    def __init__(self) -> None:
        super().__init__("aiter")
        self.__file__ = "fake/aiter/__init__.py"
        self.calls: list[tuple[str, dict[str, object]]] = []
        self.dtypes = types.SimpleNamespace(fp8=FP8)

    def _note(self, name: str, arguments: dict[str, object]) -> None:
        self.calls.append((name, {k: v for k, v in arguments.items() if k != "self"}))

    def add_rmsnorm_quant(
        self,
        out: torch.Tensor,
        input: torch.Tensor,
        residual_in: torch.Tensor,
        residual_out: torch.Tensor,
        scale: torch.Tensor,
        weight: torch.Tensor,
        epsilon: float,
        group_size: int = 0,
        shuffle_scale: bool = False,
        gemma_norm: bool = False,
    ) -> None:
        self._note("add_rmsnorm_quant", locals())
        assert input.dim() == 2
        assert out.dtype == FP8
        assert scale.shape == (input.shape[0], 1)
        z = input.float() + residual_in.float()
        residual_out.copy_(z.to(residual_out.dtype))
        codes, scales = quantize(norm(z, weight, epsilon, gemma_norm))
        out.copy_(codes)
        scale.copy_(scales)

    def rmsnorm_quant(
        self,
        out: torch.Tensor,
        input: torch.Tensor,
        scale: torch.Tensor,
        weight: torch.Tensor,
        epsilon: float,
        group_size: int = 0,
        shuffle_scale: bool = False,
        gemma_norm: bool = False,
    ) -> None:
        self._note("rmsnorm_quant", locals())
        assert input.dim() == 2
        codes, scales = quantize(norm(input.float(), weight, epsilon, gemma_norm))
        out.copy_(codes)
        scale.copy_(scales)

    def add_rmsnorm(
        self,
        out: torch.Tensor,
        input: torch.Tensor,
        residual_in: torch.Tensor,
        residual_out: torch.Tensor,
        weight: torch.Tensor,
        epsilon: float,
        gemma_norm: bool = False,
    ) -> None:
        self._note("add_rmsnorm", locals())
        assert input.dim() == 2
        z = input.float() + residual_in.float()
        residual_out.copy_(z.to(residual_out.dtype))
        out.copy_(norm(z, weight, epsilon, gemma_norm).to(out.dtype))

    def rmsnorm2d_fwd(
        self, input: torch.Tensor, weight: torch.Tensor, epsilon: float, use_model_sensitive_rmsnorm: int = 0
    ) -> torch.Tensor:
        self._note("rmsnorm2d_fwd", locals())
        assert input.dim() == 2
        return norm(input.float(), weight, epsilon, False).to(input.dtype)

    def per_token_quant_hip(
        self,
        x: torch.Tensor,
        scale: torch.Tensor | None = None,
        quant_dtype: torch.dtype = torch.int8,
        num_rows: torch.Tensor | None = None,
        num_rows_factor: int = 1,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self._note("per_token_quant_hip", locals())
        assert scale is None
        assert x.is_contiguous()
        assert quant_dtype == FP8
        return quantize(x.float())

    def gemm_a8w8_bpreshuffle(
        self,
        XQ: torch.Tensor,
        WQ: torch.Tensor,
        x_scale: torch.Tensor,
        w_scale: torch.Tensor,
        bias: torch.Tensor | None = None,
        dtype: torch.dtype = torch.bfloat16,
        check: bool = False,
    ) -> torch.Tensor:
        self._note("gemm_a8w8_bpreshuffle", locals())
        assert bias is None, "gemm_a8w8_bpreshuffle does not support bias now"
        product = XQ.float() @ unshuffle(WQ).float().t()
        return (product * x_scale * w_scale.reshape(1, -1)).to(dtype)

    def gemm_a8w8_CK(
        self,
        XQ: torch.Tensor,
        WQ: torch.Tensor,
        x_scale: torch.Tensor,
        w_scale: torch.Tensor,
        bias: torch.Tensor | None = None,
        dtype: torch.dtype = torch.bfloat16,
        splitK: int | None = None,
    ) -> torch.Tensor:
        self._note("gemm_a8w8_CK", locals())
        out = (XQ.float() @ WQ.float().t()) * x_scale * w_scale.reshape(1, -1)
        return (out if bias is None else out + bias.float()).to(dtype)


def install_aiter(monkeypatch: pytest.MonkeyPatch) -> FakeAiter:
    """A FakeAiter as ``aiter`` for the length of a test."""
    fake = FakeAiter()
    monkeypatch.setitem(sys.modules, "aiter", fake)
    return fake


_VLLM_SCHEMAS = {
    "rms_norm_dynamic_per_token_quant": (
        "(Tensor! result, Tensor input, Tensor weight, Tensor! scale, float epsilon, "
        "Tensor? scale_ub, Tensor!? residual) -> ()"
    ),
    "dynamic_per_token_scaled_fp8_quant": (
        "(Tensor! result, Tensor input, Tensor! scale, Tensor? scale_ub) -> ()"
    ),
    "cutlass_scaled_mm": (
        "(Tensor! out, Tensor a, Tensor b, Tensor a_scales, Tensor b_scales, Tensor? bias) -> ()"
    ),
}  # fmt: skip


def _vllm_norm(
    result: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    epsilon: float,
    scale_ub: torch.Tensor | None,
    residual: torch.Tensor | None,
) -> None:
    assert result.is_contiguous()
    assert input.is_contiguous()
    assert weight.dtype == input.dtype
    z = input.float()
    if residual is not None:
        z = z + residual.float()
        residual.copy_(z.to(residual.dtype))
    codes, scales = quantize(norm(z, weight, epsilon, False))
    result.copy_(codes)
    scale.copy_(scales)


def _vllm_quant(
    result: torch.Tensor, input: torch.Tensor, scale: torch.Tensor, scale_ub: torch.Tensor | None
) -> None:  # fmt: skip
    codes, scales = quantize(input.float())
    result.copy_(codes)
    scale.copy_(scales)


def _vllm_mm(
    out: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    a_scales: torch.Tensor,
    b_scales: torch.Tensor,
    bias: torch.Tensor | None,
) -> None:
    assert b.stride(0) == 1, "b must be column-major (K, N)"
    product = (a.float() @ b.float()) * a_scales * b_scales.reshape(1, -1)
    out.copy_((product if bias is None else product + bias.float()).to(out.dtype))


@contextlib.contextmanager
def installed_vllm(monkeypatch: pytest.MonkeyPatch, ops: tuple[str, ...] = tuple(_VLLM_SCHEMAS)) -> Iterator[None]:
    """A fake ``vllm`` whose extension has registered ``ops`` with the real dispatcher, under the real schemas."""
    vllm, extension = types.ModuleType("vllm"), types.ModuleType("vllm._C")
    vllm.__fake__ = True  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setitem(sys.modules, "vllm._C", extension)
    implementations = {
        "rms_norm_dynamic_per_token_quant": _vllm_norm,
        "dynamic_per_token_scaled_fp8_quant": _vllm_quant,
        "cutlass_scaled_mm": _vllm_mm,
    }
    with torch.library._scoped_library("_C", "FRAGMENT") as library:
        for name in ops:
            library.define(name + _VLLM_SCHEMAS[name])
            library.impl(name, implementations[name], "CPU")
        yield
