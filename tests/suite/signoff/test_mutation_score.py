"""The mutation score of the cases that passed: from a small matrix that is made here, and no number without one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import mutation as harness
from tests.benchmarks import mutation_matrix
from tests.benchmarks.mutation_matrix import part, write_matrix
from tests.mutants import campaign, find
from tests.mutants.operator import KINDS
from tests.mutants.trial import Ready, try_case
from tests.support.made import comparison, record
from validators.__main__ import main
from validators.cases.case import Case
from validators.cases.inputs import build
from validators.cases.suite import cases_for
from validators.records.record import Record, Status
from validators.signoff import facts, mutation
from validators.words import FP8_FORMATS

QUANT = "per_token_quant"
CONTRACT = "aiter-hip-gfx950"
CASES = [case.id for case in cases_for(QUANT)]
FIRST, SECOND, THIRD = CASES[:3]


def of(case: str, status: Status = Status.PASSED, **changes: Any) -> Record:
    fields: dict[str, Any] = {"lane": "random", "arch": "cpu", "kernel": "k", "op": QUANT, "contract": CONTRACT}
    return record(status, case=case, **{**fields, **changes})


def row(name: str, kind: str, *kills: str, result: str = campaign.KILLED) -> dict[str, Any]:
    return {"id": f"{QUANT}|{name}|always", "kind": kind, "result": result, "kills": list(kills)}


ROWS = [
    row("b", "arithmetic", FIRST, SECOND),
    row("a", "arithmetic", SECOND),
    row("c", "state", FIRST, THIRD),
    row("d", "state", result=campaign.SURVIVOR),
    row("e", "state", result=campaign.EQUIVALENT),
    row("f", "rounding", result=campaign.WITHIN),
]


@pytest.fixture
def table(tmp_path: Path) -> mutation.Table:
    path = tmp_path / "mutation.json"
    write_matrix({(QUANT, "e4m3fn"): part(QUANT, mutation.suite_digest(CASES), "source", CASES, ROWS)}, path)
    return mutation.load(path)


def test_the_file_holds_what_is_no_equivalent_by_class_in_order(table: mutation.Table) -> None:
    matrix = table[QUANT, "e4m3fn"]
    assert matrix.mutants == {
        "arithmetic": (f"{QUANT}|a|always", f"{QUANT}|b|always"),
        "state": (f"{QUANT}|c|always", f"{QUANT}|d|always"),
    }
    assert (matrix.kills[FIRST], matrix.kills[SECOND], matrix.kills[THIRD]) == (0b0110, 0b0011, 0b0100)
    assert set(matrix.kills) == set(CASES)
    assert matrix.contract == CONTRACT


def test_the_score_is_that_of_the_cases_that_passed(table: mutation.Table) -> None:
    def score(*records: Record) -> dict[str, tuple[int, int]]:
        (one,) = mutation.measure(records, table)
        return dict(one.classes)

    assert score(of(FIRST)) == {"arithmetic": (1, 2), "state": (1, 2)}
    assert score(of(FIRST), of(SECOND)) == {"arithmetic": (2, 2), "state": (1, 2)}
    assert score(of(THIRD)) == {"arithmetic": (0, 2), "state": (1, 2)}
    assert score(of(THIRD), of(FIRST, Status.FAILED)) == {"arithmetic": (0, 2), "state": (1, 2)}
    assert score(of(THIRD), of(FIRST), of(FIRST, Status.FAILED)) == {"arithmetic": (0, 2), "state": (1, 2)}
    assert score(of(FIRST, Status.FAILED)) == {}


def test_the_sentence_in_full(table: mutation.Table) -> None:
    assert mutation.sentences([of(FIRST), of(SECOND)], table) == [
        f"mutation score of these cases: 75.0 % of 4 mutants of {QUANT} (arithmetic 2 of 2, state 1 of 2)"
    ]
    other = f"{QUANT}-m24-n520-fp16-e4m3fn-gaussian-s9"
    (text,) = mutation.sentences([of(FIRST), of(other)], table)
    assert text.endswith("; 1 of the 2 cases were not measured and add nothing")


def test_another_contract_is_named_and_one_with_wide_sets_has_no_number(table: mutation.Table) -> None:
    (text,) = mutation.sentences([of(FIRST, contract="eager")], table)
    assert text.endswith(f", measured under contract {CONTRACT} and not eager")
    wide = (comparison("codes", single=100),)
    assert mutation.sentences([of(FIRST, contract="eager", comparisons=wide)], table) == [
        f"mutation score: not measured for these cases of {QUANT}"
    ]


def without_number(records: list[Record], table: mutation.Table) -> bool:
    (text,) = mutation.sentences(records, table)
    assert text == f"mutation score: not measured for these cases of {QUANT}"
    return not any(one.classes for one in mutation.measure(records, table))


def test_there_is_no_number_without_a_measurement_of_this_suite(table: mutation.Table, tmp_path: Path) -> None:
    assert without_number([of(FIRST)], {})
    assert without_number([of(FIRST)], mutation.load(tmp_path / "none.json"))
    other = dataclasses.replace(table[QUANT, "e4m3fn"], suite="0123456789abcdef")
    assert without_number([of(FIRST)], {(QUANT, "e4m3fn"): other})
    foreign = FIRST.replace("e4m3fn", "e4m3fnuz")
    assert without_number([of(foreign)], table), "the matrix of the other format does not count"
    assert without_number([of(f"{QUANT}-m24-n520-bf16-e4m3fn-gaussian-s77")], table)


def test_the_digest_is_of_the_suite_that_a_run_has() -> None:
    for fp8 in FP8_FORMATS:
        ids = [case.id for case in cases_for(QUANT, fp8=fp8)]
        assert mutation._suite(QUANT, fp8) == mutation.suite_digest(ids) == mutation.suite_digest(reversed(ids))
        assert harness.header(QUANT, "default", fp8, 0)["cases"] == mutation.suite_digest(ids)


def test_kernels_of_other_worth_have_lines_of_their_own(table: mutation.Table) -> None:
    both = [of(FIRST), of(FIRST, kernel="other")]
    assert len(mutation.sentences(both, table)) == 1
    assert [t.split(":")[0] for t in mutation.sentences([*both, of(SECOND)], table)] == ["k", "other"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 1}', '{"schema": 9}', '{"schema": 1, "ops": {"a": 3}}'])
def test_a_table_that_cannot_be_read_is_one_sentence(tmp_path: Path, content: str) -> None:
    path = tmp_path / "mutation.json"
    path.write_text(content)
    with pytest.raises(mutation.MutationError) as error:
        mutation.load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_parts_are_replaced_and_others_stay(table: mutation.Table, tmp_path: Path) -> None:
    path = tmp_path / "mutation.json"
    write_matrix({(QUANT, "e4m3fnuz"): part(QUANT, "suite", "source", [FIRST], [row("c", "state", FIRST)])}, path)
    kept = json.loads(path.read_text())["ops"][QUANT]
    assert set(kept) == set(FP8_FORMATS)
    assert kept["e4m3fnuz"]["mutants"] == {"state": [f"{QUANT}|c|always"]}


def test_the_facts_of_a_decision_say_it(table: mutation.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutation, "load", lambda: table)
    found = dict(facts.of([of(FIRST), of(SECOND)]).rows())
    assert found["mutation score"] == f"75.0 % of 4 mutants of {QUANT} (arithmetic 2 of 2, state 1 of 2)"
    monkeypatch.setattr(mutation, "load", dict)
    assert dict(facts.of([of(FIRST)]).rows())["mutation score"] == f"not measured for these cases of {QUANT}"


def test_run_says_it(
    table: mutation.Table, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = ["--kernel", f"{QUANT}=emulated/eager", "--device", "cpu", "--records", str(tmp_path / "records")]
    monkeypatch.setattr(mutation, "load", lambda: table)
    assert main(["run", *options, "--case", FIRST]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("mutation score"))
    assert line.startswith(f"mutation score of these cases: 50.0 % of 4 mutants of {QUANT} (")
    assert line.endswith(f", measured under contract {CONTRACT} and not eager")


def test_a_run_of_the_harness_holds_each_case_that_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a run that goes on from kept lines writes the same file."""
    small = [case for case in cases_for(QUANT, depth="smoke") if case.m * case.n < 20_000]
    for module in (harness, campaign):
        monkeypatch.setattr(module, "cases_for", lambda op, **options: small)
    campaign.suite_of.cache_clear()
    out = tmp_path / "mutation.json"
    arguments = ["--matrix", "--op", QUANT, "--fp8", "e4m3fn", "--limit", "8", "--guarded", "0", "--out", str(out)]
    try:
        assert harness.main(arguments) == 0
        matrix = mutation.load(out)[QUANT, "e4m3fn"]
        assert set(matrix.kills) == {case.id for case in small}
        ids = [(kind, text) for kind, names in matrix.mutants.items() for text in names]
        assert [kind for kind, _ in ids] == sorted((kind for kind, _ in ids), key=KINDS.index)
        for case in small:
            ready = Ready(build(case), case.id)
            killed = [bool(try_case(find(text), ready).killed) for _, text in ids]
            assert [bool(matrix.kills[case.id] >> i & 1) for i in range(len(ids))] == killed
        whole, lines = out.read_bytes(), mutation_matrix.rows_path(out, QUANT, "e4m3fn")
        assert sum(matrix.kills.values()) > 0
        lines.write_bytes(b"".join(lines.read_bytes().splitlines(keepends=True)[:4]))
        out.unlink()
        assert harness.main(arguments) == 0
        assert out.read_bytes() == whole
    finally:
        campaign.suite_of.cache_clear()


def test_the_harness_refuses_a_matrix_of_one_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more in (["--class", "state", "--out", str(tmp_path / "m.json")], []):
        with pytest.raises(SystemExit) as ended:
            harness.main(["--matrix", *more])
        assert ended.value.code == 2
        assert "--matrix needs --out FILE" in capsys.readouterr().err


@pytest.mark.skipif(not mutation.TABLE.exists(), reason="no matrix has been measured: data/mutation.json is not there")
def test_measuring_again_gives_the_recorded_bits() -> None:
    """A slice: some mutants on some small cases of every matrix."""
    asked = 0
    for (op, fp8), matrix in mutation.load().items():
        known = {case.id for case in cases_for(op, fp8=fp8)}
        small = sorted(
            (Case.parse(text) for text in matrix.kills if text in known), key=lambda c: c.m * c.n * (c.k or 1)
        )
        ids = [text for names in matrix.mutants.values() for text in names]
        for case in small[: len(small) // 2 : 17]:
            ready = Ready(build(case), case.id)
            for i in range(0, len(ids), 211):
                assert bool(try_case(find(ids[i]), ready).killed) == bool(matrix.kills[case.id] >> i & 1), (
                    case.id,
                    ids[i],
                )
                asked += 1
    assert asked > 100
