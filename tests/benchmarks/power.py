"""Detection power: which defects of the zoo the suite's own cases catch, in which lane, with which explanation.

``python -m tests.benchmarks.power --depth smoke --write DIR`` runs every defect over ``cases_for`` of its op, the
cheapest case first, until one fails; the cases that a defect names as revealing are not used. A kernel is run in the
FP8 format that its machine has, so a defect that the first format cannot show is tried in the other as well, and the
table says in which it was caught.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests import zoo
from validators.cases.case import Case
from validators.cases.recipes import lane_of
from validators.cases.suite import cases_for
from validators.records.record import Record, Status
from validators.run import validate
from validators.words import DEPTHS, FP8_FORMATS, LANES, OPS

CAUGHT = (Status.FAILED, Status.NONDETERMINISTIC)

# What must come first in a record's explanations, where that is not the defect's own name.
_EXPLANATIONS = {
    "N20": ("poison:",),
    "Q20": ("poison:",),
    "Q21": ("guards:",),
    "N22": ("inputs unchanged:",),
    "G09": ("poison:",),
    "G14": ("poison:",),
    "G15": ("poison:",),
    "G16": ("poison:",),
    "G21": ("run to run",),
    # The last row of one row keeps the buffer's bytes.
    "Q23": ("stale-last-scale", "poison:"),
}


def accepted_explanations(defect: zoo.Defect) -> tuple[str, ...]:
    """Prefixes of a first explanation that name the defect; a guarded one keeps its defect's."""
    return _EXPLANATIONS.get(defect.id, (defect.name.split("-when-")[0] + ":",))


def first_explanation(record: Record) -> str:
    """The record's first explanation, or its first reason: run to run differences are their own explanation."""
    return next(iter((*(e.text for e in record.explanations), *record.reasons)), "")


def well_explained(defect: zoo.Defect, record: Record) -> bool:
    """Does the record name the defect in the first place?"""
    return first_explanation(record).startswith(accepted_explanations(defect))


@dataclass(frozen=True)
class Finding:
    """What happened to one defect: the case and lane that caught it, or "". lanes: every lane that catches it."""

    defect: str
    name: str
    op: str
    case: str
    lane: str
    status: str
    fp8: str
    tried: int
    explanation: str
    explained: bool
    lanes: tuple[str, ...] = ()

    @property
    def caught(self) -> bool:
        """Did a case fail?"""
        return bool(self.case)


def cost(case: Case) -> int:
    """Elements that a validation touches, for the order of cases; operands count for a GEMM."""
    if case.op == "ptpc_gemm":
        return case.m * case.n + (case.m + case.n) * case.k + case.m * case.n * case.k // 64
    return case.m * case.n


ENOUGH = 1 << 12
"""Cases of fewer elements come last: one row, or 16 products, show that something is wrong and not what."""


def suite_cases(op: str, depth: str) -> list[Case]:
    """Cases of the suite, cheapest first, tiny ones last; those of the other FP8 format after those of e4m3fn."""
    found: dict[str, Case] = {}
    for fp8 in FP8_FORMATS:
        for case in sorted(cases_for(op, depth=depth, fp8=fp8), key=lambda c: (cost(c) < ENOUGH or c.m < 16, cost(c))):
            found.setdefault(case.id, case)
    return list(found.values())


def try_defect(defect: zoo.Defect, cases: Iterable[Case], device: str = "cpu") -> Finding:
    """Validate the defect's kernel on the cases until one catches it."""
    tried = 0
    for case in cases:
        record = validate(defect.kernel, case, device=device)
        tried += record.status is not Status.UNSUPPORTED
        if record.status in CAUGHT:
            return Finding(
                defect.id,
                defect.name,
                defect.op,
                case.id,
                lane_of(case),
                record.status.value,
                case.fp8,
                tried,
                first_explanation(record),
                well_explained(defect, record),
            )
    return Finding(defect.id, defect.name, defect.op, "", "", "", "", tried, "", False)


def catching_lanes(defect: zoo.Defect, cases: Sequence[Case], device: str = "cpu") -> tuple[str, ...]:
    """Every lane in which some case catches the defect."""
    by_lane = {lane: [case for case in cases if lane_of(case) == lane] for lane in LANES}
    return tuple(lane for lane, own in by_lane.items() if own and try_defect(defect, own, device).caught)


def measure(depth: str, *, lanes: bool = False, device: str = "cpu", echo: bool = True) -> list[Finding]:
    """A finding for every defect of the zoo, in the order of the catalogue."""
    suites = {op: suite_cases(op, depth) for op in OPS}
    found = []
    for defect in zoo.all_defects():
        cases = suites[defect.op]
        finding = try_defect(defect, cases, device)
        if lanes:
            own = [case for case in cases if not finding.caught or case.fp8 == finding.fp8]
            finding = Finding(**{**asdict(finding), "lanes": catching_lanes(defect, own, device)})
        found.append(finding)
        if echo:
            where = (
                f"{finding.case} [{finding.explanation[:60]}]" if finding.caught else f"MISSED ({finding.tried} cases)"
            )
            print(f"{defect.id:4} {defect.name:30} {where}", flush=True)
    return found


def summary(findings: Sequence[Finding], depth: str, seconds: float) -> dict[str, object]:
    """Counts over the zoo; "alone": defects that only one lane catches, where lanes were asked for."""
    caught = [f for f in findings if f.caught]
    return {
        "depth": depth,
        "defects": len(findings),
        "caught": len(caught),
        "explained_first": sum(f.explained for f in caught),
        "other_format_only": [f.defect for f in caught if f.fp8 == FP8_FORMATS[1]],
        "missed": [f.defect for f in findings if not f.caught],
        "unexplained": {f.defect: f.explanation for f in caught if not f.explained},
        "alone": {lane: own for lane in LANES if (own := [f.defect for f in findings if f.lanes == (lane,)])},
        "seconds": round(seconds, 1),
    }


def markdown(findings: Sequence[Finding], numbers: dict[str, object]) -> str:
    """The table as Markdown."""
    lines = [
        f"Depth {numbers['depth']}: {numbers['caught']} of {numbers['defects']} defects caught, "
        f"{numbers['explained_first']} with the right explanation first.",
        "",
        "| defect | name | caught by | lane | lanes | first explanation |",
        "|---|---|---|---|---|---|",
    ]
    for f in findings:
        explanation = ("" if f.explained or not f.caught else "**other:** ") + f.explanation.replace("|", "\\|")[:100]
        lines.append(
            f"| {f.defect} | {f.name} | {f.case or '**missed**'} | {f.lane} | {' '.join(f.lanes)} | {explanation} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 if a defect is missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.power", description=__doc__)
    parser.add_argument("--depth", choices=DEPTHS, default="smoke")
    parser.add_argument("--lanes", action="store_true", help="find every lane that catches each defect")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--write", type=Path, metavar="DIR", help="write power-DEPTH.md and power-DEPTH.json there")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    findings = measure(options.depth, lanes=options.lanes, device=options.device)
    numbers = summary(findings, options.depth, time.perf_counter() - start)
    print(json.dumps(numbers, indent=2))
    if options.write:
        options.write.mkdir(parents=True, exist_ok=True)
        stem = options.write / f"power-{options.depth}"
        stem.with_suffix(".md").write_text(markdown(findings, numbers))
        rows = {**numbers, "findings": [asdict(f) for f in findings]}
        stem.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
    return 1 if numbers["missed"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
