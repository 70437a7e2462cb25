"""Inputs of a case: tensors from the case alone, the same bits on every device."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch

from validators.cases.case import Case, CaseError
from validators.cases.codes import FP8_DTYPE, NAN_CODE, STORAGE
from validators.cases.generator import CHUNK, Block
from validators.cases.recipe import ADD, GEMM, QUANT, GemmRecipe
from validators.cases.recipes import gemm_recipe, lane_of, norm_recipe, reasons_impossible, recipe_info
from validators.cases.tensors import GemmInputs, Inputs, NormQuantInputs, QuantInputs

# A GPU wants few and large launches: 4096 x 5120 elements in blocks of CHUNK took it 39 ms.
GPU_CHUNK = 1 << 23

# Elements between the end of a row and the next one in a strided case; x and residual (a and b) differ, and every
# row starts at a multiple of 16 bytes, which vectorised kernels may demand.
_GAPS = {"x": 64, "residual": 136, "a": 48, "b": 112}


def build(case: Case, device: str = "cpu") -> Inputs:
    """The case's inputs on ``device``; bits do not depend on device, chunking, platform or torch version.

    contiguous: plain tensors. strided: x and residual (a and b) are [M, N] views with different, larger row
    strides, their gaps filled with NaN. 3d: x and residual are [B, S, N] with B * S = m. 3dstrided: the same as a
    slice of a larger [B, S + 1, stride], as ``qkv[:, :s, :h]`` is, so that neither rows nor batches lie side by side.
    Temporary memory is a few times ``CHUNK`` elements (``GPU_CHUNK`` on a GPU). Raises CaseError if the recipe cannot
    make such a case.
    """
    reason = reasons_impossible(case)
    if reason:
        raise CaseError(f"{case.id} cannot be built: {reason}")
    return _gemm(case, device) if case.op == GEMM else _norm(case, device)


def batch_of(m: int) -> int:
    """B of a 3d case: the least prime factor of m up to 7, or 1."""
    return next((b for b in (2, 3, 5, 7) if m % b == 0 and m > b), 1)


def _blocks(case: Case, rows: int, width: int, device: str) -> Iterator[Block]:
    step = max(1, (CHUNK if torch.device(device).type == "cpu" else GPU_CHUNK) // width)
    whole = Block(case, 0, rows, width, device)
    for start in range(0, rows, step):
        yield whole.part(start, min(rows, start + step))


def _matrix(case: Case, name: str, rows: int, width: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    """Unfilled [rows, width] of ``dtype``, [B, S, N] in the 3-D layouts; strided ones are views into NaN."""
    if case.layout == "contiguous":
        return torch.empty(rows, width, dtype=dtype, device=device)
    batch = batch_of(rows)
    if case.layout == "3d":
        return torch.empty(batch, rows // batch, width, dtype=dtype, device=device)
    vector = 16 // dtype.itemsize
    stride = -(-width // vector) * vector + _GAPS[name]
    poison = NAN_CODE[case.fp8] if dtype == torch.uint8 else float("nan")
    if case.layout == "3dstrided":
        # One row more in each batch, so that the batch stride is not rows times the row stride.
        whole = torch.full((batch, rows // batch + 1, stride), poison, dtype=dtype, device=device)
        return whole[:, : rows // batch, :width]
    return torch.full((rows, stride), poison, dtype=dtype, device=device)[:, :width]


def _store_rows(matrix: torch.Tensor, start: int, rows: torch.Tensor) -> None:
    """``rows`` [count, N] into rows ``start ..`` of ``matrix``, [M, N] or [B, S, N] of any strides."""
    if matrix.dim() == 2:
        matrix[start : start + len(rows)] = rows
        return
    stop, length = start + len(rows), matrix.shape[1]
    for batch in range(start // length, -(-stop // length)):
        low, high = max(start, batch * length), min(stop, (batch + 1) * length)
        matrix[batch, low - batch * length : high - batch * length] = rows[low - start : high - start]


def _norm(case: Case, device: str) -> Inputs:
    recipe = norm_recipe(case)
    dtype = STORAGE[case.dtype].dtype
    x = _matrix(case, "x", case.m, case.n, dtype, device)
    has_residual = case.op == ADD and case.residual
    residual = _matrix(case, "residual", case.m, case.n, dtype, device) if has_residual else None
    for block in _blocks(case, case.m, case.n, device):
        x_rows, residual_rows = recipe.values(block)
        _store_rows(x, block.start, x_rows.to(dtype))
        if residual is not None:
            if residual_rows is None:
                raise CaseError(f"recipe {case.recipe} makes no residual for {case.id}")
            _store_rows(residual, block.start, residual_rows.to(dtype))
    if case.op == QUANT:
        return QuantInputs(x, FP8_DTYPE[case.fp8])
    gain = recipe.gain(Block(case, 0, 1, case.n, device)).squeeze(0)
    weight = (gain - 1.0 if case.gemma else gain).to(torch.float32 if case.gamma == "fp32" else dtype)
    return NormQuantInputs(x, residual, weight, float(case.eps), FP8_DTYPE[case.fp8], case.gemma)


def _operand(case: Case, recipe: GemmRecipe, side: str, rows: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    codes = _matrix(case, side, rows, case.k, torch.uint8, device)
    scale = torch.empty(rows, 1, dtype=torch.float32, device=device)
    for block in _blocks(case, rows, case.k, device):
        codes[block.start : block.stop] = recipe.codes(block, side)
        scale[block.start : block.stop] = recipe.scales(block, side)
    return codes.view(FP8_DTYPE[case.fp8]), scale


def _gemm(case: Case, device: str) -> GemmInputs:
    recipe = gemm_recipe(case)
    dtype = STORAGE[case.dtype].dtype
    a, a_scale = _operand(case, recipe, "a", case.m, device)
    b, b_scale = _operand(case, recipe, "b", case.n, device)
    bias = recipe.bias(Block(case, 0, case.n, case.k, device)).squeeze(1).to(dtype) if case.bias else None
    return GemmInputs(a, a_scale, b, b_scale, bias, dtype)


def describe(case: Case) -> str:
    """One sentence: op, shape, types, options, lane, and what the recipe reveals."""
    info = recipe_info(case.recipe, case.op)
    if case.op == GEMM:
        what = f"{case.op} {case.m} x {case.n} x {case.k} (m, n, k), {case.fp8} operands, {case.dtype} output"
    else:
        what = f"{case.op} {case.m} x {case.n}, {case.dtype} to {case.fp8}"
    options = [
        *(["no residual"] if case.op == ADD and not case.residual else []),
        *(["fp32 weight"] if case.gamma == "fp32" else []),
        *(["1 + weight"] if case.gemma else []),
        *([f"eps {case.eps}"] if case.op == ADD else []),
        *([f"{case.layout} layout"] if case.layout != "contiguous" else []),
        *(["bias"] if case.bias else []),
    ]
    return f"{', '.join([what, *options])}; {lane_of(case)} lane, recipe {case.recipe}, which reveals {info.reveals}."


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
