"""A random Glm4MoeForCausalLM of transformers, and its weights in the form that the float64 model takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from reference import glm4_moe as g

SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "vocab_size": 97,
    "routed_scaling_factor": 2.5,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "use_qk_norm": True,
    "attention_bias": True,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
}


def build_hf(seed: int, **changes: Any) -> Any:
    """The model in fp32 with every parameter random, gains around 1 and a correction bias that matters."""
    from transformers import Glm4MoeConfig, Glm4MoeForCausalLM

    sizes: dict[str, Any] = {**SIZES, **changes}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": sizes["partial_rotary_factor"]}
    config = Glm4MoeConfig(**{**sizes, "rope_parameters": rope, "attn_implementation": "eager"})
    torch.manual_seed(seed)
    model = Glm4MoeForCausalLM(config).float().eval()
    with torch.no_grad():
        for name, p in [*model.named_parameters(), *model.named_buffers()]:
            if "inv_freq" in name:
                continue
            p.normal_(0.0, p.shape[-1] ** -0.5 if p.dim() > 1 else 0.2)
            if name.endswith("norm.weight"):
                p.add_(1.0)
    return model


class HfSource:
    """Weights of such a model; broken: one part that is wrong on purpose."""

    def __init__(self, model: Any, broken: str = "") -> None:
        c, self.broken = model.config, broken
        self.state = {k: v.detach() for k, v in model.state_dict().items()}
        rope = getattr(c, "rope_parameters", None) or {}
        self.config = g.Config(
            hidden=c.hidden_size,
            layers=c.num_hidden_layers,
            heads=c.num_attention_heads,
            kv_heads=c.num_key_value_heads,
            head_dim=c.head_dim,
            intermediate=c.intermediate_size,
            moe_intermediate=c.moe_intermediate_size,
            experts=c.n_routed_experts,
            top_k=c.num_experts_per_tok,
            shared_experts=c.n_shared_experts,
            first_dense=c.first_k_dense_replace,
            vocab=c.vocab_size,
            routed_scaling=1.0 if broken == "scaling" else c.routed_scaling_factor,
            n_group=c.n_group,
            topk_group=c.topk_group,
            norm_topk=c.norm_topk_prob,
            qk_norm=c.use_qk_norm,
            attention_bias=c.attention_bias,
            rotary=1.0 if broken == "rotary" else rope.get("partial_rotary_factor", 0.5),
            rope_theta=10000.0,
            eps=c.rms_norm_eps,
        )

    def layer(self, index: int) -> g.Layer:
        def get(name: str) -> Tensor:
            return self.state[f"model.layers.{index}.{name}"]

        def cat(prefix: str, names: str, what: str) -> Tensor:
            return torch.cat([get(f"{prefix}.{n}_proj.{what}") for n in names.split()])

        def dense(prefix: str) -> g.Mlp:
            return g.Mlp(g.Linear(cat(prefix, "gate up", "weight")), g.Linear(get(f"{prefix}.down_proj.weight")))

        bias = self.config.attention_bias and self.broken != "bias"
        qkv = g.Linear(cat("self_attn", "q k v", "weight"), None, cat("self_attn", "q k v", "bias") if bias else None)
        norms = [get(f"self_attn.{n}_norm.weight") if self.config.qk_norm else None for n in "qk"]
        mlp: g.Mlp | g.Moe
        if index < self.config.first_dense:
            mlp = dense("mlp")
        else:
            correction = get("mlp.gate.e_score_correction_bias")
            mlp = g.Moe(
                get("mlp.gate.weight"),
                0 * correction if self.broken == "correction" else correction,
                lambda e: self._expert(index, e).gate_up,
                lambda e: self._expert(index, e).down,
                None if self.broken == "shared" else dense("mlp.shared_experts"),
            )
        o = g.Linear(get("self_attn.o_proj.weight"))
        post = get("post_attention_layernorm.weight")
        return g.Layer(index, get("input_layernorm.weight"), qkv, o, norms[0], norms[1], post, mlp)

    def _expert(self, index: int, number: int) -> g.Mlp:
        prefix = f"model.layers.{index}.mlp.experts"
        if f"{prefix}.gate_up_proj" in self.state:
            both, down = self.state[f"{prefix}.gate_up_proj"][number], self.state[f"{prefix}.down_proj"][number]
        else:
            own = f"{prefix}.{number}"
            both = torch.cat([self.state[f"{own}.{n}_proj.weight"] for n in ("gate", "up")])
            down = self.state[f"{own}.down_proj.weight"]
        return g.Mlp(g.Linear(both), g.Linear(down))

    def embed(self, tokens: Tensor) -> Tensor:
        return self.state["model.embed_tokens.weight"][tokens]

    def final_norm(self) -> Tensor:
        return self.state["model.norm.weight"]

    def head(self) -> Iterator[Tensor]:
        yield from self.state["lm_head.weight"].split(40)
