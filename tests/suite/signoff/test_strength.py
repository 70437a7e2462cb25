"""The strength sentence, and that the table behind it is what the zoo and the cases give today."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from reference.contract import NORM_QUANT_CONTRACTS, get_contract
from tests import zoo
from tests.benchmarks.strength import declared_fields, representatives, row
from validators.__main__ import main
from validators.calls.call import run_kernel
from validators.cases.case import Case
from validators.cases.suite import cases_for
from validators.judge.compare import compare
from validators.records.record import Record, Status
from validators.signoff import strength
from validators.signoff.strength import (
    DECLARED,
    Row,
    StrengthError,
    Table,
    caught_by,
    load,
    measure,
    not_defects,
    sentences,
    stands_for,
)
from validators.words import OPS

TABLE = load()
ADD = "add_rmsnorm_quant"
# A slice of the table is measured again: every so manieth row, so that all ops, formats and options have their turn.
EVERY = 53


def record(case: Case, status: Status = Status.PASSED, kernel: str = "k", contract: str = "aiter-hip-gfx950") -> Record:
    return Record(
        status=status,
        reasons=(),
        kernel=kernel,
        op=case.op,
        case=case.id,
        lane="random",
        contract=contract,
        contract_from="declared",
        device="cpu",
        arch="cpu",
    )


def passed(op: str, **options: str) -> list[Record]:
    return [record(case) for case in cases_for(op, depth="smoke", **options)]


# ---- the table is not stale


def test_the_table_names_the_defects_of_the_zoo() -> None:
    assert set(TABLE.defects) == set(OPS)
    for op in OPS:
        assert TABLE.defects[op] == {d.id: d.name for d in zoo.all_defects() if d.op == op}
        assert {d.kernel.contract for d in zoo.all_defects() if d.op == op} == {TABLE.contracts[op]}


@pytest.mark.parametrize("op", OPS)
def test_the_table_has_a_row_for_every_representative(op: str) -> None:
    assert [r.case.id for r in TABLE.rows[op]] == [case.id for case in representatives(op)]


@pytest.mark.parametrize("measured", [r for op in OPS for r in TABLE.rows[op]][::EVERY], ids=lambda r: r.case.id)
def test_measuring_again_gives_the_recorded_row(measured: Row) -> None:
    assert row(measured.case, zoo.all_defects()) == sorted(measured.catches)


def test_a_stale_row_would_be_seen() -> None:
    """The comparison above can fail: a defect that the case does not catch is not in what is measured."""
    measured = next(r for r in TABLE.rows[ADD] if set(TABLE.defects[ADD]) - r.catches)
    assert row(measured.case, zoo.all_defects()) != sorted(TABLE.defects[ADD])


@pytest.mark.parametrize("op", OPS)
def test_every_defect_is_caught_by_some_row(op: str) -> None:
    assert set().union(*(r.catches for r in TABLE.rows[op])) == set(TABLE.defects[op])


@pytest.mark.parametrize("identity", DECLARED)
def test_a_defect_that_a_contract_declares_is_right_under_it(identity: str) -> None:
    defect = zoo.find_defect(identity)
    contract = NORM_QUANT_CONTRACTS[zoo.NORM_CONTRACT]
    changed = contract.replace(**DECLARED[identity])
    claim = run_kernel(defect.kernel, Case.parse(defect.reveals[0]), "cpu")
    assert any(c.violations for c in compare(claim.inputs, claim.outputs, contract))
    assert not any(c.violations for c in compare(claim.inputs, claim.outputs, changed))


# ---- which case counts for which


def test_a_case_stands_for_the_rows_that_it_contains() -> None:
    base = Case(ADD, 24, 520, "gaussian")
    measured = Row(base, frozenset({"N01"}))
    larger = (
        base,
        dataclasses.replace(base, m=48),
        dataclasses.replace(base, n=1032),
        dataclasses.replace(base, seed=5),
    )
    assert all(stands_for(case, measured) for case in larger)
    others = [
        dataclasses.replace(base, m=23),
        dataclasses.replace(base, n=519),
        dataclasses.replace(base, recipe="model"),
        dataclasses.replace(base, fp8="e4m3fnuz"),
        dataclasses.replace(base, dtype="fp16"),
        dataclasses.replace(base, residual=False),
        dataclasses.replace(base, gemma=True),
        dataclasses.replace(base, layout="strided"),
        dataclasses.replace(base, eps="1e-6"),
        # n % 1024 == 0 hides what the row's width shows.
        dataclasses.replace(base, n=1024),
    ]
    assert not any(stands_for(case, measured) for case in others)


def test_ragged_rows_count_for_ragged_cases_only() -> None:
    odd = Row(Case(ADD, 9, 769, "shape_walk"), frozenset({"N08"}))
    assert stands_for(Case(ADD, 11, 801, "shape_walk"), odd)
    assert not stands_for(Case(ADD, 11, 800, "shape_walk"), odd)
    assert not stands_for(Case(ADD, 12, 801, "shape_walk"), odd)
    gemm = Row(Case("ptpc_gemm", 24, 48, "gaussian", k=176), frozenset({"G06"}))
    assert stands_for(Case("ptpc_gemm", 40, 80, "gaussian", k=336), dataclasses.replace(gemm))
    assert not stands_for(Case("ptpc_gemm", 40, 80, "gaussian", k=384), gemm)


# ---- the sentence


@pytest.mark.parametrize("op", OPS)
def test_the_smoke_suite_is_worth_nearly_all_defects(op: str) -> None:
    """As measured by the zoo's own test; those of the other FP8 format are beyond one format's suite."""
    (found,) = measure(passed(op))
    assert len(found.caught) + len(found.missed) == len(TABLE.defects[op])
    assert len(found.missed) <= 2
    assert found.unmeasured == 0


def test_the_sentence_in_full() -> None:
    # As on hardware of one FP8 format.
    native = [r for r in passed(ADD) if Case.parse(r.case).fp8 == "e4m3fn"]
    (found,) = measure(native)
    assert found.missed == ("Q02", "Q03")
    assert re.fullmatch(r"\d+ to \d+ rows, n \d+ to [\d,]+", found.shapes)
    assert sentences(native) == [
        f"{len(TABLE.defects[ADD]) - 2} of {len(TABLE.defects[ADD])} known defects of add_rmsnorm_quant fail on such "
        f"cases (measured at {found.shapes}, with the same features), which says nothing of defects elsewhere; "
        "not covered: Q02 qmax-of-fn-on-fnuz, Q03 qmax-of-fn-unclamped"
    ]


def test_a_case_that_did_not_pass_is_worth_nothing() -> None:
    records = passed(ADD)
    failed = [dataclasses.replace(r, status=Status.FAILED) if Case.parse(r.case).n % 8 else r for r in records]
    assert "N08" in measure(failed)[0].missed
    assert "N08" not in measure(records)[0].missed
    nothing = [dataclasses.replace(r, status=Status.FAILED) for r in records]
    assert sentences(nothing) == ["k: no case of add_rmsnorm_quant passed, so none shows a known defect"]


def test_what_a_contract_declares_is_no_defect_of_its_kernel() -> None:
    truncating = [dataclasses.replace(r, contract="aiter-hip-gfx942") for r in passed(ADD)]
    found = measure(truncating)[0]
    assert "N04" not in (*found.caught, *found.missed)
    assert len(found.caught) + len(found.missed) == len(TABLE.defects[ADD]) - 1


def test_the_table_says_what_the_contracts_say() -> None:
    """The decision reads the table in place of the reference: for every preset and every changed field the same."""
    assert TABLE.fields == declared_fields(OPS)
    for changes in DECLARED.values():
        for name, value in changes.items():
            changed = NORM_QUANT_CONTRACTS["vllm"].replace(**{name: value}).name
            contract = get_contract(ADD, changed)
            wanted = {i for i, fields in DECLARED.items() if any(getattr(contract, k) == v for k, v in fields.items())}
            assert not_defects(ADD, changed, TABLE) == wanted & set(TABLE.defects[ADD])


def test_kernels_that_passed_the_same_share_a_line_and_others_are_named() -> None:
    both = [*passed(ADD), *[dataclasses.replace(r, kernel="other") for r in passed(ADD)]]
    assert len(sentences(both)) == 1
    less = [*passed(ADD), *[dataclasses.replace(r, kernel="other") for r in passed(ADD)[:3]]]
    found = sentences(less)
    assert [line.split(":")[0] for line in found] == ["k", "other"]
    assert "and " in found[1]


def test_a_case_like_none_that_was_measured_is_said() -> None:
    far = record(Case(ADD, 3, 8, "gaussian"))
    (found,) = measure([far, *passed(ADD)])
    assert found.unmeasured == 1
    words = "add nothing to this, because no defect was measured at a shape like theirs"
    assert found.sentence().endswith(f"; 1 of the {found.passed} cases {words}")
    assert caught_by([Case(ADD, 3, 8, "gaussian")], TABLE) == frozenset()


def test_an_empty_table_covers_nothing() -> None:
    empty = Table(TABLE.defects, {}, TABLE.contracts)
    assert measure(passed(ADD), empty)[0].caught == ()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 1}', '{"schema": 99, "rows": {}}'])
def test_a_table_that_cannot_be_read_is_one_sentence(tmp_path: Path, content: str) -> None:
    path = tmp_path / "strength.json"
    path.write_text(content)
    with pytest.raises(StrengthError) as error:
        load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_row_of_a_case_that_cannot_be_is_refused(tmp_path: Path) -> None:
    data = json.loads(strength.TABLE.read_text())
    data["rows"][ADD] = {"nonsense": []}
    path = tmp_path / "strength.json"
    path.write_text(json.dumps(data))
    with pytest.raises(StrengthError, match="CaseError"):
        load(path)


def test_run_ends_with_the_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = "per_token_quant-m24-n520-bf16-e4m3fn-gaussian-s0"
    options = ["--kernel", "per_token_quant=emulated/eager", "--device", "cpu", "--case", case]
    assert main(["run", *options, "--records", str(tmp_path / "records")]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "known defects" in line)
    expected, known = len(caught_by([Case.parse(case)], TABLE)), len(TABLE.defects["per_token_quant"])
    assert line.startswith(f"{expected} of {known} known defects of per_token_quant fail on such cases (measured at ")
    assert 0 < expected < known
