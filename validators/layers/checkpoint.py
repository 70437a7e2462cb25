"""FP8 checkpoints in the compressed-tensors layout, streamed layer by layer.

Its files are mapped and not read, so a model of any size is judged in the memory of one layer and of the experts that
are routed to. Layout: ``X.weight`` float8_e4m3fn [out, in], ``X.weight_scale`` [out, 1] or [out]; everything that is no
quantized Linear is bf16 or fp32. Source: the format's README (huggingface/safetensors) and the FP8_DYNAMIC preset of
compressed-tensors.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reference.glm4_moe import Config, Glm4MoeError, Layer, Linear, Mlp, Moe, values
from validators.layers import checkpoint_check
from validators.layers.checkpoint_check import EMBEDDING, FP8, HEAD, NORM
from validators.layers.checkpoint_scheme import not_ptpc, quant_format
from validators.tensor_file import CheckpointError, Entry, Shard

INDEX = "model.safetensors.index.json"
HEAD_ROWS = 8192
"""Rows of the head that are decoded at a time."""


_WHOLE = {
    "hidden_size": 1,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 1,
    "intermediate_size": 1,
    "moe_intermediate_size": 1,
    "n_routed_experts": 1,
    "num_experts_per_tok": 1,
    "n_shared_experts": 0,
    "first_k_dense_replace": 0,
    "vocab_size": 1,
    "n_group": 1,
    "topk_group": 1,
}
"""Settings that are numbers of something, and the least of each."""
_NUMBERS = ("partial_rotary_factor", "rope_theta", "rms_norm_eps", "routed_scaling_factor")


_GIVEN = {
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "intermediate": "intermediate_size",
    "moe_intermediate": "moe_intermediate_size",
    "experts": "n_routed_experts",
    "top_k": "num_experts_per_tok",
    "shared_experts": "n_shared_experts",
    "first_dense": "first_k_dense_replace",
    "vocab": "vocab_size",
    "routed_scaling": "routed_scaling_factor",
    "eps": "rms_norm_eps",
}
"""Fields of ``Config`` that have no default in config.json, and its names for them."""


def model_config(config: Mapping[str, Any]) -> Config:
    """config.json of a Glm4MoeForCausalLM as the float64 model's configuration; raises CheckpointError."""
    if config.get("model_type") != "glm4_moe":
        raise CheckpointError(f"model_type is {config.get('model_type')!r}; only glm4_moe is walked")
    rope = config.get("rope_parameters") or {}
    if not isinstance(rope, Mapping):
        raise CheckpointError(f"config.json: rope_parameters is {rope!r}, and not a table")
    for name, least in _WHOLE.items():
        value = config.get(name, least)
        if type(value) is not int or value < least:
            raise CheckpointError(f"config.json: {name} is {value!r}, and not a whole number from {least} on")
    for name in _NUMBERS:
        value = config.get(name, rope.get(name, 1.0))
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise CheckpointError(f"config.json: {name} is {value!r}, and not a number above 0")
    try:
        return Config(
            **{field: config[name] for field, name in _GIVEN.items()},
            n_group=config.get("n_group", 1),
            topk_group=config.get("topk_group", 1),
            norm_topk=config.get("norm_topk_prob", True),
            qk_norm=config.get("use_qk_norm", False),
            attention_bias=config.get("attention_bias", False),
            rotary=config.get("partial_rotary_factor", rope.get("partial_rotary_factor", 0.5)),
            rope_theta=float(config.get("rope_theta", rope.get("rope_theta", 10000.0))),
        )
    except KeyError as error:
        raise CheckpointError(f"config.json does not give {error.args[0]}") from error
    except (TypeError, Glm4MoeError) as error:
        raise CheckpointError(f"config.json describes no model: {error}") from error


class Checkpoint:
    """A checkpoint directory as a source of weights. device: where a layer's tensors are put. tied: the head is the
    embedding. not_ptpc: why the linears are not FP8 by channel and token, empty where they are."""

    def __init__(self, directory: str | Path, device: str = "cpu") -> None:
        self.directory, self.device = Path(directory), device
        raw = _json(self.directory / "config.json")
        self.quant_format, self.not_ptpc = quant_format(raw), not_ptpc(raw)
        self.config = model_config(raw)
        self.tied = raw.get("tie_word_embeddings") is True
        index = self.directory / INDEX
        if index.exists():
            where = _json(index).get("weight_map")
            if not isinstance(where, dict) or not all(isinstance(file, str) for file in where.values()):
                raise CheckpointError(f"{index} has no weight_map from tensors to files")
            self._where: dict[str, str] = where
        else:
            single = Shard(self.directory / "model.safetensors")
            self._where = dict.fromkeys(single.entries, single.path.name)
        self._shards: dict[str, Shard] = {}

    def check(self, layers: int) -> list[str]:
        """Hold index and headers against what a walk of the first ``layers`` layers reads, without reading weights.

        Returns the linears that are not quantized, by name. Raises CheckpointError with one sentence.
        """
        absent = (
            name for name in checkpoint_check.needed(self.config, layers, tied=self.tied) if name not in self._where
        )
        if gone := list(itertools.islice(absent, checkpoint_check.MOST_COUNTED + 1)):
            raise checkpoint_check.missing(f"{self.directory} holds no tensor", gone)
        names = list(checkpoint_check.needed(self.config, layers, tied=self.tied))
        names += [f"{name}_scale" for name in names if f"{name}_scale" in self._where]
        files = checkpoint_check.grouped(self._where, names)
        if lost := [file for file in files if not (self.directory / file).exists()]:
            raise checkpoint_check.missing(f"{self.directory} lacks a file that its index names:", lost)
        entries: dict[str, Entry] = {}
        for file, inside in files.items():
            shard = Shard(self.directory / file)
            entries |= {name: shard.entry(name) for name in inside}
        return checkpoint_check.check(self.config, entries, layers, tied=self.tied)

    def _shard(self, name: str) -> Shard:
        if name not in self._where:
            raise CheckpointError(f"{self.directory} holds no tensor {name!r}")
        file = self._where[name]
        if file not in self._shards:
            # Only the newest few stay mapped; a mapping costs address space, not memory.
            if len(self._shards) >= 4:
                self._shards.pop(next(iter(self._shards)))
            self._shards[file] = Shard(self.directory / file)
        return self._shards[file]

    def tensor(self, name: str) -> Tensor:
        """One tensor on the device; raises CheckpointError."""
        return self._shard(name).tensor(name).to(self.device)

    def _linear(self, prefix: str, which: str, bias: bool = False) -> Linear:
        parts = [f"{prefix}.{name}_proj" for name in which.split()]
        names = [f"{p}.weight" for p in parts]
        names += [f"{name}_scale" for name in names if f"{name}_scale" in self._where]
        quantized = checkpoint_check.check_group(parts, {name: self._shard(name).entry(name) for name in names}) == FP8
        weight = _joined([self._codes(f"{p}.weight") if quantized else self.tensor(f"{p}.weight") for p in parts])
        scale = torch.cat([self._scale(f"{p}.weight_scale") for p in parts]) if quantized else None
        return Linear(weight, scale, torch.cat([self.tensor(f"{p}.bias") for p in parts]) if bias else None)

    def _codes(self, name: str) -> Tensor:
        codes = self.tensor(name)
        # 0x7F and 0xFF are the NaN of E4M3FN.
        if bool(((codes.view(torch.uint8) & 0x7F) == 0x7F).any()):
            raise CheckpointError(f"{name} holds NaN")
        return codes

    def _scale(self, name: str) -> Tensor:
        """Scales fp32 [out, 1]; NaN or infinity would make whole channels of outputs so, of which nothing is shown."""
        scale = self.tensor(name).float().view(-1, 1)
        if not bool(scale.isfinite().all()):
            row = int((~scale.isfinite()).flatten().nonzero()[0])
            raise CheckpointError(f"{name} is {float(scale[row])} in channel {row}; a scale must be a number")
        return scale

    def _mlp(self, prefix: str) -> Mlp:
        return Mlp(self._linear(prefix, "gate up"), self._linear(prefix, "down"))

    def layer(self, index: int) -> Layer:
        """The weights of layer ``index``; its experts are read when they are asked for."""
        p, c = f"model.layers.{index}", self.config
        q_norm, k_norm = (self.tensor(f"{p}.self_attn.{n}_norm.weight") if c.qk_norm else None for n in "qk")
        mlp: Mlp | Moe
        if index < c.first_dense:
            mlp = self._mlp(f"{p}.mlp")
        else:
            mlp = Moe(
                self.tensor(f"{p}.mlp.gate.weight"),
                self.tensor(f"{p}.mlp.gate.e_score_correction_bias"),
                lambda e: self._linear(f"{p}.mlp.experts.{e}", "gate up"),
                lambda e: self._linear(f"{p}.mlp.experts.{e}", "down"),
                self._mlp(f"{p}.mlp.shared_experts") if c.shared_experts else None,
            )
        return Layer(
            index,
            self.tensor(f"{p}.input_layernorm.weight"),
            self._linear(f"{p}.self_attn", "q k v", c.attention_bias),
            self._linear(f"{p}.self_attn", "o"),
            q_norm,
            k_norm,
            self.tensor(f"{p}.post_attention_layernorm.weight"),
            mlp,
        )

    def embed(self, tokens: Tensor) -> Tensor:
        """Embeddings [T, hidden] of int64 [T]."""
        return self.tensor(EMBEDDING)[tokens.to(self.device)]

    def final_norm(self) -> Tensor:
        """The weight of the norm after the last layer."""
        return self.tensor(NORM)

    def head(self) -> Iterator[Tensor]:
        """The head's rows, a slice at a time; those of an FP8 head as float64, decoded and scaled. Its activations are
        not quantized: it is no linear under test."""
        name = EMBEDDING if self.tied else HEAD
        if self._shard(name).entry(name).dtype != FP8:
            yield from self.tensor(name).split(HEAD_ROWS)
            return
        codes, scale = self._codes(name), self._scale(f"{name}_scale").double()
        for part, own in zip(codes.split(HEAD_ROWS), scale.split(HEAD_ROWS), strict=True):
            yield values(part) * own


def _joined(tensors: list[Tensor]) -> Tensor:
    if len(tensors) == 1:
        return tensors[0]
    if tensors[0].element_size() == 1:
        # FP8 tensors cannot be joined on every backend; their bytes can.
        return torch.cat([t.view(torch.uint8) for t in tensors]).view(tensors[0].dtype)
    return torch.cat(tensors)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return found
