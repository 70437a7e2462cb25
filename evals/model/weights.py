"""A decoder from a checkpoint: which tensors make up which part, and the errors of one that lacks some.

Names and config are Hugging Face's, for GLM-4-MoE and Llama; Linears that are not FP8 yet are quantized here, one
scale per row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evals.errors import EvalError
from evals.model import checkpoint
from evals.model.decoder import Decoder, Experts, Layer, Linear, Shape
from validators.tensor_file import CheckpointError


class _Weights:
    """A state dict with one-sentence errors, and Linears put together from its parts."""

    def __init__(self, state: Mapping[str, Tensor], device: str, storage: torch.dtype, wide: torch.dtype):
        self.state, self.device, self.storage, self.wide = state, device, storage, wide

    def get(self, name: str) -> Tensor:
        if name not in self.state:
            raise EvalError(f"the checkpoint has no tensor {name}")
        return self.state[name].to(self.device)

    def vector(self, name: str) -> Tensor:
        return self.get(name).to(self.storage)

    def maybe(self, name: str) -> Tensor | None:
        return self.get(name).to(self.wide) if name in self.state else None

    def quantized(self, name: str) -> tuple[Tensor, Tensor]:
        weight = self.get(f"{name}.weight")
        if weight.dtype != torch.float8_e4m3fn:
            return checkpoint.quantize_rows(weight)
        scale = self.get(f"{name}.weight_scale").to(torch.float32)
        if scale.shape != (len(weight), 1):
            raise EvalError(f"{name} has weight scales of shape {list(scale.shape)}, not one per row")
        return weight, scale

    def linear(self, prefix: str, *names: str) -> Linear:
        """Linears that read the same input, as one."""
        parts = [self.quantized(f"{prefix}.{name}") for name in names]
        codes = torch.cat([part.view(torch.uint8) for part, _ in parts]).view(torch.float8_e4m3fn)
        scale = torch.cat([part for _, part in parts])
        biases = [self.vector(f"{prefix}.{name}.bias") for name in names if f"{prefix}.{name}.bias" in self.state]
        if len(biases) not in (0, len(names)):
            raise EvalError(f"some of {prefix}.{{{','.join(names)}}} have a bias and some have none")
        wide = codes.to(self.wide) * scale.to(self.wide)
        return Linear(codes.contiguous(), scale.contiguous(), torch.cat(biases) if biases else None, wide)

    def plain(self, prefix: str, *names: str) -> Tensor:
        """Weights of the environment [N, K] in ``wide``: dequantized where the checkpoint has them in FP8."""
        rows = []
        for name in names:
            weight = self.get(f"{prefix}.{name}.weight")
            if weight.dtype == torch.float8_e4m3fn:
                rows.append(weight.to(self.wide) * self.get(f"{prefix}.{name}.weight_scale").to(self.wide))
            else:
                rows.append(weight.to(self.wide))
        return torch.cat(rows)


def _shape(config: Mapping[str, Any]) -> Shape:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    rope = config.get("rope_parameters") or {}
    kind = rope.get("rope_type", "default")
    if kind != "default" or config.get("rope_scaling"):
        raise EvalError(f"rotary embeddings of type {kind!r} with scaling are not supported")
    partial = rope.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if partial is None:
        partial = 0.5 if config["model_type"] == "glm4_moe" else 1.0
    return Shape(
        hidden=hidden,
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        rotary_dim=int(head_dim * partial),
        theta=float(rope.get("rope_theta", config.get("rope_theta", 10000.0))),
        eps=float(config["rms_norm_eps"]),
        vocab=config["vocab_size"],
    )


def _experts(weights: _Weights, config: Mapping[str, Any], prefix: str) -> Experts:
    numbers = range(config["n_routed_experts"])
    return Experts(
        gate=weights.get(f"{prefix}.gate.weight").to(weights.wide),
        bias=weights.get(f"{prefix}.gate.e_score_correction_bias").to(weights.wide),
        gate_up=torch.stack([weights.plain(f"{prefix}.experts.{e}", "gate_proj", "up_proj") for e in numbers]),
        down=torch.stack([weights.plain(f"{prefix}.experts.{e}", "down_proj") for e in numbers]),
        top_k=config["num_experts_per_tok"],
        groups=config.get("n_group", 1),
        top_groups=config.get("topk_group", 1),
        normalise=bool(config.get("norm_topk_prob", True)),
        factor=float(config.get("routed_scaling_factor", 1.0)),
    )


def _layers(weights: _Weights, config: Mapping[str, Any]) -> Iterator[Layer]:
    for index in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{index}"
        sparse = config["model_type"] == "glm4_moe" and index >= config.get("first_k_dense_replace", 0)
        mlp = f"{prefix}.mlp.shared_experts" if sparse else f"{prefix}.mlp"
        yield Layer(
            index=index,
            input_norm=weights.vector(f"{prefix}.input_layernorm.weight"),
            post_norm=weights.vector(f"{prefix}.post_attention_layernorm.weight"),
            qkv=weights.linear(f"{prefix}.self_attn", "q_proj", "k_proj", "v_proj"),
            o=weights.linear(f"{prefix}.self_attn", "o_proj"),
            q_norm=weights.maybe(f"{prefix}.self_attn.q_norm.weight"),
            k_norm=weights.maybe(f"{prefix}.self_attn.k_norm.weight"),
            gate_up=weights.linear(mlp, "gate_proj", "up_proj"),
            down=weights.linear(mlp, "down_proj"),
            experts=_experts(weights, config, f"{prefix}.mlp") if sparse else None,
        )


def from_state(
    name: str,
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    *,
    device: str = "cpu",
    storage: torch.dtype = torch.bfloat16,
    wide: torch.dtype = torch.float32,
) -> Decoder:
    """A decoder from a Hugging Face config (as a dict) and state dict with per-expert names.

    Linears that are not FP8 yet are quantized here, one scale per row. Raises EvalError for another architecture.
    """
    kind = config.get("model_type")
    if kind not in ("glm4_moe", "llama"):
        raise EvalError(f"model type {kind!r} is not supported in process; known: glm4_moe, llama")
    weights = _Weights(state, device, storage, wide)
    embed = weights.vector("model.embed_tokens.weight")
    tied = bool(config.get("tie_word_embeddings")) or "lm_head.weight" not in state
    head = weights.get("model.embed_tokens.weight" if tied else "lm_head.weight").to(wide)
    made = list(_layers(weights, config))
    final = weights.vector("model.norm.weight")
    return Decoder(
        name=name,
        shape=_shape(config),
        embed=embed,
        layers=made,
        final_norm=final,
        head=head,
        storage=storage,
        wide=wide,
    )


def from_folder(folder: str | Path, device: str = "cpu", name: str = "") -> Decoder:
    """A decoder from a checkpoint folder: config.json and safetensors, bf16 or compressed-tensors FP8."""
    where = Path(folder)
    try:
        config = json.loads((where / "config.json").read_text(encoding="utf-8"))
    except OSError:
        raise EvalError(f"{where} has no readable config.json") from None
    except ValueError as error:
        raise EvalError(f"{where / 'config.json'} is not JSON: {error}") from None
    try:
        state = checkpoint.read(where)
    except CheckpointError as error:
        raise EvalError(f"cannot read the checkpoint in {where}: {error}") from None
    return from_state(name or where.name, config, state, device=device)
