"""Rows taken from all recipes in turn, so that one call holds hundreds of situations.

Rows are independent of each other in every op, so what a case varies row by row (the class of input) need not be varied
case by case. Row i of a case takes its turn in a list of recipes, and its values are those of a row that the recipe at
that turn would make for a case of its own: ``Turns.parts`` says which. Neighbours are of different recipes, and the
lists keep ordinary rows around special ones (NaN, zeros).

Seeds go on where the seed before ended: seed s of a case of m rows begins at turn s * m. So fewer rows than turns
still reach all turns, seed by seed.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import torch

from validators.cases.case import Case
from validators.cases.generator import Block, stream_key
from validators.cases.recipe import RecipeInfo

R = TypeVar("R", bound=RecipeInfo)

EVERY = "every_situation"
"""The recipe's name; with other gains, ``every_situation_ones`` and so on."""

PLACED = 8
"""Rows of the case that a row is taken from where a recipe puts its rows by the number of rows (zeros first, middle and
last): few, so that each kind comes soon, and enough for ordinary rows between."""
LONG = 1 << 20
"""Rows of the case that all other rows are taken from: more than any case takes."""
CYCLES = 8
"""Cases of PLACED rows that a case takes rows from, one after the other and then again."""
STARTS = 1 << 10
"""Walks begin at as many places, by the case's id, so that cases of few rows do not all see a walk's first steps."""


class Turn(NamedTuple):
    """A recipe's turn. placed: whether it puts its rows by the number of rows of the case. step: a walk starts at a
    multiple of this, where what it visits first (the last columns) comes again."""

    recipe: str
    placed: bool = False
    step: int = 1


@dataclass(frozen=True)
class Part(Generic[R]):
    """Rows of one recipe. rows: of a block, int64, from 0. source: rows of the recipe's own case, of which they are
    those at ``places`` (int64, from 0)."""

    rows: torch.Tensor
    recipe: R
    source: Block
    places: torch.Tensor


@dataclass(frozen=True)
class Turns(Generic[R]):
    """turns: a recipe may have several. recipes: those that the turns name."""

    turns: tuple[Turn, ...]
    recipes: tuple[R, ...]

    def parts(self, block: Block, count: int, tensor: str = "") -> Iterator[Part[R]]:
        """The block's rows by recipe: every row once.

        count: rows of the whole tensor. tensor: its name where the op has several with rows of their own.
        """
        turns = _possible(self, dataclasses.replace(block.case, m=0, seed=0))
        ordinal = torch.arange(block.start, block.stop, dtype=torch.int64) + block.case.seed * count
        place = ordinal % len(turns)
        for turn in dict.fromkeys(turns):
            own = [i for i, other in enumerate(turns) if other == turn]
            nth = torch.full((len(turns),), -1, dtype=torch.int64)
            nth[own] = torch.arange(len(own))
            rows = (nth[place] >= 0).nonzero().flatten()
            if len(rows) == 0:
                continue
            # Consecutive, because a recipe's turns are counted in their order.
            numbers = ordinal[rows] // len(turns) * len(own) + nth[place[rows]]
            yield from self._sources(block, turn, rows, numbers + _start(block.case, turn, tensor))

    def _sources(self, block: Block, turn: Turn, rows: torch.Tensor, numbers: torch.Tensor) -> Iterator[Part[R]]:
        recipe = next(recipe for recipe in self.recipes if recipe.name == turn.recipe)
        period = PLACED if turn.placed else LONG
        cycles = numbers // period % CYCLES
        for cycle in cycles.unique().tolist():
            here = cycles == cycle
            places = numbers[here] % period
            first, last = int(places.min()), int(places.max())
            source = Block(origin_case(block.case, turn, cycle), first, last + 1, block.width, block.device)
            yield Part(rows[here].to(block.device), recipe, source, (places - first).to(block.device))


@functools.lru_cache(maxsize=256)
def _possible(turns: Turns[R], case: Case) -> tuple[Turn, ...]:
    """The turns whose recipe can be made for the types and options of ``case``."""
    known = {recipe.name: recipe for recipe in turns.recipes}
    return tuple(t for t in turns.turns if known[t.recipe].impossible(origin_case(case, t, 0)) is None)


def origin_case(case: Case, turn: Turn, cycle: int) -> Case:
    """The case of one recipe whose rows have a turn in ``case``; cycle: which of its seeds."""
    rows = PLACED if turn.placed else LONG
    return dataclasses.replace(case, recipe=turn.recipe, m=rows, n=rows if case.k else case.n, seed=case.seed + cycle)


def _start(case: Case, turn: Turn, tensor: str) -> int:
    return stream_key(case.id, f"start/{turn.recipe}/{tensor}") % STARTS * turn.step


def mixed(
    parts: Iterator[Part[R]], make: Callable[[R, Block], Sequence[torch.Tensor | None]], block: Block
) -> list[torch.Tensor | None]:
    """What ``make`` gives for each part, its rows put where they belong: tensors [rows of the block, ...], or None
    where it gives None for each."""
    found: list[torch.Tensor | None] = []
    for part in parts:
        values = make(part.recipe, part.source)
        found = found or [None] * len(values)
        for index, value in enumerate(values):
            if value is None:
                continue
            if found[index] is None:
                shape = (block.stop - block.start, value.shape[1])
                found[index] = torch.empty(shape, dtype=value.dtype, device=block.device)
            whole = found[index]
            assert whole is not None
            whole[part.rows] = value.expand(part.source.stop - part.source.start, -1)[part.places]
    return found
