"""Checkpoints on disk: bf16, and FP8 in the compressed-tensors layout of GLM-4.7-FP8 (one scale per weight row).

The FP8 layout is ``FP8_DYNAMIC``: every Linear except ``lm_head`` and the router gates is stored as
``X.weight`` float8_e4m3fn [out, in] and ``X.weight_scale`` [out, 1] with w = code * scale; activations are quantised
per token at run time, so nothing of them is stored. Norms, embeddings and biases stay bf16, the router's correction
bias fp32.
"""

from __future__ import annotations

from pathlib import Path

import torch

from validators.tensor_file import CheckpointError, Shard

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


def read(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint folder as stored; CheckpointError with one sentence where there are none."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"no *.safetensors in {folder}")
    shards = [Shard(file) for file in files]
    return {name: shard.tensor(name) for shard in shards for name in shard.entries}
