"""A Triton kernel of this project: residual add, RMSNorm and per-token FP8 quantization in one launch.

A small known quantity for machines that have a GPU and no FP8 library. It declares the contract ``aiter-triton``:
the sum is stored in T (RNE) and the norm reads what was stored, no further rounding to T, scale amax/Q with
1.0 for a zero row, multiplication by 1/scale, no clamp. One program per row, one block of
next_power_of_2(N) elements, 8 warps.

``triton/interpreted`` is the same source in Triton's interpreter on a CPU and does not keep the contract:
triton 3.9.0's interpreter rounds fp32 to bf16 toward zero, and its fp32 to FP8 cast drops the carry into
the exponent (7.77 becomes 4, not 8).
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from validators import arch
from validators.cases.case import Case
from validators.cases.tensors import NormQuantInputs, NormQuantOutputs
from validators.kernels.kernel import Kernel

# 8 warps of 32 threads hold 128 elements each: as many as the contract's reduction allows in sequence.
_WIDEST = 32768
WARPS = 8

# Triton resolves names in a kernel through the module's globals, so the lazy import has to land here.
tl: Any = None


@functools.lru_cache(maxsize=1)
def kernel_function() -> Any:
    """The ``@triton.jit`` function; Triton is imported when it is first asked for."""
    global tl
    import triton
    import triton.language

    tl = triton.language

    @triton.jit
    def add_rmsnorm_quant(  # type: ignore[no-untyped-def]
        x_ptr,
        residual_ptr,
        weight_ptr,
        codes_ptr,
        scale_ptr,
        residual_out_ptr,
        x_stride,
        residual_stride,
        n,
        eps,
        QMAX: tl.constexpr,
        HAS_RESIDUAL: tl.constexpr,
        GEMMA: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        row = tl.program_id(0).to(tl.int64)
        columns = tl.arange(0, BLOCK)
        inside = columns < n
        z = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
        if HAS_RESIDUAL:
            r = tl.load(residual_ptr + row * residual_stride + columns, mask=inside, other=0.0).to(tl.float32)
            stored = (z + r).to(residual_out_ptr.dtype.element_ty)
            tl.store(residual_out_ptr + row * n + columns, stored, mask=inside)
            z = stored.to(tl.float32)
        rms = tl.rsqrt(tl.sum(z * z, axis=0) / n + eps)
        w = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
        if GEMMA:
            w = w + 1.0
        y = z * rms * w
        scale = tl.max(tl.abs(y), axis=0) / QMAX
        scale = tl.where(scale == 0.0, 1.0, scale)
        codes = (y * (1.0 / scale)).to(codes_ptr.dtype.element_ty)
        tl.store(codes_ptr + row * n + columns, codes, mask=inside)
        tl.store(scale_ptr + row, scale)

    return add_rmsnorm_quant


def constants(inputs: NormQuantInputs) -> dict[str, object]:
    """The kernel's compile-time parameters for these inputs."""
    return {
        "QMAX": torch.finfo(inputs.fp8_dtype).max,
        "HAS_RESIDUAL": inputs.residual is not None,
        "GEMMA": inputs.gemma,
        "BLOCK": 1 << (inputs.x.shape[-1] - 1).bit_length(),
    }


def _add_rmsnorm_quant(inputs: NormQuantInputs, buffers: NormQuantOutputs) -> NormQuantOutputs:
    n = inputs.x.shape[-1]
    x = inputs.x.view(-1, n)
    residual = None if inputs.residual is None else inputs.residual.view(-1, n)
    kernel_function()[(x.shape[0],)](
        x,
        residual,
        inputs.weight,
        buffers.codes,
        buffers.scale,
        None if residual is None else buffers.residual_out,
        x.stride(0),
        0 if residual is None else residual.stride(0),
        n,
        inputs.eps,
        **constants(inputs),
        num_warps=WARPS,
    )
    return NormQuantOutputs(buffers.codes, buffers.scale, None if residual is None else buffers.residual_out)


def _unavailable(device: str) -> str | None:
    return arch.no_gpu(device) or arch.no_triton(interpreted=False)


def _interpreted_unavailable(device: str) -> str | None:
    if device.partition(":")[0] != "cpu":
        return "runs in Triton's interpreter on a CPU only"
    return arch.no_triton(interpreted=True)


def unsupported(case: Case) -> str | None:
    """Why the kernel does not take this case, or None."""
    if case.n > _WIDEST:
        return f"this kernel holds a row in one block of at most {_WIDEST} elements, not {case.n}"
    if case.layout == "3dstrided":
        return "this kernel takes one row stride, and rows of a slice of three dimensions have none"
    return None


def _compiled_unsupported(case: Case) -> str | None:
    if case.fp8 == "e4m3fnuz" and torch.cuda.is_available() and not arch.is_rocm():
        return "Triton has no e4m3fnuz on NVIDIA"
    return unsupported(case)


def kernels() -> list[Kernel]:
    """``triton/add_rmsnorm_quant`` on a GPU and ``triton/interpreted`` on a CPU (TRITON_INTERPRET=1)."""
    same = functools.partial(Kernel, op="add_rmsnorm_quant", contract="aiter-triton", call=_add_rmsnorm_quant)
    adapter = functools.partial(same, in_place=True, versions=functools.partial(arch.versions, "triton"))
    return [
        adapter(
            name="triton/add_rmsnorm_quant",
            unavailable=_unavailable,
            unsupported=_compiled_unsupported,
            options={"num_warps": WARPS},
        ),
        adapter(
            name="triton/interpreted",
            unavailable=_interpreted_unavailable,
            unsupported=unsupported,
            notes="a planted, real violation: triton 3.9's interpreter truncates to bf16 and drops FP8 carries",
        ),
    ]
