"""Check and verify: is everything still as accepted, and is the store itself whole?"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from golden import kernel, sets, truth
from golden.outcome import Outcome, State
from golden.store import GoldenError, Row, Store, Tensor, read
from validators.arch import ArchError, architecture
from validators.cases.case import Case, CaseError
from validators.cases.inputs import build, digest
from validators.cases.recipes import reasons_impossible
from validators.records.command_line import command_line, split_op
from validators.records.evidence import Golden
from validators.records.provenance import provenance
from validators.records.record import Check, Record, Status

DATA = Path(__file__).resolve().parent / "data"
"""The repository's own store."""


def select(
    store: Store, *, device: str | None = None, kernels: Sequence[str] = (), ids: Sequence[str] = ()
) -> list[Row]:
    """Rows to check, by id; raises GoldenError where a filter matches nothing.

    device: only goldens of its architecture, and those of the inputs; with "cpu" those of the reference as well.
    kernels: only goldens of these, each ``[OP=]NAME``. ids: only these.
    """
    rows = [store.rows[name] for name in sorted(store.rows)]
    for name in ids:
        if name not in store.rows:
            raise GoldenError(f"no golden {name!r}; 'list' shows what there is")
    wanted = [split_op(text) for text in kernels]
    for op, name in wanted:
        known = sorted({row.kernel for row in rows if row.kernel and op in (None, row.op)})
        if name not in known:
            raise GoldenError(f"no golden of kernel {name!r}{f' for op {op}' if op else ''}; known: {', '.join(known)}")
    if ids:
        rows = [row for row in rows if row.id in ids]
    if kernels:
        rows = [row for row in rows if {(None, row.kernel), (row.op, row.kernel)}.intersection(wanted)]
    if device is not None:
        arch = _architecture(device)
        rows = [row for row in rows if row.arch == arch or (row.arch is None and _truth_on(row, device))]
        if arch != sets.CPU and not any(row.arch == arch for row in rows):
            raise GoldenError(f"no golden of {arch} is recorded; propose them with --device {device} and accept them")
    if not rows:
        raise GoldenError("no golden has all the properties asked for; 'list' shows what there is")
    return rows


def _truth_on(row: Row, device: str) -> bool:
    return row.kind == "inputs" or device == sets.CPU


def _architecture(device: str) -> str:
    try:
        return architecture(device)
    except ArchError as error:
        raise GoldenError(str(error)) from None


def check(store: Store, rows: Sequence[Row], device: str | None = None) -> Iterator[Outcome]:
    """The outcome of each row, as it comes. A damaged store is refused: raises GoldenError before anything runs."""
    store.require_intact()
    for row in rows:
        yield check_row(row, store.tensors[row.id], device)


def check_row(row: Row, tensors: dict[str, Tensor], device: str | None = None) -> Outcome:
    """The outcome of one golden; device None finds the one of its architecture, if there is any."""
    if row.kind == "kernel":
        return kernel.check(row, tensors, _device_of(row, device))
    start = time.perf_counter()
    on = device or sets.CPU
    try:
        case = Case.parse(row.case)
        now = digest(build(case, device=on))
        if now != row.inputs:
            wrong = [f"the input generator makes other bits: {now[:12]} and not {row.inputs[:12]}"]
        elif row.kind == "reference":
            wrong = truth.differences(row.outputs, tensors, truth.compute(case))
        else:
            wrong = []
    except (CaseError, GoldenError) as error:
        wrong = [str(error)]
    state = State.FAILED if wrong else State.UNCHANGED
    seconds = time.perf_counter() - start
    record = _truth_record(row, on, state, wrong, seconds)
    return Outcome(row.id, row.kind, row.kind, row.arch or "any", state, "; ".join(wrong), (), record, seconds)


def _truth_record(row: Row, device: str, state: State, wrong: list[str], seconds: float) -> Record:
    """That the truth or the inputs are as accepted: a record of no kernel, op ``goldens``."""
    status = Status.FAILED if wrong else Status.PASSED
    return Record(
        status=status,
        reasons=tuple(wrong),
        kernel=f"golden/{row.kind}",
        op=kernel.LANE,
        case=row.case,
        lane=kernel.LANE,
        contract=row.kind,
        contract_from="declared",
        device=device,
        arch="any",
        checks=(Check("golden", not wrong, "; ".join(wrong) or "the accepted bits", "determinism"),),
        seconds=seconds,
        reproduce=command_line("golden", "check", id=row.id),
        stage="goldens",
        subject="truth",
        golden=Golden(row.id, state.value),
        provenance=provenance(device),
    )


def _device_of(row: Row, device: str | None) -> str | None:
    """Device with the row's architecture, or None."""
    for candidate in [device] if device else ["cpu", "cuda"]:
        try:
            if architecture(candidate) == row.arch:
                return candidate
        except ArchError:
            continue
    return None


def problems(store: Store) -> list[str]:
    """Everything wrong with a store, a sentence each: damage, stray files, rows without a case, cases without a row."""
    found = [*store.problems, *(f"file {name} belongs to no golden" for name in store.strays)]
    for row in store.rows.values():
        try:
            case = Case.parse(row.case)
            reason = reasons_impossible(case)
            if reason:
                found.append(f"golden {row.id}: its case cannot be built: {reason}")
            elif case.op != row.op or case.id != row.case:
                found.append(f"golden {row.id}: {row.case} is no case of op {row.op}")
        except CaseError as error:
            found.append(f"golden {row.id} has no case: {error}")
        if row.id != sets.golden_id(row.kind, row.case, row.kernel, row.arch):
            found.append(f"golden {row.id} is not how its case, kernel and architecture are written")
    # A row too damaged to be read is named already and does not count as absent.
    named = " ".join(store.problems)
    marked = _marked(store)
    found += [
        f"case {m.case} is marked golden for {m.kernel.name + ' on ' + str(m.arch) if m.kernel else m.kind}, "
        "but has no row"
        for m in marked
        if m.id not in store.rows and f"({m.id})" not in named
    ]
    known = {m.id for m in marked}
    found += [f"golden {name} has a row, but its case is not marked golden" for name in store.rows if name not in known]
    return found


def _marked(store: Store) -> list[sets.Marked]:
    recorded: dict[str, set[tuple[str, str]]] = {sets.CPU: set()}
    for row in store.rows.values():
        if row.kind == "kernel":
            recorded.setdefault(str(row.arch), set()).add((str(row.kernel), row.op))
    found = sets.marked_truth()
    for arch, kernels in recorded.items():
        found += sets.marked_kernels(arch, kernels)
    return found


def load(root: str | Path = DATA) -> Store:
    """The store at ``root``, read whole; damage is in its ``problems``."""
    return read(root)
