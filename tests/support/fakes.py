"""Doubles of aiter, vLLM and sglang-kernel with the signatures of the real libraries.

They compute honest values in plain PyTorch, check what the real call checks (types, contiguity, two dimensions)
and note every call, so that a test sees a wrong argument order, a wrong layout and a lost output.
Each says ``__fake__ = True``, or is a shared object that is text: adapters mark their kernels as fake then.
"""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from validators.kernels import extension

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
        out,
        input,
        residual_in,
        residual_out,
        scale,
        weight,
        epsilon,
        group_size=0,
        shuffle_scale=False,
        gemma_norm=False,
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
        self, out, input, scale, weight, epsilon, group_size=0, shuffle_scale=False, gemma_norm=False
    ) -> None:
        self._note("rmsnorm_quant", locals())
        assert input.dim() == 2
        codes, scales = quantize(norm(input.float(), weight, epsilon, gemma_norm))
        out.copy_(codes)
        scale.copy_(scales)

    def add_rmsnorm(self, out, input, residual_in, residual_out, weight, epsilon, gemma_norm=False) -> None:
        self._note("add_rmsnorm", locals())
        assert input.dim() == 2
        z = input.float() + residual_in.float()
        residual_out.copy_(z.to(residual_out.dtype))
        out.copy_(norm(z, weight, epsilon, gemma_norm).to(out.dtype))

    def rmsnorm2d_fwd(self, input, weight, epsilon, use_model_sensitive_rmsnorm=0) -> torch.Tensor:
        self._note("rmsnorm2d_fwd", locals())
        assert input.dim() == 2
        return norm(input.float(), weight, epsilon, False).to(input.dtype)

    def per_token_quant_hip(
        self, x, scale=None, quant_dtype=torch.int8, num_rows=None, num_rows_factor=1
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self._note("per_token_quant_hip", locals())
        assert scale is None
        assert x.is_contiguous()
        assert quant_dtype == FP8
        return quantize(x.float())

    def gemm_a8w8_bpreshuffle(
        self, XQ, WQ, x_scale, w_scale, bias=None, dtype=torch.bfloat16, check=False
    ) -> torch.Tensor:
        self._note("gemm_a8w8_bpreshuffle", locals())
        assert bias is None, "gemm_a8w8_bpreshuffle does not support bias now"
        product = XQ.float() @ unshuffle(WQ).float().t()
        return (product * x_scale * w_scale.reshape(1, -1)).to(dtype)

    def gemm_a8w8_CK(self, XQ, WQ, x_scale, w_scale, bias=None, dtype=torch.bfloat16, splitK=None) -> torch.Tensor:
        self._note("gemm_a8w8_CK", locals())
        out = (XQ.float() @ WQ.float().t()) * x_scale * w_scale.reshape(1, -1)
        return (out if bias is None else out + bias.float()).to(dtype)


def install_aiter(monkeypatch: pytest.MonkeyPatch) -> FakeAiter:
    """A FakeAiter as ``aiter`` for the length of a test."""
    fake = FakeAiter()
    monkeypatch.setitem(sys.modules, "aiter", fake)
    return fake


VLLM_SCHEMAS = {
    "rms_norm_dynamic_per_token_quant": (
        "(Tensor! result, Tensor input, Tensor weight, Tensor! scale, float epsilon, "
        "Tensor? scale_ub, Tensor!? residual) -> ()"
    ),
    "dynamic_per_token_scaled_fp8_quant": ("(Tensor! result, Tensor input, Tensor! scale, Tensor? scale_ub) -> ()"),
    "cutlass_scaled_mm": ("(Tensor! out, Tensor a, Tensor b, Tensor a_scales, Tensor b_scales, Tensor? bias) -> ()"),
}


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
    assert input.stride(-1) == 1
    assert residual is None or residual.is_contiguous()
    assert weight.dtype == input.dtype
    z = input.float()
    if residual is not None:
        z = z + residual.float()
        residual.copy_(z.to(residual.dtype))
    codes, scales = quantize(norm(z, weight, epsilon, False))
    result.copy_(codes)
    scale.copy_(scales)


def _vllm_quant(result: torch.Tensor, input: torch.Tensor, scale: torch.Tensor, scale_ub: torch.Tensor | None) -> None:
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


_SGL_SCHEMAS = {
    "sgl_per_token_quant_fp8": "(Tensor input, Tensor! output_q, Tensor! output_s) -> ()",
    "fp8_scaled_mm": (
        "(Tensor mat_a, Tensor mat_b, Tensor scales_a, Tensor scales_b, ScalarType out_dtype, Tensor? bias) -> Tensor"
    ),
}


def _sgl_quant(input: torch.Tensor, output_q: torch.Tensor, output_s: torch.Tensor) -> None:
    assert input.dim() == 2
    assert input.is_contiguous()
    codes, scales = quantize(input.float())
    output_q.copy_(codes)
    output_s.copy_(scales)


def _sgl_mm(
    mat_a: torch.Tensor,
    mat_b: torch.Tensor,
    scales_a: torch.Tensor,
    scales_b: torch.Tensor,
    out_dtype: torch.dtype,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    out = torch.empty(mat_a.shape[0], mat_b.shape[1], dtype=out_dtype)
    _vllm_mm(out, mat_a, mat_b, scales_a, scales_b, bias)
    return out


@dataclass(frozen=True)
class FakeWheel:
    """An unpacked wheel whose shared object is text. ``library``: the file; ``folder``: where it was unpacked."""

    folder: Path
    library: Path


_WHEELS: dict[str, tuple[str, str, str, str, dict[str, str], dict[str, Callable[..., object]]]] = {
    "vllm": (
        "VLLM_PATH",
        "_C",
        "vllm/_C_stable_libtorch.abi3.so",
        "vllm-9.9.dist-info",
        VLLM_SCHEMAS,
        {
            "rms_norm_dynamic_per_token_quant": _vllm_norm,
            "dynamic_per_token_scaled_fp8_quant": _vllm_quant,
            "cutlass_scaled_mm": _vllm_mm,
        },
    ),
    "sgl_kernel": (
        "SGL_KERNEL_PATH",
        "sgl_kernel",
        "sgl_kernel/sm100/common_ops.abi3.so",
        "sglang_kernel-9.9.dist-info",
        _SGL_SCHEMAS,
        {"sgl_per_token_quant_fp8": _sgl_quant, "fp8_scaled_mm": _sgl_mm},
    ),
}


@contextlib.contextmanager
def unpacked_wheel(
    monkeypatch: pytest.MonkeyPatch, folder: Path, package: str, ops: tuple[str, ...] | None = None
) -> Iterator[FakeWheel]:
    """The environment variable of ``package`` names a fake unpacked wheel in ``folder``.

    Its library registers ``ops`` (default: all that the adapters call) with the real dispatcher, under the real
    schemas, when torch's loader is asked for it; for any other file the loader fails as the real one does.
    """
    variable, namespace, place, information, schemas, implementations = _WHEELS[package]
    wheel = FakeWheel(folder, folder / place)
    wheel.library.parent.mkdir(parents=True)
    wheel.library.write_text("a test double, libcudart.so.13, Input must be contiguous in the last dimension")
    (folder / information).mkdir()
    (folder / information / "METADATA").write_text("Metadata-Version: 2.1\nName: double\nVersion: 9.9\n")
    with torch.library._scoped_library(namespace, "FRAGMENT") as library:

        def load(path: str) -> None:
            if Path(path) != wheel.library:
                cause = OSError(f"{path}: undefined symbol: _ZN3c105ErrorC2E")
                raise OSError(f"Could not load this library: {path}") from cause
            for name in schemas if ops is None else ops:
                library.define(name + schemas[name])
                library.impl(name, implementations[name], "CPU")

        monkeypatch.setenv(variable, str(folder))
        monkeypatch.setattr(torch.ops, "load_library", load)
        extension._load.cache_clear()
        yield wheel
    extension._load.cache_clear()
