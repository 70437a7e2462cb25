"""compressed-tensors' quantizers, the library's own Python code on any device.

``quantize`` with strategy ``token`` (and ``compute_dynamic_scales_and_zp``) or ``tensor``: the reference of the
checkpoints that llm-compressor publishes. Strategy ``token`` keeps the first two dimensions, so rows are handed over as
[1, M, N], and its scale comes back in the type of x; widening it to fp32 is exact.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable

import torch

from validators import arch
from validators.cases.case import Case
from validators.cases.ops.static_quant import NAME as STATIC
from validators.cases.ops.static_quant import StaticQuantInputs, StaticQuantOutputs
from validators.cases.tensors import Outputs, QuantInputs, QuantOutputs
from validators.kernels.kernel import Kernel


def _unavailable(device: str) -> str | None:
    if importlib.util.find_spec("compressed_tensors") is None:
        return "compressed-tensors is not installed"
    try:
        from compressed_tensors.quantization import utils

        found = hasattr(utils, "compute_dynamic_scales_and_zp")
    except ImportError as error:
        return f"compressed-tensors cannot be imported ({error})"
    if not found:
        version = arch.distribution_version("compressed-tensors") or "of unknown version"
        return f"this compressed-tensors ({version}) has no compute_dynamic_scales_and_zp"
    return arch.no_gpu(device) if device != "cpu" else None


def _unsupported(case: Case) -> str | None:
    return "compressed-tensors quantizes to e4m3fn only" if case.fp8 != "e4m3fn" else None


def _per_token(inputs: QuantInputs, buffers: Outputs) -> QuantOutputs:
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import quantize
    from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

    x = inputs.x
    args = QuantizationArgs(num_bits=8, type="float", strategy="token", symmetric=True, dynamic=True)
    rows = x.reshape(1, -1, x.shape[-1])
    scale, zero_point = compute_dynamic_scales_and_zp(rows, args, torch.nn.Identity())
    codes = quantize(rows, scale, zero_point, args, dtype=inputs.fp8_dtype)
    return QuantOutputs(codes.reshape(x.shape), scale.float().reshape(*x.shape[:-1], 1))


def _static(inputs: StaticQuantInputs, buffers: Outputs) -> StaticQuantOutputs:
    """The scale is fp32 [1], so x/s is fp32. A scale in the type of x, or without a dimension, is other arithmetic:
    torch then divides in the type of x."""
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import quantize

    args = QuantizationArgs(num_bits=8, type="float", strategy="tensor", symmetric=True)
    return StaticQuantOutputs(quantize(inputs.x, inputs.scale, None, args, dtype=inputs.fp8_dtype))


def kernels() -> list[Kernel]:
    """compressed-tensors' per-token and static quantizers, contract ``compressed-tensors``."""
    calls: dict[str, Callable[..., Outputs]] = {"per_token_quant": _per_token, STATIC: _static}
    return [
        Kernel(
            name=f"compressed_tensors/{op}",
            op=op,
            contract="compressed-tensors",
            call=call,
            unavailable=_unavailable,
            unsupported=_unsupported,
            versions=functools.partial(arch.versions, "compressed-tensors"),
        )
        for op, call in calls.items()
    ]
