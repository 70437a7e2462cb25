"""What was run, from the ids of the cases that PASSED: the largest sizes, and which classes of sizes and features met.

A case speaks for its own features, and for sizes up to its own. So what is counted is levels and pairs of levels
(``factors``) of the cases that PASSED, against those of the suite's depth. What is missing is named with its cause: the
kernel does not offer it, the machine cannot hold it, the contract leaves it open, its cases did not pass, or it was not
run. No torch.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from validators.cases.case import Case, CaseError
from validators.records.evidence import BY_CONTRACT, MACHINE
from validators.records.record import Record, Status
from validators.signoff import depths, factors, limits
from validators.signoff.factors import Factor, Pair
from validators.words import DEPTHS, DTYPES, FP8_FORMATS, OPS, native_fp8

MOST_NAMED = 3
"""Levels that a sentence names; the rest is counted."""
_MOST_GROUPS = _MOST_PARTNERS = 2

FAILED, DECLARED, HELD, OPEN, NOT_RUN = (
    "did not pass",
    "not offered",
    "too large for this machine",
    "left open by the contract",
    "not run",
)
"""Causes, what says the most of a kernel first."""
CAUSES = (FAILED, DECLARED, HELD, OPEN, NOT_RUN)


@dataclass(frozen=True)
class Left:
    """What the depth has and no case that PASSED. levels: of which none did. pairs: of levels that each passed with
    others."""

    cause: str
    levels: tuple[str, ...] = ()
    pairs: tuple[Pair, ...] = ()

    def sentence(self) -> str:
        """``not offered: e4m3fnuz; fp16 with n 4,097 to 6,144``."""
        parts = list(self.levels[:MOST_NAMED])
        more = len(self.levels) - len(parts)
        parts += [_more(more, "class", "classes")] if more > 0 else []
        groups = grouped(self.pairs)
        for anchor, partners in groups[:_MOST_GROUPS]:
            shown = partners[:_MOST_PARTNERS]
            rest = len(partners) - len(shown)
            parts.append(
                f"{anchor} with {' or '.join(shown)}" + (f" or {_more(rest, 'class', 'classes')}" if rest else "")
            )
        rest = sum(len(partners) for _, partners in groups[_MOST_GROUPS:])
        parts += [_more(rest, "pair", "pairs")] if rest else []
        return f"{self.cause}: {'; '.join(parts)}"


def _more(count: int, one: str, several: str) -> str:
    return f"{count} more {one if count == 1 else several}"


@dataclass(frozen=True)
class Reach:
    """Of the cases of one op that PASSED. sizes: the largest m, n and k, each with the others that it was run with.

    pairs: of ``of`` pairs of levels that ``depth`` has, those in which some case PASSED. left: by cause.
    """

    op: str
    kernels: tuple[str, ...]
    sizes: str
    passed: int
    pairs: int
    of: int
    depth: str
    left: tuple[Left, ...]

    def short(self) -> str:
        """``per_token_quant up to 640 rows (n 5,120), n up to 16,384 (64 rows); 150 of the 310 pairs of ..``."""
        if not self.passed:
            return f"{self.op}: no case passed"
        counted = f"{self.pairs:,} of the {self.of:,} pairs of size classes and features that {self.depth} depth has"
        return f"{self.op} {self.sizes}" + (f"; {counted}" if self.of else "")

    def sentences(self) -> list[str]:
        """What was run, then what was left out, by cause."""
        return [f"run and passed: {self.short()}", *(f"{self.op}, {left.sentence()}" for left in self.left)]


def sizes_text(cases: Sequence[Case]) -> str:
    """``up to 640 rows (n 5,120), n up to 16,384 (64 rows)``: in brackets the largest that each was run with."""
    rows = [case for case in cases if case.m]
    if not rows:
        return "with zero rows alone"
    words = {"m": "up to {:,} rows", "n": "n up to {:,}", "k": "k up to {:,}"}
    found = []
    for axis in "mnk" if any(c.k for c in rows) else "mn":
        most = max(getattr(case, axis) for case in rows)
        largest = max((c for c in rows if getattr(c, axis) == most), key=lambda c: c.m * c.n * max(1, c.k))
        others = [f"{largest.m:,} {'row' if largest.m == 1 else 'rows'}", f"n {largest.n:,}", f"k {largest.k:,}"]
        there = [text for name, text in zip("mnk", others, strict=True) if name != axis and getattr(largest, name)]
        size = words[axis].format(most) if (axis, most) != ("m", 1) else "one row"
        found.append(f"{size} ({', '.join(there)})")
    return ", ".join(found)


def grouped(pairs: Iterable[Pair]) -> list[tuple[str, tuple[str, ...]]]:
    """Pairs gathered by the level that most of those that are left have, most first: few words for many pairs."""
    rest, found = list(pairs), []
    while rest:
        counts: dict[str, int] = {}
        for level in itertools.chain.from_iterable(rest):
            counts[level] = counts.get(level, 0) + 1
        anchor = max(counts, key=lambda level: counts[level])
        own = [pair for pair in rest if anchor in pair]
        found.append((anchor, tuple(b if a == anchor else a for a, b in own)))
        rest = [pair for pair in rest if anchor not in pair]
    return found


def of_records(records: Iterable[Record]) -> list[Reach]:
    """One for each op and set of kernels whose cases reach the same, in the records' order. Other stages are passed
    over."""
    found: dict[Reach, list[str]] = {}
    for (op, kernel), group in by_kernel(records).items():
        found.setdefault(of_kernel(op, group), []).append(kernel)
    return [replace(one, kernels=tuple(kernels)) for one, kernels in found.items()]


def sentences(records: Iterable[Record]) -> list[str]:
    """The sentences of all; with the kernels' names where several reach differently."""
    found = of_records(records)
    several = {one.op for one in found if sum(other.op == one.op for other in found) > 1}
    return [
        f"{', '.join(one.kernels)}: {text}" if one.op in several else text for one in found for text in one.sentences()
    ]


def by_kernel(records: Iterable[Record]) -> dict[tuple[str, str], list[Record]]:
    """(op, kernel) -> its records of the suite's cases."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record.op in OPS and record.stage == "ops":
            groups.setdefault((record.op, record.kernel), []).append(record)
    return groups


def by_case(records: Iterable[Record]) -> dict[Case, list[Record]]:
    """The records of each case of the suite."""
    found: dict[Case, list[Record]] = {}
    for record in records:
        try:
            found.setdefault(Case.parse(record.case), []).append(record)
        except CaseError:
            continue  # of a walk or a golden
    return found


def of_kernel(op: str, records: Sequence[Record]) -> Reach:
    """The reach of the records of one kernel and op."""
    known = by_case(records)
    passed = [case for case, own in known.items() if passes(own)]
    depth, wanted = asked(op, known, records[0].arch if records else "cpu")
    own = factors.of_op([*wanted, *known])
    seen = frozenset().union(*(_pairs(case, own) for case in passed))
    every = frozenset().union(*(_pairs(case, own) for case in wanted))
    left = _left(passed, [*wanted, *known], {case: cause(own) for case, own in known.items()}, own)
    return Reach(op, (), sizes_text(passed), len(passed), len(seen & every), len(every), depth, left)


def passes(records: Collection[Record]) -> bool:
    """Whether a case PASSED and no record of it says otherwise."""
    seen = {record.status for record in records}
    return Status.PASSED in seen and seen <= {Status.PASSED, Status.UNSUPPORTED, Status.UNTESTED}


def cause(records: Collection[Record]) -> str:
    """Why a case with these records shows nothing."""
    if any(r.status not in (Status.PASSED, Status.UNSUPPORTED, Status.UNTESTED) for r in records):
        return FAILED
    if any(map(limits.is_declared, records)):
        return DECLARED
    kinds = {r.limit.kind for r in records if r.limit}
    return HELD if MACHINE in kinds else OPEN if BY_CONTRACT in kinds else NOT_RUN


def asked(op: str, known: Collection[Case], arch: str) -> tuple[str, list[Case]]:
    """(depth, its cases with the types of ``known``): default depth, or deep where that was run."""
    fp8 = format_of(known, arch)
    dtype = max(DTYPES, key=lambda name: sum(c.dtype == name for c in known))
    depth = DEPTHS[-1] if depths.reached(op, arch, {c.id for c in known}) == DEPTHS[-1] else "default"
    return depth, list(_cases(op, depth, fp8, dtype))


def format_of(known: Collection[Case], arch: str) -> str:
    """The FP8 format of the suite that the cases are of: the machine's, on a CPU that of most cases."""
    if arch != "cpu":
        return native_fp8(arch)
    return max(FP8_FORMATS, key=lambda name: sum(c.fp8 == name for c in known))


@functools.lru_cache(maxsize=32)
def _cases(op: str, depth: str, fp8: str, dtype: str) -> tuple[Case, ...]:
    """The cases of a depth. Their table is of a suite in bf16; one in fp16 has the two types exchanged."""
    found = [Case.parse(text) for ids in depths.lanes(op, depth, fp8).values() for text in ids]
    if dtype == DTYPES[0]:
        return tuple(found)
    other = {DTYPES[0]: dtype, dtype: DTYPES[0]}
    return tuple(replace(case, dtype=other[case.dtype]) for case in found)


def _left(
    passed: Sequence[Case], cases: Sequence[Case], why: Mapping[Case, str], own: tuple[Factor, ...]
) -> tuple[Left, ...]:
    """Levels, and pairs of levels that are no such level, which ``cases`` have and none that passed."""
    levels = set(itertools.chain.from_iterable(factors.levels(case, own) for case in passed))
    pairs = set(itertools.chain.from_iterable(_pairs(case, own) for case in passed))
    lost_levels: dict[str, str] = {}
    lost_pairs: dict[Pair, str] = {}
    for case in cases:
        reason = why.get(case, NOT_RUN)
        for level in factors.levels(case, own):
            if level not in levels:
                lost_levels[level] = _first(lost_levels.get(level), reason)
        for pair in _pairs(case, own) - pairs:
            if levels.issuperset(pair):
                lost_pairs[pair] = _first(lost_pairs.get(pair), reason)
    order = {name: i for i, name in enumerate(level for f in (*factors.OPTIONS, *own) for level in f.levels)}
    return tuple(
        Left(
            reason,
            tuple(sorted((x for x, y in lost_levels.items() if y == reason), key=lambda x: order.get(x, -1))),
            tuple(sorted(pair for pair, y in lost_pairs.items() if y == reason)),
        )
        for reason in CAUSES
        if reason in (*lost_levels.values(), *lost_pairs.values())
    )


@functools.lru_cache(maxsize=1 << 13)
def _pairs(case: Case, own: tuple[Factor, ...]) -> frozenset[Pair]:
    # A sign-off of many claims asks for the same cases again and again.
    return factors.pairs(case, own)


def _first(known: str | None, reason: str) -> str:
    return reason if known is None else min(known, reason, key=CAUSES.index)
