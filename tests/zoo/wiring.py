"""Wiring defects: a model path with one method wrong, as serving engines have had it wrong. The kernels are right."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from reference.glm4_moe import Layer, Linear
from validators.layers.path import KernelPath, Route

AT = 2
"""The layer of ``glm-tiny`` at which the defects of a single layer sit: a MoE layer with layers before and after it."""


@dataclass(frozen=True)
class WiringDefect:
    """id: ``W04``. name: slug. path: the wrong wiring. layer, step: where the walk must place it first.

    real_report: ``owner/repo#number`` of a real bug of this kind, or "". tokens, tp: the walk that shows it.
    """

    id: str
    name: str
    path: type[KernelPath]
    layer: int
    step: str
    summary: str
    real_report: str = ""
    tokens: int = 16
    tp: int = 1


class ScaleDropped(KernelPath):
    def linear(self, layer: Layer, what: Linear, handed: tuple[Tensor, ...]) -> Tensor:
        return super().linear(layer, what, (handed[0], torch.ones_like(handed[1])))


class TripleQuantizedAgain(KernelPath):
    """The norm also hands its bf16 output over, and the linear takes the wrong end of the tuple."""

    def prepare(self, layer: Layer, which: str, hidden: Tensor) -> tuple[Tensor, ...]:
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
        return KernelPath.linear(self, layer, what, (handed[0], handed[-1].float()))


class TripleRight(TripleQuantizedAgain):
    """No defect: a tuple of three whose first two the linear takes."""

    def linear(self, layer: Layer, what: Linear, handed: tuple[Tensor, ...]) -> Tensor:
        return KernelPath.linear(self, layer, what, handed[:2])


class QuantizedTwice(KernelPath):
    def linear(self, layer: Layer, what: Linear, handed: tuple[Tensor, ...]) -> Tensor:
        return super().linear(layer, what, self.quantize(handed[0].float().bfloat16()))


class SubstringRoute(KernelPath):
    def choose_route(self, quant_format: str) -> Route:
        return "group" if "fp8" in quant_format else super().choose_route(quant_format)


class FirstResidualDoubled(KernelPath):
    """Layer 0 is given its input as the residual too."""

    def fused_norm(self, weight: Tensor, hidden: Tensor) -> tuple[Tensor, ...]:
        self.residual = hidden.clone() if self.residual is None else self.residual
        return super().fused_norm(weight, hidden)


class FirstResidualLost(KernelPath):
    """The kernel without a residual is called, and nothing is kept for the next norm."""

    def fused_norm(self, weight: Tensor, hidden: Tensor) -> tuple[Tensor, ...]:
        first = self.residual is None
        handed = super().fused_norm(weight, hidden)
        self.residual = None if first else self.residual
        return handed


class StaleResidual(KernelPath):
    """One norm uses the residual of the norm before the last."""

    before: Tensor | None = None

    def prepare(self, layer: Layer, which: str, hidden: Tensor) -> tuple[Tensor, ...]:
        if layer.index == AT and which == "input":
            self.residual = self.before
        return super().prepare(layer, which, hidden)  # type: ignore[arg-type]

    def add_rmsnorm(self, weight: Tensor, hidden: Tensor) -> Tensor:
        self.before = self.residual
        return super().add_rmsnorm(weight, hidden)


class NeighboursWeights(KernelPath):
    """From one layer on, the weights of the layer before."""

    previous: Layer | None = None
    current: Layer | None = None

    def weights(self, layer: Layer) -> Layer:
        if self.current is None or self.current.index != layer.index:
            self.previous, self.current = self.current, layer
        return self.previous if layer.index == AT and self.previous is not None else layer


class NeighboursProjection(KernelPath):
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


class BiasLost(KernelPath):
    def linear(self, layer: Layer, what: Linear, handed: tuple[Tensor, ...]) -> Tensor:
        return super().linear(layer, Linear(what.weight, what.scale) if layer.index == AT else what, handed)


class BiasTwice(KernelPath):
    def linear(self, layer: Layer, what: Linear, handed: tuple[Tensor, ...]) -> Tensor:
        out = super().linear(layer, what, handed)
        return self.add_bias(out, what.bias) if layer.index == AT and what.bias is not None else out


class UnfusedFallback(KernelPath):
    def is_fused(self, layer: Layer) -> bool:
        return layer.index != AT


class Swapped(KernelPath):
    """The bf16 norm returns (normed, residual) and the caller unpacks them in the other order."""

    def add_rmsnorm(self, weight: Tensor, hidden: Tensor) -> Tensor:
        normed, kept = super().add_rmsnorm(weight, hidden), self.residual
        assert kept is not None
        self.residual = normed
        return kept


class FirstResidualGarbage(KernelPath):
    """``empty_like`` is passed where there is no residual; what the allocator hands out is not zero here."""

    def fused_norm(self, weight: Tensor, hidden: Tensor) -> tuple[Tensor, ...]:
        if self.residual is None:
            self.residual = torch.full_like(hidden, 0.1953125)
        return super().fused_norm(weight, hidden)


class FirstResidualNormed(KernelPath):
    """The first norm's output becomes the stream, not its input."""

    def fused_norm(self, weight: Tensor, hidden: Tensor) -> tuple[Tensor, ...]:
        first = self.residual is None
        codes, scale = super().fused_norm(weight, hidden)
        if first:
            self.residual = (codes.float() * scale).to(hidden.dtype)
        return codes, scale


class ArgumentsShifted(KernelPath):
    """A group size lands in the flag that adds one to the norm's weight."""

    def fused_norm(self, weight: Tensor, hidden: Tensor) -> tuple[Tensor, ...]:
        return super().fused_norm((weight.float() + 1.0).to(weight.dtype), hidden)


class ScaleAlongColumns(KernelPath):
    """A token scale of shape [M] broadcasts along the columns, which only M == N allows."""

    def gemm(self, what: Linear, codes: Tensor, scale: Tensor) -> Tensor:
        if len(codes) != len(what.weight) or what.scale is None:
            return super().gemm(what, codes, scale)
        return super().gemm(Linear(what.weight, what.scale * scale), codes, torch.ones_like(scale))


class FirstScaleKept(KernelPath):
    """A replayed graph reads the scale that the captured call left behind."""

    first: Tensor | None = None

    def fused_norm(self, weight: Tensor, hidden: Tensor) -> tuple[Tensor, ...]:
        codes, scale = super().fused_norm(weight, hidden)
        self.first = scale if self.first is None else self.first
        return codes, self.first


class OtherRanksWeightScales(KernelPath):
    """Every second rank multiplies with the weight scales of the first."""

    last: tuple[int, tuple[int, ...], Tensor] | None = None

    def linear(self, layer: Layer, what: Linear, handed: tuple[Tensor, ...]) -> Tensor:
        assert what.scale is not None
        key, scale = (layer.index, tuple(what.weight.shape)), what.scale
        if self.last is not None and self.last[:2] == key:
            scale, self.last = self.last[2], None
        else:
            self.last = (*key, scale)
        return super().linear(layer, Linear(what.weight, scale, what.bias), handed)


class ShuffledAgain(KernelPath):
    """The pre-shuffle of a weight for the matrix unit (16 rows of 16 bytes) is applied once too often."""

    def weights(self, layer: Layer) -> Layer:
        if layer.index != AT:
            return layer
        raw = layer.qkv.weight.view(torch.uint8)
        n, k = raw.shape
        shuffled = raw.view(n // 16, 16, k // 16, 16).permute(0, 2, 1, 3).reshape(n, k)
        qkv = Linear(shuffled.view(layer.qkv.weight.dtype), layer.qkv.scale, layer.qkv.bias)
        return dataclasses.replace(layer, qkv=qkv)


class NormalisedTwice(KernelPath):
    """The conversion from e4m3fn to e4m3fnuz doubles the scale, and runs twice on reload."""

    def weights(self, layer: Layer) -> Layer:
        if layer.index != AT or layer.o.scale is None:
            return layer
        return dataclasses.replace(layer, o=Linear(layer.o.weight, layer.o.scale * 2.0, layer.o.bias))


class BucketLosesProducts(KernelPath):
    """The tuned table names for 17 to 32 tokens a kernel that leaves out the last 64 of K."""

    def gemm(self, what: Linear, codes: Tensor, scale: Tensor) -> Tensor:
        if 17 <= len(codes) <= 32:
            codes = codes.clone()
            codes.view(torch.uint8)[:, -64:] = 0
        return super().gemm(what, codes, scale)


class ConfigOfAnotherShape(KernelPath):
    """A cached configuration keeps the K of the call that made it."""

    k = 0

    def gemm(self, what: Linear, codes: Tensor, scale: Tensor) -> Tensor:
        self.k = self.k or codes.shape[1]
        if codes.shape[1] > self.k:
            codes = codes.clone()
            codes.view(torch.uint8)[:, self.k :] = 0
        return super().gemm(what, codes, scale)


class OtherRanksTokenScales(KernelPath):
    """Gathered codes of every second rank come with the scales of the first."""

    last: Tensor | None = None

    def quantize(self, x: Tensor) -> tuple[Tensor, ...]:
        codes, scale = super().quantize(x)
        if self.last is None:
            self.last = scale
            return codes, scale
        scale, self.last = self.last, None
        return codes, scale


class OldResidualKept(KernelPath):
    """The in-place update of the residual happened to a copy."""

    def fused_norm(self, weight: Tensor, hidden: Tensor) -> tuple[Tensor, ...]:
        before = self.residual
        handed = super().fused_norm(weight, hidden)
        self.residual = self.residual if before is None else before
        return handed


class SumNotRounded(KernelPath):
    """The all-reduce's fp32 sum goes into the residual add without its store in bf16."""

    parts: tuple[Tensor, ...] = ()

    def linear(self, layer: Layer, what: Linear, handed: tuple[Tensor, ...]) -> Tensor:
        out = super().linear(layer, what, handed)
        self.parts = (*self.parts, out)[-2:]
        return out

    def fused_norm(self, weight: Tensor, hidden: Tensor) -> tuple[Tensor, ...]:
        before = self.residual
        handed = super().fused_norm(weight, hidden)
        if before is not None and len(self.parts) == 2 and self.parts[1].shape == hidden.shape:
            total = self.parts[0].float() + self.parts[1].float() + before.float()
            self.residual = total.to(hidden.dtype)
        return handed


_NAMES = {
    "W01": ("quantized-twice",),
    "W02": ("unfused-path",),
    "W03": ("outputs-exchanged",),
    "W04": ("first residual",),
    "W05": ("first residual",),
    "W06": ("weight-plus-one",),
    "W07": ("token-scale-along-columns",),
    "W08": ("scale-of-an-earlier-call",),
    "W09": ("other-ranks-weight-scale",),
    "W10": ("weight-shuffled-twice",),
    "W11": ("weight-scale-doubled",),
    "W12": ("products-lost",),
    "W13": ("products-lost",),
    "W14": ("other-ranks-token-scale",),
    "W15": ("residual-kept",),
    "W16": ("sum-not-rounded",),
    # Codes reach 448, so quantizing them again gives the same codes with a scale of 1: one defect in two dresses.
    "W17": ("token-scale-dropped", "quantized-twice"),
    "W18": ("normed-again",),
    # It ends in an exception of its own, which says where.
    "W19": ("the step raised",),
    "W20": ("first residual",),
    "W21": ("first residual",),
    "W22": ("stale-residual",),
    "W23": ("layer-before",),
    "W24": ("layer-before",),
    "W25": ("bias-lost",),
    "W26": ("bias-twice",),
    "W27": ("unfused-path",),
}


def accepted_names(defect: WiringDefect) -> tuple[str, ...]:
    """How the first explanation, or the reason where there is none, may begin: the defect in the walk's words."""
    return _NAMES[defect.id]


_INPUT, _POST = "input_layernorm", "post_attention_layernorm"
DEFECTS = (
    WiringDefect(
        "W01", "quantized-twice", QuantizedTwice, 0, "qkv_proj", "the codes are quantized as if they were values"
    ),
    WiringDefect("W02", "substring-route", SubstringRoute, 0, _INPUT, "'fp8' in quant_format takes the group scales"),
    WiringDefect(
        "W03",
        "outputs-swapped",
        Swapped,
        1,
        _POST,
        "normed and residual are unpacked in the other order",
        "ROCm/aiter#1522",
    ),
    WiringDefect(
        "W04",
        "first-garbage",
        FirstResidualGarbage,
        0,
        _INPUT,
        "uninitialised memory is the first residual",
        "vllm-project/vllm#41972",
    ),
    WiringDefect(
        "W05",
        "first-normed",
        FirstResidualNormed,
        0,
        _INPUT,
        "the first norm's output becomes the stream",
        "vllm-project/vllm#41972",
    ),
    WiringDefect(
        "W06",
        "arguments-shifted",
        ArgumentsShifted,
        0,
        _INPUT,
        "a group size lands in the flag that adds one to the weight",
        "ROCm/aiter#3872",
    ),
    WiringDefect(
        "W07",
        "scale-along-columns",
        ScaleAlongColumns,
        0,
        "o_proj",
        "a token scale multiplies columns where M == N",
        "vllm-project/compressed-tensors#393",
        tokens=128,
    ),
    WiringDefect("W08", "first-scale-kept", FirstScaleKept, 0, _POST, "every call uses the first call's scale"),
    WiringDefect(
        "W09", "rank-0-weight-scales", OtherRanksWeightScales, 0, "qkv_proj", "rank 1 uses rank 0's weight scales", tp=2
    ),
    WiringDefect("W10", "shuffled-again", ShuffledAgain, AT, "qkv_proj", "a weight is pre-shuffled once too often"),
    WiringDefect(
        "W11", "normalised-twice", NormalisedTwice, AT, "o_proj", "a weight's scale is doubled once too often"
    ),
    WiringDefect(
        "W12", "bucket-loses-products", BucketLosesProducts, 0, "qkv_proj", "17 to 32 tokens lose 64 of K", tokens=24
    ),
    WiringDefect(
        "W13",
        "config-of-another-shape",
        ConfigOfAnotherShape,
        0,
        "o_proj",
        "a cached configuration keeps another call's K",
    ),
    WiringDefect(
        "W14",
        "rank-0-token-scales",
        OtherRanksTokenScales,
        0,
        "o_proj",
        "rank 1's codes come with rank 0's scales",
        tp=2,
    ),
    WiringDefect(
        "W15",
        "old-residual",
        OldResidualKept,
        0,
        _POST,
        "the residual's update happened to a copy",
        "pytorch/pytorch#153389",
    ),
    WiringDefect(
        "W16",
        "sum-not-rounded",
        SumNotRounded,
        0,
        _POST,
        "the all-reduce's sum is added before its store",
        "ROCm/aiter#2586",
        tp=2,
    ),
    WiringDefect(
        "W17", "scale-dropped", ScaleDropped, 0, "qkv_proj", "the linear multiplies the codes without the scale"
    ),
    WiringDefect(
        "W18", "triple-requantized", TripleQuantizedAgain, 0, "qkv_proj", "the third of three is quantized again"
    ),
    WiringDefect(
        "W19", "triple-as-pair", TripleAsPair, 0, "qkv_proj", "a tuple of three is unpacked as codes and scale"
    ),
    WiringDefect("W20", "first-doubled", FirstResidualDoubled, 0, _INPUT, "layer 0 adds its input to itself"),
    WiringDefect("W21", "first-lost", FirstResidualLost, 0, _INPUT, "layer 0 keeps no residual stream"),
    WiringDefect("W22", "stale-residual", StaleResidual, AT, _INPUT, "a norm adds the residual of an earlier norm"),
    WiringDefect("W23", "neighbours-weights", NeighboursWeights, AT, _INPUT, "a layer uses the weights before it"),
    WiringDefect(
        "W24", "neighbours-qkv", NeighboursProjection, AT, "qkv_proj", "a projection uses the weights before it"
    ),
    WiringDefect("W25", "bias-lost", BiasLost, AT, "qkv_proj", "the attention bias of a layer is dropped"),
    WiringDefect("W26", "bias-twice", BiasTwice, AT, "qkv_proj", "the attention bias of a layer is added twice"),
    WiringDefect("W27", "unfused-fallback", UnfusedFallback, AT, _INPUT, "one layer quietly takes the unfused path"),
)
"""The defects, W01 to W16 as the catalogue of real reports numbers them, then further ones."""


def defects() -> list[WiringDefect]:
    """Every wiring defect, in the order of the catalogue."""
    return list(DEFECTS)
