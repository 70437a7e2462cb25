"""Tensors of a case before they are filled, in its layout, and the blocks of rows in which they are."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from validators.cases.case import Case
from validators.cases.codes import NAN_CODE
from validators.cases.generator import CHUNK, Block

# A GPU wants few and large launches: 4096 x 5120 elements in blocks of CHUNK took it 39 ms.
GPU_CHUNK = 1 << 23

# Elements between the end of a row and the next one in a strided case; x and residual (a and b) differ, and every
# row starts at a multiple of 16 bytes, which vectorised kernels may demand. A tensor of another name has the gap of x.
_GAPS = {"x": 64, "residual": 136, "a": 48, "b": 112}


def batch_of(m: int) -> int:
    """B of a 3d case: the least prime factor of m up to 7, or 1."""
    return next((b for b in (2, 3, 5, 7) if m % b == 0 and m > b), 1)


def blocks(case: Case, rows: int, width: int, device: str) -> Iterator[Block]:
    step = max(1, (CHUNK if torch.device(device).type == "cpu" else GPU_CHUNK) // width)
    whole = Block(case, 0, rows, width, device)
    for start in range(0, rows, step):
        yield whole.part(start, min(rows, start + step))


def matrix(case: Case, name: str, rows: int, width: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    """Unfilled [rows, width] of ``dtype``, [B, S, N] in the 3-D layouts; strided ones are views into NaN."""
    if case.layout == "contiguous":
        return torch.empty(rows, width, dtype=dtype, device=device)
    batch = batch_of(rows)
    if case.layout == "3d":
        return torch.empty(batch, rows // batch, width, dtype=dtype, device=device)
    vector = 16 // dtype.itemsize
    stride = -(-width // vector) * vector + _GAPS.get(name, _GAPS["x"])
    poison = NAN_CODE[case.fp8] if dtype == torch.uint8 else float("nan")
    if case.layout == "3dstrided":
        # One row more in each batch, so that the batch stride is not rows times the row stride.
        whole = torch.full((batch, rows // batch + 1, stride), poison, dtype=dtype, device=device)
        return whole[:, : rows // batch, :width]
    return torch.full((rows, stride), poison, dtype=dtype, device=device)[:, :width]


def store_rows(matrix: torch.Tensor, start: int, rows: torch.Tensor) -> None:
    """``rows`` [count, N] into rows ``start ..`` of ``matrix``, [M, N] or [B, S, N] of any strides."""
    if matrix.dim() == 2:
        matrix[start : start + len(rows)] = rows
        return
    stop, length = start + len(rows), matrix.shape[1]
    for batch in range(start // length, -(-stop // length)):
        low, high = max(start, batch * length), min(stop, (batch + 1) * length)
        matrix[batch, low - batch * length : high - batch * length] = rows[low - start : high - start]
