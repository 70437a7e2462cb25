"""Emulated PTPC GEMMs: FP8 operands decoded by an own table, fp32 accumulation, two scales, bias, store.

``fp32`` adds in fp32 throughout; ``unknown`` represents a fused matrix unit: it adds 32 products
exactly and rounds once into an fp32 accumulator. Stages work as in ``emulated``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from reference.contract import GEMM_CONTRACTS, GemmContract
from validators.cases.tensors import GemmOutputs, Inputs, Outputs
from validators.kernels.emulated_rounding import round_to
from validators.kernels.emulated_variant import FP8_NAMES, STAND_IN, EmulatedError, versions
from validators.kernels.kernel import Kernel

UNIT_GROUP = 32
# Output elements of a tile: bounds the float64 accumulators and the decoded weight slice.
_TILE_ROWS, _TILE_COLUMNS = 4096, 2048


@dataclass(frozen=True)
class GemmVariant:
    """Legal freedoms. block: products that one matrix multiplication adds (fp32 contract only).

    serial: one product at a time in order of k, the same bits on every device. scale_order: which scale
    is applied first, or both multiplied together first.
    """

    name: str = "default"
    block: int = 128
    serial: bool = False
    scale_order: Literal["token_first", "channel_first", "product_first"] = "token_first"


@dataclass
class GemmWork:
    """One tile. a: [m, K], b: [n, K] FP8 bytes (uint8); a_scale: [m, 1], b_scale: [n, 1] fp32; out: [m, n].

    a_value, b_value: decoded fp32 operands. accumulator, value: fp32 [m, n] before and after the scales.
    stored: value in out's dtype.
    """

    contract: GemmContract
    variant: GemmVariant
    fp8: tuple[str, str]
    a: Tensor
    a_scale: Tensor
    b: Tensor
    b_scale: Tensor
    bias: Tensor | None
    out: Tensor
    a_value: Tensor = field(init=False)
    b_value: Tensor = field(init=False)
    accumulator: Tensor = field(init=False)
    value: Tensor = field(init=False)
    stored: Tensor = field(init=False)


GemmStage = Callable[[GemmWork], None]


def decode(codes: Tensor, fp8: str) -> Tensor:
    """fp32 values of FP8 bytes (uint8, any shape); exact, and NaN for the format's NaN codes."""
    table = _table(fp8)
    if codes.device.type == "cpu":
        # numpy indexes by bytes as they are, at half the cost of widening them first.
        return torch.from_numpy(table.numpy()[codes.numpy()])
    return table.to(codes.device).index_select(0, codes.reshape(-1).int()).view(codes.shape)


@functools.lru_cache(maxsize=2)
def _table(fp8: str) -> Tensor:
    bias, nans = (7, (0x7F, 0xFF)) if fp8 == "e4m3fn" else (8, (0x80,))
    values = []
    for code in range(256):
        exponent, mantissa = (code >> 3) & 15, code & 7
        magnitude = (8 + mantissa if exponent else mantissa) * 2.0 ** (max(exponent, 1) - bias - 3)
        values.append(float("nan") if code in nans else -magnitude if code & 0x80 else magnitude)
    return torch.tensor(values, dtype=torch.float32)


def _decode(w: GemmWork) -> None:
    w.a_value, w.b_value = decode(w.a, w.fp8[0]), decode(w.b, w.fp8[1])


def accumulate_fp32(a: Tensor, b: Tensor, block: int, serial: bool) -> Tensor:
    """``a @ b.T`` for fp32 operands [m, K] and [n, K] with every addition in fp32.

    Off the CPU the products are added one k at a time by elementwise operations: a library's matrix
    multiplication may use tensor cores there, whose accumulator is not fp32.
    """
    total = torch.zeros(len(a), len(b), dtype=torch.float32, device=a.device)
    if serial or a.device.type != "cpu":
        columns = b.t().contiguous()
        for k in range(a.shape[1]):
            total.addcmul_(a[:, k : k + 1], columns[k])
        return total
    for k in range(0, a.shape[1], block):
        total += a[:, k : k + block] @ b[:, k : k + block].t()
    return total


def accumulate_groups(a: Tensor, b: Tensor, after: Callable[[Tensor], Tensor] = lambda total: total) -> Tensor:
    """``a @ b.T`` with groups of 32 products summed exactly, each rounded once into fp32, then ``after(total)``.

    Products are multiples of 2**-20 and sums stay below 2**33 in e4m3fnuz (2**-18 and 2**35 in e4m3fn) for
    any K in use, so float64 holds group + accumulator exactly and the only rounding is the one to fp32.
    """
    total = torch.zeros(len(a), len(b), dtype=torch.float32, device=a.device)
    a64, b64 = a.double(), b.double().t()
    for k in range(0, a.shape[1], UNIT_GROUP):
        total = after((a64[:, k : k + UNIT_GROUP] @ b64[k : k + UNIT_GROUP]).add_(total).float())
    return total


def _accumulate(w: GemmWork) -> None:
    if w.contract.accumulator == "fp32":
        w.accumulator = accumulate_fp32(w.a_value, w.b_value, w.variant.block, w.variant.serial)
    else:
        w.accumulator = accumulate_groups(w.a_value, w.b_value)


def _scale(w: GemmWork) -> None:
    row, column = w.a_scale.view(-1, 1), w.b_scale.view(1, -1)
    if w.variant.scale_order == "product_first":
        w.value = w.accumulator * (row * column)
    elif w.variant.scale_order == "channel_first":
        w.value = w.accumulator * column * row
    else:
        w.value = w.accumulator * row * column


def _bias(w: GemmWork) -> None:
    if w.bias is not None and w.contract.bias != "after_store":
        w.value = w.value + w.bias.float()


def _store(w: GemmWork) -> None:
    w.stored = round_to(w.value, w.out.dtype)
    if w.bias is not None and w.contract.bias == "after_store":
        w.stored = round_to(w.stored.float() + w.bias.float(), w.out.dtype)


def _write(w: GemmWork) -> None:
    w.out.copy_(w.stored)


STAGES: dict[str, GemmStage] = {
    "decode": _decode,
    "accumulate": _accumulate,
    "scale": _scale,
    "bias": _bias,
    "store": _store,
    "write": _write,
}
"""The stages by name, in the order in which they run."""


def execute(
    inputs: Any,
    buffers: Any,
    contract: GemmContract,
    variant: GemmVariant = GemmVariant(),
    *,
    stages: Mapping[str, GemmStage] | None = None,
) -> GemmOutputs:
    """Runs ``contract`` on ``inputs`` and returns out [M, N], in ``buffers`` if given.

    stages: replacements by stage name; the output is then one tile. Raises EmulatedError for inputs of
    another op, an unknown stage or operands that are not FP8.
    """
    if inputs.op != GemmOutputs.op:
        raise EmulatedError(f"expected inputs of {GemmOutputs.op}, got {type(inputs).__name__}")
    if inputs.a.dtype not in FP8_NAMES or inputs.b.dtype not in FP8_NAMES:
        raise EmulatedError(f"operands must be FP8, got {inputs.a.dtype} and {inputs.b.dtype}")
    unknown = set(stages or ()) - set(STAGES)
    if unknown:
        raise EmulatedError(f"op {GemmOutputs.op} has no stage {sorted(unknown)[0]!r}; known: {', '.join(STAGES)}")
    pipeline = [(stages or {}).get(name, stage) for name, stage in STAGES.items()]
    m, n = len(inputs.a), len(inputs.b)
    if buffers is None:
        out = torch.empty(m, n, dtype=inputs.out_dtype, device=inputs.a.device)
    else:
        out = buffers.out
    fp8 = (FP8_NAMES[inputs.a.dtype], FP8_NAMES[inputs.b.dtype])
    a, b = inputs.a.view(torch.uint8), inputs.b.view(torch.uint8)
    rows, columns = (max(1, m), max(1, n)) if stages else (_TILE_ROWS, _TILE_COLUMNS)
    for i in range(0, m, rows):
        for j in range(0, n, columns):
            r, c = slice(i, i + rows), slice(j, j + columns)
            bias = None if inputs.bias is None else inputs.bias[c]
            work = GemmWork(contract, variant, fp8, a[r], inputs.a_scale[r], b[c], inputs.b_scale[c], bias, out[r, c])
            for stage in pipeline:
                stage(work)
    return GemmOutputs(out)


def make(contract: GemmContract, variant: GemmVariant = GemmVariant()) -> Callable[..., GemmOutputs]:
    """A callable ``(inputs, buffers=None) -> outputs`` that returns its own tensors."""

    def call(inputs: Inputs, buffers: Outputs | None = None) -> GemmOutputs:
        return execute(inputs, None, contract, variant)

    return call


EMULATED = ("fp32", "unknown")
"""Contracts that this file carries out. A known matrix unit would need a second, independent emulation."""


def kernels() -> list[Kernel]:
    """``emulated/fp32`` and ``emulated/unknown``."""
    return [
        Kernel(
            f"emulated/{name}",
            GemmOutputs.op,
            name,
            make(contract),
            versions=versions,
            emulated=True,
            notes=STAND_IN,
        )
        for name, contract in GEMM_CONTRACTS.items()
        if name in EMULATED
    ]
