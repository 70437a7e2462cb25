"""Which mutant fails on which case: the file behind the mutation score of a sign-off.

``python -m tests.benchmarks.mutation --matrix --workers 16 --out validators/signoff/data/mutation.json`` runs each
mutant on every case of default depth whose calls can meet its guard, for every op and both FP8 formats, and writes the
file whose form ``validators.signoff.mutation`` states. A mutant that no case kills is run on the large sample of its
guard as in any run: only those with a violation there count. ``FILE.rows/OP-FP8.jsonl`` holds one line per mutant; the
same command goes on from them after a stop, and a part (``--op``, ``--fp8``) replaces its part of the file alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.mutants import CONTRACTS, Mutant, campaign, find
from tests.mutants.operator import KINDS
from tests.mutants.trial import try_case
from validators.signoff.mutation import SCHEMA

COUNTED = (campaign.KILLED, campaign.SURVIVOR)


def rows_path(out: Path, op: str, fp8: str) -> Path:
    """Where the lines of one part of the file are kept."""
    return out.with_name(out.name + ".rows") / f"{op}-{fp8}.jsonl"


def row(mutant: Mutant, suite: campaign.Suite) -> dict[str, Any]:
    """The mutant's finding, with ``kills``: the ids of all cases that kill it."""
    start, changed, met = time.perf_counter(), False, 0
    kills: dict[str, str] = {}
    for case in suite.cases:
        ready = suite.ready(case)
        if not ready.may_meet(mutant):
            continue
        met += 1
        found = try_case(mutant, ready)
        changed |= found.changed
        if found.killed:
            kills[case.id] = found.killed
    if not kills:
        return {**asdict(suite.survived(mutant, changed, met, start)), "kills": []}
    case_id, by = next(iter(kills.items()))
    seconds = time.perf_counter() - start
    finding = campaign.Finding(mutant.id, mutant.kind, campaign.KILLED, by, case_id, met=met, seconds=seconds)
    return {**asdict(finding), "kills": list(kills)}


def row_by_id(identity: str, depth: str, fp8: str) -> dict[str, Any]:
    """What a worker process does for one mutant."""
    mutant = find(identity)
    return row(mutant, campaign.suite_of(mutant.op, depth, fp8))


def part(op: str, suite: str, source: str, cases: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """One op and FP8 format of the file. suite, source: digests. cases: ids of the suite. rows: as ``row`` gives them,
    in any order."""
    counted = [r for r in rows if r["result"] in COUNTED]
    mutants = {kind: sorted(r["id"] for r in counted if r["kind"] == kind) for kind in KINDS}
    place = {text: i for i, text in enumerate(text for ids in mutants.values() for text in ids)}
    bits = dict.fromkeys(cases, 0)
    for r in counted:
        for case in r["kills"]:
            bits[case] |= 1 << place[r["id"]]
    return {
        "suite": suite,
        "source": source,
        "contract": CONTRACTS[op],
        "mutants": {kind: ids for kind, ids in mutants.items() if ids},
        "cases": {case.removeprefix(f"{op}-"): f"{number:x}" for case, number in sorted(bits.items())},
    }


def write_matrix(parts: Mapping[tuple[str, str], Mapping[str, Any]], path: Path) -> None:
    """Writes the parts by (op, FP8 format); other parts that the file has stay."""
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["ops"] if path.exists() else {}
    for (op, fp8), content in parts.items():
        known.setdefault(op, {})[fp8] = content
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"schema": SCHEMA, "ops": known}, indent=0, sort_keys=False)
    path.write_text(text + "\n", encoding="utf-8")
