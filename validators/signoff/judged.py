"""What a single record, or several of one case, say against themselves. Shared by both forms of sign-off."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence

from validators.records import verdict
from validators.records.command_line import of_op
from validators.records.record import Check, Comparison, Record, Status
from validators.signoff.claims import source_of
from validators.words import LANES, OPS

FAILING = (Status.FAILED, Status.NONDETERMINISTIC, Status.MISTRUSTED)
BAD = (*FAILING, Status.ERROR)
"""Statuses that prevent a signature."""

DRIFTED, UNCHANGED = "DRIFTED", "UNCHANGED"
"""What a golden is counted as, besides the statuses."""

_ORDER = (Status.PASSED.value, Status.FAILED.value, DRIFTED, *(s.value for s in Status), UNCHANGED)


# ---- counting


def golden_state(record: Record) -> str:
    """``UNCHANGED``, ``DRIFTED``, ``FAILED``, ``MISSING`` or ``UNTESTED`` of a golden's record; "" of any other."""
    return record.golden.state if record.golden else ""


def label(record: Record) -> str:
    """What the record is counted as, everywhere: its status, or of a golden whether its bits are as accepted.

    A golden that DRIFTED has outputs that are admissible (status PASSED), and bits that nobody has accepted. One with
    other bits on a CPU that is not the recorded one, and one whose kernel is not here, say nothing: UNTESTED.
    """
    state = golden_state(record)
    if state in ("UNTESTED", "MISSING") and record.status in (Status.PASSED, Status.UNTESTED):
        return Status.UNTESTED.value
    if record.status is Status.PASSED and state in (DRIFTED, UNCHANGED):
        return state
    return record.status.value


def drifted(record: Record) -> bool:
    """A golden whose bits are others than accepted: admissible perhaps, and for a person to accept first."""
    return golden_state(record) == DRIFTED


def counts_of(records: Iterable[Record]) -> Counter[str]:
    """Distinct cases by label; a case with several labels counts in each. Goldens count by their own id."""
    distinct = dict.fromkeys(((r.kernel, r.op, r.lane, _identity(r)), label(r)) for r in records)
    return Counter(what for _, what in distinct)


def _identity(record: Record) -> str:
    return record.golden.id if record.golden and record.golden.id else record.case


def counts_text(counts: Counter[str]) -> str:
    """``12 PASSED``; of goldens ``17 DRIFTED, 12 unchanged, 6 UNTESTED``; ``-`` for none."""
    names = [name for name in dict.fromkeys(_ORDER) if counts[name]]
    if counts[UNCHANGED] and counts[Status.UNTESTED.value]:
        names.sort(key=lambda name: name == Status.UNTESTED.value)
    return ", ".join(f"{counts[name]} {'unchanged' if name == UNCHANGED else name}" for name in names) or "-"


def empty_alone(records: Iterable[Record]) -> bool:
    """Whether all that PASSED are cases without a row, which have no element to be wrong: no evidence of any value."""
    passed = [r for r in records if r.status is Status.PASSED]
    return bool(passed) and all(r.comparisons and not any(c.elements for c in r.comparisons) for r in passed)


# ---- what prevents a signature


def in_the_way(record: Record) -> bool:
    """Whether the record alone forbids a signature."""
    return label(record) in (*BAD, DRIFTED) or drifted(record) or inconsistency(record) is not None


def inconsistency(record: Record) -> str | None:
    """What in a record's own fields says otherwise than its PASSED or UNSUPPORTED, or None."""
    if record.status is Status.UNSUPPORTED:
        return _hidden_failure(record)
    if record.status is not Status.PASSED:
        return None
    for c in record.comparisons:
        if c.violations > 0:
            return f"holds {c.violations:,} violations of {c.output}"
        if problem := _impossible(c):
            return problem
    for check in record.checks:
        if check.ok is False:
            return f"holds a check that failed ({check.name})"
    if not any(c.judged for c in record.comparisons) and not any(check.ok for check in record.checks):
        return "holds nothing that was judged"
    if record.reasons:
        return f"gives a reason why it did not ({record.reasons[0]})"
    if record.lane in LANES and record.op in OPS:
        return _own_case(record) or _own_verdict(record)
    return _wrong_device(record)


def _hidden_failure(record: Record) -> str | None:
    """A case that was run and judged is no case that the kernel does not offer."""
    for c in record.comparisons:
        if c.judged:
            return f"holds {c.judged:,} judged elements of {c.output}"
    failed = next((check.name for check in record.checks if check.ok is False), None)
    return f"holds a check that failed ({failed})" if failed else None


def _impossible(c: Comparison) -> str | None:
    numbers = (c.elements, c.judged, c.unspecified, c.violations, c.single, c.vacuous)
    if min(numbers) < 0 or c.single > c.judged or c.vacuous > c.judged or c.judged + c.unspecified > c.elements:
        return f"holds counts of {c.output} that cannot be"
    if math.isnan(c.worst_use) or math.isnan(c.worst_use_passing):
        return f"holds a NaN where the largest err/budget of {c.output} is meant"
    return None


def _own_case(record: Record) -> str | None:
    """Case, op, kernel and device must be those of the command that reproduces it."""
    if record.contract is None:
        return "names no contract that it was held to"
    if not record.case.startswith(f"{record.op}-"):
        return f"names a case of another op ({record.case})"
    try:
        words = shlex.split(record.reproduce)
    except ValueError:
        words = []
    for option, own in (("--kernel", record.kernel), ("--case", record.case)):
        said = words[words.index(option) + 1] if option in words[:-1] else own
        if said not in (own, of_op(record.op, own)):
            return f"is reproduced with {option} {said}"
    return _wrong_device(record)


def _wrong_device(record: Record) -> str | None:
    if record.device.startswith("amdgcn"):
        return f"was interpreted on a CPU, which is no {record.arch} hardware"
    on_cpu, known = record.device.startswith("cpu"), record.device.startswith(("cpu", "cuda"))
    if known and record.arch not in ("", "unknown", "any") and on_cpu != (record.arch == "cpu"):
        return f"ran on {record.device}, which is no {record.arch}"
    return None


def _own_verdict(record: Record) -> str | None:
    """The status that the numbers amount to, decided again."""
    status, reasons = verdict.decide(record.comparisons, record.checks)
    return None if status is Status.PASSED else f"holds numbers that amount to {status.value} ({reasons[0]})"


def contradictions(records: Sequence[Record]) -> list[str]:
    """Cases that PASSED and also did not: no later record silently replaces an earlier one."""
    by_case: dict[tuple[str, str, str, str], list[Record]] = {}
    for record in records:
        by_case.setdefault((record.kernel, record.op, record.lane, record.case), []).append(record)
    found = []
    for (*_, case), group in by_case.items():
        bad = [r for r in group if r.status in BAD]
        good = [r for r in group if r.status is Status.PASSED]
        if bad and good:
            found.append(
                f"Contradiction: {case} is PASSED in {len(good)} records ({_origin(good)}) and "
                f"{bad[0].status.value} in {len(bad)} ({_origin(bad)}); "
                "sign off from records of one run once it is understood."
            )
    return found


def commits(records: Sequence[Record]) -> str:
    """The commits that made the records, short, in the order first seen."""
    names = dict.fromkeys((r.provenance.commit or "unknown")[:10] for r in records)
    return ", ".join(names)


def _origin(records: Sequence[Record]) -> str:
    hosts = dict.fromkeys(r.provenance.host for r in records if r.provenance.host)
    return f"commit {commits(records)}" + (f" on {', '.join(hosts)}" if hosts else "")


# ---- which kernel it was


def same_function(record: Record, others: Sequence[Record]) -> bool:
    """Whether the record is of the function and source of one of ``others``, whatever path was typed for its file."""
    name, digest = record.kernel.rpartition(":")[2], source_of(record)
    if ":" not in record.kernel or not digest:
        return False
    return any((r.kernel.rpartition(":")[2], r.op, source_of(r)) == (name, record.op, digest) for r in others)


def two_kernels(kernel: str, records: Sequence[Record]) -> str | None:
    """A sentence where records of one name come from several sources, or versions of the library, or None.

    Only what ran the kernel itself counts: a trace and a served evaluation are about an engine, whose kernel they
    cannot look into. Versions clash where two records give one library two; a record that was made before the library
    was loaded may not name it.
    """
    ran = [r for r in records if r.status is not Status.UNTESTED and (r.op in OPS or source_of(r))]
    sources = Counter(source_of(r)[:12] for r in ran)
    if ":" in kernel or any(sources.keys()):
        return _clash(kernel, "of its source", sources, "--source DIGEST") if len(sources) > 1 else None
    by_library: dict[str, Counter[str]] = {}
    for r in ran:
        for library, version in r.provenance.kernel_versions.items():
            by_library.setdefault(library, Counter())[version] += 1
    several = {library: found for library, found in by_library.items() if len(found) > 1}
    if not several:
        return None
    library, found = next(iter(several.items()))
    return _clash(kernel, f"of {library}", found, f"--version {library}=PATTERN")


def _clash(kernel: str, what: str, found: Counter[str], which: str) -> str:
    parts = "; ".join(f"{count} of {name or 'an unrecorded one'}" for name, count in found.items())
    return (
        f"The records of {kernel} come from {len(found)} versions {what} ({parts}): these are {len(found)} kernels "
        f"under one name. Sign from records of one run, or say which with {which}."
    )


def identified_sentences(records: Sequence[Record]) -> list[str]:
    """``K declares no contract; its outputs follow eager+amax_floor=1e-10, which they were judged by``.

    One sentence for each kernel and op whose contract was found from its outputs.
    """
    found: dict[tuple[str, str], dict[str, None]] = {}
    for r in records:
        if r.op in OPS and r.contract and r.contract_from == "identified":
            found.setdefault((r.kernel, r.op), {})[r.contract] = None
    return [
        f"{kernel} declares no contract; its outputs follow {' and '.join(names)}, which they were judged by"
        for (kernel, _), names in found.items()
    ]


# ---- checks that nothing was held to


_SAYS = ("raised", "", "nothing")
"""``Check.unjudged``, what says the most first."""


def _says(check: Check) -> int:
    return _SAYS.index(check.unjudged)


def never_judged(records: Sequence[Record]) -> dict[str, Check]:
    """Checks that were made and judged in no case: name -> the check that says the most about why.

    Of several reasons the first that says the most: a kernel that could not be run again, a contract that leaves the
    check open, cases that have nothing to compare with.
    """
    seen: dict[str, Check] = {}
    judged: set[str] = set()
    for r in records:
        for check in r.checks if r.lane in LANES else ():
            if check.ok is None:
                seen[check.name] = min(seen.get(check.name, check), check, key=_says)
            else:
                judged.add(check.name)
    return {name: why for name, why in seen.items() if name not in judged}


def never_judged_sentences(records: Sequence[Record]) -> list[str]:
    """``batch invariance was judged in no case of OP by K (not judged, for row 0 alone: the kernel raised ...)``.

    One sentence for each kernel. A contract may leave a check open; then it was made, nothing was held to it, and the
    reason names the contract.
    """
    found = []
    for op, kernel in dict.fromkeys((r.op, r.kernel) for r in records if r.op in OPS):
        own = [r for r in records if (r.op, r.kernel) == (op, kernel)]
        left = never_judged(own)
        if left:
            names = " and ".join(filter(None, [", ".join(list(left)[:-1]), list(left)[-1]]))
            first = min(left.values(), key=_says)
            why = first.detail.rstrip(".")
            contracts = list(dict.fromkeys(r.contract for r in own if r.contract))
            if not first.unjudged:
                why = f"contract {contracts[0]} does not promise it" if len(contracts) == 1 else ""
            verb = "were" if len(left) > 1 else "was"
            found.append(f"{names} {verb} judged in no case of {op} by {kernel}" + (f" ({why})" if why else ""))
    return found
