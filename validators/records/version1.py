"""Records of schema 1, read as those of today: what they say in sentences is found here, once, and nowhere else.

Schema 1 kept explanations as sentences, everything about a stage in an untyped ``provenance``, and the stage, the
limit and the fault of a record in words. A fact that such a record states wrongly becomes one that is not known, which
reaches nothing that a policy asks.
"""

from __future__ import annotations

import math
import re
import typing
from typing import Any

from validators.records.codec import known_fields
from validators.records.evidence import ErrorByDepth, Evaluation, Launches, WalkEvidence
from validators.records.provenance import Provenance
from validators.records.wording import WIDE
from validators.words import STAGES

SCHEMA = 1

_TRAJECTORY = re.compile(r"layers-.*-trajectory")
_FEATURE = re.compile(r'the kernel does not offer "(\w+)"')
_SHARE = re.compile(r"(\d+) ?% of the violations vanish")
_MOST_OF_A_NAME = 60

Json = dict[str, Any]


def upgrade(old: Json) -> Json:
    """The object of schema 2 with what the one of schema 1 says; what has another shape is left to ``decode``."""
    new = {**old, "schema": 2, "contract": None if old.get("contract") in ("", "identify") else old.get("contract")}
    about = old.get("provenance", {})
    if not isinstance(about, dict):
        return new
    lane = old.get("lane")
    stage = lane if lane in STAGES else "ops"
    new["stage"], new["subject"] = stage, _subject(old, stage)
    new["provenance"] = known_fields(about, Provenance)
    new["limit"], new["fault"] = _limit(old, about), _fault(old)
    new["checks"] = _each(old.get("checks", []), _check)
    names = [c.get("name") for c in old.get("checks", []) if isinstance(c, dict)] if _is_list(old.get("checks")) else []
    new["explanations"] = _each(old.get("explanations", []), lambda text: _explanation(text, names, stage))
    new["comparisons"] = _each(old.get("comparisons", []), _comparison)
    evidence = about.get("evidence")
    evidence = evidence if isinstance(evidence, dict) else {}
    if isinstance(golden := about.get("golden"), dict) and stage == "goldens":
        new["golden"] = {"id": str(golden.get("id") or old.get("case", "")), "state": str(golden.get("state", ""))}
    if stage == "layers":
        new["walk"] = _walk(old, about, evidence)
    if stage == "parity":
        new["evaluation"] = _evaluation(about, evidence)
    if stage == "trace":
        new["launches"] = known_fields({**evidence, "sha256": about.get("trace_sha256", "")}, Launches)
    return new


def _is_list(value: object) -> bool:
    return isinstance(value, list)


def _each(value: Any, change: typing.Callable[[Any], Any]) -> Any:
    return [change(item) for item in value] if isinstance(value, list) else value


def _subject(old: Json, stage: str) -> str:
    if old.get("op") == "goldens":
        return "truth"
    whole = stage == "layers" and bool(_TRAJECTORY.fullmatch(str(old.get("case"))))
    return "path" if whole or stage in ("parity", "trace") else "kernel"


def _reason(old: Json) -> str:
    reasons = old.get("reasons")
    return str(reasons[0]) if isinstance(reasons, list) and reasons else ""


def _fault(old: Json) -> str:
    raised = old.get("status") == "ERROR" and _reason(old).startswith("the kernel raised")
    return "raised" if raised else ""


def _limit(old: Json, about: Json) -> Json | None:
    if old.get("status") != "UNSUPPORTED":
        return None
    feature = _FEATURE.match(_reason(old))
    kind = "contract" if old.get("comparisons") else about.get("limit", "declared")
    return {"kind": kind, "feature": feature[1] if feature else ""}


def _check(check: Any) -> Any:
    """Why a check was not judged stood at the beginning or the end of its detail."""
    if not isinstance(check, dict) or check.get("ok") is not None:
        return check
    detail = str(check.get("detail", ""))
    why = "raised" if detail.startswith("not judged") else "nothing" if "so there is no other" in detail else ""
    return {**check, "unjudged": why}


def _comparison(c: Any) -> Any:
    """How many elements had a set as wide as an output was not counted; that some had was among what was observed."""
    return {**c, "wide": c.get("unspecified", 0)} if isinstance(c, dict) and WIDE in str(c.get("observed")) else c


def _explanation(text: Any, checks: list[Any], stage: str) -> Any:
    if not isinstance(text, str):
        return text
    name, colon, sentence = text.partition(": ")
    if stage == "parity" or not colon or len(name) > _MOST_OF_A_NAME:
        return {"name": "", "sentence": text, "share": None, "kind": "result" if stage == "parity" else "observation"}
    found = _SHARE.search(sentence)
    share = 1.0 if "every violation vanishes" in sentence else float(found[1]) / 100 if found else None
    follows = name.removeprefix("follows ")
    kind = "contract" if follows != name else "check" if name in checks else "defect"
    kind = "observation" if name == "the bits show" else kind
    return {"name": follows, "sentence": sentence, "share": share, "kind": kind}


def _walk(old: Json, about: Json, evidence: Json) -> Json:
    found = known_fields({**about, **evidence, "stream": about.get("stream_sha256")}, WalkEvidence)
    # A record of before there was evidence names its model in its case alone.
    if "model" not in found and (whole := re.fullmatch(r"layers-(.*)-trajectory", str(old.get("case")))):
        found["model"] = whole[1]
    trajectory = about.get("trajectory")
    if isinstance(trajectory, dict) and isinstance(trajectory.get("layers"), list):
        found["depth"] = known_fields(trajectory, ErrorByDepth)
    return found


def _evaluation(about: Json, evidence: Json) -> Json:
    found = known_fields({**about, **evidence}, Evaluation)
    # Not said is the usual rule and error probability; said wrongly is neither.
    if "rule" in evidence and "rule" not in found:
        found["rule"] = str(evidence["rule"])
    if "alpha" in evidence and "alpha" not in found:
        found["alpha"] = "nan"
    found["aa"] = bool(evidence.get("aa"))
    if numbers := _numbers(about):
        found |= {"difference": numbers[0], "interval": list(numbers[1:])}
    return found


def _numbers(value: Any) -> tuple[float, float, float] | None:
    """(difference, low, high) of the first table that holds a difference and an interval."""
    if not isinstance(value, dict):
        return None
    ends, middle = value.get("interval_95", value.get("interval")), value.get("difference")
    if isinstance(ends, list) and len(ends) == 2:
        found = [middle, *ends]
        if all(isinstance(v, int | float) and math.isfinite(v) for v in found):
            return float(found[0]), float(found[1]), float(found[2])
    return next((hit for inner in value.values() if (hit := _numbers(inner)) is not None), None)
