"""Legal freedoms of an emulated kernel, and what all emulated kernels have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from reference.contract import NormQuantContract
from validators.errors import UserError

FP8_NAMES = {torch.float8_e4m3fn: "e4m3fn", torch.float8_e4m3fnuz: "e4m3fnuz"}
STAND_IN = "fp32 PyTorch stand-in; shows the pipeline, says nothing about a shipped kernel"
"""``Kernel.notes`` of every emulated kernel."""

Direction = Literal["nearest", "up", "down", "ulp_up", "ulp_down"]


class EmulatedError(UserError):
    """Inputs, a variant or a stage that the emulated kernels cannot execute; its message is one sentence."""


@dataclass(frozen=True)
class Variant:
    """Legal freedoms of a kernel: each value changes low bits and breaks no contract that admits it.

    order: how squares are summed; ``tree`` pairs only, ``chunks`` adds ``chain`` neighbours in sequence
    (0: as many as the contract allows) and combines by a tree, ``lanes`` adds elements ``lanes`` apart,
    ``torch_sum`` is the framework's reduction, whose order, and so its bits, belong to the device. arrangement: order
    of the elements before that. adjacent: the tree pairs neighbours, not halves. fma: square and add with one rounding.
    mean: divide by n, or multiply by fl32(1/n). rsqrt: fl(1/fl(sqrt v)), ``torch.rsqrt`` (its bits belong to the device
    as well), or the exact value rounded in a Direction. product: ``(z*rms)*w`` or ``z*(rms*w)``. scale, reciprocal:
    Direction of amax/Q and 1/s. flush: fp32 operands and results below 2**-126 become zero, as in a build with
    -fgpu-flush-denormals-to-zero or --ftz=true.

    A Direction ``up`` / ``down`` is the fp32 neighbour above / below the exact value (error below 2u);
    ``ulp_up`` / ``ulp_down`` is one ulp from the correctly rounded value (error at most 3u). A value that
    is exact in fp32 stays so in all of them, and subnormal ones are left alone: an ulp is no longer 2u there.
    """

    name: str = "default"
    order: Literal["tree", "chunks", "lanes", "torch_sum"] = "tree"
    chain: int = 0
    lanes: int = 256
    arrangement: Literal["forward", "reversed", "permuted"] = "forward"
    adjacent: bool = False
    fma: bool = False
    mean: Literal["divide", "multiply"] = "divide"
    rsqrt: Literal["sqrt_divide", "native", "nearest", "up", "down", "ulp_up", "ulp_down"] = "sqrt_divide"
    product: Literal["normalise_first", "weight_first"] = "normalise_first"
    scale: Direction = "nearest"
    reciprocal: Direction = "nearest"
    flush: bool = False


DEFAULT = Variant()

_ERROR_U = {"nearest": 1.0, "sqrt_divide": 2.0, "up": 2.0, "down": 2.0, "ulp_up": 3.0, "ulp_down": 3.0}
# Exhaustive maximum of torch.rsqrt on an H200: 2.09u. On a CPU it is the processor's square root and a division.
_ERROR_U["native"] = 2.1


def illegal(contract: NormQuantContract, variant: Variant) -> str | None:
    """One sentence why ``variant`` is not an execution of ``contract``, or None."""
    if variant.product == "weight_first" and contract.round_after_normalize:
        return f"contract {contract.name} rounds z*rms, so the weight cannot be multiplied into rms first"
    if variant.fma and variant.order in ("tree", "torch_sum"):
        return f"order {variant.order} has no sequential add for an FMA to fuse"
    if variant.order == "torch_sum" and contract.reduction.kind == "serial" and contract.reduction.count < 128:
        return (
            f"torch.sum may add more than the {contract.reduction.count} terms that {contract.name} allows in sequence"
        )
    if variant.mean == "multiply" and contract.mean_u < 3.0:
        return (
            f"a mean by fl(1/n) costs 3u with the addition of eps, contract {contract.name} allows {contract.mean_u}u"
        )
    limits = (("rsqrt", variant.rsqrt, contract.rsqrt_u), ("scale", variant.scale, contract.scale_u))
    for what, value, limit in (*limits, ("reciprocal", variant.reciprocal, contract.reciprocal_u)):
        if _ERROR_U[value] > limit:
            return f"{what} {value} may be {_ERROR_U[value]}u off, contract {contract.name} allows {limit}u"
    if variant.reciprocal != "nearest" and contract.division == "divide":
        return f"contract {contract.name} divides and forms no reciprocal"
    if variant.flush and contract.denormals == "preserve":
        return f"contract {contract.name} preserves numbers below 2**-126"
    return None


def versions() -> Mapping[str, str]:
    """The library whose operations the emulation is made of."""
    return {"torch": torch.__version__}
