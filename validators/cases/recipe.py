"""What a recipe is: a named family of inputs that reveals certain defects, with its lane."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from validators.cases.case import Case
from validators.cases.generator import Block
from validators.words import PATH

ADD, QUANT, GEMM = PATH

Pair = tuple[torch.Tensor, torch.Tensor | None]


def _always_possible(case: Case) -> str | None:
    return None


def default_gain(block: Block) -> torch.Tensor:
    """Effective gain 1 + g/8, all positive: fp32 [1, N] in 0.57 .. 1.43, with bits that bf16 does not have."""
    return 1.0 + block.col_gaussian("weight") * 0.125


@dataclass(frozen=True)
class RecipeInfo:
    """Name, lane and ops of a recipe; ``reveals``: the defects it shows, in a few words.

    impossible(case) -> one sentence why the recipe cannot be built for this shape or type, or None.
    """

    name: str
    lane: str
    ops: tuple[str, ...]
    reveals: str
    impossible: Callable[[Case], str | None] = _always_possible


@dataclass(frozen=True)
class NormRecipe(RecipeInfo):
    """Recipe of ``add_rmsnorm_quant`` and ``per_token_quant``.

    values(block) -> (x, residual) for the block's rows, each [rows, N], in fp32 (then stored with one RNE)
    or in the storage type. The residual is ignored where the case has none, and may be None for
    ``per_token_quant``. gain(block) -> fp32 [1, N] effective gain; a gemma case stores ``gain - 1``.
    """

    values: Callable[[Block], Pair] = lambda block: (block.gaussian("x"), None)
    gain: Callable[[Block], torch.Tensor] = default_gain


@dataclass(frozen=True)
class GemmRecipe(RecipeInfo):
    """Recipe of ``ptpc_gemm``; side is "a" ([M, K] and its scales) or "b" ([N, K] and its scales).

    codes(block, side) -> uint8 [rows, K]. scales(block, side) -> fp32 [rows, 1]; block's width is K.
    bias(block) -> fp32 [rows, 1] for the block's rows of b, stored in the output type.
    """

    codes: Callable[[Block, str], torch.Tensor] = lambda block, side: torch.empty(0)
    scales: Callable[[Block, str], torch.Tensor] = lambda block, side: torch.empty(0)
    bias: Callable[[Block], torch.Tensor] = lambda block: torch.empty(0)


def needs_rows(count: int, why: str) -> Callable[[Case], str | None]:
    """Precondition: at least ``count`` rows."""
    return lambda case: f"{case.recipe} needs at least {count} rows {why}" if case.m < count else None


def needs_bf16(why: str) -> Callable[[Case], str | None]:
    """Precondition: storage type bf16."""
    return lambda case: f"{case.recipe} needs bf16: {why}" if case.dtype != "bf16" else None


def needs_residual(case: Case) -> str | None:
    """Precondition: the case has a residual."""
    return f"{case.recipe} needs a residual to add" if not case.residual else None


def walk_column(block: Block, period: int = 64) -> torch.Tensor:
    """Column c(j) of row j, int64 [rows, 1]: a walk that visits the columns that kernels drop.

    Rows 0, 3, 6.. walk back from the last column (so the last N % 8 come first); rows 1, 4, 7.. walk the
    upper half of a wavefront, as elements 32..63 of a 64-column group and as lanes 32..63 of a 64 x 8
    chunk in turn; rows 2, 5, 8.. start at column 0 and spread over all columns. A row's parity alternates
    within each walk, so that each meets both signs where the sign follows the parity.
    """
    n = block.width
    row = block.rows
    step = row // 3
    tail = n - 1 - step % min(n, period)
    element = 32 + step % 32 + 64 * (step // 2 % max(1, n // 64))
    lane = 512 * (step // 2 % max(1, n // 512)) + 8 * (32 + step // 2 % 32) + step % 8
    upper = torch.where(step % 2 == 0, element, lane) % n
    spread = step * spread_step(n) % n
    return torch.where(row % 3 == 0, tail, torch.where(row % 3 == 1, upper, spread))


def spread_step(n: int) -> int:
    """A step near 0.618 n that is coprime to n: its multiples visit every residue, far apart first."""
    from math import gcd

    step = max(1, n * 618 // 1000)
    while gcd(step, n) != 1:
        step += 1
    return step
