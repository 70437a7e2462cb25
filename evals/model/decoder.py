"""A decoder model taken apart at its norms and linears: GLM-4-MoE and Llama checkpoints, run by an arm's kernels.

What is under test, the norms before linears, the quantizers and the PTPC linears, is computed by the ``Arm`` that the
forward pass is given. All else is environment and the same in every arm: embeddings, qk-norm, rotary, attention,
router, routed experts (weights dequantized), activation functions. The environment computes in ``wide`` (fp32; float64
in tests) and stores what flows between its parts as ``storage`` (bf16), as a serving engine does. Sequences are packed:
rows that exist and no padding reach the kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional


@dataclass
class Linear:
    """A PTPC weight: codes e4m3fn [N, K], scale fp32 [N, 1], bias [N] or None. wide: code * scale, in ``wide``."""

    codes: Tensor
    scale: Tensor
    bias: Tensor | None
    wide: Tensor


@dataclass
class Experts:
    """Router and routed experts of a MoE layer, all in ``wide``: gate [E, H], bias [E], gate_up [E, 2I, H], down
    [E, H, I]."""

    gate: Tensor
    bias: Tensor
    gate_up: Tensor
    down: Tensor
    top_k: int
    groups: int
    top_groups: int
    normalise: bool
    factor: float


@dataclass
class Layer:
    """One decoder layer. gate_up, down: the dense MLP, or the shared expert of a MoE layer (then ``experts``)."""

    index: int
    input_norm: Tensor
    post_norm: Tensor
    qkv: Linear
    o: Linear
    q_norm: Tensor | None
    k_norm: Tensor | None
    gate_up: Linear
    down: Linear
    experts: Experts | None = None


@dataclass(frozen=True)
class Shape:
    """Sizes and constants of the model's config that the forward pass needs."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    rotary_dim: int
    theta: float
    eps: float
    vocab: int


@dataclass
class Stream:
    """What an arm carries through one forward pass: the residual stream [R, H], None before the first norm."""

    residual: Tensor | None = None


class Operators(Protocol):
    """What a forward pass is given: an arm's way to compute norms and linears on packed rows [R, *]."""

    def norm_linear(self, model: Decoder, stream: Stream, weight: Tensor, hidden: Tensor, what: Linear) -> Tensor:
        """Add hidden to the stream, normalise, quantize, multiply: [R, N]."""

    def plain_norm(self, model: Decoder, stream: Stream, weight: Tensor, hidden: Tensor) -> Tensor:
        """Add hidden to the stream and normalise: [R, H] in storage."""

    def linear(self, model: Decoder, x: Tensor, what: Linear) -> Tensor:
        """Quantize x [R, K] and multiply: [R, N] in storage."""


@dataclass
class Cache:
    """Keys and values in ``wide``, a pair per layer, [B, kv, S, D]; lengths int64 [B] of what is filled."""

    keys: list[Tensor]
    values: list[Tensor]
    lengths: Tensor

    def keep(self, rows: Tensor) -> None:
        """Drop all sequences but ``rows`` (int64)."""
        self.keys = [k[rows] for k in self.keys]
        self.values = [v[rows] for v in self.values]
        self.lengths = self.lengths[rows]


class Packing(NamedTuple):
    """Places of the packed rows. sequence, place, position: int64 [R], of each row its sequence in the batch, its
    place among the new tokens and its place in the cache. batch: sequences; width: new tokens at most; slots: of the
    cache that are looked at. mask: bool [B, 1, T, slots], which slots a token may see."""

    sequence: Tensor
    place: Tensor
    position: Tensor
    batch: int
    width: int
    slots: int
    mask: Tensor


@dataclass
class Decoder:
    """Weights and the forward pass. name: what reports call the model."""

    name: str
    shape: Shape
    embed: Tensor
    layers: list[Layer]
    final_norm: Tensor
    head: Tensor
    storage: torch.dtype = torch.bfloat16
    wide: torch.dtype = torch.float32

    @property
    def device(self) -> torch.device:
        return self.embed.device

    def stored(self, x: Tensor) -> Tensor:
        return x.to(self.storage)

    def cache(self, batch: int, slots: int) -> Cache:
        """An empty cache for ``batch`` sequences of at most ``slots`` tokens."""
        s = self.shape

        def empty() -> list[Tensor]:
            size = (batch, s.kv_heads, slots, s.head_dim)
            return [torch.zeros(size, dtype=self.wide, device=self.device) for _ in self.layers]

        return Cache(empty(), empty(), torch.zeros(batch, dtype=torch.int64, device=self.device))

    def forward(self, ids: Tensor, new: Tensor, cache: Cache, operators: Operators) -> Tensor:
        """Runs ``new`` [B] tokens of each row of ids int64 [B, T] (padded at the right); the cache grows by them.

        Returns the final hidden states of the rows that exist, packed in order of (sequence, place): [R, H] in
        ``wide``. ``logits`` makes logits of them.
        """
        batch, width = ids.shape
        exists = torch.arange(width, device=ids.device)[None, :] < new[:, None]
        sequence, place = exists.nonzero(as_tuple=True)
        positions = cache.lengths[sequence] + place
        hidden = self.stored(self.embed[ids[sequence, place]])
        slots = int(cache.lengths.max()) + width
        slot = torch.arange(slots, device=ids.device)
        ends = cache.lengths[:, None] + torch.arange(width, device=ids.device)[None, :]
        mask = (slot[None, None, :] <= ends[:, :, None])[:, None]
        packing = Packing(sequence, place, positions, batch, width, slots, mask)
        stream, rotary = Stream(), self._rotary(positions)
        for layer in self.layers:
            hidden = self._attention(layer, operators, stream, hidden, cache, packing, rotary)
            hidden = self._mlp(layer, operators, stream, hidden)
        hidden = operators.plain_norm(self, stream, self.final_norm, hidden)
        cache.lengths = cache.lengths + new
        return hidden.to(self.wide)

    def logits(self, hidden: Tensor) -> Tensor:
        """[R, H] -> [R, V] in ``wide``."""
        return hidden @ self.head.t()

    # ---- environment

    def _rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        rotary = self.shape.rotary_dim
        steps = torch.arange(0, rotary, 2, device=positions.device, dtype=torch.int64).to(self.wide)
        angle = positions.to(self.wide)[:, None] * (1.0 / self.shape.theta ** (steps / rotary))[None, :]
        return angle.cos()[:, None, :], angle.sin()[:, None, :]

    def _rotate(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """x [R, heads, D]: the first rotary_dim elements turned, halves paired."""
        cos, sin = rotary
        half = cos.shape[-1]
        first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)

    def _head_norm(self, x: Tensor, weight: Tensor | None) -> Tensor:
        if weight is None:
            return x
        return x * (x.square().mean(-1, keepdim=True) + self.shape.eps).rsqrt() * weight

    def _attention(
        self,
        layer: Layer,
        operators: Operators,
        stream: Stream,
        hidden: Tensor,
        cache: Cache,
        packing: Packing,
        rotary: tuple[Tensor, Tensor],
    ) -> Tensor:
        sequence, place, positions, batch, width, slots, mask = packing
        s = self.shape
        qkv = operators.norm_linear(self, stream, layer.input_norm, hidden, layer.qkv).to(self.wide)
        q, k, v = torch.split(qkv, [n * s.head_dim for n in (s.heads, s.kv_heads, s.kv_heads)], dim=-1)
        q = self._rotate(self._head_norm(q.view(-1, s.heads, s.head_dim), layer.q_norm), rotary)
        k = self._rotate(self._head_norm(k.view(-1, s.kv_heads, s.head_dim), layer.k_norm), rotary)
        q, k = self.stored(q).to(self.wide), self.stored(k).to(self.wide)
        keys, values = cache.keys[layer.index], cache.values[layer.index]
        keys[sequence, :, positions] = k
        values[sequence, :, positions] = v.view(-1, s.kv_heads, s.head_dim)
        # A group of query heads shares a key head: the group becomes rows, so that keys are not copied.
        group = s.heads // s.kv_heads
        asked = torch.zeros(batch, width, s.heads, s.head_dim, dtype=self.wide, device=q.device)
        asked[sequence, place] = q
        asked = asked.view(batch, width, s.kv_heads, group, s.head_dim).permute(0, 2, 3, 1, 4)
        asked = asked.reshape(batch, s.kv_heads, group * width, s.head_dim)
        seen = mask[:, :, None].expand(batch, 1, group, width, slots).reshape(batch, 1, group * width, slots)
        out = functional.scaled_dot_product_attention(asked, keys[:, :, :slots], values[:, :, :slots], attn_mask=seen)
        out = out.view(batch, s.kv_heads, group, width, s.head_dim).permute(0, 3, 1, 2, 4)
        rows = self.stored(out[sequence, place].reshape(len(sequence), -1))
        return operators.linear(self, rows, layer.o)

    def _activate(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.to(self.wide).chunk(2, dim=-1)
        return self.stored(functional.silu(gate) * up)

    def _mlp(self, layer: Layer, operators: Operators, stream: Stream, hidden: Tensor) -> Tensor:
        if layer.experts is None:
            inner = operators.norm_linear(self, stream, layer.post_norm, hidden, layer.gate_up)
            return operators.linear(self, self._activate(inner), layer.down)
        x = operators.plain_norm(self, stream, layer.post_norm, hidden)
        shared = operators.linear(self, self._activate(operators.linear(self, x, layer.gate_up)), layer.down)
        return self.stored(self._routed(layer.experts, x.to(self.wide)) + shared.to(self.wide))

    def _routed(self, experts: Experts, x: Tensor) -> Tensor:
        scores = (x @ experts.gate.t()).sigmoid()
        choice = scores + experts.bias
        count = choice.shape[-1]
        if experts.groups > 1:
            grouped = choice.view(len(x), experts.groups, -1)
            best = grouped.topk(2, dim=-1)[0].sum(-1).topk(experts.top_groups, dim=-1)[1]
            allowed = torch.zeros(len(x), experts.groups, dtype=torch.bool, device=x.device).scatter_(1, best, True)
            choice = choice.masked_fill(~allowed.repeat_interleave(count // experts.groups, 1), float("-inf"))
        chosen = choice.topk(experts.top_k, dim=-1)[1]
        shares = scores.gather(1, chosen)
        if experts.normalise:
            shares = shares / (shares.sum(-1, keepdim=True) + 1e-20)
        shares = shares * experts.factor
        total = torch.zeros_like(x)
        for expert in range(count):
            rows, place = (chosen == expert).nonzero(as_tuple=True)
            if len(rows):
                inner = self._activate(x[rows] @ experts.gate_up[expert].t()).to(self.wide)
                total.index_add_(0, rows, inner @ experts.down[expert].t() * shares[rows, place, None])
        return total
