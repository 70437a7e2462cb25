"""The decision about a named claim under a policy: SIGNED, NOT SIGNED with the shortest list of reasons, or UNTESTED.

Every cell (stage, op, kernel, lane) that the policy requires is looked up in the records that count for the claim.
Something wrong anywhere in those records makes it NOT SIGNED, required or not. Without anything wrong, a cell that
nobody has filled makes it UNTESTED, with the command that would fill it and the machine to run it on.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from validators import report, stages
from validators.claims import OPS, ClaimError, Target
from validators.depths import DEPTHS, FP8_FORMATS, lanes, native_fp8
from validators.judged import BAD, contradictions, inconsistency
from validators.policy import Policy, Requirement, Waiver
from validators.records import Record, Status
from validators.stages import Step, is_truth, stage_of

SIGNED, NOT_SIGNED, UNTESTED = "SIGNED", "NOT SIGNED", "UNTESTED"
PASSED, FAILED, NO_EVIDENCE, WAIVED = "PASSED", "FAILED", "NO EVIDENCE", "WAIVED"
"""States of a cell besides UNTESTED. NO EVIDENCE: it ran, and nothing PASSED or a required case is UNSUPPORTED in
silence."""

_MOST_CAUSES = 2
_MOST_QUOTED = 240  # characters; the page has the whole sentence


@dataclass(frozen=True)
class Cell:
    """One thing that a policy requires and what the records say. why: sentences, empty for PASSED.

    op, kernel and lane are "" where they do not apply: parity and trace belong to the whole path.
    """

    stage: str
    op: str
    kernel: str
    lane: str
    state: str
    counts: Counter[Status]
    why: tuple[str, ...] = ()
    depth: str = ""
    waiver: Waiver | None = None


@dataclass(frozen=True)
class Ruling:
    """The decision about one claim. records: those that counted. excluded: (why, number of records) that did not.

    steps: what to run for the cells that are UNTESTED. waived: cells with a waiver, in words.
    """

    target: Target
    policy: Policy
    cells: tuple[Cell, ...]
    reasons: tuple[str, ...]
    steps: tuple[Step, ...]
    records: tuple[Record, ...]
    excluded: tuple[tuple[str, int], ...]
    outcome: str
    emulated: bool

    @property
    def decision(self) -> str:
        """``SIGNED``, ``SIGNED in emulation only``, ``SIGNED with 2 waivers``, ``NOT SIGNED`` or ``UNTESTED``."""
        if self.outcome != SIGNED:
            return self.outcome
        used = len({cell.waiver for cell in self.cells if cell.waiver})
        words = [f"with {used} waiver{'s' if used > 1 else ''}"] if used else []
        words += ["in emulation only"] if self.emulated else []
        return " ".join([SIGNED, *words])

    @property
    def untested(self) -> tuple[Cell, ...]:
        """Cells that nobody has filled."""
        return tuple(cell for cell in self.cells if cell.state == UNTESTED)

    @property
    def waived(self) -> tuple[str, ...]:
        """A sentence for each waiver in use, with the number of its cells."""
        used = Counter(cell.waiver.sentence() for cell in self.cells if cell.waiver)
        return tuple(f"{count} cell{'s' if count > 1 else ''} {sentence}" for sentence, count in used.items())


def rule(target: Target, policy: Policy, records: Sequence[Record], records_dir: str = "") -> Ruling:
    """Decide. ``records``: all there are, doubles excluded. Raises ClaimError where claim and policy do not fit."""
    mine, excluded = _counting(target, records)
    cells: list[Cell] = []
    for requirement in policy.require:
        if requirement.concerns(target.arch):
            cells += _cells(requirement, target, mine)
    if not cells:
        raise ClaimError(f"policy {policy.name} requires nothing of claim {target.name!r} on {target.arch}.")
    cells = [_waive(cell, policy, target) for cell in cells]
    records_dir = records_dir or f"records/{target.arch}"
    reasons = _reasons(target, cells, mine)
    open_cells = [cell for cell in cells if cell.state == UNTESTED]
    steps = tuple(_steps(target, cells, mine, records_dir))
    outcome = NOT_SIGNED if reasons else (UNTESTED if open_cells else SIGNED)
    if open_cells:
        reasons.append(f"UNTESTED: {_untested_words(target, cells)}.")
    ops = [r for r in mine if r.op in OPS]
    return Ruling(
        target, policy, tuple(cells), tuple(reasons), steps, tuple(mine), tuple(excluded.items()), outcome,
        emulated=bool(ops) and (any if target.one_path else all)(r.emulated for r in ops),
    )  # fmt: skip


def unused_waivers(policy: Policy, rulings: Sequence[Ruling]) -> list[Waiver]:
    """Waivers that no cell of any claim needed: an error, because nobody would notice what they cover next."""
    used = {cell.waiver for ruling in rulings for cell in ruling.cells}
    return [waiver for waiver in policy.waivers if waiver not in used]


def _counting(target: Target, records: Sequence[Record]) -> tuple[list[Record], Counter[str]]:
    mine: list[Record] = []
    truth: list[Record] = []
    excluded: Counter[str] = Counter()
    for record in records:
        if is_truth(record):
            truth.append(record)
        elif target.names(record):
            why = target.refuses(record)
            if why is None:
                mine.append(record)
            else:
                excluded[f"{record.kernel}: {why}"] += 1
    # Whether the truth has moved matters only to those that were held to it.
    return (mine + truth if mine else []), excluded


def _cells(requirement: Requirement, target: Target, mine: Sequence[Record]) -> Iterator[Cell]:
    stage = requirement.stage
    here = [_as_golden(r) for r in mine if stage_of(r) == stage and not is_truth(r)]
    ops = [op for op in (requirement.ops or OPS) if op in target.kernels]
    if stage in ("parity", "trace"):
        yield _whole(stage, "", "", here)
        return
    for op in ops:
        of_op = [r for r in here if r.op == op]
        if stage == "ops":
            for kernel in target.kernels[op]:
                yield from _lanes_of(requirement, target, op, kernel, [r for r in of_op if r.kernel == kernel])
        elif target.one_path:
            kernel = target.kernels[op][0]
            # A kernel of the user's own has no golden: nobody else could check it.
            if not (stage == "goldens" and ":" in kernel):
                yield _whole(stage, op, kernel, of_op)
        else:
            # A whole machine: one path through the layers shows the ops in a model, and each golden its own kernel.
            yield _whole(stage, op, "", of_op)


def _lanes_of(
    requirement: Requirement, target: Target, op: str, kernel: str, records: Sequence[Record]
) -> Iterator[Cell]:
    # A GPU has one FP8 format; on a CPU either is as good.
    formats = FP8_FORMATS if target.arch == "cpu" else (native_fp8(target.arch),)
    depths = DEPTHS[DEPTHS.index(requirement.depth) :]
    known = [lanes(op, depth, fp8) for depth in depths for fp8 in formats]
    for lane in requirement.lanes or tuple(known[0]):
        if lane not in known[0]:
            continue  # e.g. the exact lane, which the norm has not
        here = [r for r in records if r.lane == lane]
        ran = {r.case for r in here if r.status is not Status.UNTESTED}
        # A deeper run is as good, although it does not hold every case of a shallower one.
        absent = min(([c for c in cases.get(lane, ()) if c not in ran] for cases in known), key=len)
        cell = _whole("ops", op, kernel, here, lane=lane, depth=requirement.depth)
        if cell.state == PASSED and absent:
            total = len(known[0][lane])
            words = f"{len(absent)} of {total} cases of depth {requirement.depth} have no record, first {absent[0]}"
            cell = dataclasses.replace(cell, state=UNTESTED, why=(words,))
        yield cell


def _whole(
    stage: str, op: str, kernel: str, records: Sequence[Record], *, lane: str = "", depth: str = ""
) -> Cell:  # fmt: skip
    counts = Counter(status for _, status in {((r.kernel, r.case), r.status) for r in records})
    bad = [r for r in records if r.status in BAD or inconsistency(r) or _drifted(r)]
    silent = [r for r in records if r.status is Status.UNSUPPORTED and not any(map(str.strip, r.reasons))]
    why: tuple[str, ...] = ()
    if bad:
        state, why = FAILED, (report.one_line(bad[0]),)
    elif not any(counts[s] for s in Status if s is not Status.UNTESTED):
        state, why = UNTESTED, ("nothing ran",)
    elif silent:
        state, why = NO_EVIDENCE, (f"{len(silent)} cases UNSUPPORTED without a reason, first {silent[0].case}",)
    elif not counts[Status.PASSED]:
        first = next(iter(r.reasons[0] for r in records if r.status is Status.UNSUPPORTED), "")
        state, why = NO_EVIDENCE, (f"no case PASSED ({report.counts_text(counts)}): {first}",)
    elif stage == "layers" and op == "add_rmsnorm_quant" and not any(map(_is_trajectory, records)):
        state, why = UNTESTED, ("the error against depth was not judged",)
    elif counts[Status.UNTESTED] and stage != "goldens":
        left = sorted(r.case for r in records if r.status is Status.UNTESTED)
        state, why = UNTESTED, (f"{len(left)} cases UNTESTED, first {left[0]}",)
    else:
        state = PASSED
    return Cell(stage, op, kernel, lane, state, counts, why, depth)


def _is_trajectory(record: Record) -> bool:
    """Whether the record judges a walk as a whole; it is written last."""
    return record.case.startswith("layers-") and record.case.endswith("-trajectory")


def _as_golden(record: Record) -> Record:
    """A golden with other bits, on a CPU that is not the recorded one, shows nothing; its outputs are admissible."""
    about = record.provenance.get("golden")
    untested = isinstance(about, dict) and about.get("state") in ("UNTESTED", "MISSING")
    return dataclasses.replace(record, status=Status.UNTESTED) if untested else record


def _drifted(record: Record) -> bool:
    """A golden whose bits are others than accepted: admissible perhaps, and for a person to accept first."""
    about = record.provenance.get("golden")
    return isinstance(about, dict) and about.get("state") == "DRIFTED"


def _waive(cell: Cell, policy: Policy, target: Target) -> Cell:
    if cell.state == PASSED:
        return cell
    for waiver in policy.waivers:
        if waiver.matches(cell.stage, cell.op, cell.lane, cell.kernel or target.norm, target.arch):
            return dataclasses.replace(cell, state=WAIVED, waiver=waiver)
    return cell


# ---- the shortest list of reasons


def _reasons(target: Target, cells: Sequence[Cell], mine: Sequence[Record]) -> list[str]:
    """One sentence a cause: first what failed, by kernel, then contradictions, then what gave no evidence."""
    waived = {(c.stage, c.op, c.kernel, c.lane) for c in cells if c.waiver}

    def counts(record: Record) -> bool:
        stage = stage_of(record)
        op, lane = (record.op if record.op in OPS else ""), (record.lane if stage == "ops" else "")
        return not any((stage, op, kernel, lane) in waived for kernel in (record.kernel, ""))

    wrong = [r for r in mine if counts(r) and (r.status in BAD or inconsistency(r) or _drifted(r))]
    by_kernel: dict[tuple[str, str], list[Record]] = {}
    for record in wrong:
        by_kernel.setdefault((record.op, record.kernel), []).append(record)
    found = [_failure(op, kernel, group, mine) for (op, kernel), group in by_kernel.items()]
    clashes = contradictions([r for r in mine if counts(r) and not is_truth(r)])
    found += clashes[:1]
    if len(clashes) > 1:
        found[-1] = f"{clashes[0]} {len(clashes) - 1} more cases contradict each other."
    for cell in cells:
        if cell.state == NO_EVIDENCE:
            found.append(f"{cell_name(cell)}: {cell.why[0]}.")
    return found


def _failure(op: str, kernel: str, group: Sequence[Record], mine: Sequence[Record]) -> str:
    """``add_rmsnorm_quant of K: FAILED in 12 of 60 cases (ops: random, shapes; layers). Explained by NAME: ...``."""
    every = {r.case for r in mine if (r.op, r.kernel) == (op, kernel)}
    cases = {r.case for r in group}
    lanes_hit: dict[str, dict[str, None]] = {}
    for r in group:
        lanes_hit.setdefault(stage_of(r), {})[r.lane] = None
    places = [
        f"ops: {', '.join(report.lane_order(names))}" if stage == "ops" else stage for stage, names in lanes_hit.items()
    ]
    statuses = " and ".join(dict.fromkeys("DRIFTED" if r.status is Status.PASSED and _drifted(r) else
                            "PASSED against its own numbers" if r.status is Status.PASSED else r.status.value
                            for r in sorted(group, key=lambda r: list(Status).index(r.status))))  # fmt: skip
    of = f"{op if op in OPS else stage_of(group[0])} of {kernel}"
    text = f"{of}: {statuses} in {len(cases)} of {len(every)} cases ({'; '.join(places)})."
    causes = Counter(cause for r in group if (cause := cause_of(r)))
    for cause, count in causes.most_common(_MOST_CAUSES):
        sentence = next(_about(r) for r in group if cause_of(r) == cause)
        text += f" {count if count < len(group) else 'All'} explained by {cause}: {sentence}."
    if not causes:
        first = group[0]
        problem = inconsistency(first)
        said = f"says PASSED and {problem}" if problem else _said(first)
        text += f" First {first.case}: {said}."
    return text


def cause_of(record: Record) -> str:
    """The name of the record's first explanation (``tail-not-in-amax``, ``poison``), or ""."""
    if record.op not in OPS:
        return ""
    first = next(iter((*record.explanations, *record.reasons)), "")
    name, colon, _ = first.partition(":")
    return (
        name
        if colon and len(name) <= 60 and (record.explanations or " " not in name or _is_check(record, name))
        else ""
    )


def _is_check(record: Record, name: str) -> bool:
    return any(check.name == name for check in record.checks)


def _about(record: Record) -> str:
    return next(iter((*record.explanations, *record.reasons)), "").partition(":")[2].strip().rstrip(".")


def _said(record: Record) -> str:
    if _drifted(record) and record.status is Status.PASSED:
        check = next((c for c in record.checks if c.name == "golden"), None)
        return check.detail.rstrip(".") if check else "other bits than accepted"
    if record.reasons and not record.comparisons:
        said = record.reasons[0].rstrip(".")
        return said if len(said) <= _MOST_QUOTED else f"{said[: _MOST_QUOTED - 1]}…"
    return report.headline(record).rstrip(".")


def cell_name(cell: Cell) -> str:
    """``ops random of K``, ``parity``."""
    return " ".join(x for x in (cell.stage, cell.lane, f"of {cell.kernel}" if cell.kernel else cell.op) if x)


def _untested_words(target: Target, cells: Sequence[Cell]) -> str:
    """``ops of A (every lane) and of B (model); layers; parity``."""
    words: list[str] = []
    for stage in dict.fromkeys(cell.stage for cell in cells):
        here = [c for c in cells if c.stage == stage]
        left = [c for c in here if c.state == UNTESTED]
        if not left:
            continue
        if stage != "ops" or len(left) == len(here):
            words.append(stage)
            continue
        parts = []
        for key in dict.fromkeys((c.op, c.kernel) for c in left):
            names = [c.lane for c in left if (c.op, c.kernel) == key]
            every = len(names) == sum((c.op, c.kernel) == key for c in here)
            parts.append(f"of {key[1]} ({'every lane' if every else ', '.join(names)})")
        words.append(f"ops {' and '.join(parts)}")
    return "; ".join(words)


def _steps(
    target: Target, cells: Sequence[Cell], mine: Sequence[Record], records_dir: str
) -> Iterator[Step]:  # fmt: skip
    left = [c for c in cells if c.state == UNTESTED]
    for op, kernel in dict.fromkeys((c.op, c.kernel) for c in left if c.stage == "ops"):
        same = [c for c in cells if (c.stage, c.op, c.kernel) == ("ops", op, kernel)]
        names = [c.lane for c in same if c.state == UNTESTED]
        like = next((r for r in mine if (r.op, r.kernel) == (op, kernel) and r.contract), None)
        yield stages.ops_step(target, op, kernel, names, len(names) == len(same), same[0].depth, like, records_dir)
    empty = {c.stage for c in left}
    if "layers" in empty:
        yield stages.layers_step(target, records_dir)
    if "goldens" in empty:
        here = [c for c in left if c.stage == "goldens"]
        names = list(dict.fromkeys(k for c in here for k in ((c.kernel,) if c.kernel else target.kernels[c.op])))
        yield stages.goldens_step(target, names, records_dir)
    if "parity" in empty:
        yield stages.parity_step(target, records_dir)
    if "trace" in empty:
        yield stages.trace_step(target, records_dir)
