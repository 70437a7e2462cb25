"""Does a case kill a mutant? As ``validators.run.validate`` decides, without words and only as far as it must.

Outputs with the bits of the clean kernel need no judge. Of others only the rows (and columns of a GEMM) that differ are
judged: the sets are sets of elements, a row at a time, so that the rows that are left out are right already.
``tests/suite/judge/test_mutants.py`` holds this against ``validate`` itself.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reference.contract import get_contract
from tests.mutants import Mutant, clean_kernel, mix, run
from tests.mutants.guards import Facts
from tests.mutants.operator import Stage, stages_of
from validators.calls import integrity, invariance
from validators.calls.buffers import POISONS, poison_int
from validators.calls.call import Claim, KernelFault, call
from validators.cases.tensors import Inputs, Outputs, as_ints, named_tensors
from validators.judge.compare import admits_all, open_rows
from validators.judge.ops.ptpc_gemm import BIAS_ELEMENTS
from validators.run import INVARIANCE_ELEMENTS, judge

_FIRST_ROWS, _FIRST_COLUMNS = 16, 256
_CHUNK_ELEMENTS = 1 << 17


class Outcome(NamedTuple):
    """killed: what showed it, or "". changed: whether any bit of any call that was looked at differed."""

    killed: str
    changed: bool


class Ready:
    """Inputs, the clean kernel's outputs, and what is asked of them often."""

    def __init__(self, inputs: Inputs, name: str) -> None:
        self.inputs, self.name, self.facts = inputs, name, Facts.of(inputs)
        self.contract = get_contract(inputs.op, str(clean_kernel(inputs.op).contract))
        if len(self.contract.members()) > 1:
            raise ValueError(f"contract {self.contract.name} is unsettled: its outputs are judged together")
        self.products: Tensor | None = None
        self.clean = run(inputs, inputs.empty(), {"accumulate": self._accumulate} if inputs.op == "ptpc_gemm" else None)
        self.buffers = inputs.empty()
        # Where a contract does not promise that a row has the same bits in every batch, those checks fail nothing.
        self.promised = self.contract.batch_invariant
        self.memo: dict[str, Tensor] = {}
        m, n, k = self.facts.m, self.facts.n, self.facts.k
        self.elements = m * n
        self.invariances = m * max(n, k) <= INVARIANCE_ELEMENTS
        # Rows of a GEMM share the weights, and rows of other layouts cannot be cut out without a copy.
        whole = inputs.op == "ptpc_gemm" or inputs.leading.dim() > 2
        self.chunk = m if whole else max(1, _CHUNK_ELEMENTS // max(1, n))
        self._parts: dict[int, Ready] = {}

    def _accumulate(self, w: Any) -> None:
        stages_of("ptpc_gemm")["accumulate"](w)
        self.products = w.accumulator

    def stages(self, mutant: Mutant) -> Mapping[str, Stage]:
        """The operator's stages. One that leaves a GEMM's products alone gets the clean kernel's sums of them, which
        cost most of a call."""
        stages = mutant.operator.install()
        if self.products is None or {"decode", "accumulate"} & set(stages):
            return stages
        known: dict[str, Stage] = {
            "decode": lambda w: None,
            "accumulate": lambda w: setattr(w, "accumulator", self.products),
        }
        return {**known, **stages}

    def part(self, start: int) -> Ready:
        """The rows of one chunk, as inputs of their own that share the memory."""
        if start not in self._parts:
            rows = slice(start, start + self.chunk)
            part = copy.copy(self)
            part.inputs = _cut(self.inputs, self.inputs.ROWS, rows)
            names = tuple(named_tensors(self.clean))
            part.clean, part.buffers = (_cut(o, names, rows) for o in (self.clean, self.buffers))
            part.memo, part._parts = {}, {}
            part.facts = replace(self.facts, m=len(part.inputs.leading))
            part.elements = part.facts.m * part.facts.n
            self._parts[start] = part
        return self._parts[start]

    def may_meet(self, mutant: Mutant) -> bool:
        """Whether any call of this case's validation can meet the guard."""
        again = self.promised and (self.invariances or self.facts.layout != "contiguous")
        others = self.facts.alone() if again else []
        return any(mutant.guard.meets(facts) for facts in (self.facts, *others))

    def may_show(self, mutant: Mutant) -> bool:
        """``may_meet``, and there are rows that meet it too."""
        return self.may_meet(mutant) and (
            not mutant.guard.of_elements or bool(mutant.guard.rows(self.inputs, self.memo).any())
        )

    def elements_met(self, mutant: Mutant) -> int:
        """Output elements that meet the guard, of the call with the whole case."""
        if not mutant.guard.of_elements:
            return self.elements
        columns = int(mutant.guard.columns(self.facts.n).sum())
        return int(mutant.guard.rows(self.inputs, self.memo).sum()) * columns


def _cut(bundle: Any, names: Iterable[str], rows: slice) -> Any:
    tensors = {name: t[rows] for name, t in named_tensors(bundle).items() if name in names}
    return dataclasses.replace(bundle, **tensors)


def poisoned(outputs: Outputs, poison: int) -> Outputs:
    """The same outputs with every byte the poison."""
    for tensor in named_tensors(outputs).values():
        as_ints(tensor).fill_(poison_int(poison, tensor.element_size()))
    return outputs


def try_case(mutant: Mutant, ready: Ready) -> Outcome:
    """The outcome of one case."""
    if not ready.facts.m or not ready.may_meet(mutant):
        return Outcome("", False)
    if mutant.operator.overwrites:
        return _more(mutant, ready, copied(ready.inputs), False)
    changed = False
    if mutant.guard.meets(ready.facts) and mutant.guard.called(1):
        found = _first_call(mutant, ready)
        if found.killed:
            return found
        changed = found.changed
    if mutant.operator.pure and not _depends(mutant, ready.promised):
        return Outcome("", changed)
    return _more(mutant, ready, ready.inputs, changed)


def _depends(mutant: Mutant, promised: bool) -> bool:
    """Whether the guard holds in some calls of a case that are compared and not in others, or for a row in some batches
    only. promised: whether other batches and layouts are compared."""
    return any(
        c.sort == "call" or (promised and (c.sort == "row-number" or c.about in ("m", "layout")))
        for c in mutant.guard.conditions
    )


def _first_call(mutant: Mutant, ready: Ready) -> Outcome:
    guard, inputs = mutant.guard, ready.inputs
    if guard.of_elements and not bool(guard.rows(inputs, ready.memo).any()):
        return Outcome("", False)
    if mutant.operator.pure and ready.chunk < ready.facts.m:
        return _by_chunks(mutant, ready)
    got = run(inputs, poisoned(ready.buffers, POISONS[0]), ready.stages(mutant))
    if guard.of_elements:
        kept = {name: tensor.clone() for name, tensor in named_tensors(ready.clean).items()}
        got = mix(inputs.outputs(kept), got, guard, inputs, ready.memo)
    return _settled(ready, got)


def _settled(ready: Ready, got: Outputs) -> Outcome:
    rows, columns = differing(ready.clean, got)
    return Outcome(outside(ready, got, rows, columns), True) if len(rows) else Outcome("", False)


def _by_chunks(mutant: Mutant, ready: Ready) -> Outcome:
    """A pure mutant of an op whose rows become codes, on chunks of rows whose temporaries stay in a core's cache; the
    first chunk with a violation ends it."""
    changed = False
    for start in range(0, ready.facts.m, ready.chunk):
        part = ready.part(start)
        rows = mutant.guard.rows(ready.inputs, ready.memo)[start : start + ready.chunk]
        if not bool(rows.any()):
            continue
        got = run(part.inputs, poisoned(part.buffers, POISONS[0]), mutant.operator.install())
        if mutant.guard.of_elements:
            kept = {name: tensor.clone() for name, tensor in named_tensors(part.clean).items()}
            got = mix(part.inputs.outputs(kept), got, mutant.guard, part.inputs, part.memo, rows=rows)
        found = _settled(part, got)
        if found.killed:
            return found
        changed |= found.changed
    return Outcome("", changed)


def differing(clean: Outputs, got: Outputs) -> tuple[Tensor, Tensor]:
    """Numbers of the flattened rows that differ, and of the columns of the widest output."""
    rows = columns = None
    ours = named_tensors(clean)
    for name, tensor in named_tensors(got).items():
        a, b = as_ints(ours[name]), as_ints(tensor)
        if torch.equal(a, b):
            continue
        unlike = (a != b).view(-1, tensor.shape[-1])
        by_row, by_column = unlike.any(1), unlike.any(0)
        rows = by_row if rows is None else rows | by_row
        if columns is None or len(by_column) == len(columns):
            columns = by_column if columns is None else columns | by_column
        elif len(by_column) > len(columns):
            columns = by_column
    if rows is None or columns is None:
        return torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long)
    return rows.nonzero().flatten(), columns.nonzero().flatten()


def outside(ready: Ready, got: Outputs, rows: Tensor, columns: Tensor) -> str:
    """What shows that elements in these rows (and columns) are outside their sets; a few rows are asked first."""
    step = max(1, len(rows) // _FIRST_ROWS)
    if not _admitted(ready, got, rows[::step][:_FIRST_ROWS], columns[:_FIRST_COLUMNS]):
        return "values"
    if (len(rows) > _FIRST_ROWS or len(columns) > _FIRST_COLUMNS) and not _admitted(ready, got, rows, columns):
        return "values"
    if ready.inputs.op != "ptpc_gemm" or ready.elements < BIAS_ELEMENTS:
        return ""
    statistical = judge(Claim(ready.inputs, got), ready.contract)[1]
    return "bias" if any(check.ok is False for check in statistical) else ""


def _admitted(ready: Ready, got: Outputs, rows: Tensor, columns: Tensor) -> bool:
    inputs: Any = ready.inputs.flat()
    outputs: Any = got.flat()
    part, found = inputs.take_rows(rows.tolist()), outputs.take_rows(rows.tolist())
    if inputs.op == "ptpc_gemm":
        b = as_ints(inputs.b)[columns].view(inputs.b.dtype)
        bias = None if inputs.bias is None else inputs.bias[columns]
        part = dataclasses.replace(part, b=b, b_scale=inputs.b_scale[columns], bias=bias)
        found = dataclasses.replace(found, out=found.out[:, columns])
    return admits_all(part, found, ready.contract)


def copied(inputs: Inputs) -> Inputs:
    """The same inputs in memory of their own, laid out as they are."""
    tensors: dict[str, Any] = {}
    for name, tensor in named_tensors(inputs).items():
        held = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)
        as_ints(held).copy_(as_ints(tensor))
        tensors[name] = held
    return dataclasses.replace(inputs, **tensors)


def _more(mutant: Mutant, ready: Ready, inputs: Inputs, changed: bool) -> Outcome:
    """The checks that call a kernel again: unchanged inputs, guards, poison, run to run, and the invariances."""
    kernel = mutant.kernel
    before = integrity.snapshot(inputs) if mutant.operator.overwrites else None
    try:
        first, guards1, _ = call(kernel, inputs, POISONS[0])
        second, guards2, _ = call(kernel, inputs, POISONS[1])
    except KernelFault as fault:
        # No operator is meant to raise: that is a fault of the harness, and no kill.
        raise RuntimeError(f"{mutant.id} raised on {ready.name}: {fault}") from fault
    if before is not None and not integrity.check_unchanged(inputs, before).ok:
        return Outcome("inputs unchanged", True)
    if not (guards1.ok and guards2.ok):
        return Outcome("guards", True)
    if not integrity.check_unwritten(first, second, *POISONS).ok:
        return Outcome("poison", True)
    if len(differing(first, second)[0]):
        return Outcome("run to run", True)
    rows, columns = differing(ready.clean, first)
    if len(rows):
        changed = True
        if mutant.operator.overwrites and (words := outside(ready, first, rows, columns)):
            return Outcome(words, True)
    watched: Any = _Watched(kernel.call, ready)
    kernel = dataclasses.replace(kernel, call=watched)
    asked: dict[str, Any] = {
        "judged": ready.contract.batch_invariant,
        "open_rows": functools.partial(open_rows, inputs, ready.contract),
    }
    if ready.promised and ready.invariances and invariance.batch_invariance(kernel, inputs, first, **asked).ok is False:
        return Outcome("batch invariance", True)
    if ready.promised and ready.facts.layout != "contiguous":
        check = invariance.layout_equals_contiguous(kernel, inputs, first, **asked)
        if check.ok is False:
            return Outcome("strided equals contiguous", True)
    return Outcome("", changed or watched.changed)


class _Watched:
    """Calls a mutant and looks whether it gave other bits than the clean kernel for the same inputs. Only asked where
    nothing has differed yet: the answer tells an equivalent from a mutant within its contract."""

    def __init__(self, mutant: Any, ready: Ready) -> None:
        self.mutant, self.changed = mutant, False

    def __call__(self, inputs: Inputs, buffers: Outputs) -> Outputs:
        got: Outputs = self.mutant(inputs, buffers)
        self.changed = self.changed or bool(len(differing(run(inputs, inputs.empty(), None), got)[0]))
        return got
