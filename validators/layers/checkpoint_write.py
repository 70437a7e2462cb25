"""Writes FP8 checkpoints in the compressed-tensors layout that ``checkpoint`` reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reference.glm4_moe import Config, Layer, Linear, Mlp, Source
from validators.layers.checkpoint import INDEX
from validators.tensor_file import write_shard


def write_checkpoint(source: Source, directory: str | Path, *, vocab: int) -> Path:
    """Write every layer of ``source`` as a sharded compressed-tensors FP8 checkpoint, one shard per layer; its
    directory."""
    out, c = Path(directory), source.config
    out.mkdir(parents=True, exist_ok=True)
    where: dict[str, str] = {}

    def save(file: str, tensors: dict[str, Tensor]) -> None:
        write_shard(out / file, tensors)
        where.update(dict.fromkeys(tensors, file))

    outer = {
        "model.embed_tokens.weight": source.embed(torch.arange(vocab)),
        "model.norm.weight": source.final_norm(),
        "lm_head.weight": torch.cat(list(source.head())),
    }
    save("model-outer.safetensors", outer)
    for index in range(c.layers):
        save(f"model-layer-{index:03d}.safetensors", dict(_layer_tensors(c, source.layer(index))))
    (out / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}, indent=1))
    (out / "config.json").write_text(json.dumps(config_json(c), indent=1))
    return out


def _layer_tensors(c: Config, layer: Layer) -> Iterator[tuple[str, Tensor]]:
    p = f"model.layers.{layer.index}"

    def linear(prefix: str, names: str, sizes: list[int], what: Linear) -> Iterator[tuple[str, Tensor]]:
        start = 0
        for name, size in zip(names.split(), sizes, strict=True):
            part, own = slice(start, start + size), f"{p}.{prefix}.{name}_proj"
            yield f"{own}.weight", what.weight[part]
            if what.scale is not None:
                yield f"{own}.weight_scale", what.scale[part]
            if what.bias is not None:
                yield f"{own}.bias", what.bias[part]
            start += size

    def mlp(prefix: str, what: Mlp) -> Iterator[tuple[str, Tensor]]:
        yield from linear(prefix, "gate up", [len(what.gate_up.weight) // 2] * 2, what.gate_up)
        yield from linear(prefix, "down", [c.hidden], what.down)

    yield f"{p}.input_layernorm.weight", layer.input_norm
    yield f"{p}.post_attention_layernorm.weight", layer.post_norm
    yield from linear("self_attn", "q k v", list(c.qkv_sizes()), layer.qkv)
    yield from linear("self_attn", "o", [c.hidden], layer.o)
    for name, norm in (("q", layer.q_norm), ("k", layer.k_norm)):
        if norm is not None:
            yield f"{p}.self_attn.{name}_norm.weight", norm
    if isinstance(layer.mlp, Mlp):
        yield from mlp("mlp", layer.mlp)
        return
    yield f"{p}.mlp.gate.weight", layer.mlp.gate
    yield f"{p}.mlp.gate.e_score_correction_bias", layer.mlp.correction
    for number in range(c.experts):
        yield from mlp(f"mlp.experts.{number}", layer.mlp.expert(number))
    if layer.mlp.shared is not None:
        yield from mlp("mlp.shared_experts", layer.mlp.shared)


def config_json(c: Config) -> dict[str, Any]:
    """config.json of a checkpoint that ``write_checkpoint`` writes."""
    scheme = {"num_bits": 8, "type": "float", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": {**scheme, "strategy": "channel", "dynamic": False},
        "input_activations": {**scheme, "strategy": "token", "dynamic": True},
    }
    return {
        "architectures": ["Glm4MoeForCausalLM"],
        "model_type": "glm4_moe",
        "torch_dtype": "bfloat16",
        "hidden_size": c.hidden,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "intermediate_size": c.intermediate,
        "moe_intermediate_size": c.moe_intermediate,
        "n_routed_experts": c.experts,
        "num_experts_per_tok": c.top_k,
        "n_shared_experts": c.shared_experts,
        "first_k_dense_replace": c.first_dense,
        "vocab_size": c.vocab,
        "routed_scaling_factor": c.routed_scaling,
        "n_group": c.n_group,
        "topk_group": c.topk_group,
        "norm_topk_prob": c.norm_topk,
        "use_qk_norm": c.qk_norm,
        "attention_bias": c.attention_bias,
        "partial_rotary_factor": c.rotary,
        "rope_theta": c.rope_theta,
        "rms_norm_eps": c.eps,
        "tie_word_embeddings": False,
        "num_nextn_predict_layers": 0,
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "format": "float-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": ["lm_head", "re:.*mlp.gate$"],
            "kv_cache_scheme": None,
        },
    }
