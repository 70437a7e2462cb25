"""The fastest emulation of a known matrix unit on a device, held against the reference on every block."""

from __future__ import annotations

import torch

from reference.accumulators import K_MAPS
from reference.contract import GemmContract
from reference.formats import FloatFormat
from reference.ptpc_gemm import Accumulate, emulate
from validators.errors import RunFault
from validators.judge.gpu.accumulate_triton import FAST_UNITS, emulate_fast, unavailable

SPOT_ROWS = 8
SPOT_COLS = 64
"""Rows and columns of each block that the reference emulates as well: a wrong fast path cannot pass unseen for long."""


class EmulationMismatch(RunFault):
    """The fast emulation differs from the reference; one sentence."""


def accumulate_on(device: str) -> Accumulate:
    """``reference.ptpc_gemm.emulate``, or on a GPU with triton a compiled form that is spot-checked against it."""
    if not device.startswith("cuda"):
        return emulate
    return emulate if unavailable(device) else checked_fast


def checked_fast(a: torch.Tensor, b: torch.Tensor, fmt: FloatFormat, contract: GemmContract) -> torch.Tensor:
    """codes a [m, K], b [n, K] -> the accumulator fp32 [m, n]. Raises EmulationMismatch if a spot check fails."""
    if contract.accumulator not in FAST_UNITS:
        return emulate(a, b, fmt, contract)
    k_map = K_MAPS[contract.k_map]
    out = emulate_fast(a, b, fmt, contract.accumulator, k_map=k_map if len(k_map) > 1 else None, splits=contract.splits)
    rows = torch.linspace(0, a.shape[0] - 1, min(SPOT_ROWS, a.shape[0]), device=a.device).long()
    cols = torch.linspace(0, b.shape[0] - 1, min(SPOT_COLS, b.shape[0]), device=b.device).long()
    raw_a, raw_b = a.view(torch.uint8), b.view(torch.uint8)
    expected = emulate(raw_a[rows], raw_b[cols], fmt, contract)
    got = out[rows][:, cols]
    if not torch.equal(got.view(torch.int32), expected.view(torch.int32)):
        count = int((got.view(torch.int32) != expected.view(torch.int32)).sum())
        raise EmulationMismatch(
            f"the compiled emulation of {contract.accumulator} differs from the reference in {count} of "
            f"{got.numel()} spot-checked outputs; nothing was judged"
        )
    return out
