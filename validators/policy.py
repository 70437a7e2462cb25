"""What a merge needs: cells (stage, op, lane) that must have PASSED, and waivers with a reason and an end.

A policy is a TOML file; ``merge``, ``nightly``, ``smoke`` and ``machine`` name those in ``validators/policies``.
"""

from __future__ import annotations

import datetime
import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from validators.claims import OPS, ClaimError, known_keys, read_toml
from validators.depths import DEPTHS
from validators.report import LANES

FOLDER = Path(__file__).resolve().parent / "policies"
STAGES = ("ops", "layers", "goldens", "parity", "trace")


@dataclass(frozen=True)
class Requirement:
    """Cells of one stage. ops: () for all of the claim. lanes: () for all that hold cases. arch: patterns."""

    stage: str
    ops: tuple[str, ...] = ()
    lanes: tuple[str, ...] = ()
    arch: tuple[str, ...] = ("*",)
    depth: str = "default"

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
    """name, about: for people. require: at least one."""

    name: str
    about: str
    require: tuple[Requirement, ...]
    waivers: tuple[Waiver, ...] = ()


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
    return Policy(data["name"], str(data.get("about", "")).strip(), tuple(requirements), tuple(waivers))


def _tables(data: dict[str, Any], key: str, path: Path) -> list[dict[str, Any]]:
    found = data.get(key, [])
    if not isinstance(found, list) or not all(isinstance(x, dict) for x in found):
        raise ClaimError(f"policy {path} must write {key!r} as [[{key}]].")
    return found


def _requirement(table: dict[str, Any], path: Path) -> Requirement:
    where = f"[[require]] of policy {path}"
    known_keys(table, ("stage", "ops", "lanes", "arch", "depth"), where)
    stage = _one(table.get("stage"), STAGES, f"stage of {where}")
    if stage != "ops":
        for key in ("lanes", "depth"):
            if key in table:
                raise ClaimError(f"{where} says {key!r} of stage {stage!r}; only the stage 'ops' has lanes and depths.")
    return Requirement(
        stage,
        _several(table.get("ops", []), OPS, f"ops of {where}"),
        _several(table.get("lanes", []), LANES, f"lanes of {where}"),
        _several(table.get("arch", ["*"]), None, f"arch of {where}"),
        _one(table.get("depth", "default"), DEPTHS, f"depth of {where}"),
    )


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
