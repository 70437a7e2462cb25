"""The cases that hold every pair and every triple of what the model varies: ``validators/cases/data/covering.json``.

``python -m tests.benchmarks.covering --write`` chooses them and writes the file, so that a case's id depends on no
library and no version; ``tests/suite/cases/test_covering.py`` counts from the file.

A greedy choice: of all cases that the model can make, the one with the most combinations that no chosen case holds,
less what it costs, until nothing is left. Libraries of covering arrays fill what a combination leaves free with any
level that is possible. Here it matters which: a case of one row and 16,384 columns shows one class of input, and
another costs as much as a hundred narrow ones. So the choice weighs cost and rows, and cases without options hold
what needs none.
"""

from __future__ import annotations

import argparse
import dataclasses
import heapq
import itertools
import json
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from reference.contract import NORM_QUANT_CONTRACTS
from validators.cases.case import Case
from validators.cases.covered import SCHEMA, TABLE, TEMPLATES
from validators.cases.inputs import build
from validators.cases.model import LIMITS, Model, model_of, size
from validators.cases.tensors import NormQuantInputs, QuantInputs
from validators.judge.norm import open_rows

OPS = ("add_rmsnorm_quant", "per_token_quant", "ptpc_gemm")
STRENGTH = {"default": 2, "deep": 3}
SMOKE, MOST_ROWS, NARROW = 16, 1024, 64
FEW, CONTRACT = 4, "aiter-hip-gfx950"
"""Up to so many rows of a case may all be left open; by the contract that leaves the most open."""
TURNS = 40
"""Rows that show every class of input. Fewer than these in a row of more than WIDE columns are a wasted width."""
WIDE = 512


def price(case: Case) -> float:
    """What a case costs, in combinations that it must hold to be worth it: one for 33 ms on a core, and more where it
    has too few rows for its width."""
    outputs, operands = case.m * case.n, (case.m + case.n) * case.k
    # Measured: an output of a GEMM 3e-7 s, a code of an operand 4e-8 s, a product 1e-9 s; an element of a row 6e-8 s.
    seconds = 3e-7 * outputs + 4e-8 * operands + 1e-9 * outputs * case.k if case.k else 6e-8 * outputs
    return 30 * seconds + (0.75 if 0 < case.m < TURNS and case.n > WIDE else 0.0)


class Choice:
    """Which combinations of ``strength`` shape factors are left, of the cases ``candidates`` of one set of options."""

    def __init__(self, model: Model, candidates: Sequence[Case], strength: int) -> None:
        self.candidates = candidates
        names = [[level.name for level in factor.levels] for factor in model.shape]
        levels = []
        for factor, own in zip(model.shape, names, strict=True):
            # The level of a shape factor follows from its field alone.
            known = {getattr(case, factor.field): case for case in candidates}
            index = {value: own.index(factor.level(case)) for value, case in known.items()}
            levels.append([index[getattr(case, factor.field)] for case in candidates])
        self.levels = np.array(levels, dtype=np.int64).T
        sizes = [len(found) for found in names]
        self.left: list[npt.NDArray[np.bool_]] = []
        self.keys: list[npt.NDArray[np.int64]] = []
        for columns in itertools.combinations(range(len(sizes)), min(strength, len(sizes))):
            key = np.zeros(len(candidates), dtype=np.int64)
            for column in columns:
                key = key * sizes[column] + self.levels[:, column]
            left = np.zeros(int(np.prod([sizes[c] for c in columns], dtype=np.int64)), dtype=bool)
            left[key] = True
            self.keys.append(key)
            self.left.append(left)
        self.price = np.array([price(case) for case in candidates])

    def chosen(self) -> list[Case]:
        """Cases that hold every combination that some candidate holds.

        A candidate's score never rises while others are chosen: where the score of the first of the heap is still what
        the heap says, it is the best of all.
        """
        found: list[Case] = []
        used: Counter[tuple[str, int]] = Counter()
        keys = np.stack(self.keys, axis=1).tolist()
        heap = [(float(price) - len(self.left), index) for index, price in enumerate(self.price)]
        heapq.heapify(heap)
        while heap:
            said, index = heapq.heappop(heap)
            new = sum(bool(left[key]) for left, key in zip(self.left, keys[index], strict=True))
            if new == 0:
                continue
            case = self.candidates[index]
            again = used["m", case.m] + used["n", case.n] + used["k", case.k]
            score = float(self.price[index]) + 0.05 * again - new
            if score > said:
                heapq.heappush(heap, (score, index))
                continue
            found.append(case)
            used.update([("m", case.m), ("n", case.n), ("k", case.k)])
            for left, key in zip(self.left, keys[index], strict=True):
                left[key] = False
        return found


def covering(op: str, depth: str) -> list[Case]:
    """The cases of ``op`` at ``depth``, ids unique: without options first."""
    model, strength = model_of(op), STRENGTH[depth]
    found: list[Case] = []
    for options in model.departures(strength):
        candidates = model.candidates(options, LIMITS[depth])
        found += Choice(model, candidates, strength - len(options)).chosen() if candidates else []
    return _seeded(found)


def _seeded(cases: Sequence[Case]) -> list[Case]:
    """Each case with a seed of its own among those of as many rows: few rows go on with the turns of the last ones.

    A seed whose rows are all left open by the contract (NaN) is passed over: there would be nothing to judge.
    """
    following: Counter[int] = Counter()
    found = []
    for case in cases:
        seeded = dataclasses.replace(case, seed=following[case.m])
        while 0 < case.m < FEW and _open(seeded):
            seeded = dataclasses.replace(seeded, seed=seeded.seed + 1)
        following[case.m] = seeded.seed + 1
        found.append(seeded)
    return found


def _open(case: Case) -> bool:
    inputs, contract = build(case), NORM_QUANT_CONTRACTS[CONTRACT]
    return isinstance(inputs, NormQuantInputs | QuantInputs) and bool(open_rows(inputs, contract).all())


def smoke(op: str, cases: Sequence[Case]) -> list[Case]:
    """The ``SMOKE`` cases of ``cases`` that hold the most pairs of levels together, whatever their options, for what
    they cost."""
    model = model_of(op)
    pairs = {c: set(itertools.combinations(model.levels(c).items(), 2)) for c in cases}
    found: list[Case] = []
    held: set[Any] = set()
    while len(found) < SMOKE:
        best = max(
            (c for c in cases if c not in found and _for_smoke(c)),
            key=lambda c: len(pairs[c] - held) - size(c) / (1 << 17) - (10 if c.m < TURNS else 0),
        )
        held |= pairs[best]
        found.append(best)
    return found


def _for_smoke(case: Case) -> bool:
    """Few elements, and rows of a few vectors at least: many kernels have a limit below."""
    return case.m <= MOST_ROWS and size(case) <= LIMITS["smoke"] and (case.k > 0 or case.n >= NARROW)


def text_of(case: Case) -> str:
    """The id without its op, its types as words for the suite's own and the other one."""
    text = case.id.removeprefix(f"{case.op}-")
    for value, word in TEMPLATES.items():
        text = text.replace(f"-{value}-", f"-{word}-")
    return text


def table(*, echo: bool = False) -> dict[str, object]:
    """The content of the file."""
    cases: dict[str, dict[str, list[str]]] = {}
    for op in OPS:
        default = covering(op, "default")
        deep = covering(op, "deep")
        chosen = {"smoke": smoke(op, default), "default": default, "deep": deep}
        cases[op] = {depth: [text_of(case) for case in found] for depth, found in chosen.items()}
        if echo:
            for depth, found in chosen.items():
                print(f"{op} {depth}: {len(found)} cases, {sum(size(c) for c in found) / 1e6:.1f} million elements")
    return {"schema": SCHEMA, "cases": cases}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.covering", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name}")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    found = table(echo=True)
    print(f"{time.perf_counter() - start:.0f} s")
    if options.write:
        TABLE.parent.mkdir(parents=True, exist_ok=True)
        TABLE.write_text(json.dumps(found, indent=0) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
