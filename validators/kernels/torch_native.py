"""Kernels that every torch has: the eager forms as users write them, and ``torch._scaled_mm``.

torch's own FP8 cast is part of these kernels, so its overflow behaviour (which differs by version)
is under test too; all values are clamped before it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from validators import arch
from validators.cases import tensors
from validators.cases.case import Case
from validators.kernels.kernel import Kernel
from validators.words import native_fp8

# CUDA and HIP rowwise GEMMs load 16 bytes at a time; torch refuses other sizes.
_GPU_ALIGNMENT = 16


def _quantize(y: torch.Tensor, fp8_dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Last stage of the eager form. y: [..., N] of any float type -> (codes [..., N], scale fp32 [..., 1])."""

    y = y.float()
    qmax = torch.finfo(fp8_dtype).max
    amax = y.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12)
    # By a tensor: on CUDA torch turns division by a Python number into multiplication by fl(1/Q) (seen with 2.11).
    scale = amax / torch.full_like(amax, qmax)
    codes = (y / scale).clamp(-qmax, qmax).to(fp8_dtype)
    return codes, scale


def _add_rmsnorm_quant(inputs: tensors.NormQuantInputs, buffers: tensors.Outputs) -> tensors.NormQuantOutputs:
    storage = inputs.x.dtype
    hidden = inputs.x if inputs.residual is None else inputs.x + inputs.residual
    wide = hidden.float()
    normed = (wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + inputs.eps)).to(storage)
    weight = inputs.weight.float() + 1.0 if inputs.gemma else inputs.weight
    # bf16 * bf16 rounds once to bf16; an fp32 weight promotes, and the store to T rounds once as well.
    codes, scale = _quantize((normed * weight).to(storage), inputs.fp8_dtype)
    return tensors.NormQuantOutputs(codes, scale, None if inputs.residual is None else hidden)


def _per_token_quant(inputs: tensors.QuantInputs, buffers: tensors.Outputs) -> tensors.QuantOutputs:
    return tensors.QuantOutputs(*_quantize(inputs.x, inputs.fp8_dtype))


def _gemm(inputs: tensors.GemmInputs, buffers: tensors.Outputs) -> tensors.GemmOutputs:
    # FP8 products are exact in fp32, and the scales multiply the finished sum.
    out = (inputs.a.float() @ inputs.b.float().t()) * inputs.a_scale * inputs.b_scale.reshape(1, -1)
    if inputs.bias is not None:
        out = out + inputs.bias.float()
    return tensors.GemmOutputs(out.to(inputs.out_dtype))


def _scaled_mm(inputs: tensors.GemmInputs, use_fast_accum: bool) -> tensors.GemmOutputs:
    out = torch._scaled_mm(
        inputs.a,
        inputs.b.t(),
        scale_a=inputs.a_scale.contiguous(),
        scale_b=inputs.b_scale.reshape(1, -1).contiguous(),
        bias=inputs.bias,
        out_dtype=inputs.out_dtype,
        use_fast_accum=use_fast_accum,
    )
    return tensors.GemmOutputs(out)


def _exact_accumulation(inputs: tensors.GemmInputs, buffers: tensors.Outputs) -> tensors.GemmOutputs:
    return _scaled_mm(inputs, use_fast_accum=False)


def _fast_accumulation(inputs: tensors.GemmInputs, buffers: tensors.Outputs) -> tensors.GemmOutputs:
    return _scaled_mm(inputs, use_fast_accum=True)


def _no_device(device: str) -> str | None:
    return None if device == "cpu" else arch.no_gpu(device)


@functools.cache
def _no_rowwise_on_cpu() -> str | None:
    """Why this torch's ``_scaled_mm`` takes no per-row scales on a CPU, or None; asked of torch itself, once."""
    codes = torch.zeros(16, 16, dtype=torch.uint8).view(torch.float8_e4m3fn)
    ones = torch.ones(16, 1)
    try:
        torch._scaled_mm(codes, codes.t(), scale_a=ones, scale_b=ones.t(), out_dtype=torch.bfloat16)
    except RuntimeError:
        # Measured: torch 2.11 asserts that both scales have one element; 2.13 takes them.
        return f"torch {torch.__version__} takes no per-row scales in torch._scaled_mm on a CPU"
    return None


def _only_cpu(device: str) -> str | None:
    if device.partition(":")[0] == "cpu":
        return _no_rowwise_on_cpu()
    return "is torch._scaled_mm of the CPU; torch_native/scaled_mm_hopper and scaled_mm_gpu are the GPU's"


def _no_fp8_gpu(device: str) -> str | None:
    reason = arch.no_gpu(device)
    if reason is not None or arch.is_rocm():
        return reason
    name = arch.architecture(device)
    if int(name.removeprefix("sm_")) < 89:
        return f"torch._scaled_mm needs FP8 matrix units (sm_89 or later); {device} is {name}"
    return None


def _gpu_gemm_unsupported(case: Case) -> str | None:
    if case.k % _GPU_ALIGNMENT or case.n % _GPU_ALIGNMENT:
        return f"rowwise torch._scaled_mm on a GPU wants K and N in multiples of 16, not K={case.k} N={case.n}"
    if case.dtype != "bf16":
        return f"rowwise torch._scaled_mm on a GPU stores bf16 only, not {case.dtype}"
    wanted = native_fp8(arch.rocm_architecture() or "sm_90")
    if case.fp8 != wanted:
        return f"the GPU's matrix unit takes {wanted}, not {case.fp8}"
    return None


def _no_hopper(device: str) -> str | None:
    reason = _no_fp8_gpu(device)
    if reason is not None:
        return reason
    name = arch.architecture(device)
    return None if name == "sm_90" else f"is for Hopper (sm_90); {device} is {name}: use torch_native/scaled_mm_gpu"


def _no_other_gpu(device: str) -> str | None:
    reason = _no_fp8_gpu(device)
    if reason is not None:
        return reason
    hopper = "is for GPUs without a bit-exact model; use torch_native/scaled_mm_hopper on Hopper"
    return hopper if arch.architecture(device) == "sm_90" else None


def kernels() -> list[Kernel]:
    """The eager kernels of all three ops, and rowwise ``torch._scaled_mm`` on the CPU and on a GPU.

    On the CPU ``_scaled_mm`` takes every size, both formats, bf16/fp16/fp32 outputs and adds its bias in
    the epilogue. It multiplies the scales into the operands and not into the sum: torch 2.13 equals
    ``(a * a_scale) @ (b * b_scale).T`` in fp32 bit for bit, which leaves the contract ``fp32`` where a sum
    cancels. On a GPU its accumulator is the matrix unit's: one admissible value per output on Hopper, whose unit is
    known bit for bit, and the contract ``unknown`` elsewhere.
    """
    eager = [
        Kernel("torch_native/eager", op, contract, call, unavailable=_no_device, versions=arch.versions)
        for op, contract, call in _EAGER
    ]
    on_cpu = Kernel(
        name="torch_native/scaled_mm",
        op="ptpc_gemm",
        contract="dequantized-fp32",
        call=_exact_accumulation,
        unavailable=_only_cpu,
        versions=arch.versions,
        notes="the CPU path rounds a * a_scale and b * b_scale to fp32 before the products",
        options={"use_fast_accum": False},
    )
    return [*eager, on_cpu, *(_on_gpu(*row) for row in _GPU_GEMMS)]


def _on_gpu(name: str, contract: str, fast: bool, unavailable: Callable[[str], str | None], notes: str) -> Kernel:
    return Kernel(
        name=f"torch_native/{name}",
        op="ptpc_gemm",
        contract=contract,
        call=_fast_accumulation if fast else _exact_accumulation,
        unavailable=unavailable,
        unsupported=_gpu_gemm_unsupported,
        versions=arch.versions,
        notes=notes,
        options={"use_fast_accum": fast},
    )


_EAGER: tuple[tuple[str, str, Callable[[Any, Any], tensors.Outputs]], ...] = (
    ("add_rmsnorm_quant", "eager", _add_rmsnorm_quant),
    ("per_token_quant", "eager", _per_token_quant),
    ("ptpc_gemm", "fp32", _gemm),
)
_GPU_GEMMS: tuple[tuple[str, str, bool, Callable[[str], str | None], str], ...] = (
    (
        "scaled_mm_hopper",
        "hopper-promote128",
        False,
        _no_hopper,
        "use_fast_accum=False: on Hopper the sum moves to fp32 every 128 elements of K",
    ),
    (
        "scaled_mm_hopper_fast",
        "hopper-fast",
        True,
        _no_hopper,
        "use_fast_accum=True: on Hopper the whole sum stays in the matrix unit's 14-bit register",
    ),
    (
        "scaled_mm_gpu",
        "unknown",
        False,
        _no_other_gpu,
        "any FP8 GPU whose matrix unit has no bit-exact model here",
    ),
)
"""Name, contract, use_fast_accum, why it is not available, notes."""
