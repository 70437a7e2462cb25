"""What a single record, or several of one case, say against themselves. Shared by both forms of sign-off."""

from __future__ import annotations

from collections.abc import Sequence

from validators.records import Record, Status

FAILING = (Status.FAILED, Status.NONDETERMINISTIC, Status.MISTRUSTED)
BAD = (*FAILING, Status.ERROR)
"""Statuses that stand in the way of a signature."""


def inconsistency(record: Record) -> str | None:
    """What in a PASSED record's own numbers says otherwise, or None."""
    if record.status is not Status.PASSED:
        return None
    for c in record.comparisons:
        if c.violations:
            return f"holds {c.violations:,} violations of {c.output}"
    for check in record.checks:
        if check.ok is False:
            return f"holds a check that failed ({check.name})"
    if not any(c.judged for c in record.comparisons) and not any(check.ok for check in record.checks):
        return "holds nothing that was judged"
    return None


def contradictions(records: Sequence[Record]) -> list[str]:
    """Cases that PASSED and also did not: no later record silently replaces an earlier one."""
    by_case: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        by_case.setdefault((record.kernel, record.case), []).append(record)
    found = []
    for (_, case), group in by_case.items():
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
    names = dict.fromkeys(str(r.provenance.get("commit") or "unknown")[:10] for r in records)
    return ", ".join(names)


def _origin(records: Sequence[Record]) -> str:
    hosts = dict.fromkeys(str(r.provenance["host"]) for r in records if r.provenance.get("host"))
    return f"commit {commits(records)}" + (f" on {', '.join(hosts)}" if hosts else "")
