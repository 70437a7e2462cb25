"""Emulated static quantizers: x by one given scale, in fp32 PyTorch, one operation after the other.

Shares nothing with ``reference.static_quant`` but the contract; stages work as in ``emulated``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from reference.static_quant import CONTRACTS, StaticQuantContract
from validators.cases.ops.static_quant import StaticQuantInputs, StaticQuantOutputs
from validators.kernels.emulated_rounding import directed, encode
from validators.kernels.emulated_variant import FP8_NAMES, STAND_IN, Direction, EmulatedError, versions
from validators.kernels.kernel import Kernel

_CHUNK_ELEMENTS = 1 << 20


@dataclass
class StaticWork:
    """A chunk of rows. x: [m, n] T. scale: fp32 [1]. t: fp32 [m, n]. codes: uint8 [m, n]. out: where they go.

    reciprocal: Direction of the quotient or of 1/s, which a contract with ``reciprocal_u`` above 1 leaves open.
    """

    contract: StaticQuantContract
    fp8: str
    reciprocal: Direction
    x: Tensor
    scale: Tensor
    out: Tensor
    t: Tensor = field(init=False)
    codes: Tensor = field(init=False)


StaticStage = Callable[[StaticWork], None]


def _quotient(w: StaticWork) -> None:
    x = w.x.float()
    if w.contract.division == "divide":
        w.t = x / w.scale
        return
    exact = torch.ones_like(w.scale).double() / w.scale.double()
    # A power of two has an exact reciprocal on every unit.
    w.t = x * directed(exact, w.reciprocal, torch.frexp(w.scale).mantissa != 0.5)


def _clamp(w: StaticWork) -> None:
    q = torch.full_like(w.t[:1, :1], w.contract.qmax(w.fp8))
    if w.contract.nan == "largest":
        w.t = torch.fmax(-q, torch.fmin(w.t, q))
    else:
        w.t = torch.maximum(-q, torch.minimum(w.t, q))


def _encode(w: StaticWork) -> None:
    w.codes = encode(w.t, w.fp8, "saturate")


def _write(w: StaticWork) -> None:
    w.out.copy_(w.codes)


STAGES: dict[str, StaticStage] = {"quotient": _quotient, "clamp": _clamp, "encode": _encode, "write": _write}
"""The stages by name, in the order in which they run."""


def make(
    contract: StaticQuantContract,
    reciprocal: Direction = "nearest",
    stages: Mapping[str, StaticStage] | None = None,
) -> Callable[..., StaticQuantOutputs]:
    """A callable ``(inputs, buffers=None) -> outputs``; stages: replacements by name, all rows are then one chunk."""
    pipeline = [(stages or {}).get(name, stage) for name, stage in STAGES.items()]
    if reciprocal != "nearest" and all(member.reciprocal_u <= 1.0 for member in contract.members()):
        raise EmulatedError(f"contract {contract.name} allows one reciprocal only")

    def call(inputs: StaticQuantInputs, buffers: StaticQuantOutputs | None = None) -> StaticQuantOutputs:
        codes = torch.empty(inputs.x.shape, dtype=inputs.fp8_dtype, device=inputs.device)
        out = StaticQuantOutputs(codes) if buffers is None else buffers
        x, flat = inputs.x.reshape(-1, inputs.width), out.codes.view(torch.uint8).view(-1, inputs.width)
        step = max(1, len(x) if stages else _CHUNK_ELEMENTS // inputs.width)
        for part in (slice(first, first + step) for first in range(0, len(x), step)):
            work = StaticWork(contract, FP8_NAMES[inputs.fp8_dtype], reciprocal, x[part], inputs.scale, flat[part])
            for stage in pipeline:
                stage(work)
        return out

    return call


def kernels() -> list[Kernel]:
    """``emulated/<contract>`` for every preset."""
    return [
        Kernel(
            f"emulated/{name}",
            "static_quant",
            name,
            make(contract),
            in_place=True,
            versions=versions,
            emulated=True,
            notes=STAND_IN,
        )
        for name, contract in CONTRACTS.items()
    ]
