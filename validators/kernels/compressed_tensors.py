"""compressed-tensors' dynamic per-token quantizer, the library's own Python code on any device.

``compute_dynamic_scales_and_zp`` and ``quantize`` with strategy ``token``: the reference of the checkpoints that
llm-compressor publishes. The strategy keeps the first two dimensions, so rows are handed over as [1, M, N]. The scale
comes back in the type of x; widening it to fp32 is exact.
"""

from __future__ import annotations

import functools
import importlib.util

import torch

from validators import arch
from validators.cases.case import Case
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


def kernels() -> list[Kernel]:
    """compressed-tensors' per-token quantizer, contract ``compressed-tensors``."""
    return [
        Kernel(
            name="compressed_tensors/per_token_quant",
            op="per_token_quant",
            contract="compressed-tensors",
            call=_per_token,
            unavailable=_unavailable,
            unsupported=_unsupported,
            versions=functools.partial(arch.versions, "compressed-tensors"),
        )
    ]
