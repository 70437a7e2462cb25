"""The path under test: the residual stream, the norms and the PTPC linears of a model, run by kernels.

Wired as a serving engine does it (SGLang PR #21403): ``input_layernorm`` and, in dense layers,
``post_attention_layernorm`` hand a tuple (codes, scale) to the linear that follows; before the router of a MoE
layer the norm stays bf16. Its unfused twin, ``fused=False``, runs a bf16 norm and then the per-token quantizer
everywhere. A wiring defect is a subclass of ``KernelPath`` with one method wrong; nothing here judges.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

from reference.contract import NormQuantContract, Reduction
from reference.glm4_moe import Config, Layer, Linear
from validators.calls import integrity
from validators.calls.buffers import POISONS
from validators.calls.call import KernelFault, call
from validators.cases import tensors
from validators.cases.case import Case
from validators.errors import UserError
from validators.kernels.kernel import Kernel

Route = Literal["per_token", "group", "mxfp4", "bf16"]
ROUTES: Mapping[str, Route] = {"": "bf16", "fp8": "group", "fp8_per_token": "per_token", "mxfp4": "mxfp4"}
FP8 = torch.float8_e4m3fn
# Of the group-quant path that a wrong route ends in.
GROUP = 128


class PathError(UserError):
    """A model or kernels that the path cannot run; its message is one sentence."""


def route_of(quant_format: str) -> Route:
    """The route for a ``quant_format``, by exact comparison; raises PathError for an unknown one.

    ``"fp8" in quant_format`` also matched ``fp8_per_token`` and sent it to the group-quant path.
    """
    if quant_format not in ROUTES:
        raise PathError(f"unknown quant_format {quant_format!r}; known: {', '.join(map(repr, ROUTES))}")
    return ROUTES[quant_format]


@dataclass(frozen=True)
class Kernels:
    """One kernel an op: add_rmsnorm_quant, per_token_quant, ptpc_gemm."""

    norm: Kernel
    quant: Kernel
    gemm: Kernel


def shapes_unsupported(kernels: Kernels, config: Config, tokens: int, tp: int = 1) -> str | None:
    """One sentence why a kernel does not offer a shape of this model, or None."""
    wide = config.heads * config.head_dim
    widths = [config.intermediate, config.moe_intermediate * max(1, config.shared_experts)]
    gemms = [(sum(config.qkv_sizes()), config.hidden), (config.hidden, wide // tp)]
    gemms += [(2 * w // tp, config.hidden) for w in widths] + [(config.hidden, w // tp) for w in widths]
    cases = [
        (kernels.norm, Case("add_rmsnorm_quant", tokens, config.hidden, "layers", residual=r)) for r in (True, False)
    ]
    cases += [(kernels.quant, Case("per_token_quant", tokens, k, "layers")) for _, k in gemms]
    cases += [(kernels.gemm, Case("ptpc_gemm", tokens, n, "layers", k=k)) for n, k in gemms]
    if config.first_dense < config.layers:
        # One expert per layer is run whole on every rank.
        experts = [(2 * config.moe_intermediate, config.hidden), (config.hidden, config.moe_intermediate)]
        cases += [(kernels.gemm, Case("ptpc_gemm", 16, n, "layers", k=k)) for n, k in experts]
    for kernel, case in cases:
        if reason := kernel.unsupported(case):
            size = f"{case.m} x {case.n}" + (f" x {case.k}" if case.k else "")
            return f"{kernel.name} does not offer {case.op} {size}: {reason}"
    return None


class KernelPath:
    """Runs the steps of a layer in order; ``residual`` is the stream that it carries from norm to norm.

    quant_format: what the checkpoint says. seconds: time inside kernels. guards: what the buffers' guards said.
    """

    def __init__(self, kernels: Kernels, config: Config, quant_format: str, *, fused: bool = True) -> None:
        self.kernels, self.config, self.quant_format, self.fused = kernels, config, quant_format, fused
        self.residual: Tensor | None = None
        self.seconds = 0.0
        self.route = self.choose_route(quant_format)
        if self.route not in ("per_token", "group"):
            raise PathError(f"quant_format {quant_format!r} has no per-token FP8 linears, so there is nothing to walk")

    def choose_route(self, quant_format: str) -> Route:
        """The route of the linears."""
        return route_of(quant_format)

    def weights(self, layer: Layer) -> Layer:
        """The weights that the path uses for ``layer``."""
        return layer

    def run(self, kernel: Kernel, inputs: tensors.Inputs) -> tensors.Outputs:
        """One call of a kernel, with outputs of its op; raises KernelFault if it raises, writes outside its buffers or
        returns no output."""
        outputs, guards, seconds = call(kernel, inputs, POISONS[0])
        self.seconds += seconds
        if guards.ok is False:
            raise KernelFault(guards.detail)
        try:
            integrity.check_outputs(inputs, outputs, strict=False)
        except integrity.OutputError as error:
            raise KernelFault(str(error)) from error
        return outputs

    # ---- norms

    def prepare(self, layer: Layer, which: Literal["input", "post"], hidden: Tensor) -> tuple[Tensor, ...]:
        """Add hidden bf16 [T, n] to the stream, normalise, quantize: (codes FP8 [T, n], scale fp32 [T, 1])."""
        own = self.weights(layer)
        weight = own.input_norm if which == "input" else own.post_norm
        if self.route == "group":
            return self.group_quantize(self.add_rmsnorm(weight, hidden))
        if self.is_fused(layer):
            return self.fused_norm(weight, hidden)
        return self.quantize(self.add_rmsnorm(weight, hidden))

    def is_fused(self, layer: Layer) -> bool:
        """Whether this layer takes the fused kernel."""
        return self.fused

    def fused_norm(self, weight: Tensor, hidden: Tensor) -> tuple[Tensor, ...]:
        """The norm kernel; the first norm of a sequence has no residual, and its input becomes the stream."""
        inputs = tensors.NormQuantInputs(hidden, self.residual, weight, self.config.eps, FP8)
        out = cast(tensors.NormQuantOutputs, self.run(self.kernels.norm, inputs))
        self.residual = hidden if self.residual is None else out.residual_out
        return out.codes, out.scale

    def add_rmsnorm(self, weight: Tensor, hidden: Tensor) -> Tensor:
        """The norm without quantization, bf16 [T, n]: unrounded sum in, statistics in float64, rounded once to bf16."""
        total = hidden.float() if self.residual is None else hidden.float() + self.residual.float()
        self.residual = total.to(hidden.dtype)
        square = total.double().square().mean(-1, keepdim=True)
        rms = (square + self.config.eps).rsqrt().float()
        return (total * rms * weight.float()).to(hidden.dtype)

    # ---- quantizer and linears

    def quantize(self, x: Tensor) -> tuple[Tensor, ...]:
        """bf16 [T, n] -> (codes [T, n], scale [T, 1]) by the per-token quantizer."""
        out = cast(tensors.QuantOutputs, self.run(self.kernels.quant, tensors.QuantInputs(x.contiguous(), FP8)))
        return out.codes, out.scale

    def group_quantize(self, x: Tensor) -> tuple[Tensor, ...]:
        """bf16 [T, n] -> (codes, scale [T, n / 128]): the other FP8 path, whose scales no PTPC linear can take."""
        codes, scale = self.quantize(x.view(-1, GROUP))
        return codes.view(x.shape), scale.view(len(x), -1)

    def linear(self, layer: Layer, what: Linear, handed: tuple[Tensor, ...]) -> Tensor:
        """The PTPC linear on what the norm or the quantizer handed over, bf16 [T, out]; the bias in bf16 after the
        store."""
        codes, scale = handed
        out = self.gemm(what, codes, scale)
        return out if what.bias is None else self.add_bias(out, what.bias)

    def gemm(self, what: Linear, codes: Tensor, scale: Tensor) -> Tensor:
        """The GEMM kernel alone, bf16 [T, out]."""
        assert what.scale is not None
        inputs = tensors.GemmInputs(codes, scale, what.weight, what.scale, None, torch.bfloat16)
        return cast(tensors.GemmOutputs, self.run(self.kernels.gemm, inputs)).out

    def add_bias(self, out: Tensor, bias: Tensor) -> Tensor:
        """out + bias, one more rounding to bf16."""
        return (out.float() + bias.float()).to(out.dtype)


def twin_contract(quant: NormQuantContract) -> NormQuantContract:
    """What ``add_rmsnorm`` followed by a quantizer of contract ``quant`` computes, as one contract of the norm op.

    The mean and the reciprocal root are float64 rounded once, which any reduction in fp32 of at least 64 lanes allows.
    """
    return quant.replace(
        name=f"bf16 norm, then {quant.name}",
        norm_input="unrounded",
        residual_store="rne",
        round_after_normalize=False,
        round_after_weight=True,
        reduction=Reduction("lanes", 64),
        mean_u=3.0,
        rsqrt_u=4.0,
    )


def stored(x: Tensor) -> Tensor:
    """float64 -> what bf16 holds, as float64: the activations between the kernels of both arms."""
    return x.float().bfloat16().double()
