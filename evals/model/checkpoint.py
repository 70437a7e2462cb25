"""Checkpoints on disk: bf16, and FP8 in the compressed-tensors layout of GLM-4.7-FP8 (one scale a weight row).

The FP8 layout is ``FP8_DYNAMIC``: every Linear except ``lm_head`` and the router gates is stored as
``X.weight`` float8_e4m3fn [out, in] and ``X.weight_scale`` [out, 1] with w = code * scale; activations are quantised
per token at run time, so nothing of them is stored. Norms, embeddings and biases stay bf16, the router's correction
bias fp32. Own code: the library's own quantiser computes scales in the weight's type.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

E4M3_MAX = 448.0
IGNORED = ("lm_head", "re:.*mlp.gate$")


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (float8_e4m3fn) and scales (fp32, [out, 1]) of a weight [out, in], one scale a row.

    Scale = row amax / 448 in fp32; codes = RNE of w / scale after a clamp to +-448 (the cast alone would make NaN of
    what rounding lifts above). A row of zeros takes scale 1, so that nothing is divided by zero.
    """
    wide = weight.to(torch.float32)
    # By a tensor: CUDA turns a division by a Python number into a multiplication by its reciprocal.
    scale = wide.abs().amax(dim=1, keepdim=True) / torch.full((1, 1), E4M3_MAX, device=wide.device)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    codes = (wide / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    return codes, scale


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


def quantization_config() -> dict[str, Any]:
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


def stored(model: Any) -> dict[str, torch.Tensor]:
    """A model's state as a bf16 checkpoint has it: on the CPU, per expert, the correction bias alone in fp32."""
    state = {}
    for name, tensor in model.state_dict().items():
        kept = tensor.detach().to("cpu")
        state[name] = kept.float() if name.endswith("e_score_correction_bias") else kept.to(torch.bfloat16)
    return split_experts(state)


def write(folder: Path, state: dict[str, torch.Tensor], config: Any, *, fp8: bool, shard_bytes: int = 15 << 20) -> None:
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


TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
}


def read_file(file: Path) -> dict[str, torch.Tensor]:
    """All tensors of one safetensors file. Read by hand (a JSON header, then the bytes), so that the embedded model
    needs no package. ValueError with one sentence for a file that is cut or is none."""
    raw = bytearray(file.read_bytes())
    size = int.from_bytes(raw[:8], "little")
    if len(raw) < 8 or size > len(raw) - 8:
        raise ValueError(f"{file.name} is no safetensors file, or is cut")
    header = json.loads(raw[8 : 8 + size])
    state: dict[str, torch.Tensor] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in TYPES:
            raise ValueError(f"tensor {name} has type {entry['dtype']}; known: {', '.join(TYPES)}")
        first, last = entry["data_offsets"]
        if 8 + size + last > len(raw):
            raise ValueError(f"{file.name} is cut: tensor {name} ends behind its end")
        # A copy of its own, so that every tensor is aligned.
        part = torch.frombuffer(raw, dtype=torch.uint8, count=last - first, offset=8 + size + first).clone()
        state[name] = part.view(TYPES[entry["dtype"]]).view(entry["shape"])
    return state


def read(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint folder as stored; FileNotFoundError with one sentence where there are none."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"no *.safetensors in {folder}")
    state: dict[str, torch.Tensor] = {}
    for file in files:
        state.update(read_file(file))
    return state
