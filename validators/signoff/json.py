"""``signoff.json``: a sign-off as JSON values; the schema is ``docs/signoff.schema.json``."""

from __future__ import annotations

import dataclasses
from typing import Any

from validators.records import text as report
from validators.signoff.decision import Signoff
from validators.signoff.facts import Facts
from validators.signoff.policy import Requirement
from validators.signoff.ruling import Ruling

SIGNOFF_SCHEMA_VERSION = 1


def to_dict(signoff: Signoff) -> dict[str, Any]:
    """``signoff.json``'s content: JSON values, versioned by ``schema``."""
    return {
        "schema": SIGNOFF_SCHEMA_VERSION,
        "decision": signoff.decision,
        "outcome": signoff.outcome,
        "rulings": [_ruling_dict(ruling) for ruling in signoff.rulings],
        "exit_code": signoff.exit_code,
        "date": signoff.date,
        "warnings": list(signoff.warnings),
        "ignored": list(signoff.ignored),
        "files": [{"name": name, "sha256": digest, "records": count} for name, digest, count in signoff.files],
        "claims": [
            {
                "kernel": c.kernel,
                "op": c.op,
                "contract": c.contract,
                "contract_from": c.contract_from,
                "arch": c.arch,
                "decision": c.decision,
                "emulated": c.emulated,
                "reasons": list(c.reasons),
                "untested": [{"lane": lane, "command": command} for lane, command in c.untested],
                "caveats": list(c.caveats),
                "lanes": {lane: dict(cell) for lane, cell in c.cells.items()},
                "depth": c.depth,
                "facts": _facts_dict(c.facts),
                "strength": report.strength_sentence(c.records),
                "records": len(c.records),
                "failing": [{"case": r.case, "status": r.status.value} for r in c.failing],
            }
            for c in signoff.claims
        ],
    }


def _ruling_dict(ruling: Ruling) -> dict[str, Any]:
    target = ruling.target
    return {
        "claim": {
            "name": target.name,
            "about": target.about,
            "arch": target.arch,
            "kernels": {op: list(names) for op, names in target.kernels.items()},
            "contracts": dict(target.contracts),
            "versions": dict(target.versions),
            "sources": dict(target.sources),
            "source": target.source,
        },
        "policy": {
            "name": ruling.policy.name,
            "about": ruling.policy.about,
            "source": ruling.policy.source,
            "require": [_requirement_dict(r) for r in ruling.policy.require],
        },
        "decision": ruling.decision,
        "outcome": ruling.outcome,
        "emulated": ruling.emulated,
        "reasons": list(ruling.reasons),
        "waived": list(ruling.waived),
        "unrequired": list(ruling.unrequired),
        "facts": _facts_dict(ruling.facts),
        "excluded": [{"why": why, "records": count} for why, count in ruling.excluded],
        "steps": [
            {"machine": s.machine, "covers": s.covers, "commands": list(s.commands), "note": s.note}
            for s in ruling.steps
        ],
        "cells": [
            {
                "stage": c.stage,
                "op": c.op,
                "kernel": c.kernel,
                "lane": c.lane,
                "depth": c.depth,
                "state": c.state,
                "counts": dict(c.counts),
                "why": list(c.why),
                "waiver": c.waiver.name if c.waiver else None,
            }
            for c in ruling.cells
        ],
    }


def _facts_dict(facts: Facts) -> dict[str, Any]:
    texts = dataclasses.asdict(facts)
    return {name: text if isinstance(text, str) else list(text) for name, text in texts.items()}


def _requirement_dict(r: Requirement) -> dict[str, Any]:
    """What the policy asked, as far as it says anything."""
    layers = r.layers if isinstance(r.layers, str) else list(r.layers)
    found = {
        "stage": r.stage,
        "ops": list(r.ops),
        "lanes": list(r.lanes),
        "arch": list(r.arch),
        "depth": r.depth if r.stage == "ops" else "",
        "checks": list(r.checks),
        "layers": layers,
        "margin": r.margin,
        "tokens": r.tokens,
        "questions": r.questions,
        "data": list(r.data),
    }
    return {name: value for name, value in found.items() if value or name in ("stage", "arch")}
