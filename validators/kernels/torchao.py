"""torchao's dynamic per-token quantizer, the library's own Python code on any device.

``Float8Tensor.from_hp(x, granularity=PerRow())`` quantizes the rows of published checkpoints and serves as their
reference. On GPUs of compute capability 9.0 and above the library may take a kernel of another package (MSLK) instead;
the adapter asks for the torch path by name, which is what the preset ``torchao`` describes.
"""

from __future__ import annotations

import functools
import importlib.util

from validators import arch
from validators.cases.tensors import Outputs, QuantInputs, QuantOutputs
from validators.kernels.kernel import Kernel


def _unavailable(device: str) -> str | None:
    if importlib.util.find_spec("torchao") is None:
        return "torchao is not installed"
    try:
        from torchao.quantization import Float8Tensor, PerRow  # noqa: F401
    except ImportError as error:
        version = arch.distribution_version("torchao") or "of unknown version"
        return f"this torchao ({version}) has no Float8Tensor with PerRow ({error})"
    return arch.no_gpu(device) if device != "cpu" else None


def _per_token(inputs: QuantInputs, buffers: Outputs) -> QuantOutputs:
    from torchao.quantization import Float8Tensor, PerRow
    from torchao.quantization.quantize_.common import KernelPreference

    made = Float8Tensor.from_hp(
        inputs.x, inputs.fp8_dtype, granularity=PerRow(), kernel_preference=KernelPreference.TORCH
    )
    return QuantOutputs(made.qdata, made.scale)


def kernels() -> list[Kernel]:
    """torchao's per-token quantizer, contract ``torchao``. Its zero rows are FAILED: 0/0 gives codes that are NaN."""
    return [
        Kernel(
            name="torchao/per_token_quant",
            op="per_token_quant",
            contract="torchao",
            call=_per_token,
            unavailable=_unavailable,
            versions=functools.partial(arch.versions, "torchao"),
        )
    ]
