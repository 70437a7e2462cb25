"""Records made by hand, for the tests of what reads records."""

from __future__ import annotations

import dataclasses
from typing import Any

from validators.records.provenance import Provenance
from validators.records.record import Check, Comparison, Element, Explanation, Record, Status
from validators.records.verdict import violation_sentence
from validators.words import STAGES

PROVENANCE = Provenance(
    commit="abc1234def5678",
    dirty=False,
    torch="2.13.0",
    python="3.11.7",
    cpu="a CPU",
    date="2026-08-25T10:00:00+00:00",
    kernel_versions={"triton": "3.9.0"},
)
CASE = "add_rmsnorm_quant-m512-n5120-bf16-e4m3fn-midpoints-s3"


def comparison(output: str = "scale", *, violations: int = 0, **changes: Any) -> Comparison:
    """A comparison of 512 rows; ``violations`` of them far outside."""
    worst = (
        Element(
            row=9,
            col=0,
            exact=0.0123456789,
            low=0.012345678,
            high=0.01234568,
            got=0.0246913578,
            got_bits="3cca4588",
            err=0.0123,
            budget=6.5e-06,
            err_ulp=131072.0,
            terms={"reduction": 3e-06, "scale": 1.5e-06},
        ),
        Element(
            row=10,
            col=0,
            exact=0.5,
            low=0.5,
            high=0.5,
            got=float("nan"),
            got_bits="7fc00000",
            err=float("nan"),
            budget=0.0,
            err_ulp=3.0,
            terms={"store": 2e-07},
        ),
    )
    fields: dict[str, Any] = {
        "output": output,
        "elements": 512,
        "judged": 512,
        "unspecified": 0,
        "violations": violations,
        "single": 498,
        "worst_use": 1892.3 if violations else 0.91,
        "worst_use_passing": 0.91,
        "where": "all in row 9" if violations else "",
        "rows": violations,
        "cols": min(violations, 1),
        "worst": worst if violations else (),
        "use_quantiles": {"p50": 0.26, "p99": 0.78, "max": 1892.3 if violations else 0.91},
        "ulp_histogram": {">=5": violations, "0": 500, "-1": 12, "<=-5": 1},
        "nonfinite": {"got_nan": 2, "got_inf": 0, "unexpected": 2, "missing": 1},
    }
    return Comparison(**{**fields, **changes})


def record(status: Status = Status.PASSED, **changes: Any) -> Record:
    """A record of one case of ``demo/fused``; by default it PASSED, with two outputs judged."""
    fields: dict[str, Any] = {
        "status": status,
        "reasons": (),
        "kernel": "demo/fused",
        "op": "add_rmsnorm_quant",
        "case": CASE,
        "lane": "adversarial",
        "contract": "vllm",
        "contract_from": "declared",
        "device": "cpu",
        "arch": "cpu",
        "comparisons": (comparison("scale"), comparison("codes")),
        "checks": (Check("poison", True, "no byte of poison is left"),),
        "seconds": 1.5,
        "provenance": PROVENANCE,
    }
    fields = {**fields, **changes}
    stage = fields["lane"] if fields["lane"] in STAGES else "ops"
    whole = stage in ("parity", "trace") or fields["case"].endswith("-trajectory")
    subject = "truth" if fields["op"] == "goldens" else "path" if whole else "kernel"
    return Record(**{"stage": stage, "subject": subject, **fields})


def moved(r: Record, lane: str) -> Record:
    """The record in another lane, or in another stage."""
    return dataclasses.replace(r, lane=lane, stage=lane if lane in STAGES else "ops")


def texts(record: Record) -> list[str]:
    """Its explanations as they are printed."""
    return [explanation.text for explanation in record.explanations]


def failed(**changes: Any) -> Record:
    """A record with a wrong scale in 510 rows, a second output and a check that failed too."""
    fields: dict[str, Any] = {
        "reasons": (violation_sentence(comparison("scale", violations=510)),),
        "comparisons": (
            comparison("residual_out"),
            comparison("codes", violations=40),
            comparison("scale", violations=510),
        ),
        "checks": (
            Check("poison", True, "no byte of poison is left"),
            Check("joint: row maximum", False, "510 rows do not decode to 448", "joint"),
            Check("bias", None, "mean -0.01 ulp", "statistical"),
        ),
        "explanations": (Explanation("scale-halved", "every violation vanishes if the scale is halved", 1.0),),
        "identified": ("eager: 0 violations", "vllm: 550 violations"),
    }
    return record(Status.FAILED, **{**fields, **changes})


def lanes_passed(**changes: Any) -> list[Record]:
    """One PASSED record in every lane that ``add_rmsnorm_quant`` requires."""
    return [
        record(lane=lane, case=CASE.replace("midpoints", lane), **changes)
        for lane in ("random", "adversarial", "special", "shapes", "model")
    ]
