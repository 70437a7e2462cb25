"""Which cases a run consists of, by op and depth; and cases by id."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

from validators.cases import shapes, suite_shapes
from validators.cases.case import Case, CaseError
from validators.cases.recipes import ADD, GEMM, lane_of, reasons_impossible, recipe_info, recipe_names
from validators.words import DEPTHS, DTYPES, FP8_FORMATS, LANES, OPS

Depth = Literal["smoke", "default", "deep"]

# Option sets that the smoke and default suites add to chosen recipes, per op: (recipe, options).
_ADD_OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("gaussian", {"residual": False}),
    ("gaussian", {"layout": "strided"}),
    ("gaussian", {"layout": "3d"}),
    ("gaussian_gain", {"gamma": "fp32"}),
    ("magnitude_ladder", {"eps": "1e-6"}),
    ("gaussian", {"gemma": True}),
    ("gaussian", {"eps": "1e-6", "residual": False}),
    ("crest_ladder", {"residual": False}),
    ("magnitude_ladder", {"residual": False}),
    ("zero_rows", {"residual": False}),
    ("zero_rows", {"eps": "1e-6"}),
    ("nonfinite", {"residual": False}),
    ("midpoints", {"residual": False}),
    ("midpoints", {"gemma": True}),
    ("double_rounding", {"gamma": "fp32"}),
    ("gaussian_gain", {"gamma": "fp32", "gemma": True}),
    ("spike_walk", {"layout": "strided"}),
    ("crest_ladder", {"layout": "3d"}),
    ("crest_ladder", {"layout": "strided", "residual": False, "eps": "1e-6"}),
    ("energy_walk", {"layout": "3d", "residual": False, "gamma": "fp32"}),
)
_QUANT_OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("gaussian", {"layout": "strided"}),
    ("gaussian", {"layout": "3d"}),
    ("spike_walk", {"layout": "strided"}),
    ("crest_ladder", {"layout": "3d"}),
    ("midpoints", {"layout": "strided"}),
    ("zero_rows", {"layout": "3d"}),
)
# The norm's sixth is its gemma case.
_SMOKE_OPTIONS = {ADD: 6, "per_token_quant": 2}

# Recipes whose power lies in the last columns, and widths where kernels lose them.
_TAIL_RECIPES = ("spike_walk", "energy_walk", "midpoints")
_TAIL_SHAPES = ((97, 769), (61, 1002), (45, 5124))
# Recipes that the other storage type and the other FP8 format change most.
_DTYPE_RECIPES = ("gaussian", "residual_ties", "double_rounding", "midpoints", "subnormal_rows", "uniform_bytes")
_FP8_RECIPES = ("gaussian_gain", "midpoints", "subnormal_codes", "spike_walk", "nonfinite", "zero_rows")
_GEMM_DTYPE_RECIPES = ("gaussian", "random_bytes", "small_integers", "huge_scales")
_GEMM_FP8_RECIPES = ("random_bytes", "tiny_integers", "small_integers", "nan_row", "one_hot_k")
_BIASED = ("gaussian", "scale_ladder", "small_integers", "tiny_integers", "one_hot_k")


def cases_for(
    op: str,
    *,
    depth: str = "default",
    lanes: Iterable[str] | None = None,
    dtype: str = "bf16",
    fp8: str = "e4m3fn",
) -> list[Case]:
    """The cases of ``op`` at ``depth`` (smoke, default, deep), in a fixed order, ids unique, all possible.

    lanes: only these; None means all. The list is empty where the op has no such lane: add_rmsnorm_quant has no exact
    one. dtype and fp8: of all cases except a few of the other type in the default and deep suites. Raises CaseError
    for an unknown op, depth, lane or type.
    """
    for value, known, what in ((op, OPS, "op"), (depth, DEPTHS, "depth"), (dtype, DTYPES, "dtype")):
        if value not in known:
            raise CaseError(f"unknown {what} {value!r}; known: {', '.join(known)}")
    if fp8 not in FP8_FORMATS:
        raise CaseError(f"unknown FP8 format {fp8!r}; known: {', '.join(FP8_FORMATS)}")
    wanted = set(LANES if lanes is None else lanes)
    if wanted - set(LANES):
        raise CaseError(f"unknown lane {sorted(wanted - set(LANES))[0]!r}; known: {', '.join(LANES)}")
    make = {"smoke": _gemm_smoke, "default": _gemm_default, "deep": _gemm_deep}
    if op != GEMM:
        make = {"smoke": _norm_smoke, "default": _norm_default, "deep": _norm_deep}
    unique = {case.id: case for case in make[depth](op, dtype, fp8)}
    return [case for case in unique.values() if reasons_impossible(case) is None and lane_of(case) in wanted]


def find(ids: Iterable[str]) -> list[Case]:
    """The cases with these ids, in their order; CaseError for an id, recipe or combination that cannot be."""
    found = []
    for text in ids:
        case = Case.parse(text)
        reason = reasons_impossible(case)
        if reason:
            raise CaseError(f"{text} cannot be built: {reason}")
        if case.id != text:
            raise CaseError(f"{text!r} is not how its case is written; write {case.id}")
        found.append(case)
    return found


def _other(value: str, pair: tuple[str, ...]) -> str:
    return pair[1] if value == pair[0] else pair[0]


# Norm and quantization --------------------------------------------------------------------------


def _norm_options(op: str) -> tuple[tuple[str, dict[str, Any]], ...]:
    return _ADD_OPTIONS if op == ADD else _QUANT_OPTIONS


def _recipes(op: str, lanes: tuple[str, ...] = ("exact", "random", "adversarial", "special")) -> list[str]:
    return [name for name in recipe_names(op) if recipe_info(name, op).lane in lanes]


def _norm_smoke(op: str, dtype: str, fp8: str) -> Iterator[Case]:
    skipped = (
        "outlier_channels",
        "cancellation",
        "uniform_bytes",
        "scale_underflow",
        "overflow_sum",
        "subnormal_rows",
        "degenerate_rows",
    )
    for name in _recipes(op):
        if name not in skipped:
            yield Case(op, 24, 520, name, dtype=dtype, fp8=fp8)
    for name, options in _norm_options(op)[: _SMOKE_OPTIONS[op]]:
        yield Case(op, 18, 264, name, dtype=dtype, fp8=fp8, **options)
    yield Case(op, 37, 1002, "shape_walk", dtype=dtype, fp8=fp8)
    # An odd width: rows whose last bytes share a word with the next row.
    yield Case(op, 9, 769, "shape_walk", dtype=dtype, fp8=fp8)
    yield from (Case(op, m, shapes.HIDDEN, "model", dtype=dtype, fp8=fp8) for m in (4, 1))


def _norm_default(op: str, dtype: str, fp8: str) -> Iterator[Case]:
    def case(name: str, m: int, n: int, **options: Any) -> Case:
        return Case(op, m, n, name, **{"dtype": dtype, "fp8": fp8, **options})

    names = _recipes(op)
    for name in names:
        yield case(name, 64, 1024)
        yield case(name, 33, shapes.HIDDEN)
    for name in _TAIL_RECIPES:
        if name in names:
            yield from (case(name, m, n) for m, n in _TAIL_SHAPES)
    yield case("zero_rows", 1, 1024)
    for name, options in _norm_options(op):
        yield case(name, 34, 1024, **options)
    yield from (case(name, 32, 1024, dtype=_other(dtype, DTYPES)) for name in _DTYPE_RECIPES if name in names)
    yield from (case(name, 32, 1024, fp8=_other(fp8, FP8_FORMATS)) for name in _FP8_RECIPES if name in names)
    # The widest rows meet the fewest: every width and every row count once, at little cost.
    counts = shapes.boundary_rows(len(shapes.BOUNDARY_N))
    for index, (n, m) in enumerate(zip(shapes.BOUNDARY_N, counts, strict=True)):
        residual = op != ADD or index % 4 != 3
        yield case("shape_walk", m, n, residual=residual)
    yield from (case("model", m, shapes.HIDDEN) for m in (1, 16, 128))
    yield from suite_shapes.norm_default(op, names, dtype, fp8)


def _norm_deep(op: str, dtype: str, fp8: str) -> Iterator[Case]:
    yield from _norm_default(op, dtype, fp8)
    for name in _recipes(op):
        for seed in (1, 2):
            yield Case(op, 256, shapes.HIDDEN, name, dtype=dtype, fp8=fp8, seed=seed)
            yield Case(op, 128, 8192, name, dtype=dtype, fp8=fp8, seed=seed)
    for name, options in _norm_options(op):
        yield Case(op, 130, shapes.HIDDEN, name, dtype=dtype, fp8=fp8, seed=1, **options)
    for n in shapes.BOUNDARY_N:
        yield from (Case(op, m, n, "shape_walk", dtype=dtype, fp8=fp8, seed=1) for m in (1, 17, 64, 257))
    yield from (Case(op, m, shapes.HIDDEN, "shape_walk", dtype=dtype, fp8=fp8, seed=2) for m in shapes.BOUNDARY_M)
    for m in (512, 4096):
        yield Case(op, m, shapes.HIDDEN, "model", dtype=dtype, fp8=fp8)
    if op == ADD:
        yield Case(op, 512, shapes.HIDDEN, "model", dtype=dtype, fp8=fp8, residual=False)
    yield from suite_shapes.norm_deep(op, dtype, fp8)


# GEMM -------------------------------------------------------------------------------------------


def _gemm_smoke(op: str, dtype: str, fp8: str) -> Iterator[Case]:
    for name in _recipes(op):
        yield Case(op, 24, 48, name, k=176, dtype=dtype, fp8=fp8)
    yield Case(op, 24, 48, "gaussian", k=176, dtype=dtype, fp8=fp8, bias=True)
    yield Case(op, 24, 48, "gaussian", k=176, dtype=dtype, fp8=fp8, layout="strided")
    # The other storage type: fp16 shows what passes through bf16, and split-K sums that change order.
    yield Case(op, 32, 64, "random_bytes", k=512, dtype=_other(dtype, DTYPES), fp8=fp8)
    yield Case(op, 37, 136, "shape_walk", k=144, dtype=dtype, fp8=fp8)
    yield from (Case(op, m, 384, "model", k=shapes.HIDDEN, dtype=dtype, fp8=fp8) for m in (4, 1))


def _gemm_default(op: str, dtype: str, fp8: str) -> Iterator[Case]:
    def case(name: str, m: int, n: int, k: int, **options: Any) -> Case:
        return Case(op, m, n, name, k=k, **{"dtype": dtype, "fp8": fp8, **options})

    for name in _recipes(op):
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
    yield from (case(name, 32, 64, 512, dtype=_other(dtype, DTYPES)) for name in _GEMM_DTYPE_RECIPES)
    yield from (case(name, 32, 64, 512, fp8=_other(fp8, FP8_FORMATS)) for name in _GEMM_FP8_RECIPES)
    for index, m in enumerate(shapes.BOUNDARY_M):
        n = shapes.GEMM_BOUNDARY_N[index % len(shapes.GEMM_BOUNDARY_N)]
        # The step is coprime to the list's length, so that every k appears, beside other n than its own.
        k = shapes.GEMM_BOUNDARY_K[index * 7 % len(shapes.GEMM_BOUNDARY_K)]
        yield case("shape_walk", m, n, k, bias=index % 3 == 2)
    for layer in shapes.glm_gemm_shapes(8):
        # gate_up alone has as many weights as the others together: the deep suite's.
        if layer.layer != "gate_up":
            yield case("model", 16, layer.n, layer.k, bias=layer.layer == "qkv")
    yield from suite_shapes.gemm_default(op, _recipes(op), dtype, fp8)


def _gemm_deep(op: str, dtype: str, fp8: str) -> Iterator[Case]:
    yield from _gemm_default(op, dtype, fp8)
    for name in _recipes(op):
        for seed in (1, 2):
            yield Case(op, 256, 272, name, k=1056, dtype=dtype, fp8=fp8, seed=seed)
            yield Case(op, 64, 256, name, k=shapes.HIDDEN, dtype=dtype, fp8=fp8, seed=seed)
    for index, k in enumerate(shapes.GEMM_BOUNDARY_K):
        for n in shapes.GEMM_BOUNDARY_N:
            m = shapes.BOUNDARY_M[(index * 3 + n) % len(shapes.BOUNDARY_M)]
            yield Case(op, m, n, "shape_walk", k=k, dtype=dtype, fp8=fp8, seed=1)
    for tp in shapes.TENSOR_PARALLEL:
        for layer in shapes.glm_gemm_shapes(tp):
            bias = layer.layer == "qkv"
            yield Case(op, 128, layer.n, "model", k=layer.k, dtype=dtype, fp8=fp8, bias=bias)
            if tp == 8:
                yield Case(op, 4096, layer.n, "model", k=layer.k, dtype=dtype, fp8=fp8, bias=bias)
    yield from suite_shapes.gemm_deep(op, dtype, fp8)
