"""What a merge needs: cells (stage, op, lane) that must have PASSED, and waivers with a reason and an end.

A policy is a TOML file; ``merge``, ``nightly``, ``smoke`` and ``machine`` name those in ``validators/policies``. For
the stages of a whole path it also says how strong a record must be to fill its cell: margin, layers, tokens,
questions, and which set of questions. A stage without such a key takes any.
"""

from __future__ import annotations

import datetime
import fnmatch
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from validators.signoff.claims import ClaimError, known_keys, read_toml
from validators.words import DEPTHS, LANES, OPS, STAGES

FOLDER = Path(__file__).resolve().parent / "policies"

ANY = "any"
"""A depth that asks for no case by name: one that PASSED in each lane is enough; the decision says which there were."""

QUESTION_SETS: Mapping[str, tuple[str, ...]] = {
    "embedded": ("bfad1769e4f7bdcdbbeaaa48e7419406dd46aacc2b0eba1521589ef2d87bfea6",),
    "gsm8k-test": (
        "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
        "38cd34aab6890cfe8971c5592e75a6117fcbaad060809932c29d588833af945f",
    ),
}
"""Question sets that a policy may name, by SHA-256: the 1,319 problems of ``evals parity``, and the test split of GSM8K
(its file, and the fingerprint that an import of somebody else's answers to all of it has)."""

KEYS: Mapping[str, tuple[str, ...]] = {
    "ops": ("lanes", "depth", "checks"),
    "layers": ("layers", "margin", "tokens"),
    "goldens": (),
    "parity": ("margin", "data", "questions", "tokens"),
    "trace": ("layers",),
}
"""What a requirement may say besides stage, ops and arch, by stage."""


@dataclass(frozen=True)
class Requirement:
    """Cells of one stage. ops: () for all of the claim. lanes: () for all that hold cases. arch: patterns.

    checks (ops): each must have been judged in at least one case of each kernel. layers: "all" of the model, numbers
    that must have been walked, or () for any. margin: the largest that a record may have been made with: layers, the
    excess of the fused path's error (0.5 is half as much again); parity, points. tokens, questions: the fewest.
    data (parity): names of ``QUESTION_SETS`` or SHA-256; () for any.
    """

    stage: str
    ops: tuple[str, ...] = ()
    lanes: tuple[str, ...] = ()
    arch: tuple[str, ...] = ("*",)
    depth: str = "default"
    checks: tuple[str, ...] = ()
    layers: str | tuple[int, ...] = ()
    margin: float | None = None
    tokens: int = 0
    questions: int = 0
    data: tuple[str, ...] = ()

    def concerns(self, arch: str) -> bool:
        """Whether it holds on ``arch``."""
        return any(fnmatch.fnmatchcase(arch, pattern) for pattern in self.arch)


@dataclass(frozen=True)
class Waiver:
    """Cells that may stay without a PASS until a day. name: who answers for it, or the ticket; patterns as in globs."""

    name: str
    reason: str
    until: datetime.date
    stage: str = "*"
    op: str = "*"
    lane: str = "*"
    kernel: str = "*"
    arch: str = "*"

    def matches(self, stage: str, op: str, lane: str, kernel: str, arch: str) -> bool:
        """Whether the cell is one of those waived."""
        pairs = ((stage, self.stage), (op, self.op), (lane, self.lane), (kernel, self.kernel), (arch, self.arch))
        return all(fnmatch.fnmatchcase(value, pattern) for value, pattern in pairs)

    def sentence(self) -> str:
        """``waived until 2026-12-31 by NAME: REASON``."""
        return f"waived until {self.until} by {self.name}: {self.reason}"


@dataclass(frozen=True)
class Policy:
    """name, about: for people. require: at least one. source: its file, where that is none of the repository's.

    patient: whether a cell that nobody has filled leaves the claim UNTESTED; without patience it is NOT SIGNED.
    """

    name: str
    about: str
    require: tuple[Requirement, ...]
    waivers: tuple[Waiver, ...] = ()
    source: str = ""
    patient: bool = True

    @property
    def words(self) -> str:
        """``merge``, or ``merge (of our.toml)`` for a policy that anybody may have written."""
        return f"{self.name} (of {self.source})" if self.source else self.name


EVERY_LANE = Policy(
    "every lane",
    "Every lane that holds cases of the op, and all else that was recorded of the kernel; whatever the depth.",
    (Requirement("ops", depth=ANY),),
    patient=False,
)
"""What ``signoff DIR`` asks where no policy is named."""


def load(name: str, *, today: datetime.date | None = None) -> Policy:
    """The policy ``name`` of ``validators/policies``, or that of a file; raises ClaimError with one sentence.

    A waiver whose last day is past is an error and not a reason: nothing stays waived because nobody looked.
    """
    known = sorted(p.stem for p in FOLDER.glob("*.toml"))
    path = FOLDER / f"{name}.toml" if name in known else Path(name)
    if name not in known and not path.is_file():
        raise ClaimError(f"{name!r} is neither a policy ({', '.join(known)}) nor a file.")
    data = read_toml(path)
    known_keys(data, ("name", "about", "require", "waive"), f"policy {path}")
    if not isinstance(data.get("name"), str) or not data["name"].strip():
        raise ClaimError(f"policy {path} must say its 'name'.")
    requirements = [_requirement(table, path) for table in _tables(data, "require", path)]
    if not requirements:
        raise ClaimError(f"policy {path} requires nothing, and nothing would be signed by it.")
    waivers = [_waiver(table, path) for table in _tables(data, "waive", path)]
    day = today or datetime.datetime.now(datetime.timezone.utc).date()
    for waiver in waivers:
        if waiver.until < day:
            raise ClaimError(f"waiver {waiver.name!r} of policy {path} ended on {waiver.until}; renew or remove it.")
    source = "" if name in known else str(path)
    return Policy(data["name"], str(data.get("about", "")).strip(), tuple(requirements), tuple(waivers), source)


def _tables(data: dict[str, Any], key: str, path: Path) -> list[dict[str, Any]]:
    found = data.get(key, [])
    if not isinstance(found, list) or not all(isinstance(x, dict) for x in found):
        raise ClaimError(f"policy {path} must write {key!r} as [[{key}]].")
    return found


def _requirement(table: dict[str, Any], path: Path) -> Requirement:
    where = f"[[require]] of policy {path}"
    known_keys(table, ("stage", "ops", "arch", *dict.fromkeys(k for keys in KEYS.values() for k in keys)), where)
    stage = _one(table.get("stage"), STAGES, f"stage of {where}")
    for key in table:
        if key not in ("stage", "ops", "arch", *KEYS[stage]):
            fitting = " and ".join(repr(name) for name, keys in KEYS.items() if key in keys)
            raise ClaimError(f"{where} says {key!r} of stage {stage!r}; only {fitting} can have it.")
    if stage in ("parity", "trace") and "ops" in table:
        raise ClaimError(f"{where} says 'ops' of stage {stage!r}, which belongs to the whole path.")
    return Requirement(
        stage,
        _several(table.get("ops", []), OPS, f"ops of {where}"),
        _several(table.get("lanes", []), LANES, f"lanes of {where}"),
        _several(table.get("arch", ["*"]), None, f"arch of {where}"),
        _one(table.get("depth", "default"), DEPTHS, f"depth of {where}"),
        _several(table.get("checks", []), None, f"checks of {where}"),
        _layers(table.get("layers", []), f"layers of {where}"),
        _margin(table.get("margin"), f"margin of {where}"),
        _count(table.get("tokens", 0), f"tokens of {where}"),
        _count(table.get("questions", 0), f"questions of {where}"),
        _data(table.get("data", []), f"data of {where}"),
    )


def _layers(value: object, where: str) -> str | tuple[int, ...]:
    if value == "all":
        return "all"
    if isinstance(value, list) and all(type(x) is int and x >= 0 for x in value):
        return tuple(value)
    raise ClaimError(f"{where} is {value!r}; it is 'all' or a list of layers, such as [0, 1, 91].")


def _margin(value: object, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0:
        return float(value)
    raise ClaimError(f"{where} is {value!r}, which is no positive number.")


def _count(value: object, where: str) -> int:
    if type(value) is int and value >= 0:
        return value
    raise ClaimError(f"{where} is {value!r}, which is no whole number.")


def _data(value: object, where: str) -> tuple[str, ...]:
    found = _several(value, None, where)
    for name in found:
        if name not in QUESTION_SETS and not re.fullmatch(r"[0-9a-f]{64}", name):
            raise ClaimError(f"{where} names {name!r}; known: {', '.join(QUESTION_SETS)}, or a SHA-256.")
    return found


def _waiver(table: dict[str, Any], path: Path) -> Waiver:
    where = f"[[waive]] of policy {path}"
    patterns = ("stage", "op", "lane", "kernel", "arch")
    known_keys(table, ("name", "reason", "until", *patterns), where)
    for key in ("name", "reason", *(k for k in patterns if k in table)):
        if not isinstance(table.get(key), str) or not table[key].strip():
            raise ClaimError(f"{where} must say its {key!r}.")
    until = table.get("until")
    if isinstance(until, datetime.datetime) or not isinstance(until, datetime.date):
        raise ClaimError(f"{where} must say 'until' as a date: until = 2026-12-31")
    if not any(key in table for key in patterns):
        raise ClaimError(f"{where} would waive everything; say at least one of {', '.join(patterns)}.")
    return Waiver(table["name"], table["reason"], until, **{k: table[k] for k in patterns if k in table})


def _one(value: object, known: Sequence[str], where: str) -> str:
    if not isinstance(value, str) or value not in known:
        raise ClaimError(f"{where} is {value!r}; known: {', '.join(known)}.")
    return value


def _several(value: object, known: Sequence[str] | None, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(x, str) for x in value):
        raise ClaimError(f"{where} must be a list of texts.")
    return tuple(_one(x, known, where) if known else x for x in value)
