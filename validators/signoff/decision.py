"""Sign-off: from record files alone to SIGNED or NOT SIGNED, with the reasons.

A claim is (kernel, op, contract, arch). It is SIGNED only if, in every lane that its op requires, at
least one case PASSED and every other is PASSED or UNSUPPORTED with a reason. Nothing here imports
torch or a kernel, so a sign-off can be computed elsewhere, and years later.

What cannot help a claim: records of test doubles (``fake``), silence (an empty lane is UNTESTED), a
later record that contradicts an earlier one, and a record that says PASSED while its own numbers do
not. What can hurt it: any record of its kernel, also one that died before its contract was known.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from validators.cases.case import Case, CaseError
from validators.errors import UserError
from validators.records import store
from validators.records import text as report
from validators.records.record import Record, Status
from validators.signoff import depths, facts, judged, ruling
from validators.signoff.claims import Target, of_machines
from validators.signoff.facts import Facts
from validators.signoff.judged import BAD, FAILING, contradictions, inconsistency
from validators.signoff.policy import Policy
from validators.signoff.ruling import Ruling
from validators.words import LANES, OPS

SIGNED, NOT_SIGNED, UNTESTED = "SIGNED", "NOT SIGNED", "UNTESTED"

REQUIRED_LANES: dict[str, tuple[str, ...]] = {
    op: tuple(lane for lane in LANES if lane in depths.lanes(op, "default", "e4m3fn")) for op in OPS
}
"""Lanes that hold cases, by op, by the table of cases. The norm's square root leaves nothing that every correct kernel
must get bit for bit, so it has no exact lane."""

STAGE_LANES: dict[str, tuple[str, ...]] = {"gsm8k_parity": ("parity",), "trace": ("trace",), "goldens": ("goldens",)}
"""Records of a whole path have the one lane of their stage."""


class SignoffError(UserError):
    """Records that no decision can rest on; its message is one sentence."""


@dataclass(frozen=True)
class Claim:
    """One claim and what the records say about it.

    cells: lane -> status -> number of distinct cases (a case with several statuses counts in each; goldens count as
    ``judged.label`` says). untested: (lane, command that would test it). facts: what a reader should know, and what
    belongs to the decision. depth: the depth of the suite whose cases all ran, "" for none. records: everything that
    counted, in the order recorded.
    """

    kernel: str
    op: str
    contract: str
    contract_from: str
    arch: str
    signed: bool
    emulated: bool
    reasons: tuple[str, ...]
    untested: tuple[tuple[str, str], ...]
    facts: Facts
    cells: dict[str, Counter[str]]
    records: tuple[Record, ...]
    depth: str = ""

    @property
    def caveats(self) -> tuple[str, ...]:
        """Sentences that a reader should know and that do not change the decision."""
        return self.facts.caveats

    @property
    def decision(self) -> str:
        """``NOT SIGNED``, or ``SIGNED`` with what it is signed under: ``SIGNED in emulation only, at smoke depth``."""
        if not self.signed:
            return NOT_SIGNED
        return facts.signed_words(["in emulation only"] if self.emulated else [], self.qualifiers)

    @property
    def outcome(self) -> str:
        """The decision without what it is signed under."""
        return SIGNED if self.signed else NOT_SIGNED

    @property
    def qualifiers(self) -> list[str]:
        """Without a policy nothing says which cases are enough, so the decision says which there were."""
        if self.op in STAGE_LANES:
            return list(self.facts.qualifiers)
        cases = {r.case for r in self.records if r.lane in LANES}
        found = [
            f"at {self.depth} depth"
            if self.depth
            else f"on {len(cases)} chosen case{'' if len(cases) == 1 else 's'} only"
        ]
        return [*found, *self.facts.qualifiers]

    @property
    def failing(self) -> list[Record]:
        """Records that stand in the way, in the order recorded."""
        return [r for r in self.records if judged.in_the_way(r)]


@dataclass(frozen=True)
class Signoff:
    """The decision over all claims. files: (name, SHA-256, lines) of the record files; date: UTC, ISO 8601."""

    claims: tuple[Claim, ...]
    ignored: tuple[str, ...]
    warnings: tuple[str, ...]
    files: tuple[tuple[str, str, int], ...] = ()
    date: str = ""
    rulings: tuple[Ruling, ...] = ()

    @property
    def decision(self) -> str:
        """SIGNED if every claim is; ``in emulation only`` if no claim is about a shipped kernel.

        Under a policy the rulings decide: NOT SIGNED if any is, else UNTESTED if any is.
        """
        if self.rulings:
            by_outcome = {one.outcome: one.decision for one in reversed(self.rulings)}
            if SIGNED in by_outcome and len(by_outcome) == 1:
                return _together([one.decision for one in self.rulings])
            return NOT_SIGNED if NOT_SIGNED in by_outcome else UNTESTED
        if not all(c.signed for c in self.claims):
            return NOT_SIGNED
        return _together([c.decision for c in self.claims if c.op not in STAGE_LANES] or [SIGNED])

    @property
    def outcome(self) -> str:
        """The decision without what it is signed under."""
        return SIGNED if self.decision.startswith(SIGNED) else self.decision

    @property
    def exit_code(self) -> int:
        """0 SIGNED; 1 NOT SIGNED; 2 UNTESTED, or NOT SIGNED where ERROR and no failing record is in the way."""
        if self.decision == UNTESTED:
            return 2
        if self.decision != NOT_SIGNED:
            return 0
        counted = [r for one in self.rulings for r in one.records] or [r for c in self.claims for r in c.records]
        seen = {r.status for r in counted}
        return 2 if Status.ERROR in seen and not seen.intersection(FAILING) else 1


def _together(decisions: Sequence[str]) -> str:
    """One line for several claims that are SIGNED: what it says of one must not be lost."""
    if len(set(decisions)) == 1:
        return decisions[0]
    alike = f"{SIGNED} in emulation only"
    head = alike if all(d.startswith(alike) for d in decisions) else SIGNED
    return f"{head}{',' if head == alike else ''} within what each claim names"


def decide(records: Sequence[Record], *, warnings: Sequence[str] = (), records_dir: str = "records") -> Signoff:
    """The sign-off of ``records``; raises SignoffError if none of them counts.

    warnings: what reading the files had to say. records_dir: named in the commands for UNTESTED cells.
    """
    counted = [r for r in records if not r.fake]
    fakes = len(records) - len(counted)
    if not records:
        raise SignoffError("there are no records to sign off.")
    if not counted:
        raise SignoffError(f"all {fakes} records come from test doubles, which never count for a sign-off.")
    keys = _claim_keys(counted)
    claims = [_claim(key, [r for r in counted if _belongs(r, key, keys)], records_dir) for key in keys]
    ignored = [f"{fakes} records of test doubles were ignored."] if fakes else []
    return Signoff(tuple(claims), tuple(ignored), tuple(warnings), date=_now())


def under_policy(
    records: Sequence[Record],
    policy: Policy,
    targets: Sequence[Target] | None = None,
    *,
    warnings: Sequence[str] = (),
    records_dir: str = "records",
) -> Signoff:
    """The sign-off of claims ``targets`` (None: every kernel of each machine in the records) under ``policy``.

    Raises SignoffError where nothing can be ruled, and for a waiver that no cell needed.
    """
    counted = [r for r in records if not r.fake]
    fakes = len(records) - len(counted)
    if targets is None:
        targets = of_machines(counted)
        if not targets:
            raise SignoffError("no kernel ran in these records, so there is nothing to sign; name a claim.")

    def where(target: Target) -> str:
        """Commands write where the claim's records are; those of a machine that sent none yet, to its own folder."""
        return records_dir if any(target.names(r) for r in counted) else ""

    rulings = tuple(ruling.rule(target, policy, counted, where(target)) for target in targets)
    unused = ruling.unused_waivers(policy, rulings)
    if unused:
        raise SignoffError(
            f"waiver {unused[0].name!r} of policy {policy.name} matches nothing that is not PASSED; remove it."
        )
    mine = list({id(r): r for one in rulings for r in one.records}.values())
    keys = _claim_keys(mine)
    claims = [_claim(key, [r for r in mine if _belongs(r, key, keys)], records_dir) for key in keys]
    ignored = [f"{fakes} records of test doubles were ignored."] if fakes else []
    for one in rulings:
        ignored += [f"{count} records do not count for {one.target.name!r}. {why}." for why, count in one.excluded]
    others = len(counted) - len(mine) - sum(count for one in rulings for _, count in one.excluded)
    if others > 0:
        ignored.append(f"{others} records are about other kernels or architectures.")
    return Signoff(tuple(claims), tuple(ignored), tuple(warnings), date=_now(), rulings=rulings)


def signoff_directory(
    directory: str | Path | Sequence[str | Path],
    *,
    warn: Callable[[str], None] | None = None,
    policy: Policy | None = None,
    target: Callable[[Sequence[Record]], Sequence[Target]] | None = None,
) -> Signoff:
    """Read every record under one directory or several and decide; raises StoreError or SignoffError.

    policy: without it every claim in the records must be signed in every lane of its op. target: makes the claims out
    of the records, for a policy.
    """
    directories = [directory] if isinstance(directory, str | Path) else list(directory)
    said: list[str] = []

    def both(sentence: str) -> None:
        said.append(sentence)
        if warn is not None:
            warn(sentence)

    records: list[Record] = []
    digests: dict[str, tuple[str, str, int]] = {}
    for root in directories:
        found = store.load(root, warn=both)
        if not found:
            raise SignoffError(f"{root} holds no records.")
        records += found
        for p in store.record_files(root):
            name = str(p.relative_to(root)) if len(directories) == 1 else str(p)
            data = p.read_bytes()
            digests[str(p.resolve())] = (name, hashlib.sha256(data).hexdigest(), data.count(b"\n"))
    if len({digest for _, digest, _ in digests.values()}) < len(digests) or len(digests) < sum(
        len(store.record_files(root)) for root in directories
    ):
        raise SignoffError("the directories hold one record file twice; name each machine's records once.")
    where = str(directories[0]) if directories else "records"
    if policy is None:
        decided = decide(records, warnings=said, records_dir=where)
    else:
        decided = under_policy(records, policy, target(records) if target else None, warnings=said, records_dir=where)
    return dataclasses.replace(decided, files=tuple(digests.values()))


_Key = tuple[str, str, str | None, str]


def _claim_keys(records: Sequence[Record]) -> list[_Key]:
    """Claims in the order first recorded. A record whose contract or arch never became known makes a
    claim of its own only where no other claim of its kernel can take it."""
    full = list(dict.fromkeys((r.kernel, r.op, _contract(r), _arch(r)) for r in records if _contract(r) and _arch(r)))
    loose = [
        (r.kernel, r.op, _contract(r), _arch(r)) for r in records if not any(_belongs(r, key, full) for key in full)
    ]
    return full + list(dict.fromkeys(loose))


def _contract(record: Record) -> str | None:
    return record.contract or None


def _arch(record: Record) -> str:
    return "" if record.arch in ("", "unknown") else record.arch


def _belongs(record: Record, key: _Key, keys: Sequence[_Key]) -> bool:
    """A crash before the contract or the arch was known counts against every claim that it may concern."""
    kernel, op, contract, arch = key
    if (record.kernel, record.op) != (kernel, op):
        return False
    own = (record.kernel, record.op, _contract(record), _arch(record))
    if own in keys:
        return own == key
    return _contract(record) in (None, contract) and _arch(record) in ("", arch)


def _claim(key: _Key, records: list[Record], records_dir: str) -> Claim:
    kernel, op, contract, arch = key
    required = (REQUIRED_LANES | STAGE_LANES).get(op, LANES)
    lanes = report.lane_order([*required, *(r.lane for r in records)])
    cells = {lane: judged.counts_of(r for r in records if r.lane == lane) for lane in lanes}
    missing = [lane for lane in lanes if lane in required and not _ran(cells[lane])]
    untested = tuple((lane, _test_command(records, lane, records_dir)) for lane in missing)
    reasons = _reasons(kernel, records, cells, untested)
    ran = {r.case for r in records if r.status is not Status.UNTESTED}
    return Claim(
        kernel=kernel,
        op=op,
        contract=contract or "not identified",
        contract_from=next((r.contract_from for r in records if _contract(r) == contract), ""),
        arch=arch or "unknown",
        signed=not reasons,
        emulated=any(r.emulated or r.kernel.startswith("emulated/") for r in records),
        reasons=tuple(reasons),
        untested=untested,
        facts=facts.of(records),
        cells=cells,
        records=tuple(records),
        depth=depths.reached(op, arch or "cpu", ran) if op not in STAGE_LANES else "",
    )


def _ran(cell: Counter[str]) -> bool:
    return any(count for name, count in cell.items() if name != Status.UNTESTED.value)


def _reasons(
    kernel: str, records: list[Record], cells: dict[str, Counter[str]], untested: tuple[tuple[str, str], ...]
) -> list[str]:
    """Why the claim is NOT SIGNED, one sentence a cause; empty if it is SIGNED."""
    reasons = [said for said in [judged.two_kernels(kernel, records)] if said]
    if all(_contract(r) is None for r in records):
        reasons.append("No contract was declared, given or identified, so there is nothing to hold the kernel to.")
    for lane, cell in cells.items():
        here = [r for r in records if r.lane == lane]
        for status in BAD:
            found = [r for r in here if r.status is status]
            if found:
                total = len({r.case for r in here})
                first = f"{found[0].case}: {report.headline(found[0])}"
                reasons.append(f"Lane {lane}: {cell[status]} of {total} cases {status.value}, first {first}.")
        if cell[judged.DRIFTED]:
            case = next(r.case for r in here if judged.drifted(r))
            reasons.append(f"Lane {lane}: {judged.counts_text(cell)}; first {case}.")
        if _ran(cell) and not cell[Status.PASSED.value] + cell[judged.UNCHANGED] and not any(cell[s] for s in BAD):
            reasons.append(f"Lane {lane}: no case PASSED ({judged.counts_text(cell)}).")
        if judged.empty_alone(here):
            reasons.append(f"Lane {lane}: only cases without a row PASSED ({judged.counts_text(cell)}).")
        silent = sorted({r.case for r in here if r.status is Status.UNSUPPORTED and not any(map(str.strip, r.reasons))})
        if silent:
            reasons.append(f"Lane {lane}: {len(silent)} cases UNSUPPORTED without a reason, first {silent[0]}.")
        left = {r.case for r in here if r.status is Status.UNTESTED}
        if _ran(cell) and left and lane != "goldens":
            reasons.append(f"Lane {lane}: {len(left)} cases UNTESTED, first {min(left)}.")
    reasons += contradictions(records)
    reasons += [
        f"Record of {r.case} says {r.status.value} and {problem}."
        for r in records
        if (problem := inconsistency(r)) is not None
    ]
    if untested:
        reasons.append(f"UNTESTED: {', '.join(lane for lane, _ in untested)}.")
    return reasons


def _test_command(records: Sequence[Record], lane: str, records_dir: str) -> str:
    """The command that runs ``lane`` for the claim of ``records``."""
    like = next((r for r in records if r.contract), records[0])
    command = ["python", "-m", "validators", "run", "--op", like.op, "--kernel", like.kernel, "--lane", lane]
    command += ["--device", like.device] if like.device else []
    if like.contract and like.contract_from == "given":
        command += ["--contract", like.contract]
    with contextlib.suppress(CaseError):  # a record of a stage names no case of the suite
        case = Case.parse(like.case)
        command += [] if case.dtype == "bf16" else ["--dtype", case.dtype]
        command += [] if case.fp8 == "e4m3fn" else ["--fp8", case.fp8]
    return shlex.join([*command, "--records", records_dir])


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
