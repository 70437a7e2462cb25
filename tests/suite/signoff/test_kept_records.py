"""The records that the repository keeps (docs/records) give the decisions, counts and numbers that were kept with them.

They were made by schema 1 and kept in a compact form, one line for each case; each line is made a record of that
schema again and goes through the reader.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from validators.records.record import Record
from validators.records.store import from_json
from validators.signoff.decision import Signoff, decide

KEPT = Path(__file__).resolve().parents[3] / "docs" / "records"
REAL = KEPT / "real-h200"
Json = dict[str, Any]


def numbers(line: Json) -> Json:
    """The comparison of all outputs together: a kept line has the sums."""
    counts = {name: line[name] for name in ("judged", "single", "unspecified", "violations")}
    left = {"output": "out", "worst_use": 0.5, "worst_use_passing": 0.5, "where": "", "rows": 0, "cols": 0}
    return {**counts, **left, "elements": line["judged"] + line["unspecified"]}


def version1(head: Json, line: Json) -> Record:
    """The record of one kept line, read as a line of schema 1."""
    about = {name: head[name] for name in ("commit", "dirty", "python", "torch", "gpu", "kernel_versions", "date")}
    record = {
        "schema": 1,
        **{name: head[name] for name in ("kernel", "op", "contract", "contract_from", "arch")},
        **{name: line[name] for name in ("case", "lane", "status")},
        "device": "cuda",
        "reasons": line.get("reasons", []),
        "comparisons": [numbers(line)] if "judged" in line else [],
        "checks": [{"name": "poison", "ok": True, "detail": "no byte of poison is left"}],
        "provenance": about,
    }
    return from_json(json.dumps(record))


@pytest.fixture(scope="module")
def records() -> list[Record]:
    found = []
    for path in sorted(REAL.glob("*.jsonl")):
        if path.stem != "findings":
            head, *lines = map(json.loads, path.read_text("utf-8").splitlines())
            found += [version1(head, line) for line in lines]
    return found


@pytest.fixture(scope="module")
def decided(records: list[Record]) -> Signoff:
    return decide(records)


KEPT_DECISION: Json = json.loads((REAL / "signoff.json").read_text("utf-8"))
by_kernel = pytest.mark.parametrize("kept", KEPT_DECISION["claims"], ids=lambda c: c["kernel"])


def test_the_kept_decision_is_made_again(decided: Signoff) -> None:
    assert (decided.decision, decided.outcome) == (KEPT_DECISION["decision"], KEPT_DECISION["outcome"])
    assert decided.exit_code == KEPT_DECISION["exit_code"] == 0
    assert KEPT_DECISION["schema"] == 1, "a decision of version 1 is read here"
    assert {c.kernel for c in decided.claims} == {c["kernel"] for c in KEPT_DECISION["claims"]}


@by_kernel
def test_every_claim_has_the_kept_numbers(decided: Signoff, kept: Json) -> None:
    (claim,) = [c for c in decided.claims if c.kernel == kept["kernel"]]
    # The records hold every case of the default depth of their day. Today's has every pair of features as well, and a
    # decision calls no less by its name: it says how many cases there were.
    assert (claim.depth, kept["depth"]) == ("", "default")
    assert claim.decision == kept["decision"].replace("at default depth", f"on {kept['records']} chosen cases only")
    assert (claim.op, claim.contract, claim.arch) == (kept["op"], kept["contract"], kept["arch"])
    assert {lane: dict(cell) for lane, cell in claim.cells.items()} == kept["lanes"]
    assert (len(claim.records), len(claim.failing)) == (kept["records"], 0)
    wanted = kept["facts"]
    assert claim.facts.strength == wanted["strength"]
    for name in ("contracts", "commits", "torch", "devices", "sources", "limits", "qualifiers"):
        assert list(getattr(claim.facts, name)) == wanted[name], name
    # Version 1 named the shapes of the cases that passed, which promised too much.
    assert [text.split(" (")[0] for text in claim.facts.defects] == [text.split(" (")[0] for text in wanted["defects"]]


def test_the_finding_of_padded_rows_is_not_signed() -> None:
    lines = [json.loads(text) for text in (KEPT / "padded-rows-h200.jsonl").read_text("utf-8").splitlines()]
    found = [version1(line, line) for line in lines]
    assert [r.comparisons[0].violations for r in found] == [5279, 5279]
    assert (decide(found).decision, decide(found).exit_code) == ("NOT SIGNED", 1)
