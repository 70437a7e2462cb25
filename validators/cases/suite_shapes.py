"""Cases for the shapes that deployments reach: the model's widths, one row, no row, very many rows, pairs of features.

A passing shape stands for every larger one only as far as no limit of a kernel lies between them. Limits that are known
from reports (48 KiB of shared memory, 65,535 blocks of a grid axis, a block of 6,144 or 10,240 columns, a path for one
row) have a case on their far side here, and so has every width of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from validators.cases import shapes
from validators.cases.case import Case
from validators.cases.recipe import ADD
from validators.cases.recipes_shapes import VECTOR
from validators.words import DTYPES, FP8_FORMATS

# Recipe, rows, columns and options: pairs of properties of which a kernel handles each and not always both.
# OTHER stands for the other storage type or FP8 format.
OTHER = "other"
_PAIRS: tuple[tuple[str, int, int, dict[str, Any]], ...] = (
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
_ADD_PAIRS: tuple[tuple[str, int, int, dict[str, Any]], ...] = (
    ("gaussian", 34, 1024, {"gemma": True, "residual": False}),
    ("gaussian", 34, 1024, {"gemma": True, "dtype": OTHER}),
    ("checkpoint_gain", 34, 1024, {"residual": False}),
    ("checkpoint_gain", 34, 1024, {"gamma": "fp32"}),
    ("checkpoint_gain", 34, 1024, {"dtype": OTHER}),
    ("gaussian_gain", 33, 1002, {"gamma": "fp32"}),
    ("gaussian", 17, shapes.HIDDEN, {"gemma": True}),
    ("gaussian_gain", 34, 12288, {"gamma": "fp32"}),
    ("gaussian_gain", 1, 1024, {"gamma": "fp32"}),
    ("shape_walk", 33, 1002, {"residual": False, "layout": "3dstrided"}),
)
_WIDE_ROWS = 32


def _typed(options: dict[str, Any], dtype: str, fp8: str) -> dict[str, Any]:
    """``options`` with OTHER resolved, and the suite's own types where they say nothing."""
    found = {"dtype": dtype, "fp8": fp8, **options}
    for key, own, pair in (("dtype", dtype, DTYPES), ("fp8", fp8, FP8_FORMATS)):
        if found[key] == OTHER:
            found[key] = pair[1] if own == pair[0] else pair[0]
    return found


def norm_default(op: str, recipes: Sequence[str], dtype: str, fp8: str) -> Iterator[Case]:
    """Of the norm and the quantizer. recipes: those of the lanes exact to special."""

    def case(name: str, m: int, n: int, **options: Any) -> Case:
        return Case(op, m, n, name, **_typed(options, dtype, fp8))

    yield case("shape_walk", 0, shapes.HIDDEN)
    for name in recipes:
        yield case(name, 1, shapes.HIDDEN)
        yield case(name, _WIDE_ROWS, shapes.WIDE_N[-2])
    # Every vector of every width that the model has holds a row's maximum once.
    for n in shapes.model_widths(op):
        yield case("vector_peaks", -(-n // VECTOR), n)
        yield case("model", 1, n)
    yield from (case("vector_peaks", 64, n) for n in shapes.WIDE_N if n not in shapes.model_widths(op))
    yield from (case(name, shapes.MANY_ROWS, 64) for name in ("shape_walk", "zero_rows"))
    for name, m, n, options in (*_PAIRS, *(_ADD_PAIRS if op == ADD else ())):
        yield case(name, m, n, **options)


def norm_deep(op: str, dtype: str, fp8: str) -> Iterator[Case]:
    """More than 2^31 elements, where signed 32-bit offsets wrap; a GPU's."""
    yield Case(op, shapes.PAST_INT32_ROWS, shapes.HIDDEN, "shape_walk", dtype=dtype, fp8=fp8)


def gemm_default(op: str, recipes: Sequence[str], dtype: str, fp8: str) -> Iterator[Case]:
    """Of the GEMM. recipes: those of the lanes exact to special."""

    def case(name: str, m: int, n: int, k: int, **options: Any) -> Case:
        return Case(op, m, n, name, k=k, **_typed(options, dtype, fp8))

    yield case("shape_walk", 0, 384, shapes.HIDDEN)
    yield from (case(name, 1, 144, 528) for name in recipes)
    yield case("random_bytes", 1, 144, 528, dtype=OTHER)
    yield case("gaussian", 1, 144, 528, layout="strided", bias=True)
    yield case("shape_walk", shapes.MANY_ROWS, 16, 16)
    for k in shapes.model_inner():
        yield case("cancelling_integers", 16, 64, k)
    # Decode and prefill of every layer at tensor parallel 8, but for gate_up: its weights are as many as all others'.
    for index, (n, k) in enumerate(shapes.MODEL_GEMMS):
        yield case("model", 1, n, k, bias=k == shapes.HIDDEN)
        yield case(("cancelling_integers", "model")[index % 2], (64, 129, 128, 65)[index % 4], n, k)
    # What is on by default, at an inner size of the model.
    for options in ({"dtype": OTHER}, {"fp8": OTHER}, {"dtype": OTHER, "fp8": OTHER, "bias": True}):
        yield case("model", 33, 384, shapes.HIDDEN, **options)
    yield from (case("shape_walk", 33, 136, 528, dtype=OTHER, bias=True, layout=x) for x in ("contiguous", "strided"))


def gemm_deep(op: str, dtype: str, fp8: str) -> Iterator[Case]:
    """More than 2^31 outputs; a GPU's."""
    yield Case(op, shapes.PAST_INT32_GEMM[0], shapes.PAST_INT32_GEMM[1], "shape_walk", k=64, dtype=dtype, fp8=fp8)
