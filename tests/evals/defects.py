"""Defects of the fused norm as kernels that an arm can take: ``fused,tests/evals/defects.py:truncating_cast``.

Each is the emulated fused kernel with one stage wrong, behind the protocol of a user's own kernel. Only the norm kernel
is wrong; quantizer, GEMM and all else stay, so what an evaluation sees is what such a kernel would do to a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from reference.contract import NORM_QUANT_CONTRACTS
from validators.cases.tensors import NormQuantInputs, NormQuantOutputs
from validators.kernels.emulated import STAGES, Stage, Work, execute
from validators.kernels.emulated_gemm import decode

ROOT = Path(__file__).resolve().parents[2]
CONTRACT = NORM_QUANT_CONTRACTS["aiter-hip-gfx950"]
CLEAN = STAGES["add_rmsnorm_quant"]
Made = tuple[Tensor, Tensor, Tensor | None]
Norm = Callable[[Tensor, Tensor | None, Tensor, float, torch.dtype], Made]


def _run(stages: Mapping[str, Stage], x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> Made:
    inputs = NormQuantInputs(x, residual, weight, eps, torch.float8_e4m3fn)
    out = execute(inputs, None, CONTRACT, stages=stages)
    assert isinstance(out, NormQuantOutputs)
    return out.codes, out.scale, out.residual_out


def _truncated(w: Work) -> None:
    CLEAN["encode"](w)
    # One code less is one step toward zero in sign-magnitude.
    w.codes -= (decode(w.codes, w.fp8).abs() > w.scaled.abs()).to(torch.uint8)


def _tensor_amax(w: Work) -> None:
    CLEAN["amax"](w)
    w.amax = w.amax.amax().expand_as(w.amax).clone()


def _no_residual(w: Work) -> None:
    """The add is left out: norm and stream see the hidden states alone."""


def truncating_cast(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, fp8_dtype: torch.dtype) -> Made:
    """The cast to FP8 rounds toward zero."""
    return _run({"encode": _truncated}, x, residual, weight, eps)


def per_tensor_scale(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, fp8_dtype: torch.dtype) -> Made:
    """One scale for all rows of the batch: the largest."""
    return _run({"amax": _tensor_amax}, x, residual, weight, eps)


def missing_residual(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, fp8_dtype: torch.dtype) -> Made:
    """The residual is not added."""
    return _run({"add": _no_residual}, x, residual, weight, eps)


def neighbours_scale(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, fp8_dtype: torch.dtype) -> Made:
    """Codes are right, and every row's scale is handed over with the row after it."""
    codes, scale, residual_out = _run({}, x, residual, weight, eps)
    return codes, scale.roll(1, 0), residual_out


def dropped_scale(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, fp8_dtype: torch.dtype) -> Made:
    """The scale is not handed over: the linear multiplies by one."""
    codes, scale, residual_out = _run({}, x, residual, weight, eps)
    return codes, torch.ones_like(scale), residual_out


_last: dict[int, Tensor] = {}


def stale_scale(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, fp8_dtype: torch.dtype) -> Made:
    """The scale buffer is read before it is written: it holds what the previous call of that many rows left."""
    codes, scale, residual_out = _run({}, x, residual, weight, eps)
    before = _last.get(len(x), torch.zeros_like(scale))
    _last[len(x)] = scale.clone()
    return codes, before, residual_out


DEFECTS: dict[str, Norm] = {
    "truncating_cast": truncating_cast,
    "per_tensor_scale": per_tensor_scale,
    "neighbours_scale": neighbours_scale,
    "missing_residual": missing_residual,
    "stale_scale": stale_scale,
    "dropped_scale": dropped_scale,
}


def arm(name: str) -> str:
    """The spec of an arm with that defect, as ``python -m evals`` takes it.

    Kernels are recorded under the name that they were given. From the repository's root, where records are made, the
    path is the one inside the repository, so that no record names a folder of the machine that made it.
    """
    here = Path(__file__).resolve()
    below = Path.cwd().resolve() == ROOT
    return f"fused,add_rmsnorm_quant={(here.relative_to(ROOT) if below else here).as_posix()}:{name}"
