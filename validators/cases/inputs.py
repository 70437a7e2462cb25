"""Inputs of a case: tensors from the case alone, the same bits on every device."""

from __future__ import annotations

import hashlib

import torch

from validators.cases.case import Case, CaseError
from validators.cases.generator import CHUNK
from validators.cases.op import op_named
from validators.cases.recipes import reasons_impossible, recipe_info
from validators.cases.tensors import Inputs


def build(case: Case, device: str = "cpu") -> Inputs:
    """The case's inputs on ``device``; bits do not depend on device, chunking, platform or torch version.

    contiguous: plain tensors. strided: x and residual (a and b) are [M, N] views with different, larger row
    strides, their gaps filled with NaN. 3d: x and residual are [B, S, N] with B * S = m. 3dstrided: the same as a
    slice of a larger [B, S + 1, stride], as ``qkv[:, :s, :h]`` is, so that neither rows nor batches are side by side.
    Temporary memory is a few times ``CHUNK`` elements (``GPU_CHUNK`` on a GPU). Raises CaseError if the recipe cannot
    make such a case.
    """
    reason = reasons_impossible(case)
    if reason:
        raise CaseError(f"{case.id} cannot be built: {reason}")
    return op_named(case.op).build(case, device)


def describe(case: Case) -> str:
    """One sentence: op, shape, types, options, lane, and what the recipe reveals."""
    info = recipe_info(case.recipe, case.op)
    words = op_named(case.op).words(case)
    return f"{words}; {info.lane} lane, recipe {case.recipe}, which reveals {info.reveals}."


def digest(inputs: Inputs) -> str:
    """sha256 (hex) over every field by name: a tensor's dtype, shape and bytes in logical order, else the value."""
    total = hashlib.sha256()
    for name, value in vars(inputs).items():
        if not isinstance(value, torch.Tensor):
            total.update(f"{name}={value}\n".encode())
            continue
        total.update(f"{name}:{value.dtype}:{tuple(value.shape)}\n".encode())
        rows = value.reshape(-1, value.shape[-1]) if value.is_contiguous() and value.dim() > 2 else value
        step = max(1, 4 * CHUNK // rows[:1].numel())
        for start in range(0, len(rows), step):
            part = rows[start : start + step].contiguous().view(torch.uint8)
            total.update(part.cpu().numpy().tobytes())
    return total.hexdigest()
