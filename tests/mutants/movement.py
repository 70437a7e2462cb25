"""Operators that move data: blocks of columns and rows that are dropped, repeated, shifted, transposed or stale, and
indices that wrap at powers of two."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tests.mutants.operator import PLACES, Operator, Place, drawn, on_place

COLUMN_BLOCKS = (1, 4, 8, 16, 32, 64, 128, 256)
"""A lane, vectors, a wave, and tiles."""
ROW_BLOCKS = (1, 4, 16, 64, 256)
COLUMN_WRAPS = (7, 8, 9, 10, 11, 12, 13)
ROW_WRAPS = (4, 6, 8, 10, 12, 16)
PLACES_OF_BLOCKS = ("first", "last", "middle", "odd", "seventh", "upper-half")
"""Which blocks: one, every other, those with a number of 3 modulo 7, and the upper half of each 8."""

Source = Callable[[Tensor, int, int], Tensor]
"""(index, width of a block, size) -> index that is read instead."""

_SOURCES: dict[str, tuple[str, Source | None]] = {
    "dropped": ("is zero", None),
    "repeated": ("repeats the block before", lambda i, b, size: (i - b) % size),
    "neighbour": ("is the next block's", lambda i, b, size: (i + b) % size),
    "shifted": ("is moved by one", lambda i, b, size: i // b * b + (i + 1) % b if b > 1 else (i + 1) % size),
    "reversed": ("is reversed", lambda i, b, size: i // b * b + (b - 1 - i % b)),
    "swapped": ("is exchanged with its partner", lambda i, b, size: (i // b ^ 1) * b + i % b),
    "first-of-block": ("repeats its first element", lambda i, b, size: i // b * b),
}


def chosen(index: Tensor, block: int, size: int, place: str) -> Tensor:
    """Which indices are in the chosen blocks, bool like ``index``."""
    number, blocks = index // block, max(1, -(-size // block))
    if place == "odd":
        return number % 2 == 1
    if place == "seventh":
        return number % 7 == 3
    if place == "upper-half":
        return number % 8 >= 4
    return number == {"first": 0, "last": blocks - 1, "middle": blocks * 3 // 8}[place]


def least(block: int, place: str) -> int:
    """The largest size of which all chosen blocks are one block or none, so that nothing moves."""
    return block * {"seventh": 3, "upper-half": 4}.get(place, 1)


def moved(value: Tensor, dim: int, block: int, place: str, how: str) -> Tensor:
    """``value`` with chosen blocks along ``dim`` taken from elsewhere, or zero."""
    size = value.shape[dim]
    index = torch.arange(size)
    hit, source = chosen(index, block, size, place), _SOURCES[how][1]
    if not bool(hit.any()):
        return value
    if source is None:
        shape = [1] * value.dim()
        shape[dim] = size
        return torch.where(hit.view(shape), torch.zeros((), dtype=value.dtype), value)
    return value.index_select(dim, torch.where(hit, source(index, block, size).clamp(0, size - 1), index))


def wrapped(value: Tensor, dim: int, power: int) -> Tensor:
    """``value`` read with an index modulo 2**power along ``dim``."""
    size = value.shape[dim]
    return value if size <= 1 << power else value.index_select(dim, torch.arange(size) % (1 << power))


def stale(value: Tensor, block: int, place: str) -> Tensor:
    """Chosen blocks of columns hold the values of the row before; the first row keeps its own."""
    hit = chosen(torch.arange(value.shape[-1]), block, value.shape[-1], place)
    before = torch.cat([value[:1], value[:-1]])
    return torch.where(hit, before, value)


def transposed(value: Tensor, tile: int, place: str) -> Tensor:
    """Whole square tiles of chosen blocks of columns, with rows and columns exchanged."""
    found = value.clone()
    hit = chosen(torch.arange(0, value.shape[1], tile), tile, value.shape[1], place)
    for row in range(0, len(value) - tile + 1, tile):
        for number in hit.nonzero().flatten().tolist():
            part = value[row : row + tile, number * tile : (number + 1) * tile]
            if part.shape[1] == tile:
                found[row : row + tile, number * tile : (number + 1) * tile] = part.t()
    return found


def _change(make: Callable[[Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    def change(w: Any, value: Tensor) -> Tensor:
        # FP8 tensors cannot be indexed everywhere; emulated kernels hold their bytes, so none comes here.
        return make(value)

    return change


def operators(op: str) -> Iterator[Operator]:
    """Every operator of the kind. Which blocks move is drawn from the operator's name, so that it never changes."""
    for place in PLACES[op]:
        if place.sort in ("matrix", "stored", "codes", "column"):
            yield from _columns(op, place)
        if place.sort != "column" and not (op == "ptpc_gemm" and place.field == "bias"):
            yield from _rows(op, place)


def _columns(op: str, place: Place) -> Iterator[Operator]:
    size = place.sizes(op)[1]

    def where(block: int, how: str) -> str:
        return PLACES_OF_BLOCKS[drawn(f"{op} {place.name} {block} {how}", len(PLACES_OF_BLOCKS))]

    def made(slug: str, words: str, make: Callable[[Tensor], Tensor], past: int, pure: bool = True) -> Operator:
        return on_place(op, place, slug, "movement", words, _change(make), pure=pure, needs=f"{size}>{past}")

    matrix = place.sort != "column" and place.field != "bias"
    for block in COLUMN_BLOCKS:
        for how, (words, _) in _SOURCES.items():
            if block == 1 and how in ("reversed", "first-of-block"):
                continue
            at, make = where(block, how), partial(moved, dim=-1, block=block, place=where(block, how), how=how)
            sentence = f"in the {at} blocks of {block} columns {words}"
            yield made(f"columns{block}-{at}-{how}", sentence, make, least(block, at))
        if matrix:
            at = where(block, "stale")
            words = f"in the {at} blocks of {block} columns is that of the row before"
            make = partial(stale, block=block, place=at)
            yield made(f"columns{block}-{at}-stale", words, make, least(block, at), False)
    for power in COLUMN_WRAPS:
        make = partial(wrapped, dim=-1, power=power)
        yield made(f"column-wraps-2^{power}", f"is read with the column modulo 2**{power}", make, 1 << power)
    for tile in (16, 32) if matrix else ():
        at = where(tile, "transposed")
        words = f"in the {at} tiles of {tile} x {tile} is transposed"
        make = partial(transposed, tile=tile, place=at)
        yield made(f"tile{tile}-{at}-transposed", words, make, least(tile, at) + tile, False)


def _rows(op: str, place: Place) -> Iterator[Operator]:
    size = place.sizes(op)[0]

    def made(slug: str, words: str, make: Callable[[Tensor], Tensor], past: int) -> Operator:
        return on_place(op, place, slug, "movement", words, _change(make), pure=False, needs=f"{size}>{past}")

    for block in ROW_BLOCKS:
        for how in ("dropped", "repeated", "neighbour", "swapped"):
            at = PLACES_OF_BLOCKS[drawn(f"{op} {place.name} rows {block} {how}", len(PLACES_OF_BLOCKS))]
            make = partial(moved, dim=0, block=block, place=at, how=how)
            words = f"in the {at} blocks of {block} rows {_SOURCES[how][0]}"
            yield made(f"rows{block}-{at}-{how}", words, make, least(block, at))
    for power in ROW_WRAPS:
        make = partial(wrapped, dim=0, power=power)
        yield made(f"row-wraps-2^{power}", f"is read with the row modulo 2**{power}", make, 1 << power)
