"""A path of demo kernels that passes every stage, bare or with evidence as strong as any policy asks; its ruling."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import Any

from tests.support.made import record
from validators.records.evidence import Evaluation, Golden, Launches, WalkEvidence
from validators.records.record import Check, Record, Status
from validators.records.store import Sink
from validators.signoff import depths, policy
from validators.signoff.claims import Target
from validators.signoff.policy import Policy, Requirement
from validators.signoff.ruling import Ruling, rule
from validators.words import STAGES

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples" / "claims"
NORM, QUANT, GEMM = "add_rmsnorm_quant", "per_token_quant", "ptpc_gemm"
KERNELS = {NORM: ("demo/norm",), QUANT: ("demo/quant",), GEMM: ("demo/gemm",)}
TARGET = Target("the demo path", "cpu", KERNELS)
SMOKE = Policy("smoke", "", (Requirement("ops", depth="smoke"),))
EVERY = Policy("every", "", tuple(Requirement(s, depth="smoke") if s == "ops" else Requirement(s) for s in STAGES))
LATER = datetime.date(2999, 1, 1)


def made(op: str, case: str, lane: str, status: Status = Status.PASSED, **changes: Any) -> Record:
    return record(status, **{"op": op, "case": case, "lane": lane, "kernel": KERNELS[op][0], **changes})


def ops(depth: str = "smoke", **changes: Any) -> list[Record]:
    """A PASSED record of every case of a depth."""
    return [
        made(op, case, lane, **changes)
        for op in KERNELS
        for lane, cases in depths.lanes(op, depth, "e4m3fn").items()
        for case in cases
    ]


def whole(lane: str, status: Status = Status.PASSED, **changes: Any) -> Record:
    op = {"parity": "gsm8k_parity"}.get(lane, lane)
    fields: dict[str, object] = {
        "op": op,
        "lane": lane,
        "case": f"{lane}-1",
        "kernel": "demo/norm",
        "comparisons": (),
        "checks": (Check("accuracy", status is Status.PASSED, "as before", "statistical"),),
    }
    return record(status, **{**fields, **changes})


def path() -> list[Record]:
    """Every stage of the demo path, PASSED."""
    layers = [made(op, f"layers-glm-tiny-l00-{op}", "layers") for op in KERNELS]
    layers.append(made(NORM, "layers-glm-tiny-trajectory", "layers"))
    goldens = [made(op, f"{op}-golden", "goldens", golden=Golden("", "UNCHANGED")) for op in KERNELS]
    return [*ops(), *layers, *goldens, whole("parity"), whole("trace")]


def ruled(records: list[Record], chosen: Policy = EVERY, target: Target = TARGET) -> Ruling:
    return rule(target, chosen, records, "records")


CONTRACT = "aiter-hip-gfx950"
EMBEDDED = policy.QUESTION_SETS["embedded"][0]
STRICT = Policy(
    "strict",
    "",
    (
        Requirement("ops", depth="smoke"),
        Requirement("layers", layers="all", margin=0.5, tokens=64),
        Requirement("goldens"),
        Requirement("trace", layers="all"),
        Requirement("parity", margin=1.5, data=("embedded", "gsm8k-test"), questions=1319, tokens=10_000),
    ),
)
WALK = WalkEvidence(
    model="glm-tiny",
    layers=(0, 1, 2, 3),
    of=4,
    tokens=256,
    margin=0.5,
    walk="a1",
    records={NORM: 1, QUANT: 1, GEMM: 1},
)
PARITY = Evaluation(
    rule="non-inferiority",
    margin=1.5,
    alpha=0.05,
    questions=1319,
    data="synthetic held-out",
    data_sha256=EMBEDDED,
    tokens=30_000,
    kernels={op: name for op, (name,) in KERNELS.items()},
)


def with_evidence(r: Record, **changes: Any) -> Record:
    """The record with all that a strict policy asks, but for ``changes``."""
    if r.stage == "layers":
        return dataclasses.replace(r, walk=dataclasses.replace(WALK, **changes))
    if r.stage == "parity":
        return dataclasses.replace(r, evaluation=dataclasses.replace(PARITY, **changes))
    if r.stage == "trace":
        return dataclasses.replace(r, launches=dataclasses.replace(Launches(92), **changes))
    return r


def strong() -> list[Record]:
    return [with_evidence(r) for r in path()]


def strictly(records: list[Record], chosen: Policy = STRICT) -> Ruling:
    return rule(TARGET, chosen, records, "records")


def weaker(lane: str, **changes: Any) -> Ruling:
    return strictly([with_evidence(r, **changes) if r.lane == lane else r for r in strong()])


def why(ruling: Ruling, stage: str) -> str:
    return next(c.why[0] for c in ruling.cells if c.stage == stage and c.why)


def write_records(directory: Path, records: list[Record]) -> Path:
    with Sink(directory) as sink:
        for r in records:
            sink.write(r)
    return directory


def golden(place: int, state: str) -> Record:
    """One of several goldens of one kernel; the case is one that the suite has as well."""
    about = Golden(f"{place}@demo/norm@cpu", state)
    said = Check("golden", True if state == "UNCHANGED" else None, "codes: 3 elements differ", "determinism")
    return made(NORM, f"{NORM}-golden-{place}", "goldens", golden=about, checks=(said,))
