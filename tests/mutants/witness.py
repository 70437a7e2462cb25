"""Witnesses: inputs on which a guard holds, made from the guard alone.

A mutant that a suite lets through is told from one that computes the same by running it on a large sample that meets
its guard: shapes and options that the conditions name, every recipe that is possible there, seeds that no suite uses,
and rows that are changed until they are of the class that the guard asks for.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch

from tests.mutants.guards import Facts, Guard
from validators.cases.case import Case
from validators.cases.inputs import build
from validators.cases.recipes import reasons_impossible, recipe_names
from validators.cases.tensors import Inputs

MOST = {"add_rmsnorm_quant": 2**22 + 2**19, "per_token_quant": 2**22 + 2**19, "ptpc_gemm": 2**30}
"""Elements of a call (products of a GEMM) up to which a guard is drawn: one case of such a size is what a suite of
seconds can hold. Guards beyond it are for a search of hours."""
PRODUCTS = 64
"""Products of a GEMM that are run where another op would run one element."""
SEEDS = (1009, 2003, 3001, 4001, 5003, 6007, 7001, 8009)
_START = {"m": (64, 33, 300, 17, 18, 1), "n": (1024, 520, 1002, 5120, 6136), "k": (512, 176, 1056)}
_GEMM_N = (128, 144, 48, 384)


def work(op: str, m: int, n: int, k: int) -> int:
    """Elements of a call, or products of a GEMM."""
    return m * n * k if op == "ptpc_gemm" else m * n


def _numbers(text: str) -> list[int]:
    return [int(part) for part in "".join(c if c.isdigit() else " " for c in text).split()]


def _sizes(name: str, op: str, guard: Guard) -> list[int]:
    """Values of one size that meet the guard's conditions on it: the usual ones, and those beside every number that a
    condition names. Empty where there are none."""
    usual = _GEMM_N if op == "ptpc_gemm" and name == "n" else _START[name]
    if name == "k" and op != "ptpc_gemm":
        return [0]
    about = [c for c in guard.conditions if c.about == name or (name == "n" and c.sort == "columns")]
    about += [c for c in guard.conditions if name == "m" and c.sort == "row-number"]
    numbers = [v for c in about for v in _numbers(c.text) if v]
    values = {v + d for v in (*usual, *numbers) for d in ((0, 1, 2, 3, 7, 8, 9) if numbers else (0,))}
    values |= {-(-v // step) * step + d for v in (*usual, *numbers) for step in numbers for d in (0, 1)}
    if name == "m" and any(c.text in ("layout=3d", "layout=3dstrided") for c in guard.conditions):
        values = {2 * v for v in values} | {v for v in values if v % 2 == 0}
    good = [v for v in sorted(values) if v > 0 and all(c.meets(_with(name, v)) for c in about)]
    # The smallest, the largest, and those near the usual ones: a product of three lists stays small.
    kept = {*good[:3], *good[-2:], *(min(good, key=lambda v: abs(v - u)) for u in usual if good)}
    return sorted(kept)


def _with(name: str, value: int) -> Facts:
    sizes = {"m": 1, "n": 1, "k": 1, name: value}
    return Facts(sizes["m"], sizes["n"], sizes["k"], "", "")


def feasible(op: str, guard: Guard) -> bool:
    """Whether some call within ``MOST`` meets the guard's conditions on sizes."""
    sizes = [_sizes(name, op, guard) for name in "mnk"]
    return all(sizes) and work(op, *(min(values) for values in sizes)) <= MOST[op]


def shapes(op: str, guard: Guard) -> list[Case]:
    """Cases with a shape and options that meet the guard, and a recipe to be replaced: the cheapest of those with many
    elements, a second with another width, and one of the model's kind. Empty where none within ``MOST`` meets it."""
    options: dict[str, Any] = {}
    for c in guard.conditions:
        if c.sort == "option":
            name, _, value = c.text.partition("=")
            options[name.removeprefix("no-")] = value if value else not name.startswith("no-")
    if "eps" in options:
        options["eps"] = f"{float(options['eps']):.0e}".replace("e-0", "e-")
    found: list[tuple[int, Case]] = []
    for m, n, k in itertools.product(*(_sizes(name, op, guard) for name in "mnk")):
        cost = work(op, m, n, k)
        if cost <= MOST[op]:
            case = Case(op, m, n, "gaussian", k=k, **options)
            if reasons_impossible(case) is None:
                found.append((cost, case))
    return _spread(op, found)


def _spread(op: str, found: list[tuple[int, Case]]) -> list[Case]:
    """Up to four of the shapes that were found: near 2**16 elements, small, few rows and wide, and large."""
    if not found:
        return []
    aim = 2**22 if op == "ptpc_gemm" else 2**16
    picks = [
        min(found, key=lambda f: abs(math.log(f[0] / aim))),
        min(found, key=lambda f: (f[0], f[1].id)),
        min(found, key=lambda f: (-min(f[1].n, 6000), f[0])),
        min(found, key=lambda f: abs(math.log(f[0] / (32 * aim)))),
    ]
    return list({case.id: case for _, case in picks}.values())


def cases(op: str, guard: Guard, elements: int) -> Iterator[Case]:
    """Cases that meet the guard's conditions on calls, until they have ``elements`` together (a GEMM's products
    ``PRODUCTS`` times as many)."""
    total, wanted = 0, elements * (PRODUCTS if op == "ptpc_gemm" else 1)
    chosen = shapes(op, guard)
    for seed in SEEDS:
        for shape in chosen:
            for recipe in recipe_names(op):
                case = replace(shape, recipe=recipe, seed=seed)
                if reasons_impossible(case) is not None:
                    continue
                # Large shapes meet a few recipes of each seed, in turn, and small ones all of them.
                cost = work(op, case.m, case.n, case.k)
                if cost * 8 > wanted and (recipe_names(op).index(recipe) + seed) % 4:
                    continue
                yield case
                total += cost
                if total >= wanted:
                    return


def inputs_of(case: Case, classes: Iterable[str]) -> Inputs:
    """The case's inputs, every other row of them of the classes that conditions of a guard (``row:...``) ask for."""
    inputs = build(case)
    for text in classes:
        inputs = made_of_class(inputs, text.removeprefix("row:"))
    return inputs


def made_of_class(inputs: Inputs, name: str) -> Inputs:
    """Inputs whose odd rows (all rows, where there is one) are of the class; the others stay."""
    given: Any = inputs
    rows = torch.arange(inputs.row_count) % 2 == (1 if inputs.row_count > 1 else 0)
    if not inputs.row_count:
        return inputs
    if inputs.op == "ptpc_gemm":
        return _codes_of_class(given, name, rows)
    changes: dict[str, Any] = {}
    x = given.x.reshape(-1, inputs.width)
    changed = _values_of_class(x.float(), name).to(x.dtype)
    mixed = torch.where(rows[:, None], changed, x).view(given.x.shape)
    changes["x"] = _like(given.x, mixed)
    residual = getattr(given, "residual", None)
    if residual is not None:
        # x alone decides the class: the residual of such a row is zero.
        kept = torch.where(rows[:, None], torch.zeros((), dtype=x.dtype), residual.reshape(-1, inputs.width))
        changes["residual"] = _like(residual, kept.view(residual.shape))
    if name == "gain":
        weight = given.weight.clone()
        weight[::3] = 3.5
        changes["weight"] = weight
        column = torch.arange(inputs.width) % 3 == 0
        peaked = torch.where(rows[:, None] & ~column, mixed.view(x.shape) * 0.25, mixed.view(x.shape))
        changes["x"] = _like(given.x, peaked.view(given.x.shape))
    return dataclasses.replace(given, **changes)


def _like(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """The values of ``new`` in memory that is laid out as that of ``old``."""
    if old.is_contiguous():
        return new.contiguous()
    held = torch.empty_strided(old.size(), old.stride(), dtype=old.dtype)
    return held.copy_(new)


def _values_of_class(x: torch.Tensor, name: str) -> torch.Tensor:
    finite = x.nan_to_num(nan=1.0, posinf=1.0, neginf=-1.0)
    largest = finite.abs().amax(1, keepdim=True).clamp_min(1e-30)
    unit = finite / largest
    if name == "huge":
        return unit * 20000.0
    if name == "tiny":
        return unit * 2.0**-12
    if name == "one-nonzero":
        column = (torch.arange(len(x)) * 7919) % x.shape[1]
        return torch.zeros_like(x).scatter_(1, column[:, None], unit.abs().amax(1, keepdim=True) * 1.5)
    if name == "equal":
        return torch.where(finite < 0, -0.75, 0.75)
    if name == "negative-peak":
        peak = finite.abs() == finite.abs().amax(1, keepdim=True)
        return torch.where(peak, -finite.abs() - 2.0**-6, finite)
    if name == "many-zeros":
        return torch.where(torch.arange(x.shape[1]) % 3 > 0, 0.0, finite)
    return finite.abs()


def _codes_of_class(given: Any, name: str, rows: torch.Tensor) -> Inputs:
    codes, scale = given.a.view(torch.uint8).clone(), given.a_scale.clone()
    part = codes[rows]
    part = torch.where((part & 0x7F) >= 0x7E, 0x38, part)
    if name in ("huge", "tiny"):
        scale[rows] = 30.0 if name == "huge" else 2.0**-24
    elif name == "one-nonzero":
        column = (torch.arange(len(part)) * 7919) % part.shape[1]
        part = torch.zeros_like(part).scatter_(1, column[:, None], 0x39)
    elif name == "equal":
        part = (part & 0x80) | 0x3A
    elif name == "negative-peak":
        part[:, :1] = 0xF4
    elif name == "many-zeros":
        part = torch.where(torch.arange(part.shape[1]) % 3 > 0, 0, part)
    elif name == "no-negative":
        part = part & 0x7F
    codes[rows] = part.to(torch.uint8)
    return dataclasses.replace(given, a=_like_bytes(given.a, codes), a_scale=scale)


def _like_bytes(old: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    return _like(old.view(torch.uint8), codes).view(old.dtype)
