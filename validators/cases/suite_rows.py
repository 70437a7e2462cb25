"""Suites of the ops whose rows become codes: the norm and the quantizers.

A passing shape represents every larger one only as long as no limit of a kernel is between them. Limits that are known
from reports (48 KiB of shared memory, 65,535 blocks of a grid axis, a block of 6,144 or 10,240 columns, a path for one
row) have a case on their far side here, and so has every width of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from validators.cases import shapes
from validators.cases.case import Case
from validators.cases.covered import covered
from validators.cases.op import Suite
from validators.cases.recipe import RecipeInfo
from validators.cases.recipes_shapes import VECTOR
from validators.cases.situations import EVERY
from validators.cases.suite_types import ORDINARY, OTHER, other, typed
from validators.words import DTYPES, FP8_FORMATS

Options = tuple[tuple[str, dict[str, Any]], ...]
"""(recipe, options of the case) pairs."""
Pairs = tuple[tuple[str, int, int, dict[str, Any]], ...]
"""(recipe, rows, columns, options of the case)."""

# Recipes whose power is in the last columns, and widths where kernels lose them.
_TAIL_RECIPES = ("spike_walk", "energy_walk", "midpoints")
_TAIL_SHAPES = ((97, 769), (61, 1002), (45, 5124))
# Recipes that the other storage type and the other FP8 format change most.
_DTYPE_RECIPES = ("gaussian", "residual_ties", "double_rounding", "midpoints", "subnormal_rows", "uniform_bytes")
_FP8_RECIPES = ("gaussian_gain", "midpoints", "subnormal_codes", "spike_walk", "nonfinite", "zero_rows")
NOT_SMOKE = (
    "outlier_channels",
    "cancellation",
    "uniform_bytes",
    "scale_underflow",
    "overflow_sum",
    "subnormal_rows",
    "degenerate_rows",
)
# Recipe, rows, columns and options: pairs of properties of which a kernel handles each and not always both.
PAIRS: Pairs = (
    ("gaussian", 34, 1024, {"layout": "3dstrided"}),
    ("crest_ladder", 33, 1002, {"layout": "3dstrided"}),
    ("shape_walk", 34, 1002, {"layout": "3d"}),
    ("shape_walk", 17, 12288, {"dtype": OTHER}),
    ("midpoints", 17, shapes.HIDDEN, {"dtype": OTHER}),
    ("midpoints", 17, shapes.HIDDEN, {"fp8": OTHER}),
    ("shape_walk", 33, 1002, {"fp8": OTHER}),
    ("gaussian", 34, 1024, {"dtype": OTHER, "fp8": OTHER}),
    ("gaussian", 34, 1024, {"dtype": OTHER, "layout": "3d"}),
    # Wide rows that are also padded, ragged, or of another weight: a path for wide rows has tails and strides too.
    ("gaussian", 34, 12288, {"layout": "strided"}),
    ("shape_walk", 17, 10250, {}),
    ("shape_walk", 9, 10251, {}),
    ("shape_walk", 1, 1002, {}),
)
_EVERY_ROWS = 80
"""Rows of a case of every situation: two of each turn."""
_NARROW = 72


@dataclass(frozen=True, kw_only=True)
class RowSuites:
    """The suites of one op.

    options: cases that the default suite adds to chosen recipes; the first ``smoke_options`` are the smoke suite's too.
    pairs: as ``PAIRS``, of this op alone. norm: whether there is a residual to leave out.
    """

    op: str
    recipes: Sequence[RecipeInfo]
    options: Options
    smoke_options: int
    pairs: Pairs = ()
    norm: bool = False

    @property
    def suites(self) -> Mapping[str, Suite]:
        """By depth."""
        return {"smoke": self.smoke, "default": self.default, "deep": self.deep}

    def smoke(self, dtype: str, fp8: str) -> Iterator[Case]:
        """Minutes are too many: every recipe once, small."""
        op, names = self.op, [r.name for r in self.recipes if r.lane in ORDINARY]
        for name in names:
            if name not in NOT_SMOKE:
                yield Case(op, 24, 520, name, dtype=dtype, fp8=fp8)
        for name, options in self.options[: self.smoke_options]:
            yield Case(op, 18, 264, name, dtype=dtype, fp8=fp8, **options)
        yield Case(op, 37, 1002, "shape_walk", dtype=dtype, fp8=fp8)
        # An odd width: rows whose last bytes share a word with the next row.
        yield Case(op, 9, 769, "shape_walk", dtype=dtype, fp8=fp8)
        yield from (Case(op, m, shapes.HIDDEN, "model", dtype=dtype, fp8=fp8) for m in (4, 1))
        yield from covered(op, "smoke", dtype, fp8)

    def default(self, dtype: str, fp8: str) -> Iterator[Case]:
        """Every recipe at two shapes, every option, every boundary, every width of the model."""
        op, names = self.op, [r.name for r in self.recipes if r.lane in ORDINARY]

        def case(name: str, m: int, n: int, **options: Any) -> Case:
            return Case(op, m, n, name, **{"dtype": dtype, "fp8": fp8, **options})

        for name in names:
            yield case(name, 64, 1024)
            yield case(name, 33, shapes.HIDDEN)
        for name in _TAIL_RECIPES:
            if name in names:
                yield from (case(name, m, n) for m, n in _TAIL_SHAPES)
        yield case("zero_rows", 1, 1024)
        for name, options in self.options:
            yield case(name, 34, 1024, **options)
        yield from (case(name, 32, 1024, dtype=other(dtype, DTYPES)) for name in _DTYPE_RECIPES if name in names)
        yield from (case(name, 32, 1024, fp8=other(fp8, FP8_FORMATS)) for name in _FP8_RECIPES if name in names)
        # The widest rows meet the fewest: every width and every row count once, at little cost.
        counts = shapes.boundary_rows(len(shapes.BOUNDARY_N))
        for index, (n, m) in enumerate(zip(shapes.BOUNDARY_N, counts, strict=True)):
            residual = not self.norm or index % 4 != 3
            yield case("shape_walk", m, n, residual=residual)
        yield from (case("model", m, shapes.HIDDEN) for m in (1, 16, 128))
        yield from self._reached(names, dtype, fp8)
        yield from covered(op, "default", dtype, fp8)

    def _reached(self, recipes: Sequence[str], dtype: str, fp8: str) -> Iterator[Case]:
        """Shapes that deployments reach. recipes: those of the lanes exact to special."""
        op = self.op

        def case(name: str, m: int, n: int, **options: Any) -> Case:
            return Case(op, m, n, name, **typed(options, dtype, fp8))

        yield case("shape_walk", 0, shapes.HIDDEN)
        yield from (case(name, 1, shapes.HIDDEN) for name in recipes)
        # Every vector of every width that the model has holds a row's maximum once.
        for n in shapes.model_widths(op):
            yield case("vector_peaks", -(-n // VECTOR), n)
            yield case("model", 1, n)
            yield case(EVERY, _EVERY_ROWS, n)
        for n in shapes.WIDE_N:
            yield case(EVERY, _EVERY_ROWS, n)
            if n not in shapes.model_widths(op):
                yield case("vector_peaks", 64, n)
        yield from (case(name, shapes.MANY_ROWS, 64) for name in ("shape_walk", "zero_rows"))
        yield case("edge_peaks", 64, shapes.HIDDEN)
        for size in shapes.GROWING:
            yield case(EVERY, _EVERY_ROWS, size)
            yield case(EVERY, size, _NARROW)
        for name, m, n, options in (*PAIRS, *self.pairs):
            yield case(name, m, n, **options)

    def deep(self, dtype: str, fp8: str) -> Iterator[Case]:
        """The default suite, other seeds, larger shapes, and one tensor past 2^31 elements."""
        op, names = self.op, [r.name for r in self.recipes if r.lane in ORDINARY]
        yield from self.default(dtype, fp8)
        for name in names:
            for seed in (1, 2):
                yield Case(op, 256, shapes.HIDDEN, name, dtype=dtype, fp8=fp8, seed=seed)
                yield Case(op, 128, 8192, name, dtype=dtype, fp8=fp8, seed=seed)
        for name, options in self.options:
            yield Case(op, 130, shapes.HIDDEN, name, dtype=dtype, fp8=fp8, seed=1, **options)
        for n in shapes.BOUNDARY_N:
            yield from (Case(op, m, n, "shape_walk", dtype=dtype, fp8=fp8, seed=1) for m in (1, 17, 64, 257))
        yield from (Case(op, m, shapes.HIDDEN, "shape_walk", dtype=dtype, fp8=fp8, seed=2) for m in shapes.BOUNDARY_M)
        for m in (512, 4096):
            yield Case(op, m, shapes.HIDDEN, "model", dtype=dtype, fp8=fp8)
        if self.norm:
            yield Case(op, 512, shapes.HIDDEN, "model", dtype=dtype, fp8=fp8, residual=False)
        yield from covered(op, "deep", dtype, fp8)
        # More than 2^31 elements, where signed 32-bit offsets wrap; a GPU's.
        yield Case(op, shapes.PAST_INT32_ROWS, shapes.HIDDEN, "shape_walk", dtype=dtype, fp8=fp8)
