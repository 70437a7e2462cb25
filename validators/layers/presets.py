"""Models to walk without a checkpoint: the real sizes of GLM-4.7, or a tiny one, with synthetic weights.

Weights are made layer by layer and expert by expert from a counter-based generator, the same on every device, and
dropped again. They have what makes quantization hard in trained models: a few outlier channels of the residual
stream that every block writes to and the norms amplify, scales that differ from channel to channel, and a stream
that grows with depth.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from statistics import NormalDist

import torch
from torch import Tensor

from reference.formats import E4M3FN, encode
from reference.glm4_moe import Config, Layer, Linear, Mlp, Moe
from validators.cases.generator import bits, stream_key, to_gaussian, to_uniform
from validators.layers.checkpoint import HEAD_ROWS
from validators.tensor_file import CheckpointError

GLM_4_7 = Config(
    hidden=5120,
    layers=92,
    heads=96,
    kv_heads=8,
    head_dim=128,
    intermediate=12288,
    moe_intermediate=1536,
    experts=160,
    top_k=8,
    shared_experts=1,
    first_dense=3,
    vocab=151552,
    routed_scaling=2.5,
    qk_norm=True,
    attention_bias=True,
    rotary=0.5,
    rope_theta=1e6,
    eps=1e-5,
)
GLM_TINY = dataclasses.replace(
    GLM_4_7,
    hidden=128,
    layers=4,
    heads=8,
    kv_heads=2,
    head_dim=32,
    intermediate=256,
    moe_intermediate=64,
    experts=8,
    top_k=2,
    first_dense=1,
    vocab=512,
    rope_theta=1e4,
)
PRESETS = {"glm-4.7": GLM_4_7, "glm-tiny": GLM_TINY}

_OUTLIERS_PER_CHANNEL = 1 / 256
_OUTLIER_GAIN = 16.0
_BLOCK_GAIN = 0.3
"""Root mean square of what a block of layer 0 adds to a stream of unit size; it grows with the stream."""
_GROWTH = 1.02


def _code_table() -> Tensor:
    """FP8 codes uint8 [256] of the 256 equally likely values of a normal distribution, the largest at 448."""
    quantiles = [NormalDist().inv_cdf((i + 0.5) / 256) for i in range(256)]
    unit = 448.0 / quantiles[-1]
    return encode(torch.tensor([q * unit for q in quantiles], dtype=torch.float64), E4M3FN)


_CODE_DEVIATION = 448.0 / NormalDist().inv_cdf(255.5 / 256)
"""Standard deviation of the values behind ``_code_table``."""


class Synthetic:
    """A source of made weights. name and seed key the generator; quant_format is that of a PTPC FP8 checkpoint."""

    quant_format = "fp8_per_token"

    def __init__(self, name: str, config: Config, device: str = "cpu", seed: int = 0) -> None:
        self.name, self.config, self.device = f"layers-{name}-s{seed}", config, device
        self._table = _code_table()
        self._table_there = self._table.to(device)
        count = max(1, round(config.hidden * _OUTLIERS_PER_CHANNEL))
        order = self._uniform("outliers", config.hidden).argsort(stable=True)
        self._outlier = torch.zeros(config.hidden, dtype=torch.bool, device=device)
        self._outlier[order[:count]] = True

    def _words(self, tensor: str, count: int, start: int = 0) -> Tensor:
        return bits(stream_key(self.name, tensor), start, count, self.device)

    def _uniform(self, tensor: str, count: int) -> Tensor:
        return to_uniform(self._words(tensor, count))

    def _gaussian(self, tensor: str, *shape: int) -> Tensor:
        return to_gaussian(self._words(tensor, torch.Size(shape).numel())).view(shape)

    def _linear(self, name: str, out: int, inner: int, gain: float, outliers: bool = False) -> Linear:
        """Codes [out, inner] and a scale per row such that rows have root mean square gain / sqrt(inner)."""
        words = self._words(name, -(-out * inner // 8)).view(torch.uint8)[: out * inner]
        if self.device == "cpu":
            # bytes.translate is the fastest look-up of bytes by bytes here.
            made = bytearray(words.numpy().tobytes().translate(self._table.numpy().tobytes()))
            codes = torch.frombuffer(made, dtype=torch.uint8)
        else:
            codes = torch.index_select(self._table_there, 0, words.int())
        rows = 0.5 + self._uniform(f"{name}.rows", out)
        if outliers:
            rows = torch.where(self._outlier, rows * _OUTLIER_GAIN, rows)
        scale = rows[:, None] * (gain / (inner**0.5 * _CODE_DEVIATION))
        return Linear(codes.view(out, inner).view(torch.float8_e4m3fn), scale)

    def _gate(self, name: str) -> Tensor:
        wide = self._gaussian(name, self.config.experts, self.config.hidden)
        # By a tensor: CUDA multiplies by the reciprocal of a number, which gives other bits than a CPU's division.
        return (wide / torch.full_like(wide, self.config.hidden**0.5)).bfloat16()

    def _gain(self, name: str, count: int) -> Tensor:
        return (1.0 + 0.1 * self._gaussian(name, count)).bfloat16()

    def _mlp(self, name: str, width: int, gain: float) -> Mlp:
        return Mlp(self._gate_up(name, width), self._down(name, width, gain))

    def _gate_up(self, name: str, width: int) -> Linear:
        return self._linear(f"{name}.gate_up", 2 * width, self.config.hidden, 1.0)

    def _down(self, name: str, width: int, gain: float) -> Linear:
        return self._linear(f"{name}.down", self.config.hidden, width, 2.0 * gain, outliers=True)

    def layer(self, index: int) -> Layer:
        """The weights of layer ``index``; raises CheckpointError beyond the last."""
        c, p = self.config, f"layer{index}"
        if not 0 <= index < c.layers:
            raise CheckpointError(f"there is no layer {index}; the model has 0 to {c.layers - 1}")
        gain = _BLOCK_GAIN * _GROWTH**index
        q, k, v = c.qkv_sizes()
        qkv = self._linear(f"{p}.qkv", q + k + v, c.hidden, 1.0)
        if c.attention_bias:
            qkv = dataclasses.replace(qkv, bias=(0.25 * self._gaussian(f"{p}.bias", q + k + v)).bfloat16())
        q_norm, k_norm = (self._gain(f"{p}.{n}_norm", c.head_dim) if c.qk_norm else None for n in "qk")
        mlp: Mlp | Moe
        if index < c.first_dense:
            mlp = self._mlp(f"{p}.mlp", c.intermediate, gain)
        else:
            mlp = Moe(
                self._gate(f"{p}.gate"),
                0.02 * self._gaussian(f"{p}.correction", c.experts),
                lambda e: self._gate_up(f"{p}.expert{e}", c.moe_intermediate),
                lambda e: self._down(f"{p}.expert{e}", c.moe_intermediate, gain),
                self._mlp(f"{p}.shared", c.moe_intermediate * c.shared_experts, gain) if c.shared_experts else None,
            )
        return Layer(
            index,
            self._gain(f"{p}.input_norm", c.hidden),
            qkv,
            self._linear(f"{p}.o", c.hidden, c.heads * c.head_dim, gain, outliers=True),
            q_norm,
            k_norm,
            self._gain(f"{p}.post_norm", c.hidden),
            mlp,
        )

    def embed(self, tokens: Tensor) -> Tensor:
        """Embeddings bf16 [T, hidden] of token ids int64 [T]; a row depends on its token alone."""
        c = self.config
        rows = [to_gaussian(self._words("embed", c.hidden, int(t) * c.hidden)) for t in tokens]
        return torch.stack(rows).bfloat16()

    def final_norm(self) -> Tensor:
        """The weight of the norm after the last layer, bf16 [hidden]."""
        return self._gain("final_norm", self.config.hidden)

    def head(self) -> Iterator[Tensor]:
        """The head's rows, bf16 [up to 8192, hidden] at a time."""
        c = self.config
        for first in range(0, c.vocab, HEAD_ROWS):
            rows = min(HEAD_ROWS, c.vocab - first)
            words = self._words("head", rows * c.hidden, first * c.hidden)
            yield (to_gaussian(words).view(rows, c.hidden) * (4.0 / c.hidden**0.5)).bfloat16()


def prompt(config: Config, count: int, seed: int = 0) -> Tensor:
    """Token ids int64 [count] on the CPU, the same everywhere."""
    words = bits(stream_key(f"layers-prompt-s{seed}", "tokens"), 0, count)
    return words.bitwise_and_(0xFFFFFFFF).remainder_(config.vocab)
