"""Emulated static quantizers; they share nothing with ``reference.static_quant`` but the contract."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from reference.static_quant import CONTRACTS, StaticQuantContract
from validators.cases.ops.static_quant import NAME, StaticQuantInputs, StaticQuantOutputs
from validators.kernels.emulated_rounding import directed, encode
from validators.kernels.emulated_variant import FP8_NAMES, STAND_IN, Direction, EmulatedError, versions
from validators.kernels.kernel import Kernel

_CHUNK_ELEMENTS = 1 << 20


@dataclass
class StaticWork:
    """A chunk of rows. x: [m, n] T; scale: fp32 [1]; t: fp32 [m, n]; codes: uint8 [m, n]. reciprocal: Direction of
    1/s, which a contract with ``reciprocal_u`` above 1 leaves open."""

    contract: StaticQuantContract
    fp8: str
    reciprocal: Direction
    x: Tensor
    scale: Tensor
    t: Tensor = field(init=False)
    codes: Tensor = field(init=False)


def _quotient(w: StaticWork) -> None:
    if w.contract.division == "divide":
        w.t = w.x.float() / w.scale
        return
    # A power of two has an exact reciprocal on every unit.
    free = torch.frexp(w.scale).mantissa != 0.5
    w.t = w.x.float() * directed(torch.ones_like(w.scale).double() / w.scale.double(), w.reciprocal, free)


def _clamp(w: StaticWork) -> None:
    q = torch.full_like(w.t[:1, :1], w.contract.qmax(w.fp8))
    # fmin and fmax drop a NaN, minimum and maximum keep it.
    low, high = (torch.fmin, torch.fmax) if w.contract.nan == "largest" else (torch.minimum, torch.maximum)
    w.t = high(-q, low(w.t, q))


def _encode(w: StaticWork) -> None:
    w.codes = encode(w.t, w.fp8, "saturate")


StaticStage = Callable[[StaticWork], None]
STAGES: dict[str, StaticStage] = {"quotient": _quotient, "clamp": _clamp, "encode": _encode}


def make(
    contract: StaticQuantContract, reciprocal: Direction = "nearest", stages: Mapping[str, StaticStage] | None = None
) -> Callable[..., StaticQuantOutputs]:
    """A callable ``(inputs, buffers=None) -> outputs``; stages: replacements by name, all rows are then one chunk."""
    pipeline = {**STAGES, **(stages or {})}
    if reciprocal != "nearest" and all(member.reciprocal_u <= 1.0 for member in contract.members()):
        raise EmulatedError(f"contract {contract.name} allows one reciprocal only")

    def call(inputs: StaticQuantInputs, buffers: StaticQuantOutputs | None = None) -> StaticQuantOutputs:
        out = StaticQuantOutputs(torch.empty_like(inputs.x, dtype=inputs.fp8_dtype)) if buffers is None else buffers
        x, flat = inputs.x.reshape(-1, inputs.width), out.codes.view(torch.uint8).view(-1, inputs.width)
        step = max(1, len(x) if stages else _CHUNK_ELEMENTS // inputs.width)
        for part in (slice(first, first + step) for first in range(0, len(x), step)):
            work = StaticWork(contract, FP8_NAMES[inputs.fp8_dtype], reciprocal, x[part], inputs.scale)
            for stage in pipeline.values():
                stage(work)
            flat[part] = work.codes
        return out

    return call


def kernels() -> list[Kernel]:
    """``emulated/<contract>`` for every preset."""
    same = {"in_place": True, "versions": versions, "emulated": True, "notes": STAND_IN}
    return [Kernel(f"emulated/{name}", NAME, name, make(c), **same) for name, c in CONTRACTS.items()]  # type: ignore
