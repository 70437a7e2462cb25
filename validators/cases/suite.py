"""Which cases a run consists of, by op and depth; and cases by id."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from validators.cases.case import Case, CaseError
from validators.cases.op import op_named
from validators.cases.recipes import lane_of, reasons_impossible
from validators.words import DEPTHS, DTYPES, FP8_FORMATS, LANES, OPS

Depth = Literal["smoke", "default", "deep"]


def cases_for(
    op: str,
    *,
    depth: str = "default",
    lanes: Iterable[str] | None = None,
    dtype: str = "bf16",
    fp8: str = "e4m3fn",
) -> list[Case]:
    """The cases of ``op`` at ``depth`` (smoke, default, deep), in a fixed order, ids unique, all possible.

    lanes: only these; None means all. The list is empty where the op has no such lane: add_rmsnorm_quant has no exact
    one. dtype and fp8: of all cases except a few of the other type in the default and deep suites. Raises CaseError
    for an unknown op, depth, lane or type.
    """
    for value, known, what in ((op, OPS, "op"), (depth, DEPTHS, "depth"), (dtype, DTYPES, "dtype")):
        if value not in known:
            raise CaseError(f"unknown {what} {value!r}; known: {', '.join(known)}")
    if fp8 not in FP8_FORMATS:
        raise CaseError(f"unknown FP8 format {fp8!r}; known: {', '.join(FP8_FORMATS)}")
    wanted = set(LANES if lanes is None else lanes)
    if wanted - set(LANES):
        raise CaseError(f"unknown lane {sorted(wanted - set(LANES))[0]!r}; known: {', '.join(LANES)}")
    unique = {case.id: case for case in op_named(op).suites[depth](dtype, fp8)}
    return [case for case in unique.values() if reasons_impossible(case) is None and lane_of(case) in wanted]


def find(ids: Iterable[str]) -> list[Case]:
    """The cases with these ids, in their order; CaseError for an id, recipe or combination that cannot be."""
    found = []
    for text in ids:
        case = Case.parse(text)
        reason = reasons_impossible(case)
        if reason:
            raise CaseError(f"{text} cannot be built: {reason}")
        if case.id != text:
            raise CaseError(f"{text!r} is not how its case is written; write {case.id}")
        found.append(case)
    return found
