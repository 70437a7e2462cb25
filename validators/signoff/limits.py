"""What a kernel does not offer, from its records alone: the limits that it declares, and what they hide.

A kernel states its limits in one place, ``unsupported(case) -> sentence or None``, and each case outside them is
UNSUPPORTED with that sentence. A claim is then signed within its limits, so its reader must see which reasons, how
many cases, which features are left out altogether, and which shapes of the model that the kernel serves. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from validators.cases import shapes
from validators.cases.case import Case, CaseError
from validators.records.evidence import DECLARED, MACHINE
from validators.records.record import Record, Status
from validators.records.wording import how_to_declare
from validators.words import OPS

MOST_EXAMPLES = 3
"""Example cases that are kept of each reason."""
MOST_NAMED = 3
"""Reasons, or shapes of the model, that a sentence names."""

_RUN = (Status.PASSED, Status.FAILED, Status.MISTRUSTED, Status.NONDETERMINISTIC, Status.ERROR)

# Name of a feature in sentences, and whether a case has it. The native types are bf16 and, of FP8, the device's own.
_FEATURES: tuple[tuple[str, Callable[[Case], bool]], ...] = (
    ("fp16", lambda c: c.dtype == "fp16"),
    ("bf16", lambda c: c.dtype == "bf16"),
    ("e4m3fnuz", lambda c: c.fp8 == "e4m3fnuz"),
    ("e4m3fn", lambda c: c.fp8 == "e4m3fn"),
    ("no residual", lambda c: not c.residual),
    ("fp32 weight", lambda c: c.gamma == "fp32"),
    ("gain 1 + weight", lambda c: c.gemma),
    ("bias", lambda c: c.bias),
    ("padded rows", lambda c: c.layout == "strided"),
    ("three dimensions", lambda c: c.layout == "3d"),
    ("slices of three dimensions", lambda c: c.layout == "3dstrided"),
    ("zero rows", lambda c: c.m == 0),
    ("one row", lambda c: c.m == 1),
    ("more than 65,535 rows", lambda c: c.m > 65535),
)


@dataclass(frozen=True)
class Limit:
    """One declared reason. reason: as the kernel says it of the first example. cases: how many have this reason.
    feature: the key of ``supports`` that the kernel lacks, "" for a sentence of its own.

    Reasons that differ in their numbers alone ("not K=250", "not K=176") are one limit.
    """

    reason: str
    cases: int
    examples: tuple[str, ...]
    feature: str = ""


@dataclass(frozen=True)
class Limits:
    """What the records of one kernel and op say about its limits.

    cases: distinct cases with a record; declared: those that the kernel declares away. limits: by reason, most cases
    first. features: (name, cases) of every feature that some case has and no judged case has. hidden: shapes of the
    model ("n = 12288"; "n = 5120, k = 1536" of a GEMM) of which no case was judged and some were declared away.
    model_shapes: how many shapes of the model the op has. machine: cases that this machine cannot hold.
    """

    kernel: str
    op: str
    cases: int
    declared: int
    limits: tuple[Limit, ...]
    features: tuple[tuple[str, int], ...]
    hidden: tuple[str, ...]
    model_shapes: int
    machine: int = 0

    def sentences(self) -> list[str]:
        """At most three: what is not offered, the model's shapes that this leaves out, what the machine cannot hold."""
        found = []
        if self.declared:
            parts = [f"{name} ({count})" for name, count in self.features]
            own = [limit for limit in self.limits if not (self.features and limit.feature)]
            parts += [f"{limit.reason.rstrip('.')} ({limit.cases})" for limit in own[:MOST_NAMED]]
            parts += [f"{len(own) - MOST_NAMED} more reasons"] if len(own) > MOST_NAMED else []
            what = f"{self.declared} of {self.cases} cases of {self.op}"
            found.append(f"{self.kernel} does not offer {what}: {'; '.join(parts)}")
        if self.hidden:
            what = "GEMM shapes" if any(k for _, k in shapes.model_shapes(self.op)) else "widths"
            examples = "; ".join(self.hidden[:MOST_NAMED]) + ("; ..." if len(self.hidden) > MOST_NAMED else "")
            found.append(
                f"that leaves out {len(self.hidden)} of the {self.model_shapes} {what} of {shapes.MODEL}: {examples}"
            )
        if self.machine:
            noun = "cases need" if self.machine > 1 else "case needs"
            found.append(f"{self.machine} {noun} more memory than this machine offers, and did not run")
        return found


def declared_limits(records: Iterable[Record]) -> list[Limits]:
    """The limits of each kernel and op of ``records``, in their order; without those that left nothing out.

    A case with several records counts as judged if one of them is. Records of other stages are passed over.
    """
    groups: dict[tuple[str, str], dict[str, list[Record]]] = {}
    for record in records:
        if record.op in OPS:
            groups.setdefault((record.op, record.kernel), {}).setdefault(record.case, []).append(record)
    found = [_of_kernel(op, kernel, by_case) for (op, kernel), by_case in groups.items()]
    return [limits for limits in found if limits.declared or limits.machine]


def sentences(records: Iterable[Record]) -> list[str]:
    """The sentences of every kernel with limits; each kernel's first names it."""
    return [sentence for limits in declared_limits(records) for sentence in limits.sentences()]


def is_declared(record: Record) -> bool:
    """Whether the record says UNSUPPORTED because the kernel does; not its contract, its recipe or the machine."""
    if record.status is not Status.UNSUPPORTED or record.comparisons:
        return False
    return record.limit is None or record.limit.kind == DECLARED


def _of_kernel(op: str, kernel: str, by_case: dict[str, list[Record]]) -> Limits:
    judged: list[Case] = []
    left: list[tuple[Case, Record]] = []
    machine = 0
    for text, records in by_case.items():
        try:
            case = Case.parse(text)
        except CaseError:
            continue  # of a walk or a golden: not a case of the suite
        declared = next((r for r in records if is_declared(r)), None)
        if any(r.status in _RUN for r in records):
            judged.append(case)
        elif declared is not None:
            left.append((case, declared))
        else:
            machine += any(r.limit is not None and r.limit.kind == MACHINE for r in records)
    return Limits(
        kernel=kernel,
        op=op,
        cases=len(by_case),
        declared=len(left),
        limits=tuple(_by_reason(left)),
        features=tuple(_left_out(judged, [case for case, _ in left])),
        hidden=tuple(_hidden(op, judged, [case for case, _ in left])),
        model_shapes=len(shapes.model_shapes(op)),
        machine=machine,
    )


def _by_reason(left: Sequence[tuple[Case, Record]]) -> list[Limit]:
    groups: dict[str, list[tuple[Case, Record]]] = {}
    for case, record in left:
        reason = record.reasons[0] if record.reasons else ""
        groups.setdefault(re.sub(r"\d+", "#", reason), []).append((case, record))
    found = [
        Limit(
            reason=group[0][1].reasons[0] if group[0][1].reasons else "no reason was recorded",
            cases=len(group),
            examples=tuple(case.id for case, _ in group[:MOST_EXAMPLES]),
            feature=group[0][1].limit.feature if group[0][1].limit else "",
        )
        for group in groups.values()
    ]
    return sorted(found, key=lambda limit: -limit.cases)


def _left_out(judged: Sequence[Case], left: Sequence[Case]) -> list[tuple[str, int]]:
    """A case without a row shows that zero rows are taken, and nothing of its types or of its options."""
    found = []
    for name, has in _FEATURES:
        count = sum(map(has, left))
        if count and not any(has(c) for c in judged if c.m or name == "zero rows"):
            found.append((name, count))
    return found


def _hidden(op: str, judged: Sequence[Case], left: Sequence[Case]) -> list[str]:
    """Shapes of the model that limits alone keep from being judged, the widest first."""
    seen, away = ({(c.n, c.k) for c in cases if c.m} for cases in (judged, left))
    names = []
    for n, k in shapes.model_shapes(op):
        if (n, k) in away and (n, k) not in seen:
            names.append(f"n = {n}" + (f", k = {k}" if k else ""))
    return names


# ---- kernels that raise, and do not say where


_TESTS: tuple[tuple[str, Callable[[Case], bool]], ...] = (
    ("case.m == 0", lambda c: c.m == 0),
    ("case.m == 1", lambda c: c.m == 1),
    *(
        (f"case.{axis} % {step}", lambda c, a=axis, s=step: getattr(c, a) % s != 0)
        for axis in ("n", "k", "m")
        for step in (2, 4, 8, 16, 32, 64, 128)
    ),
    *(
        (f"case.n % {step} or case.k % {step}", lambda c, s=step: c.n % s != 0 or c.k % s != 0)
        for step in (2, 4, 8, 16, 32, 64, 128)
    ),
    ('case.layout != "contiguous"', lambda c: c.layout != "contiguous"),
    ('case.layout == "strided"', lambda c: c.layout == "strided"),
    ('case.layout == "3d"', lambda c: c.layout == "3d"),
    ('case.layout == "3dstrided"', lambda c: c.layout == "3dstrided"),
    ('case.dtype == "fp16"', lambda c: c.dtype == "fp16"),
    ('case.fp8 == "e4m3fnuz"', lambda c: c.fp8 == "e4m3fnuz"),
    ("case.bias", lambda c: c.bias),
    ('case.gamma == "fp32"', lambda c: c.gamma == "fp32"),
    ("case.gemma", lambda c: c.gemma),
    ("not case.residual", lambda c: not c.residual),
)


def raised(record: Record) -> bool:
    """Whether the record is the ERROR of a kernel that raised."""
    return record.status is Status.ERROR and record.fault == "raised"


def condition(errors: Sequence[Case], others: Sequence[Case]) -> str | None:
    """A Python expression of ``case`` that holds for every one of ``errors`` and for none of ``others``, or None.

    The simplest of a fixed list: a divisor of one axis, a type, a layout, then the ends of the range of an axis. With
    fewer than two errors it says nothing, since one case has too many properties.
    """
    if len(errors) < 2 or not others:
        return None
    for text, holds in _TESTS:
        if all(map(holds, errors)) and not any(map(holds, others)):
            return text
    for axis in ("n", "k", "m"):
        wrong, right = ([getattr(c, axis) for c in cases] for cases in (errors, others))
        # The end that raised, not the first that did not: what is between them was tried by no case.
        if min(wrong) > max(right):
            return f"case.{axis} >= {min(wrong)}"
        if max(wrong) < min(right):
            return f"case.{axis} <= {max(wrong)}"
    return None


def hints(records: Sequence[Record]) -> list[str]:
    """What to do about ERRORs, once for each kernel.

    For a kernel that raised: how to declare a limit, with the condition that tells its ERRORs from the other cases.
    """
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record.op in OPS and record.status in _RUN:
            groups.setdefault((record.op, record.kernel), []).append(record)
    found = []
    for (_, kernel), group in groups.items():
        errors, others = [r for r in group if raised(r)], [r for r in group if not raised(r)]
        advice = {r.reasons[1]: None for r in group if r.status is Status.ERROR and not raised(r) and r.reasons[1:]}
        found += [f"{kernel}: {sentence}" for sentence in advice]
        if errors:
            text = condition([Case.parse(r.case) for r in errors], [Case.parse(r.case) for r in others])
            count = f"{len(errors)} of {len(group)} cases"
            what = f"{kernel} raised in {count}" + (f": those, and no others, where {text}" if text else "")
            found.append(f"{what}; {how_to_declare(kernel, text)}")
    return found
