"""What a case varies, as data: the factors of each op and their levels.

A *level* is a class of values that kernels may treat alike: rows that fit one block, widths between two switches, a
width that ends in part of a vector. The suites hold every pair of levels at default depth and every triple at deep
(``covered``); what a case varies row by row, the class of input, is inside the cases (``situations``).

Every case has a level of each shape factor. Options depart from what every kernel of the op offers (bf16, contiguous
rows, ..): a combination of levels is held by a case with the options of the combination and no other one, so that
an option that a kernel lacks takes nothing away but what it belongs to.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from validators.cases import shapes
from validators.cases.case import Case
from validators.cases.op import op_named
from validators.cases.recipes import reasons_impossible
from validators.cases.recipes_together import GAINS
from validators.cases.situations import EVERY
from validators.words import DTYPES, FP8_FORMATS

LIMITS = {"smoke": 1 << 19, "default": 5 << 20, "deep": 10 << 20}
"""Elements of the largest tensor (of a GEMM also a part of its products, see ``size``) of a case that stands for a
combination of levels. Combinations that only larger cases have are not run at that depth: more than 1,024 rows of
more than 6,144 columns at default depth. The model's own shapes have their cases whatever their size is."""
PRODUCTS = 1 << 5
"""Products of a GEMM per element of ``LIMITS``."""


@dataclass(frozen=True)
class Level:
    """has(case): whether the case has it. values: m, n, k or options of a case, to choose from where one is made."""

    name: str
    has: Callable[[Case], bool]
    values: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Factor:
    """field: of the case; the levels' ``values`` are its. option: whether a kernel may lack all but the first."""

    name: str
    field: str
    levels: tuple[Level, ...]
    option: bool = False

    def level(self, case: Case) -> str:
        """Name of the level that the case has."""
        return next(level.name for level in self.levels if level.has(case))

    def values(self, name: str) -> tuple[Any, ...]:
        """The values of the level of that name."""
        return next(level.values for level in self.levels if level.name == name)


def _range(name: str, low: int, high: int, field: str, *values: int) -> Level:
    return Level(name, lambda case: low <= getattr(case, field) <= high, values)


def _is(field: str, value: Any, name: str) -> Level:
    return Level(name, lambda case: getattr(case, field) == value, (value,))


def _remainder(name: str, field: str, of: int, *remainders: int) -> Level:
    return Level(name, lambda case: getattr(case, field) % of in remainders)


_MANY = 65_536
# No row at all is a case of its own: nothing varies in it.
ROWS = Factor(
    "rows",
    "m",
    (
        _range("one", 1, 1, "m", 1),
        _range("2 to 16", 2, 16, "m", 16, 15, 2, 3, 8, 7),
        _range("17 to 64", 17, 64, "m", 40, 64, 63, 33, 17, 48, 41),
        _range("65 to 256", 65, 256, "m", 80, 65, 81, 128, 129, 127, 130, 256, 255),
        _range("257 to 1,024", 257, 1024, "m", 257, 300, 258, 512, 513, 1024),
        _range("1,025 to 65,535", 1025, _MANY - 1, "m", 1026, 1025, 2048, 2049),
        _range("65,536 and more", _MANY, 1 << 40, "m", shapes.MANY_ROWS, shapes.MANY_ROWS + 1, shapes.MANY_ROWS + 2),
    ),
)
_ODD_ROWS = Factor("odd rows", "m", (_remainder("even", "m", 2, 0), _remainder("odd", "m", 2, 1)))

# Classes of widths: both ends of each are widths at which a kernel switches.
_WIDTHS = (0, 7, 64, 512, 1024, 2048, 4096, 6144, 8192, 10240, 12288, 16384)


def _class_of(n: int) -> tuple[int, int]:
    """The class of widths that holds n, as its open lower and its closed upper end."""
    return next((low, high) for low, high in itertools.pairwise(_WIDTHS) if low < n <= high)


def _width(low: int, high: int) -> Level:
    middle = (low + high) // 2 // 64 * 64
    beside = [side + step for side in (low, high, middle) for step in (-8, -4, -2, -1, 0, 1, 2, 3, 4, 8, 64)]
    known = (*shapes.BOUNDARY_N, *shapes.model_widths("per_token_quant"), 10250, 10251)
    values = tuple(sorted({n for n in (*beside, *known) if low < n <= high}))
    return Level(f"{low + 1:,} to {high:,}", lambda case: low < case.n <= high, values)


def _width_end(op: str) -> Factor:
    """How a row ends: in part of a vector, or where in its class of widths it is."""

    def at(name: str, has: Callable[[int, int, int], bool]) -> Level:
        return Level(name, lambda case: case.n not in models and has(case.n, *_class_of(case.n)))

    models = shapes.model_widths(op)
    levels = (
        Level("a width of the model", lambda case: case.n in models),
        at("odd", lambda n, low, high: n % 2 == 1),
        at("n % 4 = 2", lambda n, low, high: n % 4 == 2),
        at("n % 8 = 4", lambda n, low, high: n % 8 == 4),
        at("at a switch", lambda n, low, high: n == high),
        at("one vector below", lambda n, low, high: n == high - 8),
        at("one vector above", lambda n, low, high: n == low + 8),
        at("elsewhere", lambda n, low, high: True),
    )
    return Factor("end of a row", "n", levels)


WIDTH = Factor("width", "n", tuple(_width(low, high) for low, high in itertools.pairwise(_WIDTHS)))
GAIN = Factor("gain", "recipe", tuple(_is("recipe", EVERY + n, n.strip("_") or "ordinary") for n in GAINS))


def _option(name: str, field: str, *values: Any, words: Sequence[str] = ()) -> Factor:
    names = words or [str(value) for value in values]
    levels = tuple(_is(field, value, text) for text, value in zip(names, values, strict=True))
    return Factor(name, field, levels, option=True)


_DTYPE, _FP8 = _option("type", "dtype", *DTYPES), _option("format", "fp8", *FP8_FORMATS)
_LAYOUT = _option("layout", "layout", "contiguous", "strided", "3d", "3dstrided")
_NORM_OPTIONS = (
    _option("residual", "residual", True, False, words=("residual", "no residual")),
    _option("weight", "gamma", "T", "fp32"),
    _option("1 + weight", "gemma", False, True, words=("weight", "1 + weight")),
    _option("eps", "eps", "1e-5", "1e-6"),
)

_COLUMNS = Factor(
    "columns",
    "n",
    (
        _range("1 to 15", 1, 15, "n", 8, 1, 15, 2, 12),
        _range("16 to 128", 16, 128, "n", 48, 16, 17, 32, 100, 127, 128, 64, 120),
        _range("129 to 256", 129, 256, "n", 144, 129, 136, 160, 255, 256, 130, 132),
        _range("257 to 1,024", 257, 1024, "n", 272, 384, 1024, 1023, 520, 514, 768),
        _range("1,025 and more", 1025, 1 << 30, "n", 1792, 3072, 1040, 1025, 1026, 1032, 1280),
    ),
)
_INNER = Factor(
    "products",
    "k",
    (
        _range("1 to 31", 1, 31, "k", 16, 1, 31, 8, 2),
        _range("32 to 127", 32, 127, "k", 64, 32, 33, 40, 48, 72, 96, 100, 112, 127),
        _range("128 to 256", 128, 256, "k", 144, 128, 129, 136, 176, 200, 250, 256, 160),
        _range("257 to 1,024", 257, 1024, "k", 384, 512, 528, 513, 544, 520, 768, 1024),
        _range("1,025 to 4,096", 1025, 4096, "k", 1056, 1536, 2048, 2049, 1040, 2056, 3072, 2064, 1088),
        _range("4,097 to 8,192", 4097, 8192, "k", 5120, 4112, 4128, 4097, 4224, 5128, 6144, 8192),
        _range("8,193 and more", 8193, 1 << 20, "k", 12288, 8208, 8224, 8193, 8200, 16384),
    ),
)


def _tile_end(name: str, field: str, *tiles: int, model: Iterable[int] = ()) -> Factor:
    """What a size is a multiple of: the largest of ``tiles`` that divides it."""
    own = frozenset(model)
    levels = [Level("a size of the model", lambda case: getattr(case, field) in own)] if own else []
    levels += [_remainder(f"multiple of {tile}", field, tile, 0) for tile in sorted(tiles, reverse=True)]
    return Factor(name, field, tuple(levels))


_GEMM = (
    ROWS,
    _tile_end("end of the rows", "m", 16, 2, 1),
    _COLUMNS,
    _tile_end("end of the columns", "n", 128, 16, 8, 2, 1),
    _INNER,
    _tile_end("end of the products", "k", 128, 32, 16, 8, 1, model=shapes.model_inner()),
    _option("bias", "bias", False, True, words=("no bias", "bias")),
    _DTYPE,
    _FP8,
    _option("layout", "layout", "contiguous", "strided"),
)


@dataclass(frozen=True)
class Model:
    """The factors of an op. chosen: levels by the factors' names; a *combination* names some of the factors."""

    op: str
    factors: tuple[Factor, ...]
    by_name: Mapping[str, Factor] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {factor.name: factor for factor in self.factors})

    @property
    def shape(self) -> tuple[Factor, ...]:
        """Factors whose every level a case may have without an option."""
        return tuple(factor for factor in self.factors if not factor.option)

    @property
    def options(self) -> tuple[Factor, ...]:
        """Factors of which a kernel may offer the first level alone."""
        return tuple(factor for factor in self.factors if factor.option)

    def levels(self, case: Case) -> dict[str, str]:
        """The level of each factor that ``case`` has."""
        return {factor.name: factor.level(case) for factor in self.factors}

    def options_of(self, levels: Mapping[str, str]) -> frozenset[str]:
        """The factors in which these levels depart from what every kernel offers."""
        return frozenset(f.name for f in self.options if f.name in levels and levels[f.name] != f.levels[0].name)

    def candidates(self, options: Mapping[str, Any], limit: int) -> list[Case]:
        """Every case within ``limit`` that is made of the levels' values, with these options (by the case's fields) and
        no other one: what can stand for a combination of shape factors."""
        return self._made({name: list(values) for name, values in self._values().items()}, options, limit)

    def smallest(self, options: Mapping[str, Any], limit: int) -> list[Case]:
        """Of ``candidates`` one for each combination of the shape factors' levels, the smallest: which are possible."""
        return self._made(
            {
                name: list({level: value for value, level in reversed(values.items())}.values())
                for name, values in self._values().items()
            },
            options,
            limit,
        )

    def impossible(self, levels: Mapping[str, str], limit: int) -> str | None:
        """One sentence why no case within ``limit`` has this combination of levels, or None."""
        departs = self.options_of(levels)
        options = {f.field: v for f in self.options if f.name in departs for v in f.values(levels[f.name])}
        found = [
            size(case)
            for case in self.smallest(options, 1 << 62)
            if all(self.by_name[name].level(case) == level for name, level in levels.items())
        ]
        what = " and ".join(f"{name} {level}" for name, level in levels.items())
        if not found:
            return f"no case has {what}"
        return f"the smallest case of {what} has {min(found):,} elements" if min(found) > limit else None

    def _values(self) -> dict[str, dict[Any, tuple[str, ...]]]:
        """For each field of a shape factor its values in rising order, and the levels that a case has by each."""
        sizes = {"recipe": EVERY, "m": 1, "n": 1, "k": 1 if op_named(self.op).inner else 0}
        found: dict[str, dict[Any, tuple[str, ...]]] = {}
        for name in dict.fromkeys(factor.field for factor in self.shape):
            own = [factor for factor in self.shape if factor.field == name]
            values = dict.fromkeys(v for factor in own for level in factor.levels for v in level.values)
            ordered = values if name == "recipe" else sorted(values)
            found[name] = {v: tuple(f.level(Case(self.op, **{**sizes, name: v})) for f in own) for v in ordered}
        return found

    def _made(self, values: Mapping[str, Sequence[Any]], options: Mapping[str, Any], limit: int) -> list[Case]:
        found = []
        small = {name: 1 for name in values if name != "recipe"}
        # Whether a recipe goes with options does not depend on the shape.
        recipes = values.get("recipe", [EVERY])
        possible = [
            r for r in recipes if reasons_impossible(Case(self.op, **{**small, **options, "recipe": r})) is None
        ]
        for combination in itertools.product(*({**values, "recipe": possible}).values()):
            case = Case(self.op, **dict(zip({**values, "recipe": possible}, combination, strict=True)), **options)
            if size(case) <= limit:
                found.append(case)
        return found

    def departures(self, most: int) -> list[dict[str, Any]]:
        """Options by the case's fields: none, then each alone, and so on to every ``most`` of different factors."""
        found: list[dict[str, Any]] = []
        for count in range(most + 1):
            for factors in itertools.combinations(self.options, count):
                for levels in itertools.product(*(factor.levels[1:] for factor in factors)):
                    found.append({f.field: level.values[0] for f, level in zip(factors, levels, strict=True)})
        return found


def size(case: Case) -> int:
    """Elements of the largest tensor of a case, or what its products cost in elements."""
    return max(case.m * case.n, case.n * case.k, case.m * case.k, case.m * case.n * case.k // PRODUCTS)


def model_of(op: str) -> Model:
    """The factors of ``op``."""
    facts = op_named(op)
    if facts.inner:
        return Model(op, _GEMM)
    rows = (ROWS, _ODD_ROWS, WIDTH, _width_end(op))
    if facts.norm:
        return Model(op, (*rows, GAIN, _DTYPE, _FP8, *_NORM_OPTIONS, _LAYOUT))
    return Model(op, (*rows, _DTYPE, _FP8, _LAYOUT))
