"""What a reviewer needs to know of a decision at a glance, from the records alone: what was held to what, and where.

The same facts stand in the terminal, in signoff.md, in the page's banner and in signoff.json, so they are gathered
once. ``qualifiers`` are the ones without which SIGNED would say too much: they belong to the decision itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from validators import judged, report
from validators.claims import OPS, source_of
from validators.records import Record, Status
from validators.report import LANES

_MOST_LIMITS = 3
_MOST_NAMES = 4


@dataclass(frozen=True)
class Facts:
    """Of the records of one decision, each distinct and in the order first seen.

    contracts: ``add_rmsnorm_quant: aiter-hip-gfx950 (given)``. commits: of this suite, ten characters, with
    ``(dirty)``. torch, devices: as recorded. sources: ``FILE:fn 1a2b3c4d5e6f``, of kernels whose source has a digest.
    strength: a sentence about the cases of the suite. caveats: sentences that change no decision. qualifiers: phrases
    that belong to it. limits: sentences about what the kernels declare not to offer.
    """

    contracts: tuple[str, ...] = ()
    commits: tuple[str, ...] = ()
    torch: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    strength: str = ""
    caveats: tuple[str, ...] = ()
    qualifiers: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()

    def rows(self) -> list[tuple[str, str]]:
        """(label, text) for people; what is empty is left out."""
        pairs = [
            ("contract", "; ".join(self.contracts)), ("device", ", ".join(self.devices)),
            ("torch", ", ".join(self.torch)), ("commit", ", ".join(self.commits)),
            ("kernel source", ", ".join(self.sources)), ("strength", self.strength), ("limits", "; ".join(self.limits)),
        ]  # fmt: skip
        return [(name, text) for name, text in pairs if text]


def of(records: Sequence[Record]) -> Facts:
    """The facts of ``records`` of one claim."""
    ran = [r for r in records if r.op in OPS and r.status is not Status.UNTESTED]
    own = [r for r in ran if r.lane in LANES]
    return Facts(
        contracts=tuple(_contracts(own or ran)),
        commits=tuple(dict.fromkeys(map(_commit, ran))),
        torch=_distinct(ran, "torch"),
        devices=tuple(dict.fromkeys(map(_device, ran))),
        sources=tuple(
            dict.fromkeys(f"{r.kernel} {source_of(r)[:12]}" for r in ran if source_of(r))
        ),
        strength=report.strength_sentence(own) if own else "",
        caveats=tuple(_caveats(records)),
        qualifiers=tuple(_qualifiers(own)),
        limits=(),
    )  # fmt: skip


def signed_words(words: Sequence[str], qualifiers: Sequence[str]) -> str:
    """``SIGNED with 1 waiver in emulation only, within declared limits: n % 16 == 0``."""
    head = " ".join(["SIGNED", *words])
    if not qualifiers:
        return head
    return f"{head}{',' if words else ''} {', '.join(qualifiers)}"


def _contracts(records: Sequence[Record]) -> list[str]:
    by_op: dict[str, dict[str, None]] = {}
    for r in records:
        if r.contract and r.contract != "identify":
            by_op.setdefault(r.op, {})[f"{r.contract} ({r.contract_from})" if r.contract_from else r.contract] = None
    return [f"{op}: {_some(list(names))}" for op, names in by_op.items()]


def _some(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _commit(record: Record) -> str:
    commit = str(record.provenance.get("commit") or "unknown")[:10]
    return commit + (" (dirty)" if record.provenance.get("dirty") else "")


def _device(record: Record) -> str:
    known = record.provenance
    name = (known.get("cpu") if record.device.startswith("cpu") else known.get("gpu")) or record.device
    return f"{name} ({record.arch})"


def _distinct(records: Sequence[Record], key: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(r.provenance[key]) for r in records if r.provenance.get(key)))


def _qualifiers(own: Sequence[Record]) -> list[str]:
    found = []
    unknown = sorted({r.kernel for r in own if ":" in r.kernel and not source_of(r)})
    if unknown:
        found.append(f"of a source that was not recorded ({_some(unknown)})")
    for kernel in dict.fromkeys(r.kernel for r in own if ":" in r.kernel):
        several = _distinct([r for r in own if r.kernel == kernel], "torch")
        if len(several) > 1:
            found.append(f"on torch {' and '.join(several)} together")
    return list(dict.fromkeys(found))


def _caveats(records: Sequence[Record]) -> list[str]:
    """What a reader should know beside the decision."""
    found = []
    ran = [r for r in records if r.status is not Status.UNTESTED]
    known = {r.provenance.get("commit") for r in ran}
    if len(known) > 1:
        found.append(f"The records come from {len(known)} commits: {judged.commits(ran)}.")
    dirty = sum(bool(r.provenance.get("dirty")) for r in ran)
    if dirty:
        found.append(f"{dirty} of {len(ran)} records were made with sources that differ from their commit.")
    if None in known:
        found.append("Some records do not name the commit that made them.")
    torches = sorted(_distinct(ran, "torch"))
    if len(torches) > 1:
        found.append(f"The records come from {len(torches)} versions of torch: {', '.join(torches)}.")
    if any(r.emulated for r in ran):
        found.append("The kernel is emulated: nothing here was computed by a kernel that anybody ships.")
    found += [f"{sentence[:1].upper()}{sentence[1:]}." for sentence in judged.never_judged_sentences(ran)]
    return found
