"""Sign-off: from record files alone to SIGNED or NOT SIGNED, with the reasons.

A claim is (kernel, op, contract, arch). It is SIGNED only if, in every lane that its op requires, at
least one case PASSED and every other is PASSED or UNSUPPORTED with a reason. Nothing here imports
torch or a kernel, so a sign-off can be computed elsewhere, and years later.

What cannot help a claim: records of test doubles (``fake``), silence (an empty lane is UNTESTED), a
later record that contradicts an earlier one, and a record that says PASSED while its own numbers do
not. What can hurt it: any record of its kernel, also one that died before its contract was known.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from validators.errors import NoDecision, UserError
from validators.process.guard import Exit
from validators.records import store, text
from validators.records.record import Record, Status
from validators.signoff import judged, ruling
from validators.signoff.claims import Target, of_machines
from validators.signoff.facts import Facts
from validators.signoff.judged import FAILING
from validators.signoff.policy import EVERY_LANE, Policy
from validators.signoff.ruling import Ruling
from validators.signoff.stages import Step

SIGNED, NOT_SIGNED, UNTESTED = "SIGNED", "NOT SIGNED", "UNTESTED"

STAGE_OPS = ("gsm8k_parity", "trace", "goldens")
"""Ops of records that are about a whole path or about the truth; their claims are listed with those of kernels."""


class SignoffError(UserError):
    """Records that no decision can rest on; its message is one sentence."""


@dataclass(frozen=True)
class Claim:
    """What the records say of one kernel, op, contract and architecture, as ``EVERY_LANE`` decides it.

    cells: lane -> status -> number of distinct cases (a case with several statuses counts in each; goldens count as
    ``judged.label`` says).
    """

    op: str
    contract_from: str
    ruling: Ruling
    cells: dict[str, Counter[str]]

    @property
    def kernel(self) -> str:
        """Its name."""
        return self.ruling.target.norm

    @property
    def contract(self) -> str:
        """Its name, or that it never became known."""
        return self.ruling.target.contracts.get(self.op, "not identified")

    @property
    def arch(self) -> str:
        """``cpu``, ``sm_90``; ``unknown``."""
        return self.ruling.target.arch or "unknown"

    @property
    def signed(self) -> bool:
        """Whether nothing is in the way and no lane is empty."""
        return self.outcome == SIGNED

    @property
    def outcome(self) -> str:
        """The decision without what it is signed under."""
        return self.ruling.outcome

    @property
    def decision(self) -> str:
        """``NOT SIGNED``, or ``SIGNED`` with what it is signed under: ``SIGNED in emulation only, at smoke depth``."""
        return self.ruling.decision

    @property
    def emulated(self) -> bool:
        """Whether a kernel of it is emulated."""
        return self.ruling.emulated

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it is not signed."""
        return self.ruling.reasons

    @property
    def untested(self) -> tuple[Step, ...]:
        """What would test the empty lanes and stages."""
        return self.ruling.steps

    @property
    def records(self) -> tuple[Record, ...]:
        """All that counted, in the order recorded."""
        return self.ruling.records

    @property
    def facts(self) -> Facts:
        """What a reader should know, and what belongs to the decision."""
        return self.ruling.facts

    @property
    def caveats(self) -> tuple[str, ...]:
        """Sentences that a reader should know and that do not change the decision."""
        return self.facts.caveats

    @property
    def depth(self) -> str:
        """The depth of the suite whose cases all ran, "" for none."""
        return ruling.depth_of(self.ruling.target, self.records)

    @property
    def failing(self) -> list[Record]:
        """Records that prevent a signature, in the order recorded."""
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
    def decided(self) -> tuple[Ruling, ...]:
        """The rulings that the decision rests on: those under a policy, or one for each claim."""
        return self.rulings or tuple(c.ruling for c in self.claims)

    @property
    def outcome(self) -> str:
        """NOT SIGNED if any ruling is, else UNTESTED if any is, else SIGNED."""
        seen = {one.outcome for one in self.decided}
        return next((outcome for outcome in (NOT_SIGNED, UNTESTED) if outcome in seen), SIGNED)

    @property
    def decision(self) -> str:
        """The outcome with all that it is signed under; ``in emulation only`` if no claim is about a shipped kernel."""
        if self.outcome != SIGNED:
            return self.outcome
        # What a walk or an evaluation is signed under is in the claim of its kernel.
        kernels = self.rulings or tuple(c.ruling for c in self.claims if c.op not in STAGE_OPS)
        return _together(kernels) if kernels else SIGNED

    @property
    def exit_code(self) -> Exit:
        """YES: SIGNED. NO: NOT SIGNED. NO_DECISION: UNTESTED. ERROR: NOT SIGNED for kernels that raised alone."""
        if self.outcome == UNTESTED:
            return Exit.NO_DECISION
        if self.outcome != NOT_SIGNED:
            return Exit.YES
        counted = [r for one in self.decided for r in one.records]
        seen = {r.status for r in counted}
        return Exit.ERROR if Status.ERROR in seen and not seen.intersection(FAILING) else Exit.NO


def _together(rulings: Sequence[Ruling]) -> str:
    """One line for several claims that are SIGNED: what it says of one must not be lost."""
    if len({one.decision for one in rulings}) == 1:
        return rulings[0].decision
    emulated = all(one.emulated for one in rulings)
    return f"{SIGNED}{' in emulation only,' if emulated else ''} within what each claim names"


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
            raise NoDecision(f"{root} holds no records.")
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
    contracts = {op: contract} if contract else {}
    target = Target(kernel, arch, {op: (kernel,)}, contracts, source="the records")
    decided = ruling.decide(target, EVERY_LANE, records, records_dir)
    lanes = text.lane_order([*(c.lane for c in decided.cells if c.lane), *(r.lane for r in records)])
    cells = {lane: judged.counts_of(r for r in records if r.lane == lane) for lane in lanes}
    return Claim(op, next((r.contract_from for r in records if _contract(r) == contract), ""), decided, cells)


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
