"""Wiring defects: a model path with one method wrong, as serving engines have had it wrong. The kernels are right."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reference.glm4_moe import Layer, Linear
from validators.layers_path import Path, Route

AT = 2
"""The layer of ``glm-tiny`` at which the defects of a single layer sit: a MoE layer with layers before and after it."""


@dataclass(frozen=True)
class WiringDefect:
    """id: ``W04``. layer, step: where the walk must place it first. path: the wrong wiring. summary: one sentence."""

    id: str
    name: str
    path: type[Path]
    layer: int
    step: str
    summary: str


class ScaleDropped(Path):
    def linear(self, layer: Layer, what: Linear, handed: tuple[Tensor, ...]) -> Tensor:
        return super().linear(layer, what, (handed[0], torch.ones_like(handed[1])))


class TripleQuantizedAgain(Path):
    """The norm also hands its bf16 output over, and the linear takes the wrong end of the tuple."""

    def prepare(self, layer: Layer, which: str, hidden: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        before = self.residual
        codes, scale = super().prepare(layer, which, hidden)  # type: ignore[arg-type]
        after, self.residual = self.residual, before
        own = self.weights(layer)
        normed = self.add_rmsnorm(own.input_norm if which == "input" else own.post_norm, hidden)
        self.residual = after
        return codes, scale, normed

    def linear(self, layer: Layer, what: Linear, handed: tuple[Tensor, ...]) -> Tensor:
        return super().linear(layer, what, self.quantize(handed[2]) if len(handed) == 3 else handed)


class TripleAsPair(TripleQuantizedAgain):
    """The bf16 tensor of a tuple of three lands where the scale belongs."""

    def linear(self, layer: Layer, what: Linear, handed: tuple[Tensor, ...]) -> Tensor:
        return Path.linear(self, layer, what, (handed[0], handed[-1].float()))


class TripleRight(TripleQuantizedAgain):
    """No defect: a tuple of three whose first two the linear takes."""

    def linear(self, layer: Layer, what: Linear, handed: tuple[Tensor, ...]) -> Tensor:
        return Path.linear(self, layer, what, handed[:2])


class QuantizedTwice(Path):
    def linear(self, layer: Layer, what: Linear, handed: tuple[Tensor, ...]) -> Tensor:
        return super().linear(layer, what, self.quantize(handed[0].float().bfloat16()))


class SubstringRoute(Path):
    def choose_route(self, quant_format: str) -> Route:
        return "group" if "fp8" in quant_format else super().choose_route(quant_format)


class FirstResidualDoubled(Path):
    """Layer 0 is given its input as the residual too."""

    def fused_norm(self, weight: Tensor, hidden: Tensor) -> tuple[Tensor, ...]:
        self.residual = hidden.clone() if self.residual is None else self.residual
        return super().fused_norm(weight, hidden)


class FirstResidualLost(Path):
    """The kernel without a residual is called, and nothing is kept for the next norm."""

    def fused_norm(self, weight: Tensor, hidden: Tensor) -> tuple[Tensor, ...]:
        first = self.residual is None
        handed = super().fused_norm(weight, hidden)
        self.residual = None if first else self.residual
        return handed


class StaleResidual(Path):
    """One norm uses the residual of the norm before the last."""

    before: Tensor | None = None

    def prepare(self, layer: Layer, which: str, hidden: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        if layer.index == AT and which == "input":
            self.residual = self.before
        return super().prepare(layer, which, hidden)  # type: ignore[arg-type]

    def add_rmsnorm(self, weight: Tensor, hidden: Tensor) -> Tensor:
        self.before = self.residual
        return super().add_rmsnorm(weight, hidden)


class NeighboursWeights(Path):
    """From one layer on, the weights of the layer before."""

    previous: Layer | None = None
    current: Layer | None = None

    def weights(self, layer: Layer) -> Layer:
        if self.current is None or self.current.index != layer.index:
            self.previous, self.current = self.current, layer
        return self.previous if layer.index == AT and self.previous is not None else layer


class NeighboursProjection(Path):
    """The norm's weight is right, the projection after it belongs to the layer before."""

    previous: Linear | None = None
    current: tuple[int, Linear] | None = None

    def linear(self, layer: Layer, what: Linear, handed: tuple[Tensor, ...]) -> Tensor:
        if what.bias is not None:
            if self.current is not None and self.current[0] != layer.index:
                self.previous = self.current[1]
            self.current = (layer.index, what)
            if layer.index == AT and self.previous is not None:
                what = self.previous
        return super().linear(layer, what, handed)


class BiasLost(Path):
    def linear(self, layer: Layer, what: Linear, handed: tuple[Tensor, ...]) -> Tensor:
        return super().linear(layer, Linear(what.weight, what.scale) if layer.index == AT else what, handed)


class BiasTwice(Path):
    def linear(self, layer: Layer, what: Linear, handed: tuple[Tensor, ...]) -> Tensor:
        out = super().linear(layer, what, handed)
        return self.add_bias(out, what.bias) if layer.index == AT and what.bias is not None else out


class UnfusedFallback(Path):
    def is_fused(self, layer: Layer) -> bool:
        return layer.index != AT


DEFECTS = tuple(
    WiringDefect(*row)
    for row in (
        ("W01", "scale-dropped", ScaleDropped, 0, "qkv_proj", "the linear multiplies the codes without the scale"),
        ("W02", "triple-requantized", TripleQuantizedAgain, 0, "qkv_proj", "the third of three is quantized again"),
        ("W03", "triple-as-pair", TripleAsPair, 0, "qkv_proj", "a tuple of three is unpacked as codes and scale"),
        ("W04", "quantized-twice", QuantizedTwice, 0, "qkv_proj", "the codes are quantized as if they were values"),
        ("W05", "substring-route", SubstringRoute, 0, "input_layernorm", "'fp8' in quant_format takes group scales"),
        ("W06", "first-doubled", FirstResidualDoubled, 0, "input_layernorm", "layer 0 adds its input to itself"),
        ("W07", "first-lost", FirstResidualLost, 0, "input_layernorm", "layer 0 keeps no residual stream"),
        ("W08", "stale-residual", StaleResidual, AT, "input_layernorm", "a norm adds the residual of an earlier norm"),
        ("W09", "neighbours-weights", NeighboursWeights, AT, "input_layernorm", "a layer uses the weights before it"),
        ("W10", "neighbours-qkv", NeighboursProjection, AT, "qkv_proj", "a projection uses the weights before it"),
        ("W11", "bias-lost", BiasLost, AT, "qkv_proj", "the attention bias of a layer is dropped"),
        ("W12", "bias-twice", BiasTwice, AT, "qkv_proj", "the attention bias of a layer is added twice"),
        ("W13", "unfused-fallback", UnfusedFallback, AT, "input_layernorm", "one layer quietly takes the unfused path"),
    )
)
