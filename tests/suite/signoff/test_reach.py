"""What was run, from ids: sizes, levels and pairs of those that PASSED, and the cause of what is missing."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.made import record
from validators.cases.case import Case
from validators.cases.suite import cases_for
from validators.records.evidence import DECLARED, MACHINE, Limit
from validators.records.record import Record, Status
from validators.signoff import factors, facts, reach
from validators.words import OPS

QUANT = "per_token_quant"


def of(case: Case, status: Status = Status.PASSED, **changes: Any) -> Record:
    fields: dict[str, Any] = {"lane": "random", "arch": "cpu", "kernel": "k", "contract": "eager"}
    return record(status, op=case.op, case=case.id, **{**fields, **changes})


def declared(case: Case) -> Record:
    return of(case, Status.UNSUPPORTED, comparisons=(), reasons=("not offered here",), limit=Limit(DECLARED))


def suite(op: str, lacks: Callable[[Case], bool] = lambda case: False, depth: str = "default") -> list[Record]:
    return [declared(case) if lacks(case) else of(case) for case in cases_for(op, depth=depth)]


def missing(records: list[Record], cause: str) -> reach.Left:
    (one,) = reach.of_records(records)
    (left,) = [left for left in one.left if left.cause == cause]
    return left


@pytest.mark.parametrize("op", OPS)
def test_a_whole_suite_leaves_nothing_out(op: str) -> None:
    for depth in ("default", "deep"):
        (one,) = reach.of_records(suite(op, depth=depth))
        assert (one.depth, one.left, one.pairs) == (depth, (), one.of)
        assert one.of > 100
        assert one.sentences() == [f"run and passed: {one.short()}"]
        assert f"{one.of:,} of the {one.of:,} pairs" in one.short()


@pytest.mark.parametrize("op", OPS)
def test_every_case_of_every_depth_has_one_level_of_each_factor(op: str) -> None:
    for depth in ("smoke", "default", "deep"):
        for case in cases_for(op, depth=depth):
            for factor in factors.FACTORS:
                name = factor.level(case)
                assert name in (factor.levels or (name,)), (case.id, factor.name)


def test_the_ends_of_the_classes_are_in_them() -> None:
    def level(n: int) -> str:
        return factors.COLUMNS.level(Case(QUANT, 1, n, "gaussian"))

    assert [level(n) for n in (1, 64, 65, 6144, 6145, 12_288, 12_289)] == [
        "n 1 to 64",
        "n 1 to 64",
        "n 65 to 512",
        "n 4,097 to 6,144",
        "n 6,145 to 8,192",
        "n 10,241 to 12,288",
        "n over 12,288",
    ]
    ends = {f.name: f for f in factors.FACTORS}["end of n"]
    assert [ends.level(Case(QUANT, 1, n, "gaussian")) for n in (16, 12, 6, 5)] == list(ends.levels)


def test_the_largest_sizes_say_what_they_were_run_with() -> None:
    cases = [Case(QUANT, 640, 64, "gaussian"), Case(QUANT, 3, 8200, "gaussian"), Case(QUANT, 1, 8200, "model")]
    (one,) = reach.of_records(map(of, cases))
    assert one.short().startswith(f"{QUANT} up to 640 rows (n 64), n up to 8,200 (3 rows); ")
    gemm = reach.sizes_text([Case("ptpc_gemm", 1, 64, "gaussian", k=512), Case("ptpc_gemm", 0, 999, "gaussian", k=9)])
    assert gemm == "one row (n 64, k 512), n up to 64 (1 row, k 512), k up to 512 (1 row, n 64)"
    assert reach.sizes_text([Case(QUANT, 0, 64, "gaussian")]) == "with zero rows alone"


def test_a_pair_that_was_not_run_together_is_named_with_its_cause() -> None:
    wide = 8192
    found = missing(suite(QUANT, lambda c: c.dtype == "fp16" and c.n > 1024), reach.DECLARED)
    assert found.levels == ()
    assert found.pairs
    assert all("fp16" in pair for pair in found.pairs)
    assert "fp16 with " in found.sentence()
    (one,) = reach.of_records(suite(QUANT, lambda c: c.dtype == "fp16" and c.n > wide))
    assert one.pairs == one.of - sum(len(left.pairs) for left in one.left)


def test_a_level_that_is_missing_is_named_once_and_not_with_all_its_pairs() -> None:
    found = missing(suite(QUANT, lambda c: c.dtype == "fp16" or c.layout == "strided"), reach.DECLARED)
    assert set(found.levels) == {"fp16", "padded rows"}
    assert not any({"fp16", "padded rows"} & set(pair) for pair in found.pairs)


def test_causes_are_told_apart_and_failure_comes_first() -> None:
    records = suite(QUANT)
    for i, r in enumerate(records):
        case = Case.parse(r.case)
        if case.n > 12_288:
            limit = Limit(MACHINE)
            records[i] = of(case, Status.UNSUPPORTED, comparisons=(), limit=limit)
        elif case.layout == "3d":
            records[i] = dataclasses.replace(r, status=Status.FAILED)
    kept = [r for r in records if "-3dstrided-" not in r.case]
    (one,) = reach.of_records(kept)
    named = {left.cause: left.levels for left in one.left}
    assert named[reach.FAILED] == ("three dimensions",)
    assert named[reach.HELD] == ("n over 12,288",)
    assert named[reach.NOT_RUN] == ("slices of three dimensions",)
    assert [left.cause for left in one.left] == [c for c in reach.CAUSES if c in named]


def test_a_case_that_also_failed_does_not_count() -> None:
    case = Case(QUANT, 24, 520, "gaussian")
    (one,) = reach.of_records([of(case), of(case, Status.NONDETERMINISTIC)])
    assert (one.passed, one.pairs) == (0, 0)
    assert one.short() == f"{QUANT}: no case passed"


def test_smoke_depth_says_what_default_depth_has() -> None:
    (one,) = reach.of_records(suite(QUANT, depth="smoke"))
    assert one.depth == "default"
    assert 0 < one.pairs < one.of
    assert "m over 65,535" in missing(suite(QUANT, depth="smoke"), reach.NOT_RUN).levels


def test_no_rows_show_no_feature() -> None:
    case = Case(QUANT, 0, 520, "gaussian", dtype="fp16")
    (one,) = reach.of_records([of(case)])
    assert one.pairs == 0
    assert "fp16" in missing([of(case)], reach.NOT_RUN).levels


def test_a_suite_in_fp16_is_held_against_its_own_depth() -> None:
    records = [of(case) for case in cases_for(QUANT, dtype="fp16")]
    (one,) = reach.of_records(records)
    assert one.left == ()


def test_kernels_that_reach_the_same_share_their_sentences() -> None:
    both = [*suite(QUANT), *(dataclasses.replace(r, kernel="other") for r in suite(QUANT))]
    assert len(reach.sentences(both)) == 1
    less = [*suite(QUANT), *(dataclasses.replace(r, kernel="other") for r in suite(QUANT)[:3])]
    assert [text.split(":")[0] for text in reach.sentences(less)] == ["k", "other", "other"]


def test_many_pairs_are_few_words() -> None:
    pairs = [("a", "x"), ("b", "x"), ("a", "y"), ("c", "x"), ("d", "x"), ("e", "z")]
    assert reach.grouped(pairs) == [("x", ("a", "b", "c", "d")), ("a", ("y",)), ("e", ("z",))]
    assert reach.Left(reach.NOT_RUN, ("1", "2", "3", "4"), tuple(pairs)).sentence() == (
        "not run: 1; 2; 3; 1 more class; x with a or b or 2 more classes; a with y; 1 more pair"
    )


def test_the_facts_of_a_decision_say_it() -> None:
    found = facts.of(suite(QUANT, lambda c: c.fp8 == "e4m3fnuz"))
    assert found.run[0].startswith(f"{QUANT} up to 65,60")
    assert found.left_out == (f"{QUANT}, not offered: e4m3fnuz",)
    labels = [label for label, _ in found.rows()]
    wanted = ["run and passed", "left out", "mutation score", "known defects that fail on such cases", "limits"]
    assert labels[-5:] == wanted


def test_it_needs_no_torch() -> None:
    code = "import sys, validators.signoff.reach; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
