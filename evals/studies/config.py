"""The embedded model's shape: GLM-4-MoE with every feature of its big relatives, at about ten million parameters."""

from __future__ import annotations

from typing import Any

from evals.model.tokenizer import vocabulary

EMBEDDED: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "moe_intermediate_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
}

TINY: dict[str, Any] = {  # for tests and rehearsals on a CPU: the same features, nothing to be learnt by it in earnest
    "hidden_size": 128,
    "intermediate_size": 256,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 1,
    "first_k_dense_replace": 1,
}

SIZES = {"embedded": EMBEDDED, "tiny": TINY}


def glm4_moe(size: str = "embedded") -> Any:
    """A ``Glm4MoeConfig`` of the named size: q/k/v bias, qk-norm, half rotary, normalised top-k, no MTP layer."""
    from transformers import Glm4MoeConfig

    made: Any = Glm4MoeConfig
    return made(
        vocab_size=-(-len(vocabulary()) // 16) * 16,
        max_position_embeddings=512,
        attention_bias=True,
        use_qk_norm=True,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        routed_scaling_factor=1.0,
        norm_topk_prob=True,
        num_nextn_predict_layers=0,
        tie_word_embeddings=False,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        **SIZES[size],
    )
