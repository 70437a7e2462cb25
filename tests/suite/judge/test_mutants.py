"""The mutation harness: its operators change bits, ids rebuild mutants, and what it says of a mutant is right."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from tests import mutants
from tests.benchmarks import mutation
from tests.mutants import Mutant, campaign, find, generate, operators
from tests.mutants.guards import Facts, Guard
from tests.mutants.operator import KINDS, OPS, drawn
from tests.mutants.trial import Ready, try_case
from validators.cases.case import Case
from validators.cases.inputs import build
from validators.records.record import Status
from validators.run import validate

ROWS = ("gaussian_gain", "nonfinite", "magnitude_ladder", "zero_rows", "overflow_sum")
SHOWS = {
    "add_rmsnorm_quant": [Case("add_rmsnorm_quant", 70, 264, recipe) for recipe in (*ROWS, "subnormal_rows")],
    "per_token_quant": [Case("per_token_quant", 70, 264, recipe) for recipe in (*ROWS, "degenerate_rows")],
    "ptpc_gemm": [
        Case("ptpc_gemm", 70, 264, recipe, k=176, bias=True)
        for recipe in ("random_bytes", "nan_row", "odd_scales", "huge_scales")
    ],
}


def _slug(name: str) -> str:
    """What an operator does, without where."""
    return name.split(":")[-1]


@pytest.fixture(scope="module")
def ready() -> dict[str, list[Ready]]:
    return {op: [Ready(build(case), case.id) for case in cases] for op, cases in SHOWS.items()}


NEEDS_MORE = (
    "wraps-2^",
    "64",
    "128",
    "256",
    "512",
    "448",
    "product-first",
    "inf-to",
    "flushed",
    "floor",
    "eps",
    "tiny",
)
"""What shows on long, large or tiny values alone, and a qmax of 448, which is right; the benchmark says where."""


@pytest.mark.parametrize("op", OPS)
def test_a_sample_of_operators_changes_bits(op: str, ready: dict[str, list[Ready]]) -> None:
    """One of every seven kinds of change; the first place where it shows is enough."""
    by_slug: dict[str, list[Mutant]] = {}
    # A maximum and a sum do not see an exchange.
    for operator in (o for o in operators(op).values() if not o.name.startswith(("y.amax:", "z.square_sum:"))):
        by_slug.setdefault(_slug(operator.name), []).append(Mutant(op, operator, Guard()))
    wanted = [s for s in by_slug if drawn(s, 7) == 0 and not any(part in s for part in NEEDS_MORE)]
    assert len(wanted) > 10
    shown = {
        slug: any(any(try_case(m, r)) for m, r in itertools.product(by_slug[slug][:6], ready[op])) for slug in wanted
    }
    silent = [slug for slug, seen in shown.items() if not seen]
    assert not silent


def test_there_are_more_than_five_thousand_and_ids_rebuild_them() -> None:
    count = 0
    for op in OPS:
        found = list(generate(op, seed=3))
        count += len(found)
        assert {m.kind for m in found} == set(KINDS)
        assert [m.id for m in found][-2000:-1900] == [m.id for m in generate(op, seed=3, guarded=100)][-100:]
        for m in found[:: len(found) // 60]:
            again = find(m.id)
            assert (again.id, again.sentence, again.guard) == (m.id, m.sentence, m.guard)
    assert count > 5000
    with pytest.raises(ValueError, match="no operator"):
        find("ptpc_gemm|nothing|always")
    with pytest.raises(ValueError, match="no condition"):
        find("per_token_quant|qmax:224|n>>3")


CASES = (
    Case("per_token_quant", 24, 264, "gaussian"),
    Case("per_token_quant", 18, 264, "gaussian", layout="strided"),
    Case("add_rmsnorm_quant", 24, 264, "gaussian_gain"),
    Case("ptpc_gemm", 24, 48, "random_bytes", k=176),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_trial_decides_as_validate_does(case: Case) -> None:
    """The short way of a trial, against the pipeline that signs kernels."""
    found = [m for m in generate(case.op, seed=5, guarded=400) if not m.operator.overwrites]
    ready = Ready(build(case), case.id)
    verdicts = set()
    for m in found[7 :: len(found) // 10]:
        killed = bool(try_case(m, ready).killed)
        status = validate(m.kernel, case).status
        assert killed == (status in (Status.FAILED, Status.NONDETERMINISTIC)), (m.id, status)
        verdicts.add(killed)
    assert verdicts == {True, False}


def _judged(identity: str, recipe: str = "gaussian") -> campaign.Finding:
    suite = campaign.Suite("per_token_quant", [Case("per_token_quant", 24, 264, recipe)], sample=2**17)
    return suite.judge(find(identity))


def test_a_planted_survivor_and_a_planted_equivalent_are_told() -> None:
    killed = _judged("per_token_quant|qmax:224|always")
    assert (killed.result, killed.by) == (campaign.KILLED, "values")
    lost = _judged("per_token_quant|qmax:224|n>300")
    assert (lost.result, lost.met) == (campaign.SURVIVOR, 0)
    assert mutation.reason(lost.asdict()) == "no case has a call, rows or columns that meet n>300"
    same = _judged("per_token_quant|clamp:x(1+2^-8)|always")
    assert same.result == campaign.EQUIVALENT
    assert same.elements >= 2**17
    # The contract does not say what becomes of rows with NaN or Inf.
    free = _judged("per_token_quant|special_rows:bad-rows-0|always", "nonfinite")
    assert free.result == campaign.WITHIN
    unlikely = _judged("per_token_quant|scaled.of-divide:negated|n<=300&row:one-nonzero")
    assert unlikely.result == campaign.SURVIVOR
    # Rows past 1,024 alone are wrong: the sample has some, though the guard does not ask for them.
    assert _judged("per_token_quant|y.divide:row-wraps-2^10|n%8=0").result == campaign.SURVIVOR
    # A rare violation, which the sample of this size has not: a deeper suite is asked as well.
    deeper = campaign.Suite("per_token_quant", [], sample=1, more=[Case("per_token_quant", 24, 264, "zero_rows")])
    assert deeper.judge(find("per_token_quant|scale:zero-rows-1|always")).case.endswith("zero_rows-s0")
    assert mutation.score([f.asdict() for f in (killed, lost, same, free, unlikely)]) == 1 / 3


def test_a_resumed_run_equals_an_unbroken_one(tmp_path: Path) -> None:
    ids = [f"per_token_quant|{name}|always" for name in ("qmax:224", "amax:signed-max", "scale:inverse", "amax:sum")]

    def told(found: list[dict[str, object]]) -> list[dict[str, object]]:
        return [{key: value for key, value in line.items() if key != "seconds"} for line in found]

    whole = mutation.measure("per_token_quant", ids, depth="smoke", path=tmp_path / "whole.jsonl")
    path = tmp_path / "broken.jsonl"
    mutation.measure("per_token_quant", ids[:2], depth="smoke", path=path)
    with path.open("a") as file:
        file.write('{"id": "per_token_quant|cut off')
    assert told(mutation.measure("per_token_quant", ids, depth="smoke", path=path)) == told(whole)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0]["op"] == "per_token_quant"
    assert sorted(line["id"] for line in lines[1:]) == sorted(ids)
    with pytest.raises(mutation.MutationError, match="seed differs"):
        mutation.measure("per_token_quant", ids, depth="smoke", seed=1, path=path)


def test_ctrl_c_keeps_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    judged: list[str] = []

    def judge(identity: str, depth: str, fp8: str) -> campaign.Finding:
        judged.append(identity)
        if len(judged) == 4:
            raise KeyboardInterrupt
        return campaign.Finding(identity, "state", campaign.KILLED)

    monkeypatch.setattr(campaign, "judge_by_id", judge)
    arguments = ["--op", "ptpc_gemm", "--class", "state", "--guarded", "0", "--limit", "9", "--out", str(tmp_path)]
    assert mutation.main(arguments) == 130
    assert "the same command goes on from there" in capsys.readouterr().err
    assert mutation.main(arguments) == 0
    assert len(judged) == 10
    assert len(set(judged)) == 9


def test_the_command_prints_a_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    kept = tmp_path / "findings.jsonl"
    arguments = ["--op", "per_token_quant", "--depth", "smoke", "--class", "state", "--guarded", "0", "--limit", "6"]
    assert mutation.main([*arguments, "--write", str(kept)]) == 0
    said = capsys.readouterr().out
    assert "| per_token_quant | mutants | killed | equivalent | within | survivor | score |" in said
    assert "| all | 6 |" in said
    assert len(kept.read_text().splitlines()) == 7


def test_guards_that_no_case_meets_are_listed_without_running(capsys: pytest.CaptureFixture[str]) -> None:
    assert mutation.main(["--op", "per_token_quant", "--depth", "smoke", "--guards", "--guarded", "200"]) == 0
    assert "of 200 drawn guards are met by no case" in capsys.readouterr().out
    for case in SHOWS["add_rmsnorm_quant"][:1] + SHOWS["ptpc_gemm"][:1]:
        assert Facts.of_case(case) == Facts.of(build(case))


@pytest.mark.parametrize("op", OPS)
def test_no_rows_kill_nothing(op: str) -> None:
    case = Case(op, 0, 384, "shape_walk", k=64 if op == "ptpc_gemm" else 0)
    none = Ready(build(case), case.id)
    for name in list(operators(op))[::400]:
        for guard in ("always", "m<=9&row:equal", "call%2=0&col%2=1"):
            mutant = Mutant(op, operators(op)[name], Guard.parse(guard))
            assert not try_case(mutant, none).killed
            assert validate(mutant.kernel, case).status is Status.PASSED


def test_guards_hold_where_they_say() -> None:
    ready = Ready(build(Case("per_token_quant", 24, 264, "spike_walk")), "")
    inputs = ready.inputs
    for text, count in (("row%8=3", 3), ("row%100=3", 1), ("always", 24)):
        assert int(Guard.parse(text).rows(inputs).sum()) == count
    for text, count in (("colin8..16", 8), ("colin260..300", 4), ("col%128=7", 3)):
        assert int(Guard.parse(text).columns(264).sum()) == count
    assert [mutants.guards.parse("call%3=0").called(n) for n in (1, 3)] == [False, True]
