"""Cases and inputs of ``static_quant``: the quantizer's rows with one given scale, and rows next to midpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from validators.cases import rows
from validators.cases.case import Case
from validators.cases.codes import FP8_DTYPE, midpoints, odd_scale, positive_values
from validators.cases.generator import Block
from validators.cases.op import CaseOp
from validators.cases.recipe import QUANT, NormRecipe, Pair
from validators.cases.recipes_together import every_situation
from validators.cases.situations import EVERY
from validators.cases.suite_rows import Options, RowSuites
from validators.cases.tensors import Inputs, Outputs

NAME = "static_quant"


@dataclass(frozen=True)
class StaticQuantOutputs(Outputs):
    """codes: FP8, x's shape."""

    op: ClassVar[str] = NAME
    codes: torch.Tensor


@dataclass(frozen=True)
class StaticQuantInputs(Inputs):
    """x: [M, N] (or [B, S, N]) bf16/fp16. scale: fp32 [1], positive, for all rows. fp8_dtype: of the codes."""

    op: ClassVar[str] = NAME
    OUTPUTS: ClassVar[type[Outputs]] = StaticQuantOutputs
    x: torch.Tensor
    scale: torch.Tensor
    fp8_dtype: torch.dtype

    def expected(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {"codes": (tuple(self.x.shape), self.fp8_dtype)}


Scale = Callable[[Block], torch.Tensor]  # fp32 [1, 1] for a block of one element


def _odd(exponent: int) -> Scale:
    """A scale in (2^exponent, 2^(exponent + 1)) that is no power of two."""
    return lambda b: odd_scale(torch.full((1, 1), exponent, device=b.device), b.integers("scale", 1 << 22))


def _fixed(value: float) -> Scale:
    return lambda b: torch.full((1, 1), value, dtype=torch.float32, device=b.device)


FACTOR, BELOW = 7, 7 - 2.0**-21
"""Every midpoint of the two formats times 7 is a number of bf16 and of fp16. With a scale one fp32 step below 7, x / s
and x * fl32(1/s) are on two sides of 33 of the 126 midpoints of e4m3fn (of the factors up to 15 the most in bf16), and
bf16 does not tell t from the midpoint."""


def _beside_midpoints(block: Block) -> Pair:
    """Row i walks the midpoints from where row i-1 ended, in both signs; two elements of three are values of codes, so
    that a contract that leaves the reciprocal open still has one admissible code for most."""
    place = block.rows * block.width + block.cols
    middle, values = (
        torch.tensor(table, dtype=torch.float32, device=block.device) * FACTOR
        for table in (midpoints(block.case.fp8), positive_values(block.case.fp8))
    )
    x = torch.where(block.integers("kind", 3) == 0, middle[place % len(middle)], values[place % len(values)])
    return x * block.signs("x.sign"), None


# Recipe of the quantizer, what it reveals here, its scale: a few of the ordinary elements saturate.
_TAKEN: tuple[tuple[str, str, Scale], ...] = (
    ("gaussian", "a scale applied the wrong way, twice, rounded or not at all", _odd(-8)),
    ("uniform_bytes", "intermediates kept in fp16, flushed or lost exponents, a missing clamp", _odd(-8)),
    ("outlier_channels", "a scale computed from x instead of the given one", _odd(-4)),
    ("crest_ladder", "a scale that is not the same in all rows, a missing clamp", _odd(-8)),
    ("spike_walk", "columns or lanes that are converted otherwise than the rest", _odd(-8)),
    ("midpoints", "a wrong rounding rule: ties away from zero, truncation; every code's encoding", _fixed(1.0)),
    ("subnormal_codes", "FP8 subnormals flushed, 0x80 (NaN in e4m3fnuz) written for -0", _odd(1)),
    ("zero_rows", "uninitialised output, 0x80 written for zero", _odd(-8)),
    ("nonfinite", "NaN or Inf turned into ordinary codes, or spread to neighbours", _odd(-8)),
    ("subnormal_rows", "inputs that are not numbers of a normal size", _odd(-8)),
    ("shape_walk", "tails, block-size boundaries and row blocks that are handled wrongly at one shape", _odd(-8)),
    ("vector_peaks", "one vector of 8 columns, or a part of a wide row, that is left out", _odd(-4)),
    ("model", "mistakes at the model's own shapes", _odd(-6)),
    ("edge_peaks", "a column next to a boundary of vectors, waves or blocks that is left out", _odd(-4)),
    ("double_rounding", "a product with a reciprocal for a quotient or the reverse, codes through bf16", _fixed(BELOW)),
)
_QUANTIZER = {recipe.name: recipe for recipe in rows.recipes_of(QUANT)}
_VALUES = {**{name: recipe.values for name, recipe in _QUANTIZER.items()}, "double_rounding": _beside_midpoints}
_SINGLE = tuple(
    NormRecipe(name, _QUANTIZER[name].lane, (NAME,), reveals, values=_VALUES[name]) for name, reveals, _ in _TAKEN
)
_RECIPES = (*_SINGLE, every_situation(NAME, _SINGLE))
_SCALES = {EVERY: _odd(-8), **{name: scale for name, _, scale in _TAKEN}}
_OPTIONS: Options = (
    ("gaussian", {"layout": "strided"}),
    ("gaussian", {"layout": "3d"}),
    ("spike_walk", {"layout": "strided"}),
    ("double_rounding", {"layout": "3dstrided"}),
)


def build(case: Case, device: str) -> StaticQuantInputs:
    """Inputs of a case that is possible."""
    x, _ = rows.filled(case, rows.named(_RECIPES, case), device, residual=False)
    return StaticQuantInputs(x, _SCALES[case.recipe](Block(case, 0, 1, 1, device)).reshape(1), FP8_DTYPE[case.fp8])


_ALL = RowSuites(op=NAME, recipes=_RECIPES, options=_OPTIONS, smoke_options=2).suites
OP = CaseOp(name=NAME, inputs=StaticQuantInputs, recipes=_RECIPES, build=build, suites=_ALL, bytes_per_element=12)
