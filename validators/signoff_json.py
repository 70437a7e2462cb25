"""``signoff.json``: a sign-off as JSON values; the schema is ``docs/signoff.schema.json``."""

from __future__ import annotations

from typing import Any

from validators import report
from validators.ruling import Ruling
from validators.signoff import Signoff

SIGNOFF_SCHEMA_VERSION = 1


def to_dict(signoff: Signoff) -> dict[str, Any]:
    """``signoff.json``'s content: JSON values, versioned by ``schema``."""
    return {
        "schema": SIGNOFF_SCHEMA_VERSION,
        "decision": signoff.decision,
        "rulings": [_ruling_dict(ruling) for ruling in signoff.rulings],
        "exit_code": signoff.exit_code,
        "date": signoff.date,
        "warnings": list(signoff.warnings),
        "ignored": list(signoff.ignored),
        "files": [{"name": name, "sha256": digest} for name, digest in signoff.files],
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
                "lanes": {lane: {s.value: n for s, n in cell.items()} for lane, cell in c.cells.items()},
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
            "source": target.source,
        },
        "policy": {"name": ruling.policy.name, "about": ruling.policy.about},
        "decision": ruling.decision,
        "outcome": ruling.outcome,
        "emulated": ruling.emulated,
        "reasons": list(ruling.reasons),
        "waived": list(ruling.waived),
        "excluded": [{"why": why, "records": count} for why, count in ruling.excluded],
        "steps": [
            {"machine": s.machine, "covers": s.covers, "commands": list(s.commands), "note": s.note}
            for s in ruling.steps
        ],
        "cells": [
            {
                "stage": c.stage, "op": c.op, "kernel": c.kernel, "lane": c.lane, "depth": c.depth, "state": c.state,
                "counts": {s.value: n for s, n in c.counts.items()}, "why": list(c.why),
                "waiver": c.waiver.name if c.waiver else None,
            }
            for c in ruling.cells
        ],
    }  # fmt: skip
