"""A suite against the mutants of an op: which case kills each, and what those are that none kills."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tests.mutants import Mutant, find
from tests.mutants.trial import Ready, try_case
from tests.mutants.witness import PRODUCTS, inputs_of, work
from tests.mutants.witness import cases as witness_cases
from validators.cases.case import Case
from validators.cases.inputs import build
from validators.cases.suite import cases_for

KILLED, EQUIVALENT, WITHIN, SURVIVOR = "killed", "equivalent", "within", "survivor"
SAMPLE = 2**21
"""Elements on which a mutant that the suite lets through is run before it is called equivalent."""
_KEPT = 24
"""Witnesses whose inputs and clean outputs are kept: those of unguarded mutants are asked for again and again."""


@dataclass(frozen=True)
class Finding:
    """What became of a mutant. by: the check that killed it. case: where. elements: those that meet the guard in the
    sample that it was run on after the suite. met: cases of the suite of which some call, rows and columns can meet it.
    seconds: of one core.
    """

    id: str
    kind: str
    result: str
    by: str = ""
    case: str = ""
    elements: int = 0
    met: int = 0
    seconds: float = 0.0

    def asdict(self) -> dict[str, Any]:
        """A line of the file of results."""
        return asdict(self)


class Suite:
    """The cases of one op, cheapest first, built when they are first asked for.

    sample: elements of the witnesses. more: cases of a deeper suite, which are witnesses too: what they kill is no
    equivalent, though a random sample may miss it.
    """

    def __init__(self, op: str, cases: Iterable[Case], *, sample: int = SAMPLE, more: Iterable[Case] = ()) -> None:
        self.op, self.sample = op, sample
        self.cases = sorted(cases, key=lambda c: (work(op, c.m, c.n, c.k), c.id))
        self.more = sorted(set(more) - set(self.cases), key=lambda c: (work(op, c.m, c.n, c.k), c.id))
        self._ready: dict[str, Ready] = {}
        self.witness = functools.lru_cache(maxsize=_KEPT)(_witness)

    @staticmethod
    def of(op: str, depth: str, fp8: str) -> Suite:
        """The cases that ``python -m validators run`` runs."""
        more = cases_for(op, fp8=fp8) if depth == "smoke" else ()
        return Suite(op, cases_for(op, depth=depth, fp8=fp8), more=more)

    def ready(self, case: Case) -> Ready:
        """The case with its inputs and clean outputs."""
        if case.id not in self._ready:
            self._ready[case.id] = Ready(build(case), case.id)
        return self._ready[case.id]

    def judge(self, mutant: Mutant) -> Finding:
        """Runs the cases until one kills the mutant, then, if none does, the witnesses of its guard."""
        start, changed, met = time.perf_counter(), False, 0
        for case in self.cases:
            ready = self.ready(case)
            met += ready.may_show(mutant)
            found = try_case(mutant, ready)
            changed |= found.changed
            if found.killed:
                seconds = time.perf_counter() - start
                return Finding(mutant.id, mutant.kind, KILLED, found.killed, case.id, met=met, seconds=seconds)
        return self.survived(mutant, changed, met, start)

    def survived(self, mutant: Mutant, changed: bool, met: int, start: float) -> Finding:
        """What a mutant is that no case kills. changed: whether some case showed other bits; start: of the clock."""
        elements, classes = 0, tuple(c.text for c in mutant.guard.conditions if c.sort == "row-class")
        for ready in self._witnesses(mutant, classes):
            found = try_case(mutant, ready)
            elements += ready.elements_met(mutant)
            changed |= found.changed
            if found.killed:
                seconds = time.perf_counter() - start
                words = (found.killed, ready.name, elements, met, seconds)
                return Finding(mutant.id, mutant.kind, SURVIVOR, *words)
        result = WITHIN if changed else EQUIVALENT
        return Finding(mutant.id, mutant.kind, result, "", "", elements, met, time.perf_counter() - start)

    def _witnesses(self, mutant: Mutant, classes: Sequence[str]) -> Iterator[Ready]:
        done = met = 0
        for case in witness_cases(self.op, mutant.shows, 4 * self.sample):
            small = work(self.op, case.m, case.n, case.k) <= self.sample
            ready = (self.witness if small and not mutant.operator.overwrites else _witness)(case, tuple(classes))
            yield ready
            # A guard on few rows or columns is met by few elements of a call, and gets more calls.
            done += work(self.op, case.m, case.n, case.k) // (PRODUCTS if self.op == "ptpc_gemm" else 1)
            met += ready.elements_met(mutant)
            if done >= self.sample and met >= self.sample // 32:
                break
        for case in self.more:
            if (ready := self.ready(case)).may_show(mutant):
                yield ready


def _witness(case: Case, classes: Sequence[str]) -> Ready:
    return Ready(inputs_of(case, classes), case.id)


@functools.lru_cache(maxsize=2)
def suite_of(op: str, depth: str, fp8: str) -> Suite:
    """The suite of one process."""
    return Suite.of(op, depth, fp8)


def judge_by_id(identity: str, depth: str, fp8: str) -> Finding:
    """What a worker process does for one mutant."""
    mutant = find(identity)
    return suite_of(mutant.op, depth, fp8).judge(mutant)
