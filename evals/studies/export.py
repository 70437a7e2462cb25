"""Writes the trained model as checkpoints: bf16, and FP8 in the compressed-tensors layout, with its tokenizer.

Own code: compressed-tensors' quantizer computes scales in the weight's type.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from evals.model.checkpoint import quantize_rows
from evals.model.tokenizer import END, PAD, PATTERN, UNKNOWN, vocabulary

if TYPE_CHECKING:
    from transformers import PretrainedConfig

IGNORED = ("lm_head", "re:.*mlp.gate$")


def is_quantized(name: str, tensor: torch.Tensor) -> bool:
    """Whether a parameter of a Glm4Moe or Llama checkpoint is the weight of a Linear that FP8_DYNAMIC stores in FP8."""
    kept = ("lm_head.", "embed_tokens.", "mlp.gate.weight")
    return name.endswith("proj.weight") and tensor.dim() == 2 and not any(part in name for part in kept)


def quantized(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A per-expert state dict (names as saved on disk) with its Linear weights in FP8; scales in fp32."""
    made: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if is_quantized(name, tensor):
            codes, scale = quantize_rows(tensor)
            made[name] = codes.contiguous()
            made[name + "_scale"] = scale.contiguous()
        else:
            made[name] = tensor
    return made


def dequantized(state: dict[str, torch.Tensor], dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    """The inverse: code * scale in fp32, stored as ``dtype``; tensors without a scale as they are."""
    made: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if name.endswith(".weight_scale"):
            continue
        scale = state.get(name + "_scale")
        made[name] = tensor if scale is None else (tensor.to(torch.float32) * scale.to(torch.float32)).to(dtype)
    return made


def quantization_config() -> dict[str, object]:
    """``quantization_config`` of config.json, as llm-compressor writes it for FP8_DYNAMIC."""
    weights = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False}
    inputs = {"num_bits": 8, "type": "float", "strategy": "token", "symmetric": True, "dynamic": True}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": list(IGNORED),
        "kv_cache_scheme": None,
    }


def split_experts(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The fused 3-D expert parameters of transformers as one Linear an expert, as checkpoints store them.

    ``mlp.experts.gate_up_proj`` [E, 2I, H] -> ``mlp.experts.e.gate_proj.weight`` and ``.up_proj.weight`` [I, H];
    ``mlp.experts.down_proj`` [E, H, I] -> ``mlp.experts.e.down_proj.weight``. Other tensors as they are.
    """
    made: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if name.endswith(".mlp.experts.gate_up_proj"):
            stem = name.removesuffix("gate_up_proj")
            for expert, both in enumerate(tensor):
                gate, up = both.chunk(2, dim=0)
                made[f"{stem}{expert}.gate_proj.weight"] = gate.contiguous()
                made[f"{stem}{expert}.up_proj.weight"] = up.contiguous()
        elif name.endswith(".mlp.experts.down_proj"):
            stem = name.removesuffix("down_proj")
            for expert, down in enumerate(tensor):
                made[f"{stem}{expert}.down_proj.weight"] = down.contiguous()
        else:
            made[name] = tensor.contiguous()
    return made


def join_experts(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inverse of ``split_experts``: what ``Glm4MoeForCausalLM.load_state_dict`` takes."""
    made: dict[str, torch.Tensor] = {}
    groups: dict[str, dict[int, dict[str, torch.Tensor]]] = {}
    for name, tensor in state.items():
        stem, found, rest = name.partition(".mlp.experts.")
        if not found:
            made[name] = tensor
            continue
        expert, part, _ = rest.split(".", 2)
        groups.setdefault(stem + found, {}).setdefault(int(expert), {})[part] = tensor
    for stem, experts in groups.items():
        order = [experts[place] for place in sorted(experts)]
        made[stem + "gate_up_proj"] = torch.stack([torch.cat([e["gate_proj"], e["up_proj"]]) for e in order])
        made[stem + "down_proj"] = torch.stack([e["down_proj"] for e in order])
    return made


def stored(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A model's state as a bf16 checkpoint has it: on the CPU, per expert, the correction bias alone in fp32."""
    state = {}
    for name, tensor in model.state_dict().items():
        kept = tensor.detach().to("cpu")
        state[name] = kept.float() if name.endswith("e_score_correction_bias") else kept.to(torch.bfloat16)
    return split_experts(state)


def write_checkpoint(
    folder: Path, state: dict[str, torch.Tensor], config: PretrainedConfig, *, fp8: bool, shard_bytes: int = 15 << 20
) -> None:
    """Safetensors in shards of at most ``shard_bytes``, with config.json; the tokenizer is written apart."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name, tensor in sorted(state.items()):
        grows = tensor.numel() * tensor.element_size()
        if shards[-1] and size + grows > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += grows
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors", metadata={"format": "pt"})
    else:
        places: dict[str, str] = {}
        for number, shard in enumerate(shards, start=1):
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            save_file(shard, folder / file, metadata={"format": "pt"})
            places.update(dict.fromkeys(shard, file))
        total = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    described = json.loads(config.to_json_string(use_diff=False))
    for private in ("_name_or_path", "transformers_version"):
        described.pop(private, None)
    described["architectures"] = ["Glm4MoeForCausalLM"]
    described["dtype"] = "bfloat16"
    if fp8:
        described["quantization_config"] = quantization_config()
    (folder / "config.json").write_text(json.dumps(described, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def write_tokenizer(folder: Path) -> None:
    """``tokenizer.json`` and ``tokenizer_config.json`` of the ``tokenizers`` library, with the same cuts."""
    tokens = [
        {
            "id": place,
            "content": name,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for place, name in enumerate([PAD, END, UNKNOWN])
    ]
    split = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
    made = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": tokens,
        "normalizer": None,
        "pre_tokenizer": split,
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocabulary(), "unk_token": UNKNOWN},
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "eos_token": END,
        "unk_token": UNKNOWN,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer.json").write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
