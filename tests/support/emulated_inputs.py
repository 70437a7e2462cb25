"""Inputs and guarded outputs for tests that call an emulated kernel themselves."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from validators.cases import tensors
from validators.cases.recipe import ADD, QUANT
from validators.kernels.emulated_rounding import encode
from validators.kernels.emulated_variant import FP8_NAMES

TORCH_FP8 = {name: dtype for dtype, name in FP8_NAMES.items()}
TORCH_T = {"bf16": torch.bfloat16, "fp16": torch.float16}
POISON = 0x55
GUARD = 16


def guarded_buffer(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A poisoned tensor with GUARD bytes behind it, and the bytes of both."""
    size = math.prod(shape) * torch.empty((), dtype=dtype).element_size()
    memory = torch.full((size + GUARD,), POISON, dtype=torch.uint8)
    return memory[:size].view(dtype).view(shape), memory


def guarded_outputs(inputs: tensors.Inputs) -> tuple[tensors.Outputs, list[Tensor]]:
    if isinstance(inputs, tensors.GemmInputs):
        out, memory = guarded_buffer((len(inputs.a), len(inputs.b)), inputs.out_dtype)
        return tensors.GemmOutputs(out), [memory]
    if inputs.op not in (ADD, QUANT):
        made = {name: guarded_buffer(shape, torch.uint8) for name, (shape, _) in inputs.expected().items()}
        views = {name: made[name][0].view(dtype) for name, (_, dtype) in inputs.expected().items()}
        return inputs.outputs(views), [memory for _, memory in made.values()]
    assert isinstance(inputs, tensors.NormQuantInputs | tensors.QuantInputs)
    shape = tuple(inputs.x.shape)
    codes, code_memory = guarded_buffer(shape, torch.uint8)
    scale, scale_memory = guarded_buffer((*shape[:-1], 1), torch.float32)
    codes = codes.view(inputs.fp8_dtype)
    if isinstance(inputs, tensors.QuantInputs):
        return tensors.QuantOutputs(codes, scale), [code_memory, scale_memory]
    if isinstance(inputs, tensors.QuantInputs) or inputs.residual is None:
        return tensors.NormQuantOutputs(codes, scale), [code_memory, scale_memory]
    residual, residual_memory = guarded_buffer(shape, inputs.x.dtype)
    return tensors.NormQuantOutputs(codes, scale, residual), [code_memory, scale_memory, residual_memory]


def norm_inputs(x: Tensor, residual: Tensor | None = None, **changes: object) -> tensors.NormQuantInputs:
    generator = torch.Generator().manual_seed(7)
    weight = (1 + 0.1 * torch.randn(x.shape[-1], generator=generator)).to(x.dtype)
    return dataclasses.replace(tensors.NormQuantInputs(x, residual, weight, 1e-5, torch.float8_e4m3fn), **changes)  # type: ignore[arg-type]


def gaussian(m: int, n: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed)).to(dtype)


# --- gemm ------------------------------------------------------------------------------------------------------


def gemm_inputs(m: int = 33, n: int = 48, k: int = 160, dtype: torch.dtype = torch.bfloat16) -> tensors.GemmInputs:
    generator = torch.Generator().manual_seed(3)
    a = encode(torch.randn(m, k, generator=generator) * 30, "e4m3fn", "saturate").view(torch.float8_e4m3fn)
    b = encode(torch.randn(n, k, generator=generator) * 30, "e4m3fn", "saturate").view(torch.float8_e4m3fn)
    a_scale = torch.rand(m, 1, generator=generator) + 0.5
    b_scale = torch.rand(n, 1, generator=generator) + 0.5
    return tensors.GemmInputs(a, a_scale, b, b_scale, None, dtype)


def with_bias(inputs: tensors.GemmInputs) -> tensors.GemmInputs:
    bias = torch.randn(len(inputs.b), generator=torch.Generator().manual_seed(4)) * 1000
    return dataclasses.replace(inputs, bias=bias.to(inputs.out_dtype))
