"""Propose and accept: the only way into the store.

A proposal is a folder of the store's own form whose outputs are all whole, so it can be carried from the machine that
ran the kernels to the one where they are accepted. Accepting runs no kernel: it judges the outputs themselves.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from golden import kernel as one
from golden import truth
from golden.commit import Entry, commit
from golden.sets import Marked, isa_of, library_of, marked_kernels, marked_truth
from golden.store import MANIFEST, GoldenError, Row, Tensor, read
from golden.tensors import from_stored, sample
from reference.contract import get_contract
from validators.arch import ArchError, architecture
from validators.calls.call import KernelFault
from validators.cases.case import Case
from validators.cases.inputs import build, digest
from validators.errors import UserError
from validators.records.command_line import split_op
from validators.records.files import check_folder
from validators.records.provenance import provenance
from validators.records.record import Status as Verdict

Say = Callable[[str], None]


class Accepted(NamedTuple):
    """Ids that changed the store, ids whose bits were there already, and a sentence for each refused one."""

    changed: list[str]
    unchanged: list[str]
    refused: list[str]


def propose(out: str | Path, *, device: str, kernels: Sequence[str] = (), say: Say = print) -> list[str]:
    """Run the golden cases on ``device`` and write them to the new folder ``out``; ids of what is proposed.

    kernels: only these, each ``[OP=]NAME``; without, every kernel that belongs to the device's architecture, on a CPU
    with the goldens of the reference and of the inputs. ``say`` gets one sentence for every kernel or case left out.
    Raises GoldenError.
    """
    folder = Path(out)
    if folder.exists() and any(folder.iterdir()):
        raise GoldenError(f"{folder} is not empty; a proposal gets a folder of its own")
    try:
        arch = architecture(device)
    except ArchError as error:
        raise GoldenError(str(error)) from None
    marked = marked_kernels(arch)
    if kernels:
        wanted = [split_op(text) for text in kernels]
        for op, name in wanted:
            known = dict.fromkeys(m.kernel.name for m in marked if m.kernel and op in (None, m.kernel.op))
            if name not in known:
                own = ": bits of a kernel of one's own are not kept here" if ":" in name else ""
                raise GoldenError(f"no golden kernel {name!r} on {arch}{own}; known: {', '.join(known)}")
        marked = [
            m for m in marked if m.kernel and {(None, m.kernel.name), (m.kernel.op, m.kernel.name)}.intersection(wanted)
        ]
    elif arch == "cpu":
        marked = [*marked, *marked_truth()]
    check_folder(folder, "the proposal")
    entries = _entries(marked, device, say)
    if not entries:
        raise GoldenError(f"nothing to propose: no golden kernel could run on {arch}")
    return commit(folder, entries)


def _entries(marked: Sequence[Marked], device: str, say: Say) -> list[Entry]:
    entries = []
    absent: set[tuple[str, str]] = set()
    for item in marked:
        if item.kernel is None:
            entries.append(truth_entry(item))
            continue
        key = (item.kernel.name, item.kernel.op)
        if key in absent:
            continue
        if reason := item.kernel.unavailable(device.split(":")[0]):
            absent.add(key)
            say(f"{item.kernel.name} ({item.kernel.op}): not proposed, {reason}")
            continue
        entry = _kernel_entry(item, device, say)
        if entry is not None:
            entries.append(entry)
    return entries


def _kernel_entry(item: Marked, device: str, say: Say) -> Entry | None:
    kernel = item.kernel
    assert kernel is not None
    assert item.arch is not None
    if kernel.contract is None:
        say(f"{item.id}: not proposed, the kernel declares no contract")
        return None
    try:
        judged = one.run(kernel, Case.parse(item.case), get_contract(kernel.op, kernel.contract), device)
    except KernelFault as fault:
        say(f"{item.id}: not proposed, {fault}")
        return None
    failing = [f"{c.name}: {c.detail}" for c in judged.checks if c.ok is False]
    if failing:
        # Poison, guards and run-to-run cannot be seen in the outputs when they are accepted.
        say(f"{item.id}: not proposed, {'; '.join(failing)}")
        return None
    if judged.verdict is not Verdict.PASSED:
        say(f"{item.id}: {judged.verdict.value}, so accept will refuse it: {'; '.join(judged.reasons)}")
    stored = {name: sample(name, tensor, whole=True) for name, tensor in judged.outputs.items()}
    row = Row(
        id=item.id,
        kind="kernel",
        case=item.case,
        op=kernel.op,
        inputs=judged.inputs,
        kernel=kernel.name,
        arch=item.arch,
        contract=kernel.contract,
        outputs={name: o for name, (o, _) in stored.items()},
        isa=isa_of(kernel.name, item.arch),
        library=library_of(kernel.name, item.arch),
        emulated=kernel.emulated,
        fake=kernel.fake,
        versions=one.versions_of(kernel, device),
        commit=_commit(),
    )
    return Entry(row, {name: tensor for name, (_, tensor) in stored.items()})


def truth_entry(item: Marked) -> Entry:
    """A reference or inputs golden as it is now."""
    case = Case.parse(item.case)
    values = truth.stored_part(truth.compute(case)) if item.kind == "reference" else {}
    stored = {name: sample(name, tensor, whole=True) for name, tensor in values.items()}
    row = Row(
        id=item.id,
        kind=item.kind,
        case=item.case,
        op=case.op,
        inputs=digest(build(case)),
        outputs={name: o for name, (o, _) in stored.items()},
        versions=one.versions_of(None, "cpu"),
        commit=_commit(),
    )
    return Entry(row, {name: tensor for name, (_, tensor) in stored.items()})


def _commit() -> str | None:
    where = provenance("cpu")
    return None if where.commit is None else f"{where.commit[:12]}{' (dirty)' if where.dirty else ''}"


def accept(root: str | Path, proposal: str | Path, *, why: str, only: Sequence[str] = ()) -> Accepted:
    """Move a proposal's goldens into the store at ``root``. only: ids, kernel names, or the kinds
    "inputs" and "reference"; all without.

    Each is judged first: what the contract does not allow, what a test double computed, and what nobody marked as
    golden is refused with a sentence; the others go in together. Raises GoldenError where there is nothing to accept.
    """
    if not why.strip():
        raise GoldenError("accept needs a reason: --why '...'")
    if Path(root).resolve() == Path(proposal).resolve():
        raise GoldenError(f"{proposal} is the store itself, not a proposal")
    if not (Path(proposal) / MANIFEST).is_file():
        raise GoldenError(f"{proposal} holds no proposal: there is no {MANIFEST} in it")
    store = read(proposal)
    store.require_intact()
    names = {row.id: (row.id, row.kernel or row.kind) for row in store.rows.values()}
    rows = [row for row in store.rows.values() if not only or set(names[row.id]) & set(only)]
    unknown = [name for name in only if not any(name in names[row.id] for row in rows)]
    if unknown or not rows:
        raise GoldenError(f"{proposal} proposes no golden {unknown[0] if unknown else ''}".rstrip())
    present = read(root).rows if (Path(root) / MANIFEST).exists() else {}
    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    entries, refused, unchanged = [], [], []
    for row in rows:
        if row.id in present and present[row.id].same_golden(row):
            unchanged.append(row.id)
        elif reason := why_refused(row, store.tensors[row.id]):
            refused.append(f"{row.id}: refused, {reason}")
        else:
            entries.append(_accepted(row, store.tensors[row.id], why.strip(), date))
    changed = commit(root, entries) if entries else []
    return Accepted(changed, unchanged, refused)


def why_refused(row: Row, tensors: dict[str, Tensor]) -> str | None:
    """Why a proposed golden must not enter the store, or None."""
    try:
        if row.kind == "kernel":
            return _kernel_refused(row, tensors)
        if row.id not in {m.id for m in marked_truth()}:
            return "no such case is marked golden"
        expected = digest(build(Case.parse(row.case)))
        if expected != row.inputs:
            return "its inputs have other bits here than where it was proposed"
        if row.kind == "reference":
            moved = truth.differences(row.outputs, tensors, truth.compute(Case.parse(row.case)))
            return f"the reference computes otherwise here: {moved[0]}" if moved else None
        return None
    except (UserError, ValueError) as error:
        return str(error)


def _kernel_refused(row: Row, tensors: dict[str, Tensor]) -> str | None:
    kernel = one.find(row.kernel, row.op)
    if kernel is None:
        return f"there is no kernel {row.kernel} for {row.op} in this suite"
    if row.fake or kernel.fake:
        return "its library is a test double, and such outputs say nothing about the kernel"
    if row.id not in {m.id for m in marked_kernels(str(row.arch))}:
        return f"it is not marked golden for {row.kernel} on {row.arch}"
    if row.contract != kernel.contract:
        return f"it was made under contract {row.contract}, and the kernel declares {kernel.contract}"
    if any(output.rows is not None for output in row.outputs.values()):
        return "its outputs are not whole, so they cannot be judged"
    verdict, reasons = one.judge_stored(row, tensors)
    if verdict is not Verdict.PASSED:
        return f"{verdict.value} under contract {row.contract}: {'; '.join(reasons)}"
    return None


def _accepted(row: Row, tensors: dict[str, Tensor], why: str, date: str) -> Entry:
    """The proposal's row with reason and date, large outputs of kernels cut to sampled rows."""
    whole: dict[str, torch.Tensor] = {n: from_stored(t, row.outputs[n].dtype) for n, t in tensors.items()}
    stored = {name: sample(name, tensor, whole=row.kind != "kernel") for name, tensor in whole.items()}
    outputs = {name: output for name, (output, _) in stored.items()}
    return Entry(
        dataclasses.replace(row, outputs=outputs, reason=why, date=date, history=()),
        {name: tensor for name, (_, tensor) in stored.items()},
    )
