"""Suites of the PTPC GEMM."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from validators.cases import shapes
from validators.cases.case import Case
from validators.cases.covered import covered
from validators.cases.recipe import GEMM as _OP
from validators.cases.recipes_gemm import RECIPES
from validators.cases.situations import EVERY
from validators.cases.suite_types import ORDINARY, OTHER, other, typed
from validators.words import DTYPES, FP8_FORMATS

_NAMES = [recipe.name for recipe in RECIPES if recipe.lane in ORDINARY]
_GEMM_DTYPE_RECIPES = ("gaussian", "random_bytes", "small_integers", "huge_scales")
_GEMM_FP8_RECIPES = ("random_bytes", "tiny_integers", "small_integers", "nan_row", "one_hot_k")
_BIASED = ("gaussian", "scale_ladder", "small_integers", "tiny_integers", "one_hot_k")


def smoke(dtype: str, fp8: str) -> Iterator[Case]:
    """Every recipe once, small."""
    for name in _NAMES:
        yield Case(_OP, 24, 48, name, k=176, dtype=dtype, fp8=fp8)
    yield Case(_OP, 24, 48, "gaussian", k=176, dtype=dtype, fp8=fp8, bias=True)
    yield Case(_OP, 24, 48, "gaussian", k=176, dtype=dtype, fp8=fp8, layout="strided")
    # The other storage type: fp16 shows what passes through bf16, and split-K sums that change order.
    yield Case(_OP, 32, 64, "random_bytes", k=512, dtype=other(dtype, DTYPES), fp8=fp8)
    yield Case(_OP, 37, 136, "shape_walk", k=144, dtype=dtype, fp8=fp8)
    yield from (Case(_OP, m, 384, "model", k=shapes.HIDDEN, dtype=dtype, fp8=fp8) for m in (4, 1))
    yield from covered(_OP, "smoke", dtype, fp8)


def default(dtype: str, fp8: str) -> Iterator[Case]:
    """Every recipe at two shapes, every option, every boundary, the layers at tensor parallel 8, every pair."""

    def case(name: str, m: int, n: int, k: int, **options: Any) -> Case:
        return Case(_OP, m, n, name, k=k, **{"dtype": dtype, "fp8": fp8, **options})

    for name in _NAMES:
        yield case(name, 64, 128, 512)
        yield case(name, 37, 144, 1056)
    # Every k hit by some row, and every k by some column; k % 128 = 32.
    yield case("one_hot_k", 1056, 136, 1056)
    yield case("one_hot_n", 136, 1056, 1056)
    yield case("code_pairs", 256, 256, 16)
    yield case("odd_scales", 48, 160, 5120)
    for k in (shapes.HIDDEN, 12288, 16384):
        for name in ("small_integers", "tiny_integers", "positive_mean", "cancellation"):
            yield case(name, 16, 64, k)
    # m = n, where exchanged scale vectors fit; and a grid of many tiles.
    yield from (case(name, 128, 128, 384) for name in ("scale_ladder", "small_integers", "nan_row"))
    yield case("random_bytes", 520, 528, 256)
    yield from (case(name, 37, 144, 528, bias=True) for name in _BIASED)
    yield from (case(name, 33, 160, 528, layout="strided") for name in ("gaussian", "one_hot_k"))
    yield from (case(name, 32, 64, 512, dtype=other(dtype, DTYPES)) for name in _GEMM_DTYPE_RECIPES)
    yield from (case(name, 32, 64, 512, fp8=other(fp8, FP8_FORMATS)) for name in _GEMM_FP8_RECIPES)
    for index, m in enumerate(shapes.BOUNDARY_M):
        n = shapes.GEMM_BOUNDARY_N[index % len(shapes.GEMM_BOUNDARY_N)]
        # The step is coprime to the list's length, so that every k appears, and with an n other than its own.
        k = shapes.GEMM_BOUNDARY_K[index * 7 % len(shapes.GEMM_BOUNDARY_K)]
        yield case("shape_walk", m, n, k, bias=index % 3 == 2)
    yield from _reached(dtype, fp8)
    for size in shapes.GROWING:
        yield from (case(EVERY, *shape) for shape in ((size, 48, 176), (24, size, 176), (24, 48, size)))
    yield from covered(_OP, "default", dtype, fp8)


def _reached(dtype: str, fp8: str) -> Iterator[Case]:
    """Shapes that deployments reach."""

    def case(name: str, m: int, n: int, k: int, **options: Any) -> Case:
        return Case(_OP, m, n, name, k=k, **typed(options, dtype, fp8))

    yield case("shape_walk", 0, 384, shapes.HIDDEN)
    yield from (case(name, 1, 144, 528) for name in _NAMES)
    yield case("random_bytes", 1, 144, 528, dtype=OTHER)
    yield case("gaussian", 1, 144, 528, layout="strided", bias=True)
    yield case("shape_walk", shapes.MANY_ROWS, 16, 16)
    for k in shapes.model_inner():
        yield case("cancelling_integers", 16, 64, k)
    # Decode and prefill of every layer at tensor parallel 8, but for gate_up: its weights are as many as all others'.
    for index, (n, k) in enumerate(shapes.MODEL_GEMMS):
        yield case("model", 1, n, k, bias=k == shapes.HIDDEN)
        # The row's first turn is of integers: half of its outputs have one admissible value under every contract.
        yield case(EVERY, 1, n, k)
        yield case(("cancelling_integers", "model")[index % 2], (64, 129, 128, 65)[index % 4], n, k)
    # What is on by default, at an inner size of the model.
    for options in ({"dtype": OTHER}, {"fp8": OTHER}, {"dtype": OTHER, "fp8": OTHER, "bias": True}):
        yield case("model", 33, 384, shapes.HIDDEN, **options)
    yield from (case("shape_walk", 33, 136, 528, dtype=OTHER, bias=True, layout=x) for x in ("contiguous", "strided"))


def deep(dtype: str, fp8: str) -> Iterator[Case]:
    """The default suite, other seeds, every layer, and one output past 2^31 elements."""
    yield from default(dtype, fp8)
    for name in _NAMES:
        for seed in (1, 2):
            yield Case(_OP, 256, 272, name, k=1056, dtype=dtype, fp8=fp8, seed=seed)
            yield Case(_OP, 64, 256, name, k=shapes.HIDDEN, dtype=dtype, fp8=fp8, seed=seed)
    for index, k in enumerate(shapes.GEMM_BOUNDARY_K):
        for n in shapes.GEMM_BOUNDARY_N:
            m = shapes.BOUNDARY_M[(index * 3 + n) % len(shapes.BOUNDARY_M)]
            yield Case(_OP, m, n, "shape_walk", k=k, dtype=dtype, fp8=fp8, seed=1)
    for tp in shapes.TENSOR_PARALLEL:
        for layer in shapes.glm_gemm_shapes(tp):
            bias = layer.layer == "qkv"
            yield Case(_OP, 128, layer.n, "model", k=layer.k, dtype=dtype, fp8=fp8, bias=bias)
            if tp == 8:
                yield Case(_OP, 4096, layer.n, "model", k=layer.k, dtype=dtype, fp8=fp8, bias=bias)
    yield from covered(_OP, "deep", dtype, fp8)
    # More than 2^31 outputs; a GPU's.
    yield Case(_OP, *shapes.PAST_INT32_GEMM, "shape_walk", k=64, dtype=dtype, fp8=fp8)
