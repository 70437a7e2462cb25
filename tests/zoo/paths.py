"""The wrong paths of the wiring defects: ``KernelPath`` with one method wrong, or right where a test needs that."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from reference.glm4_moe import Layer, Linear
from validators.layers.path import KernelPath, Route

AT = 2
"""The layer of ``glm-tiny`` at which the defects of a single layer sit: a MoE layer with layers before and after it."""


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
