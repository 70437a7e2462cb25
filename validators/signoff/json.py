"""``signoff.json``: a sign-off as JSON values; the schema is ``docs/signoff.schema.json``."""

from __future__ import annotations

from typing import Any

from validators.records import text
from validators.records.codec import encode
from validators.signoff.decision import Signoff
from validators.signoff.policy import Requirement
from validators.signoff.ruling import Ruling
from validators.signoff.stages import Step

SIGNOFF_SCHEMA_VERSION = 2


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
                "untested": [_step_dict(step) for step in c.untested],
                "caveats": list(c.caveats),
                "lanes": {lane: dict(cell) for lane, cell in c.cells.items()},
                "depth": c.depth,
                "facts": encode(c.facts),
                "strength": text.strength_sentence(c.records),
                "records": len(c.records),
                "failing": [{"case": r.case, "status": r.status.value} for r in c.failing],
            }
            for c in signoff.claims
        ],
    }


def _ruling_dict(ruling: Ruling) -> dict[str, Any]:
    claim, policy = encode(ruling.target), encode(ruling.policy)
    return {
        "claim": {name: value for name, value in claim.items() if name != "one_path"},
        "policy": {
            **{name: policy[name] for name in ("name", "about", "source")},
            "require": [_requirement_dict(r) for r in ruling.policy.require],
        },
        "decision": ruling.decision,
        "outcome": ruling.outcome,
        "emulated": ruling.emulated,
        "reasons": list(ruling.reasons),
        "waived": list(ruling.waived),
        "unrequired": list(ruling.unrequired),
        "facts": encode(ruling.facts),
        "excluded": [{"why": why, "records": count} for why, count in ruling.excluded],
        "steps": [_step_dict(step) for step in ruling.steps],
        "cells": [{**encode(c), "waiver": c.waiver.name if c.waiver else None} for c in ruling.cells],
    }


def _step_dict(step: Step) -> dict[str, Any]:
    return {**encode(step), "covers": step.covers}


def _requirement_dict(r: Requirement) -> dict[str, Any]:
    """What the policy asked, as far as it says anything."""
    found = {**encode(r), "depth": r.depth if r.stage == "ops" else ""}
    return {name: value for name, value in found.items() if value or name in ("stage", "arch")}
