"""What a case varies, from its id alone: factors and the level that a case has of each. No torch.

A level is a class of values that kernels may treat alike. Which factors an op has is not listed: a factor counts for an
op where the cases of its deepest depth have more than one level of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from validators.cases.case import Case

Pair = tuple[str, str]
"""Two levels, of different factors; the one of the earlier factor first."""


@dataclass(frozen=True)
class Factor:
    """name: in words. level(case): the name of the level that the case has. levels: the known ones in their order; a
    factor without them has any. option: whether kernels may lack all levels but the first."""

    name: str
    level: Callable[[Case], str]
    levels: tuple[str, ...] = ()
    option: bool = False


def _classes(axis: str, ends: tuple[int, ...]) -> Factor:
    """Classes of sizes, each up to and with its end; the last is open."""
    starts = (1, *(end + 1 for end in ends))
    names = [
        f"{axis} {low:,}" if low == high else f"{axis} {low:,} to {high:,}"
        for low, high in zip(starts, ends, strict=False)
    ]
    names.append(f"{axis} over {ends[-1]:,}")

    def level(case: Case) -> str:
        size: int = getattr(case, axis)
        return names[sum(size > end for end in ends)]

    return Factor({"m": "rows", "n": "columns", "k": "products"}[axis], level, tuple(names))


def _divisor(axis: str, tiles: tuple[int, ...]) -> Factor:
    """The largest of ``tiles`` (falling, 1 last) that divides a size: what a kernel can take at a time."""
    names = {tile: f"{axis} in multiples of {tile}" + (" only" if tile != tiles[0] else "") for tile in tiles}
    names[1] = f"{axis} odd" if 2 in tiles else f"{axis} in no multiples of {tiles[-2]}"
    return Factor(
        f"end of {axis}",
        lambda case: names[next(tile for tile in tiles if getattr(case, axis) % tile == 0)],
        tuple(names.values()),
    )


ROWS = _classes("m", (1, 16, 64, 256, 1024, 65_535))
COLUMNS = _classes("n", (64, 512, 1024, 2048, 4096, 6144, 8192, 10_240, 12_288))
"""Their ends are widths at which kernels switch (``validators.cases.shapes.SWITCHES``), and limits that they have."""
PRODUCTS = _classes("k", (31, 127, 256, 1024, 4096, 8192))
NO_ROWS = "zero rows"

_ENDS = (_divisor("n", (8, 4, 2, 1)), _divisor("k", (128, 32, 16, 1)))
OPTIONS = (
    Factor("type", lambda c: c.dtype, option=True),
    Factor("format", lambda c: c.fp8, option=True),
    Factor("residual", lambda c: "residual" if c.residual else "no residual", ("residual", "no residual"), True),
    Factor("weight", lambda c: "fp32 weight" if c.gamma == "fp32" else "weight of x's type", option=True),
    Factor("gain", lambda c: "gain 1 + weight" if c.gemma else "gain weight", option=True),
    Factor("eps", lambda c: f"eps {c.eps}", option=True),
    Factor("bias", lambda c: "bias" if c.bias else "no bias", ("no bias", "bias"), True),
    Factor(
        "layout",
        lambda c: {"contiguous": "packed rows", "strided": "padded rows", "3d": "three dimensions"}.get(
            c.layout, "slices of three dimensions"
        ),
        ("packed rows", "padded rows", "three dimensions", "slices of three dimensions"),
        True,
    ),
)
FACTORS = (ROWS, COLUMNS, PRODUCTS, *_ENDS, *OPTIONS)


def of_op(cases: Iterable[Case]) -> tuple[Factor, ...]:
    """The factors of which ``cases`` (of one op, with rows) have more than one level, in the order of FACTORS."""
    found = [case for case in cases if case.m]
    return tuple(
        f
        for f in FACTORS
        if (f.name not in ("products", "end of k") or any(c.k for c in found))
        and len({f.level(case) for case in found}) > 1
    )


def levels(case: Case, factors: Iterable[Factor]) -> tuple[str, ...]:
    """The levels of a case. A case without a row shows that zero rows are taken, and nothing of anything else."""
    return tuple(factor.level(case) for factor in factors) if case.m else (NO_ROWS,)


def pairs(case: Case, factors: Iterable[Factor]) -> frozenset[Pair]:
    """Every two levels of the case, of different factors."""
    return frozenset(itertools.combinations(levels(case, factors), 2))
