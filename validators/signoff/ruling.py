"""The decision about a named claim under a policy: SIGNED, NOT SIGNED with the shortest list of reasons, or UNTESTED.

Every cell (stage, op, kernel, lane) that the policy requires is looked up in the records that count for the claim.
Something wrong anywhere in those records makes it NOT SIGNED, required or not. Without anything wrong, a cell that
nobody has filled makes it UNTESTED, with the command that would fill it and the machine to run it on.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from validators.records import text
from validators.records.record import Record, Status
from validators.signoff import depths, evidence, facts, judged, ruling_words, stages
from validators.signoff.claims import ClaimError, Target
from validators.signoff.depths import lanes
from validators.signoff.facts import Facts
from validators.signoff.policy import ANY, Policy, Requirement, Waiver
from validators.signoff.ruling_words import Cell
from validators.signoff.stages import Step, is_truth
from validators.words import DEPTHS, FP8_FORMATS, FUSED, LANES, OPS, PATH, native_fp8

SIGNED, NOT_SIGNED = "SIGNED", "NOT SIGNED"
PASSED, FAILED, NO_EVIDENCE, WAIVED, UNTESTED = "PASSED", "FAILED", "NO EVIDENCE", "WAIVED", "UNTESTED"
"""States of a cell. NO EVIDENCE: it ran, and nothing PASSED, or a required case is UNSUPPORTED in silence, or a
required check was judged in no case."""


@dataclass(frozen=True)
class Ruling:
    """The decision about one claim. records: those that counted. excluded: (why, number of records) that did not.

    steps: what to run for the cells that are UNTESTED. facts: what a reader should know with the decision.
    unrequired: parts of the claim that the policy asks nothing of, in words.
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
    facts: Facts
    unrequired: tuple[str, ...] = ()

    @property
    def decision(self) -> str:
        """``NOT SIGNED``, ``UNTESTED``, or ``SIGNED`` with all that it is signed under: ``SIGNED with 1 waiver in
        emulation only, with no case of ptpc_gemm required, within declared limits: n % 16 == 0``."""
        if self.outcome != SIGNED:
            return self.outcome
        used = len({cell.waiver for cell in self.cells if cell.waiver})
        words = [f"with {used} waiver{'s' if used > 1 else ''}"] if used else []
        words += ["in emulation only"] if self.emulated else []
        return facts.signed_words(words, [*self.unrequired, *self.facts.qualifiers])

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
    """Decide about the claim by those of ``records`` (all there are, doubles excluded) that count for it.

    Raises ClaimError where claim and policy do not fit.
    """
    mine, excluded = _counting(target, records)
    own = [r for r in mine if ":" in r.kernel]
    mine += [
        r
        for r in records
        if own
        and judged.in_the_way(r)
        and r.arch in (target.arch, "", "unknown")
        and not target.names(r)
        and target.refuses(r) is None
        and judged.same_function(r, own)
    ]
    return decide(target, policy, mine, records_dir, excluded)


def decide(
    target: Target,
    policy: Policy,
    mine: Sequence[Record],
    records_dir: str = "",
    excluded: Mapping[str, int] | None = None,
) -> Ruling:
    """The ruling by the records ``mine``, all of which count. Raises ClaimError where claim and policy do not fit."""
    cells: list[Cell] = []
    for requirement in policy.require:
        if requirement.concerns(target.arch):
            cells += _cells(requirement, target, mine)
    if not cells:
        raise ClaimError(f"policy {policy.name} requires nothing of claim {target.name!r} on {target.arch}.")
    cells = [_waive(cell, policy, target) for cell in cells]
    records_dir = records_dir or f"records/{target.arch}"
    reasons = ruling_words.reasons(cells, mine)
    open_cells = [cell for cell in cells if cell.state == UNTESTED]
    steps = tuple(_steps(target, cells, mine, records_dir))
    incomplete = UNTESTED if policy.patient else NOT_SIGNED
    outcome = NOT_SIGNED if reasons else (incomplete if open_cells else SIGNED)
    if open_cells:
        reasons.append(f"UNTESTED: {ruling_words.untested(cells)}.")
    ops = [r for r in mine if r.op in OPS] or mine
    emulated = [r.emulated or r.kernel.startswith("emulated/") for r in ops]
    return Ruling(
        target,
        policy,
        tuple(cells),
        tuple(reasons),
        steps,
        tuple(mine),
        tuple((excluded or {}).items()),
        outcome,
        emulated=bool(ops) and (any if target.one_path else all)(emulated),
        facts=facts.of(mine, _without_goldens(policy, target)),
        unrequired=(*_extent(target, cells, mine), *_unrequired(target, cells)),
    )


def depth_of(target: Target, records: Sequence[Record]) -> str:
    """The deepest depth of the suite whose cases of the claim's op all ran, or ""."""
    ran = {r.case for r in records if r.status is not Status.UNTESTED}
    return next((found for op in target.kernels if (found := depths.reached(op, target.arch or "cpu", ran))), "")


def _extent(target: Target, cells: Sequence[Cell], mine: Sequence[Record]) -> Iterator[str]:
    """Where no policy says which cases are enough, the decision says which there were."""
    if any(cell.depth == ANY for cell in cells):
        depth, cases = depth_of(target, mine), {r.case for r in mine if r.lane in LANES}
        yield f"at {depth} depth" if depth else f"on {len(cases)} chosen case{'' if len(cases) == 1 else 's'} only"


def _without_goldens(policy: Policy, target: Target) -> Iterator[str]:
    """What a policy asks of every kernel and nobody can give for one's own."""
    asked = [r for r in policy.require if r.stage == "goldens" and r.concerns(target.arch)]
    own = [
        k
        for op, names in target.kernels.items()
        for k in names
        if not stages.may_have_goldens(k) and any(op in (r.ops or OPS) for r in asked)
    ]
    if own:
        yield f"No golden is asked of {', '.join(dict.fromkeys(own))}: bits of a kernel of one's own are not kept here."


def _unrequired(target: Target, cells: Sequence[Cell]) -> Iterator[str]:
    """Ops whose kernels nobody asked to be held to their admissible sets, and lanes that a policy leaves out."""
    formats = FP8_FORMATS if target.arch == "cpu" else (native_fp8(target.arch),)
    for op in target.kernels:
        if op not in OPS:
            continue
        asked = {c.lane for c in cells if (c.stage, c.op) == ("ops", op)}
        every = list(lanes(op, "default", formats[0]))
        if not asked:
            yield f"with no case of {op} required"
        elif left := [lane for lane in text.lane_order(every) if lane not in asked]:
            yield f"without lane{'s' if len(left) > 1 else ''} {', '.join(left)} of {op}"


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
    if requirement.depth == ANY:
        yield from _whatever_ran(target, mine)
        return
    here = [r for r in mine if r.stage == stage and not is_truth(r)]
    ops = [op for op in (requirement.ops or OPS) if op in target.kernels]
    if stage in ("parity", "trace"):
        yield _strong(requirement, target, "", "", here)
        return
    if stage == "layers":
        ops = [op for op in ops if op in PATH]
    for op in ops:
        of_op = [r for r in here if r.op == op]
        if stage == "ops":
            for kernel in target.kernels[op]:
                yield from _lanes_of(requirement, target, op, kernel, [r for r in of_op if r.kernel == kernel])
            continue
        kernels = [k for k in target.kernels[op] if stage != "goldens" or stages.may_have_goldens(k)]
        if not kernels:
            continue
        # Of a whole machine one path through the layers shows the ops in a model, and each golden its own kernel.
        kernel = kernels[0] if target.one_path else ""
        yield _strong(requirement, target, op, kernel, of_op)


def _whatever_ran(target: Target, mine: Sequence[Record]) -> Iterator[Cell]:
    """The lanes that hold cases of the op, or the stage of the whole path; then every other lane or stage that ran."""
    formats = FP8_FORMATS if target.arch == "cpu" else (native_fp8(target.arch),)
    for op, (kernel, *_) in target.kernels.items():
        required = {r.lane for r in mine} if op not in OPS else set(lanes(op, "default", formats[0]))
        for lane in text.lane_order([*required, *(r.lane for r in mine)]):
            here = [r for r in mine if r.lane == lane]
            if stage := next((r.stage for r in here if r.stage != "ops"), ""):
                cell = _whole(stage, op, kernel, here)
            else:
                cell = _whole("ops", op, kernel, here, lane=lane, depth=ANY)
            if lane in required or any(r.status is not Status.UNTESTED for r in here):
                yield cell


def _strong(requirement: Requirement, target: Target, op: str, kernel: str, records: Sequence[Record]) -> Cell:
    """The cell of a stage of the whole path, or of one op in it, by the records that are strong enough."""
    weak, strong = evidence.weak_and_strong(requirement, target, records)
    cell = _whole(requirement.stage, op, kernel, strong)
    if cell.state in (UNTESTED, NO_EVIDENCE) and weak:
        said = evidence.sentence(requirement, target, weak)
        return dataclasses.replace(cell, state=UNTESTED, why=(said,), counts=judged.counts_of(records))
    if requirement.stage == "layers" and cell.state == PASSED:
        if op == FUSED and not any(r.subject == "path" for r in strong):
            return dataclasses.replace(cell, state=UNTESTED, why=("the error against depth was not judged",))
        if missing := evidence.missing_of_walk(op, strong):
            return dataclasses.replace(cell, state=UNTESTED, why=(missing,))
    return cell


def _lanes_of(
    requirement: Requirement, target: Target, op: str, kernel: str, records: Sequence[Record]
) -> Iterator[Cell]:
    # A GPU has one FP8 format; on a CPU either is as good.
    formats = FP8_FORMATS if target.arch == "cpu" else (native_fp8(target.arch),)
    deep_enough = DEPTHS[DEPTHS.index(requirement.depth) :]
    known = [lanes(op, depth, fp8) for depth in deep_enough for fp8 in formats]
    unjudged = judged.never_judged(records)
    made = {check.name for r in records for check in r.checks}
    for lane in requirement.lanes or tuple(known[0]):
        if lane not in known[0]:
            continue  # e.g. the exact lane, which the norm has not
        here = [r for r in records if r.lane == lane]
        ran = {r.case for r in here if r.status is not Status.UNTESTED and r.arch == target.arch}
        # A deeper run is as good, although it does not hold every case of a shallower one.
        absent = min(([c for c in cases.get(lane, ()) if c not in ran] for cases in known), key=len)
        cell = _whole("ops", op, kernel, here, lane=lane, depth=requirement.depth)
        if cell.state == PASSED and absent:
            total = len(known[0][lane])
            words = f"{len(absent)} of {total} cases of depth {requirement.depth} have no record, first {absent[0]}"
            cell = dataclasses.replace(cell, state=UNTESTED, why=(words,))
        wanting = next((name for name in requirement.checks if name in unjudged or name not in made), None)
        if cell.state == PASSED and wanting:
            words = f"the policy asks for {wanting}, which was judged in no case"
            words += f" ({unjudged[wanting].detail})" if wanting in unjudged else ""
            cell = dataclasses.replace(cell, state=NO_EVIDENCE, why=(words,))
        yield cell


def _whole(stage: str, op: str, kernel: str, records: Sequence[Record], *, lane: str = "", depth: str = "") -> Cell:
    counts = judged.counts_of(records)
    bad = [r for r in records if judged.in_the_way(r)]
    silent = [r for r in records if r.status is Status.UNSUPPORTED and not any(map(str.strip, r.reasons))]
    why: tuple[str, ...] = ()
    if bad:
        said = text.one_line(bad[0])
        if judged.label(bad[0]) == judged.DRIFTED:
            said = f"{judged.counts_text(counts)}; first {bad[0].case}: {ruling_words.said(bad[0])}"
        elif problem := judged.inconsistency(bad[0]):
            said = f"the record of {bad[0].case} says {bad[0].status.value} and {problem}"
        state, why = FAILED, (said,)
    elif not any(count for name, count in counts.items() if name != Status.UNTESTED.value):
        state, why = UNTESTED, ("nothing ran",)
    elif silent:
        state, why = NO_EVIDENCE, (f"{len(silent)} cases UNSUPPORTED without a reason, first {silent[0].case}",)
    elif not counts[Status.PASSED.value] + counts[judged.UNCHANGED]:
        first = next(iter(r.reasons[0] for r in records if r.status is Status.UNSUPPORTED), "")
        state, why = NO_EVIDENCE, (f"no case PASSED ({judged.counts_text(counts)}): {first}",)
    elif judged.empty_alone(records):
        state, why = NO_EVIDENCE, (f"only cases without a row PASSED ({judged.counts_text(counts)})",)
    elif counts[Status.UNTESTED.value] and stage != "goldens":
        left = sorted(r.case for r in records if r.status is Status.UNTESTED)
        state, why = UNTESTED, (f"{len(left)} cases UNTESTED, first {left[0]}",)
    else:
        state = PASSED
    return Cell(stage, op, kernel, lane, state, counts, why, depth)


def _waive(cell: Cell, policy: Policy, target: Target) -> Cell:
    if cell.state == PASSED:
        return cell
    for waiver in policy.waivers:
        if waiver.matches(cell.stage, cell.op, cell.lane, cell.kernel or target.norm, target.arch):
            return dataclasses.replace(cell, state=WAIVED, waiver=waiver)
    return cell


# ---- what to run for what is UNTESTED


def _steps(target: Target, cells: Sequence[Cell], mine: Sequence[Record], records_dir: str) -> Iterator[Step]:
    left = [c for c in cells if c.state == UNTESTED]
    for op, kernel in dict.fromkeys((c.op, c.kernel) for c in left if c.stage == "ops"):
        same = [c for c in cells if (c.stage, c.op, c.kernel) == ("ops", op, kernel)]
        names = [c.lane for c in same if c.state == UNTESTED]
        like = next((r for r in mine if (r.op, r.kernel) == (op, kernel) and r.contract), None)
        yield stages.ops_step(target, op, kernel, names, len(names) == len(same), same[0].depth, like, records_dir)
    empty = {c.stage for c in left}
    if "layers" in empty:
        judged_by = {r.op: str(r.contract) for r in mine if r.op in OPS and r.contract_from == "given" and r.contract}
        given = {op: judged_by[op] for op in OPS if op in judged_by and target.one_path}
        yield stages.layers_step(target, records_dir, given)
    if "goldens" in empty:
        here = [c for c in left if c.stage == "goldens"]
        every = (k for c in here for k in ((c.kernel,) if c.kernel else target.kernels[c.op]))
        names = list(dict.fromkeys(k for k in every if stages.may_have_goldens(k)))
        yield stages.goldens_step(target, names, records_dir)
    if "parity" in empty:
        yield stages.parity_step(target, records_dir)
    if "trace" in empty:
        yield stages.trace_step(target, records_dir)
