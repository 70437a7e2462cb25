"""What a reviewer needs to know of a decision at a glance, from the records alone: what was held to what, and where.

The same facts are in the terminal, in signoff.md, in the page's banner and in signoff.json, so they are gathered
once. ``qualifiers`` are the ones without which SIGNED would say too much: they belong to the decision itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from validators.cases.case import CaseError
from validators.errors import RunFault
from validators.records.record import Record, Status
from validators.records.text import strength_sentence
from validators.records.verdict import left_open
from validators.signoff import judged, limits, mutation, reach, strength
from validators.signoff.claims import source_of
from validators.signoff.limits import Limits
from validators.words import LANES, OPS

_MOST_LIMITS = 3
_MOST_OF_A_LIMIT = 110  # characters
_MOST_KERNELS = 3  # of one path
_FEATURES = {
    "3d": "three dimensions",
    "strided": "padded rows",
    "3dstrided": "slices of three dimensions",
    "fnuz": "e4m3fnuz",
    "fp32_gamma": "fp32 weight",
    "gemma": "gain 1 + weight",
    "residual_none": "form without residual",
}
"""Keys of ``supports`` in the words of ``limits.sentences``."""
_MOST_NAMES = 4


@dataclass(frozen=True)
class Facts:
    """Of the records of one decision, each distinct and in the order first seen.

    contracts: ``add_rmsnorm_quant: aiter-hip-gfx950 (given)``. commits: of this suite, ten characters, with
    ``(dirty)``. torch, devices: as recorded. sources: ``FILE:fn 1a2b3c4d5e6f``, of kernels whose source has a digest.
    strength: a sentence about the cases of the suite. caveats: sentences that change no decision. qualifiers: phrases
    that belong to it. run: what was run and passed, largest sizes and pairs of features; left_out: what was not, with
    the cause. mutation: which share of generated wrong kernels fails on these cases, by class. defects: known ones that
    fail on cases like those that passed. limits: sentences about what the kernels declare not to offer.
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
    defects: tuple[str, ...] = ()
    run: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    mutation: tuple[str, ...] = ()

    def rows(self) -> list[tuple[str, str]]:
        """(label, text) for people; what is empty is left out."""
        pairs = [
            ("contract", "; ".join(self.contracts)),
            ("device", ", ".join(self.devices)),
            ("torch", ", ".join(self.torch)),
            ("commit", ", ".join(self.commits)),
            ("kernel source", ", ".join(self.sources)),
            ("strength", self.strength),
            ("run and passed", "; ".join(self.run)),
            ("left out", "; ".join(self.left_out)),
            ("mutation score", "; ".join(self.mutation)),
            ("known defects that fail on such cases", "; ".join(self.defects)),
            ("limits", "; ".join(self.limits)),
        ]
        return [(name, text) for name, text in pairs if text]


def of(records: Sequence[Record], more: Iterable[str] = ()) -> Facts:
    """The facts of ``records`` of one claim. more: further caveats."""
    ran = [r for r in records if r.op in OPS and r.status is not Status.UNTESTED]
    own = [r for r in ran if r.lane in LANES]
    reached = _reached(own)
    return Facts(
        contracts=tuple(_contracts(own or ran)),
        commits=tuple(dict.fromkeys(map(_commit, ran))),
        torch=_torch(ran),
        devices=tuple(dict.fromkeys(map(_device, ran))),
        sources=tuple(dict.fromkeys(f"{r.kernel} {source_of(r)[:12]}" for r in ran if source_of(r))),
        strength=strength_sentence(own) if own else "",
        defects=tuple(_defects(own)),
        run=tuple(_first([one.short() for one in reached])),
        mutation=tuple(_mutation(own)),
        left_out=tuple(_first([f"{one.op}, {left.sentence()}" for one in reached for left in one.left])),
        caveats=(*_caveats(records), *_left_open(own), *more),
        qualifiers=tuple(_qualifiers(own)),
        limits=tuple(limits.sentences(own)),
    )


def _defects(own: Sequence[Record]) -> list[str]:
    try:
        found = [one.short() for one in strength.measure(own) if one.passed]
    except (strength.StrengthError, CaseError):
        return []  # the decision holds without it
    return _first(found)


def _reached(own: Sequence[Record]) -> list[reach.Reach]:
    try:
        return [one for one in reach.of_records(own) if one.passed]
    except RunFault:
        return []  # the decision holds without it


def _mutation(own: Sequence[Record]) -> list[str]:
    try:
        found = mutation.measure(own)
    except RunFault:
        return []  # the decision holds without it
    measured = _first([one.short() for one in found if one.classes])
    none = list(dict.fromkeys(one.op for one in found if not one.classes))
    return measured + ([f"not measured for these cases of {' and '.join(none)}"] if none else [])


def _first(found: list[str]) -> list[str]:
    more = len(found) - _MOST_LIMITS
    return found[:_MOST_LIMITS] + ([f"and {more} more, on the page"] if more > 0 else [])


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
    return (record.provenance.commit or "unknown")[:10] + (" (dirty)" if record.provenance.dirty else "")


def _device(record: Record) -> str:
    known = record.provenance
    name = (known.cpu if record.device.startswith("cpu") else known.gpu) or record.device
    return f"{name} ({record.arch})"


def _torch(records: Sequence[Record]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(r.provenance.torch for r in records if r.provenance.torch))


def _qualifiers(own: Sequence[Record]) -> list[str]:
    found = []
    unknown = sorted({r.kernel for r in own if ":" in r.kernel and not source_of(r)})
    if unknown:
        found.append(f"of a source that was not recorded ({_some(unknown)})")
    for kernel in dict.fromkeys(r.kernel for r in own if ":" in r.kernel):
        several = _torch([r for r in own if r.kernel == kernel])
        if len(several) > 1:
            found.append(f"on torch {' and '.join(several)} together")
    return [*dict.fromkeys(found), *_looseness(own), *limit_words(limits.declared_limits(own))]


def _looseness(own: Sequence[Record]) -> list[str]:
    """``declared unknown, where the stricter cdna3-mfma fits too``: it admits every output of identification's cases.

    They are few: fp32 sums of 1,024 products, stored in bf16, fit the model of a matrix unit as well. So it is no
    statement of what the kernel computes.
    """
    passed = [r for r in own if r.status is Status.PASSED and r.follows]
    said = (f"{r.contract_from} {r.contract}, where the stricter {r.follows} fits too" for r in passed)
    return list(dict.fromkeys(said))


def _left_open(own: Sequence[Record]) -> list[str]:
    """The lanes in which a contract left most elements several values, so that a pass says less."""
    passed = [r for r in own if r.status is Status.PASSED]
    found = []
    for op, contract in dict.fromkeys((r.op, r.contract) for r in passed):
        here = [r for r in passed if (r.op, r.contract) == (op, contract)]
        lanes = [x for x in LANES if left_open([c for r in here if r.lane == x for c in r.comparisons])]
        if lanes:
            names = " and ".join(filter(None, [", ".join(lanes[:-1]), lanes[-1]]))
            noun = "lanes" if len(lanes) > 1 else "lane"
            found.append(f"Contract {contract} admits several values for most elements of {op} in {noun} {names}.")
    return found


def limit_words(found: Sequence[Limits]) -> list[str]:
    """``within declared limits: n % 16 == 0``; of more kernels than fit a line, how many have limits."""
    declared = [one for one in found if one.declared]
    words = []
    if len(declared) > _MOST_KERNELS:
        words.append(f"within the declared limits of {len(declared)} kernels")
    elif declared:
        several = len(declared) > 1
        words.append(
            "within declared limits: "
            + "; ".join(f"{one.op}: {_of_one(one)}" if several else _of_one(one) for one in declared)
        )
    hidden = sum(len(one.hidden) for one in declared)
    if hidden:
        words.append(f"which hide {hidden} of the model's own shapes ({_some(declared_hidden(declared))})")
    machine = sum(one.machine for one in found)
    return words + ([f"without {machine} cases that the machine cannot hold"] if machine else [])


def declared_hidden(found: Sequence[Limits]) -> list[str]:
    """The model's shapes that limits keep from being judged, each once."""
    return list(dict.fromkeys(shape for one in found for shape in one.hidden))


def _of_one(one: Limits) -> str:
    """Features by name, then the kernel's own sentences."""
    names, reasons = [], []
    for limit in one.limits:
        if limit.feature:
            names.append(_FEATURES.get(limit.feature, limit.feature))
        else:
            reasons.append(_clipped(limit.reason.rstrip(".")))
    words = [f"no {', '.join(names)}"] if names else []
    words += reasons[:_MOST_LIMITS]
    more = len(reasons) - _MOST_LIMITS
    return "; ".join(words) + (f" and {more} more" if more > 0 else "")


def _clipped(text: str) -> str:
    return text if len(text) <= _MOST_OF_A_LIMIT else f"{text[: _MOST_OF_A_LIMIT - 1]}…"


def _caveats(records: Sequence[Record]) -> list[str]:
    """What a reader should know with the decision."""
    found = []
    ran = [r for r in records if r.status is not Status.UNTESTED]
    known = {r.provenance.commit for r in ran}
    if len(known) > 1:
        found.append(f"The records come from {len(known)} commits: {judged.commits(ran)}.")
    dirty = sum(bool(r.provenance.dirty) for r in ran)
    if dirty:
        found.append(f"{dirty} of {len(ran)} records were made with sources that differ from their commit.")
    if None in known:
        found.append("Some records do not name the commit that made them.")
    torches = sorted(_torch(ran))
    if len(torches) > 1:
        found.append(f"The records come from {len(torches)} versions of torch: {', '.join(torches)}.")
    if any(r.emulated for r in ran):
        found.append("The kernel is emulated: nothing here was computed by a kernel that anybody ships.")
    changed = dict.fromkeys(str(r.contract) for r in ran if r.op in OPS and "=" in str(r.contract))
    if changed:
        found.append(f"No source is known for {_some(list(changed))}: a preset but for the fields that are named.")
    found += [f"{sentence[:1].upper()}{sentence[1:]}." for sentence in judged.never_judged_sentences(ran)]
    return found
