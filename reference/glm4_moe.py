"""GLM-4-MoE in float64: what a decoder layer and the whole model compute, without any rounding of activations.

Weights stay as they are stored (FP8 codes with a scale per row, or bf16) and are decoded in slices while they
multiply, so that a layer of the full size fits where its codes do. One causal sequence: hidden states are
float64 [T, hidden], T tokens at positions 0 .. T-1. Source: transformers ``Glm4MoeForCausalLM`` (5.x), against
which the tests hold this file.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from reference.formats import decode_table, format_of

SLICE_ELEMENTS = {"cpu": 2**19, "cuda": 2**26}
"""Weights decoded at a time: 4 MB of float64, which stay in a core's cache; half a GiB on a GPU, to fill it."""


class Glm4MoeError(ValueError):
    """A configuration or weights that no such model has; its message is one sentence."""


@dataclass(frozen=True)
class Config:
    """Sizes and switches; see GLM-4.7's config.json. rotary: share of head_dim that is rotated."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    moe_intermediate: int
    experts: int
    top_k: int
    shared_experts: int
    first_dense: int
    vocab: int
    routed_scaling: float = 1.0
    n_group: int = 1
    topk_group: int = 1
    norm_topk: bool = True
    qk_norm: bool = False
    attention_bias: bool = False
    rotary: float = 0.5
    rope_theta: float = 10000.0
    eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise Glm4MoeError(f"{self.heads} query heads cannot share {self.kv_heads} key-value heads evenly")
        if int(self.head_dim * self.rotary) % 2:
            raise Glm4MoeError(f"{int(self.head_dim * self.rotary)} rotated dimensions of a head are not pairs")
        if not 1 <= self.top_k <= self.experts or self.experts % self.n_group:
            raise Glm4MoeError(f"top {self.top_k} of {self.experts} experts in {self.n_group} groups is impossible")

    def qkv_sizes(self) -> tuple[int, int, int]:
        """Output channels of q, k and v in the fused projection."""
        return self.heads * self.head_dim, self.kv_heads * self.head_dim, self.kv_heads * self.head_dim


@dataclass(frozen=True)
class Linear:
    """weight [out, in]: FP8 with scale fp32 [out, 1], or a float dtype with scale None. bias [out] or None."""

    weight: Tensor
    scale: Tensor | None = None
    bias: Tensor | None = None

    def apply(self, x: Tensor) -> Tensor:
        """x float64 [m, in] -> float64 [m, out], every weight decoded exactly."""
        out = x.new_empty(len(x), len(self.weight))
        step = max(1, SLICE_ELEMENTS[x.device.type] // self.weight.shape[1])
        for start in range(0, len(self.weight), step):
            torch.mm(x, values(self.weight[start : start + step]).t(), out=out[:, start : start + step])
        if self.scale is not None:
            out *= self.scale.double().t()
        return out if self.bias is None else out + self.bias.double()


def values(weight: Tensor) -> Tensor:
    """The exact float64 values of a weight (FP8 codes without their scale)."""
    if weight.element_size() != 1:
        return weight.double()
    device = str(weight.device)
    if weight.device.type != "cpu" and cast_decodes(weight.dtype, device):
        # One pass over the memory; a look-up would first widen the codes to indices.
        return weight.to(torch.float64)
    codes = weight.view(torch.uint8)
    table = decode_table(format_of(weight.dtype), device)
    if weight.device.type != "cpu":
        return torch.index_select(table, 0, codes.flatten().int()).view(codes.shape)
    # numpy indexes by bytes as they are, about four times as fast here as torch's gather by int64.
    return torch.from_numpy(table.numpy()[codes.numpy()])


@functools.lru_cache(maxsize=8)
def cast_decodes(dtype: torch.dtype, device: str) -> bool:
    """Whether torch's own cast to float64 on this device gives the format's value for all 256 codes; asked once."""
    codes = torch.arange(256, dtype=torch.uint8, device=device)
    try:
        cast = codes.view(dtype).to(torch.float64)
    except RuntimeError:
        return False
    want = decode_table(format_of(dtype), device)
    same = (cast == want) & (torch.signbit(cast) == torch.signbit(want))
    return bool((same | (cast.isnan() & want.isnan())).all())


@dataclass(frozen=True)
class Mlp:
    """gate_up: gate's rows, then up's. down: back to hidden."""

    gate_up: Linear
    down: Linear


@dataclass(frozen=True)
class Moe:
    """gate: [experts, hidden]. correction: [experts], added for the choice only. gate_up(i), down(i) make or load the
    linears of expert i, one at a time."""

    gate: Tensor
    correction: Tensor
    gate_up: Callable[[int], Linear]
    down: Callable[[int], Linear]
    shared: Mlp | None

    def expert(self, number: int) -> Mlp:
        """Both linears of an expert."""
        return Mlp(self.gate_up(number), self.down(number))


@dataclass(frozen=True)
class Layer:
    """Weights of one decoder layer; qkv holds the rows of q, k and v in this order."""

    index: int
    input_norm: Tensor
    qkv: Linear
    o: Linear
    q_norm: Tensor | None
    k_norm: Tensor | None
    post_norm: Tensor
    mlp: Mlp | Moe


class Source(Protocol):
    """Where weights come from, one layer at a time; ``config`` and the tensors around the layers."""

    config: Config

    def layer(self, index: int) -> Layer: ...
    def embed(self, tokens: Tensor) -> Tensor: ...
    def final_norm(self) -> Tensor: ...
    def head(self) -> Iterator[Tensor]: ...


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x float64 [..., n] normalised over its last dimension, times weight."""
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps) * weight.double()


def rotate(x: Tensor, config: Config) -> Tensor:
    """Rotary embedding of the first ``rotary * head_dim`` dimensions: x [T, heads, head_dim], token t at position t."""
    width = int(config.head_dim * config.rotary)
    place = torch.arange(0, width, 2, dtype=x.dtype, device=x.device) / width
    angle = torch.arange(len(x), dtype=x.dtype, device=x.device)[:, None] * config.rope_theta**-place
    cos, sin = (f(angle).repeat(1, 2)[:, None, :] for f in (torch.cos, torch.sin))
    turned, rest = x[..., :width], x[..., width:]
    half = torch.cat((-turned[..., width // 2 :], turned[..., : width // 2]), -1)
    return torch.cat((turned * cos + half * sin, rest), -1)


def _same(x: Tensor) -> Tensor:
    return x


def attention(config: Config, layer: Layer, qkv: Tensor, store: Callable[[Tensor], Tensor] = _same) -> Tensor:
    """Causal attention from projected qkv float64 [T, q + k + v] to float64 [T, heads * head_dim].

    store is applied wherever an implementation stores activations: after the head norms, after the rotation, at the
    end.
    """
    q, k, v = (part.view(len(qkv), -1, config.head_dim) for part in qkv.split(config.qkv_sizes(), dim=-1))
    if layer.q_norm is not None and layer.k_norm is not None:
        q, k = store(rms_norm(q, layer.q_norm, config.eps)), store(rms_norm(k, layer.k_norm, config.eps))
    q, k = store(rotate(q, config)), store(rotate(k, config))
    share = config.heads // config.kv_heads
    k, v = k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1)
    scores = torch.einsum("ihd,jhd->hij", q, k) / math.sqrt(config.head_dim)
    later = torch.ones(len(qkv), len(qkv), dtype=torch.bool, device=qkv.device).triu(1)
    weights = scores.masked_fill(later, -math.inf).softmax(-1)
    return store(torch.einsum("hij,jhd->ihd", weights, v).reshape(len(qkv), -1))


def gated(gate_up: Tensor) -> Tensor:
    """silu(gate) * up from [m, 2 * width]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return gate * torch.sigmoid(gate) * up


def mlp(weights: Mlp, x: Tensor) -> Tensor:
    """x float64 [m, hidden] through a gated MLP."""
    return weights.down.apply(gated(weights.gate_up.apply(x)))


def router(config: Config, moe: Moe, x: Tensor) -> tuple[Tensor, Tensor]:
    """(index int64 [m, top_k], weight float64 [m, top_k]) of the experts of each token, x float64 [m, hidden].

    Sigmoid scores; the correction counts for the choice alone. With groups only the ``topk_group`` groups whose two
    best experts score highest are open, and a closed expert scores 0.
    """
    scores = torch.sigmoid(x @ moe.gate.double().t())
    choice = scores + moe.correction.double()
    if config.n_group > 1:
        groups = choice.view(len(x), config.n_group, -1)
        best = groups.topk(2, dim=-1).values.sum(-1).topk(config.topk_group, dim=-1).indices
        is_open = torch.zeros(len(x), config.n_group, dtype=torch.bool, device=x.device).scatter_(1, best, True)
        choice = torch.where(is_open[:, :, None], groups, 0.0).view(len(x), -1)
    index = choice.topk(config.top_k, dim=-1).indices
    weight = scores.gather(1, index)
    if config.norm_topk:
        weight = weight / (weight.sum(-1, keepdim=True) + 1e-20)
    return index, weight * config.routed_scaling


@dataclass(frozen=True)
class Routed:
    """Tokens on their way through the experts. index, weight: see ``router``.

    x: float64 [m, hidden] as the experts' first linear takes it. feed: what happens to the input of the second linear
    (quantization), called once with the rows of all experts, expert by expert, float64 [m * top_k, width]. store: to
    what is stored in between (rounding). Both keep the shape and default to nothing, which is the truth.
    """

    x: Tensor
    index: Tensor
    weight: Tensor
    feed: Callable[[Tensor], Tensor] = _same
    store: Callable[[Tensor], Tensor] = _same


@dataclass(frozen=True)
class Dispatch:
    """Tokens sorted by expert. row, share: [m * top_k] token and its weight; spans: expert -> its part of them."""

    row: Tensor
    share: Tensor
    spans: dict[int, slice]

    @staticmethod
    def of(config: Config, index: Tensor, weight: Tensor) -> Dispatch:
        """From index and weight [m, top_k] of ``router``; one transfer from the device, whatever the number of
        experts."""
        flat = index.flatten()
        order = flat.argsort(stable=True)
        counts = torch.bincount(flat, minlength=config.experts).tolist()
        ends = list(itertools.accumulate(counts))
        spans = {e: slice(end - n, end) for e, (n, end) in enumerate(zip(counts, ends, strict=True)) if n}
        return Dispatch(order // index.shape[1], weight.flatten()[order], spans)


_NOTHING = slice(0, 0)


def experts(config: Config, moe: Moe, batches: Sequence[Routed]) -> list[Tensor]:
    """Weighted sums of the chosen experts for every batch, float64 [m, hidden] each, without the shared expert.

    Each linear of an expert that any batch chose is made once, multiplies all of them, and is dropped: the memory of
    one linear. First every gate_up, then ``feed`` once a batch, then every down.
    """
    sent = [Dispatch.of(config, b.index, b.weight) for b in batches]
    chosen = sorted({number for d in sent for number in d.spans})
    inner = [b.x.new_empty(len(d.row), config.moe_intermediate) for b, d in zip(batches, sent, strict=True)]
    for number in chosen:
        spans = [d.spans.get(number, _NOTHING) for d in sent]
        inputs = [b.x[d.row[s]] for b, d, s in zip(batches, sent, spans, strict=True)]
        wide = moe.gate_up(number).apply(torch.cat(inputs)).split([len(x) for x in inputs])
        for b, held, s, h in zip(batches, inner, spans, wide, strict=True):
            held[s] = b.store(gated(b.store(h)))
    fed = [b.feed(held) for b, held in zip(batches, inner, strict=True)]
    totals = [torch.zeros_like(b.x) for b in batches]
    for number in chosen:
        spans = [d.spans.get(number, _NOTHING) for d in sent]
        inputs = [held[s] for held, s in zip(fed, spans, strict=True)]
        outs = moe.down(number).apply(torch.cat(inputs)).split([len(x) for x in inputs])
        for b, d, s, total, out in zip(batches, sent, spans, totals, outs, strict=True):
            # A token chooses an expert once, so no two rows meet and the sum has one order on every device.
            total.index_add_(0, d.row[s], b.store(out) * d.share[s, None])
    return totals


def attention_block(config: Config, layer: Layer, stream: Tensor) -> Tensor:
    """The residual stream float64 [T, hidden] after the attention of a layer."""
    x = rms_norm(stream, layer.input_norm, config.eps)
    return stream + layer.o.apply(attention(config, layer, layer.qkv.apply(x)))


def decoder_layer(config: Config, layer: Layer, stream: Tensor) -> Tensor:
    """The residual stream float64 [T, hidden] after a whole layer."""
    stream = attention_block(config, layer, stream)
    x = rms_norm(stream, layer.post_norm, config.eps)
    if isinstance(layer.mlp, Mlp):
        return stream + mlp(layer.mlp, x)
    out = experts(config, layer.mlp, [Routed(x, *router(config, layer.mlp, x))])[0]
    return stream + out + (0.0 if layer.mlp.shared is None else mlp(layer.mlp.shared, x))


def logits(source: Source, normed: Tensor) -> Tensor:
    """float64 [T, vocab] from the finally normed stream float64 [T, hidden]; the head comes in slices of rows."""
    return torch.cat([normed @ values(part).t() for part in source.head()], dim=-1)


def forward(source: Source, tokens: Tensor) -> Tensor:
    """Logits float64 [T, vocab] of one sequence of token ids int64 [T]."""
    stream = source.embed(tokens).double()
    for index in range(source.config.layers):
        stream = decoder_layer(source.config, source.layer(index), stream)
    return logits(source, rms_norm(stream, source.final_norm(), source.config.eps))
