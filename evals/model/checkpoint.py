"""Checkpoints on disk: bf16, and FP8 in the compressed-tensors layout of GLM-4.7-FP8 (one scale per weight row).

The FP8 layout is ``FP8_DYNAMIC``: every Linear except ``lm_head`` and the router gates is stored as
``X.weight`` float8_e4m3fn [out, in] and ``X.weight_scale`` [out, 1] with w = code * scale; activations are quantised
per token at run time, so nothing of them is stored. Norms, embeddings and biases stay bf16, the router's correction
bias fp32.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

E4M3_MAX = 448.0


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (float8_e4m3fn) and scales (fp32, [out, 1]) of a weight [out, in], one scale per row.

    Scale = row amax / 448 in fp32; codes = RNE of w / scale after a clamp to +-448 (the cast alone would make NaN of
    what rounding lifts above). A row of zeros takes scale 1, so that nothing is divided by zero.
    """
    wide = weight.to(torch.float32)
    # By a tensor: CUDA turns a division by a Python number into a multiplication by its reciprocal.
    scale = wide.abs().amax(dim=1, keepdim=True) / torch.full((1, 1), E4M3_MAX, device=wide.device)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    codes = (wide / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    return codes, scale


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
