"""Cases drawn at random, by counter: the same seed, stream and number give the same case on every machine.

Most draws are small, since a kernel's mistakes depend on conditions more often than on size; some are large, since
some conditions are sizes. A draw departs from what every kernel offers in few options, mostly one to three, so that
a kernel that lacks some is still asked about the others.

Why not ``hypothesis``: it stops at a failure instead of going on to the next, has no limit by the clock, reduces inside
the process that calls the kernel, and other versions of it draw other cases from the same seed.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from validators.cases import shapes
from validators.cases.case import Case
from validators.cases.op import op_named
from validators.cases.recipes import reasons_impossible, recipe_names
from validators.words import DTYPES, FP8_FORMATS

T = TypeVar("T")

SIZES = ((66, 1 << 15), (22, 1 << 18), (8, 1 << 20), (4, 1 << 23))
"""(weight, elements at most) of a draw. On one core of a CPU a case of an emulated norm kernel takes about 10, 50, 60
and 500 ms at these sizes, 30 ms in the mean, so that a minute has more than a thousand draws."""
_LARGE = 1 << 18
"""Draws that may have more elements than that mostly do: neither of their sizes is small."""
GPU_FACTOR = 8
"""A GPU takes as long for so many times as many elements."""
PRODUCTS = 32
"""Products of a GEMM that cost as much as one element."""
OUTPUTS = 4
"""Elements that one output of a GEMM costs, whose bounds are sums of their own."""
WIDEST = {"m": 1 << 17, "n": 1 << 15, "k": 1 << 15}
"""The largest sizes: rows past 65,535, and columns and products past twice the widest of the model."""

_DEPARTURES = ((15, 0), (25, 1), (30, 2), (20, 3), (10, None))
"""(weight, options in which a draw departs); None for any number of them."""
_SIDES = (0, 0, 0, 0, 1, -1, 2, -2, 4, -4, 8, -8)
_STEPS = (2, 4, 8, 16, 32, 64, 128, 256)
_PACKED = "every_situation"
"""How the names of recipes begin that hold rows of all others: half of the draws, where an op has any."""
_SEEDS = 1000


@dataclass(frozen=True)
class Space:
    """What is drawn from. dtypes, fp8s: the first is the usual one. gpu: draws may be larger."""

    op: str
    dtypes: tuple[str, ...] = DTYPES
    fp8s: tuple[str, ...] = FP8_FORMATS
    gpu: bool = False

    @functools.cached_property
    def options(self) -> dict[str, tuple[Any, ...]]:
        """Values of each field of a case that is no size, the usual one first; fields of one value are left out."""
        facts = op_named(self.op)
        found: dict[str, tuple[Any, ...]] = {"dtype": self.dtypes, "fp8": self.fp8s}
        if facts.norm:
            found |= {"residual": (True, False), "gamma": ("T", "fp32"), "gemma": (False, True)}
            found["eps"] = ("1e-5", "1e-6")
        found["layout"] = ("contiguous", "strided", *(("3d", "3dstrided") if facts.batches else ()))
        if facts.bias:
            found["bias"] = (False, True)
        return {field: values for field, values in found.items() if len(values) > 1}

    @property
    def sizes(self) -> tuple[str, ...]:
        """The fields that are sizes."""
        return ("m", "n", "k") if op_named(self.op).inner else ("m", "n")

    @functools.cached_property
    def recipes(self) -> tuple[str, ...]:
        """Names, the simplest first; a recipe that holds the rows of many others comes last."""
        return tuple(sorted(recipe_names(self.op), key=lambda name: name.startswith(_PACKED)))

    @functools.cached_property
    def marks(self) -> dict[str, tuple[int, ...]]:
        """Sizes at which kernels are known to change, and those of the model."""
        if op_named(self.op).inner:
            n = {*shapes.GEMM_BOUNDARY_N, *(n for n, _ in shapes.model_shapes(self.op))}
            k = {*shapes.GEMM_BOUNDARY_K, *shapes.model_inner()}
            return {"m": _marks({*shapes.BOUNDARY_M, shapes.MANY_ROWS}), "n": _marks(n), "k": _marks(k)}
        n = {*shapes.BOUNDARY_N, *shapes.WIDE_N, *shapes.model_widths(self.op), *shapes.model_widths("per_token_quant")}
        return {"m": _marks({*shapes.BOUNDARY_M, shapes.MANY_ROWS}), "n": _marks(n)}

    @functools.cached_property
    def model(self) -> dict[str, tuple[int, ...]]:
        """Sizes that the model's layers have on any number of ranks."""
        found = shapes.model_shapes(self.op)
        sizes = {"n": _marks({n for n, _ in found}), "k": _marks({k for _, k in found})}
        return {field: each for field, each in sizes.items() if field in self.sizes}


def _marks(found: set[int]) -> tuple[int, ...]:
    return tuple(sorted(found))


class Dice:
    """Random words from a text, one after the other."""

    def __init__(self, text: str) -> None:
        self._text, self._count = text, 0

    def below(self, bound: int) -> int:
        """An integer in [0, bound), bound < 2^40; the bias towards any is below 2^-24."""
        self._count += 1
        word = hashlib.blake2b(f"{self._text}\0{self._count}".encode(), digest_size=8).digest()
        return int.from_bytes(word, "little") % bound

    def pick(self, values: Sequence[T]) -> T:
        """One of the values."""
        return values[self.below(len(values))]

    def weighted(self, table: Sequence[tuple[int, T]]) -> T:
        """One of the table's values, by its weight."""
        left = self.below(sum(weight for weight, _ in table))
        for weight, value in table:
            if left < weight:
                return value
            left -= weight
        raise AssertionError("the weights cover every draw")


def draw(space: Space, seed: int, stream: int, number: int) -> Case:
    """The case ``number`` of a stream; always one that can be built."""
    for attempt in itertools.count():
        case = _drawn(space, Dice(f"search\0{space.op}\0{seed}\0{stream}\0{number}\0{attempt}"))
        if reasons_impossible(case) is None:
            return case
    raise AssertionError("some draw is possible")


def _drawn(space: Space, dice: Dice) -> Case:
    limit = dice.weighted(SIZES) * (GPU_FACTOR if space.gpu else 1)
    chosen: dict[str, int] = {}
    # The size that is drawn first has the widest choice; that of the rows is mostly the last.
    order = sorted(space.sizes, key=lambda name: (dice.below(3) if name == "m" else dice.below(2), name))
    for field in order:
        most = _most(chosen, field, "k" in space.sizes, limit)
        least = 1
        if limit > _LARGE and field != "k" and dice.below(4):
            least = most // 2 if field == order[-1] else min(most, 256)
        model = space.model.get(field, ())
        chosen[field] = _size(dice, most, space.marks[field], model, least)
    if dice.below(100) == 0:
        chosen["m"] = 0
    wanted = dice.weighted(_DEPARTURES)
    departures = dice.below(len(space.options) + 1) if wanted is None else wanted
    fields = sorted(space.options, key=lambda name: (dice.below(1 << 30), name))[:departures]
    options = {field: dice.pick(space.options[field][1:]) for field in fields}
    packed = [name for name in space.recipes if name.startswith(_PACKED)]
    recipe = dice.pick(packed) if packed and dice.below(2) else dice.pick(space.recipes)
    usual = {"dtype": space.dtypes[0], "fp8": space.fp8s[0]}
    return Case(space.op, recipe=recipe, seed=dice.below(_SEEDS), **{**usual, **chosen, **options})


def cost(case: Case) -> int:
    """What a case costs, in elements."""
    outputs = case.m * case.n * (OUTPUTS if case.k else 1)
    return max(outputs, case.m * case.k, case.n * case.k, case.m * case.n * case.k // PRODUCTS)


def _most(chosen: dict[str, int], field: str, inner: bool, limit: int) -> int:
    """The largest size of ``field`` that keeps the cost of the draw within ``limit`` elements."""
    most = WIDEST[field]
    for other, size in chosen.items():
        most = min(most, limit // size // (OUTPUTS if inner and "k" not in (field, other) else 1))
    if len(chosen) == 2:
        most = min(most, PRODUCTS * limit // math.prod(chosen.values()))
    return max(1, most)


def _size(dice: Dice, most: int, marks: Sequence[int], model: Sequence[int], least: int) -> int:
    """A size of ``least`` to ``most``: the model's, next to a power of two or a mark, any, prime, or a multiple."""
    octave = max(least.bit_length() - 1, dice.below(most.bit_length()))
    anywhere = min(most, (1 << octave) + dice.below(1 << octave))
    known, used = ([size for size in sizes if least <= size <= most] for sizes in (marks, model))
    kind = dice.below(100)
    if kind < 15 and used:
        found = dice.pick(used)
    elif kind < 40:
        found = (1 << octave) + dice.pick(_SIDES)
    elif kind < 65 and known:
        found = dice.pick(known) + dice.pick(_SIDES)
    elif kind < 80:
        found = anywhere
    elif kind < 88:
        found = next(value for value in range(anywhere, 0, -1) if _is_prime(value))
    else:
        step = dice.pick(_STEPS)
        found = -(-anywhere // step) * step
    return min(max(1, found), most)


def _is_prime(value: int) -> bool:
    return value == 1 or all(value % divisor for divisor in range(2, int(value**0.5) + 1))
