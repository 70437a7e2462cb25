"""The suspicions: each case tells the suspected defect from its absence, and the document says what to run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from reference.contract import get_contract
from tests.benchmarks.truncation import markdown, table
from tests.studies.suspicions import Suspicion, suspicions
from validators.calls.call import call
from validators.cases.case import Case
from validators.cases.inputs import build
from validators.cases.suite import find
from validators.judge.compare import compare
from validators.kernels.registry import all_kernels, find_kernel
from validators.records.command_line import split_op
from validators.records.record import Record, Status
from validators.run import validate

ROOT = Path(__file__).resolve().parents[3]
DOCUMENT = (ROOT / "docs" / "suspicions.md").read_text(encoding="utf-8")
ALL = suspicions()
every_one = pytest.mark.parametrize("suspicion", ALL, ids=[f"{s.id}-{s.title[:30]}" for s in ALL])
PLACEHOLDER = "my_module:group_of_n"


def judged(suspicion: Suspicion, *, innocent: bool = False, contract: str | None = None) -> Record:
    kernel = suspicion.innocent if innocent else suspicion.kernel
    return validate(kernel, Case.parse(suspicion.case), contract=contract or suspicion.contract)


def words(record: Record) -> str:
    return "\n".join((*record.reasons, *(e.text for e in record.explanations)))


def section(identity: str) -> str:
    found = re.search(rf"^## {identity}$(.*?)(?=^## |\Z)", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert found, f"docs/suspicions.md has no section {identity}"
    return found[1]


def commands(text: str) -> list[list[str]]:
    return [shlex.split(line) for line in text.splitlines() if line.startswith("python -m validators run")]


@every_one
def test_the_case_settles_it(suspicion: Suspicion) -> None:
    record = judged(suspicion)
    assert record.status is suspicion.status, record.reasons
    assert suspicion.evidence in words(record)
    clean = judged(suspicion, innocent=True)
    assert clean.status is Status.PASSED, clean.reasons
    assert not clean.explanations


def test_every_suspicion_of_the_list_is_there() -> None:
    assert list(dict.fromkeys(s.id for s in ALL)) == [f"L{i}" for i in range(1, 11)]
    assert re.findall(r"^## (\w+)$", DOCUMENT, re.MULTILINE) == [f"L{i}" for i in range(1, 11)]
    assert re.findall(r"^\| (L\d+) \|", DOCUMENT, re.MULTILINE) == [f"L{i}" for i in range(1, 11)]


@every_one
def test_the_document_runs_its_case(suspicion: Suspicion) -> None:
    text = section(suspicion.id)
    run = {argument for command in commands(text) for argument in command}
    assert (suspicion.hardware_case or suspicion.case) in run
    assert suspicion.case in text
    for phrase in ("Confirmed if", "Refuted if"):
        assert phrase in text


@pytest.mark.parametrize("command", commands(DOCUMENT), ids=" ".join)
def test_every_command_could_run(command: list[str]) -> None:
    """Its case can be built, and its kernel and contract exist for the case's op."""
    options = dict(zip(command[4::2], command[5::2], strict=True))
    case = find([options["--case"]])[0]
    op, name = split_op(options["--kernel"])
    if name != PLACEHOLDER:
        kernel = find_kernel(name, case.op)
        assert kernel.op == case.op
        assert op in (None, case.op)
        assert ":" in name or kernel.name in {k.name for k in all_kernels()}
        if ":" in name:
            assert op
            # Without a GPU the sentence says so; the adapter itself must take the case.
            assert kernel.unavailable("cpu")
            assert kernel.contract
    if "--contract" in options:
        assert get_contract(case.op, options["--contract"])


def test_l1_passes_where_truncation_is_declared() -> None:
    record = judged(ALL[0], contract="aiter-hip-gfx942")
    assert record.status is Status.PASSED
    assert words(judged(ALL[0])).count("residual-truncated") == 1


def test_l4_fails_in_the_rows_with_nan_and_nowhere_else() -> None:
    """What the contract asks of the other rows must not catch an honest kernel of another arithmetic."""
    suspicion = next(s for s in ALL if s.id == "L4")
    own = judged(suspicion, contract="aiter-hip-gfx950")
    assert own.status is Status.PASSED
    assert all("NaN or Inf in the row: finite scale" in c.observed for c in own.comparisons if c.output == "scale")
    unspecified = next(c.unspecified for c in own.comparisons if c.output == "scale")
    held = next(c for c in judged(suspicion).comparisons if c.output == "scale")
    assert 0 < held.violations <= unspecified
    assert held.nonfinite["missing"] == held.violations


def test_l5_has_few_rows_past_the_wrap() -> None:
    suspicion = next(s for s in ALL if s.id == "L5")
    case = Case.parse(suspicion.hardware_case)
    assert (case.m - 8) * case.n == 2**32


def test_l9_fits_neither_rule() -> None:
    """A kernel that follows one of the two rules throughout passes under it, so only the mixture fails under both."""
    suspicion = next(s for s in ALL if s.id == "L9")
    inputs = build(Case.parse(suspicion.case))
    outputs, _, _ = call(suspicion.kernel, inputs, 0x7F)
    for contract in ("aiter-hip-gfx950", "aiter-triton"):
        found = compare(inputs, outputs, get_contract("add_rmsnorm_quant", contract))
        failing = {c.output for c in found if c.violations}
        assert {"scale", "codes"} <= failing, contract
    stored = validate(find_kernel("emulated/aiter-triton", "add_rmsnorm_quant"), Case.parse(suspicion.case))
    assert stored.status is Status.PASSED


def test_the_cost_of_truncation_is_as_documented() -> None:
    found = table()
    assert markdown(found) in DOCUMENT
    nearest, cut = found[-2:]
    assert (nearest.adds, cut.adds) == (184, 184)
    # The losses of one direction add up, those of both directions mostly do not.
    assert cut.error > 10 * nearest.error
    assert cut.shrink > 10 * abs(nearest.shrink)


def test_the_document_claims_nothing_that_was_not_seen() -> None:
    assert "None has been confirmed on hardware" in DOCUMENT.replace("**", "")
