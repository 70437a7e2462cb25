"""Mutants: kernels that are wrong in a way that nobody chose, to measure what a suite lets through.

The zoo holds known defects; a suite can be written for them. Mutants are generated: operators on arithmetic, rounding,
data movement, state and special values, at every field of every stage of an op's emulated kernel, each alone or behind
a guard of one or two conditions. An id is ``op|operator|guard`` and rebuilds the mutant.
Nothing here knows a suite, and no judge knows a mutant.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from reference.contract import GEMM_CONTRACTS, NORM_QUANT_CONTRACTS
from tests.mutants import arithmetic, movement, rounding, special, state
from tests.mutants.guards import Facts, Guard, draw, parse
from tests.mutants.operator import KINDS, OPS, Operator, Stage, stages_of
from tests.mutants.witness import feasible
from validators.cases.tensors import Inputs, Outputs, as_ints, named_tensors
from validators.kernels import emulated, emulated_gemm
from validators.kernels.kernel import Kernel

CONTRACTS = {"add_rmsnorm_quant": "aiter-hip-gfx950", "per_token_quant": "aiter-hip-gfx950", "ptpc_gemm": "fp32"}
"""What the clean kernels and their mutants declare."""
GUARDED = 2000
"""Guarded mutants of each op that ``generate`` draws."""
_FAMILIES = (arithmetic, rounding, movement, state, special)


@dataclass(frozen=True)
class Mutant:
    """An operator behind a guard. Each ``kernel`` starts with no memory of calls."""

    op: str
    operator: Operator
    guard: Guard

    @property
    def id(self) -> str:
        """``op|operator|guard``."""
        return f"{self.op}|{self.operator.name}|{self.guard.text}"

    @property
    def kind(self) -> str:
        """arithmetic, rounding, movement, state or special."""
        return self.operator.kind

    @property
    def shows(self) -> Guard:
        """The guard, and what the operator needs to change anything: what a witness must meet."""
        needs = self.operator.needs
        return Guard((*self.guard.conditions, parse(needs))) if needs else self.guard

    @property
    def sentence(self) -> str:
        """What is wrong, and when."""
        when = "" if not self.guard.conditions else f" Only when {' and '.join(self.guard.text.split('&'))}."
        return self.operator.sentence + when

    @property
    def kernel(self) -> Kernel:
        """A kernel that declares what the clean one computes."""
        call = Call(self)
        return Kernel(
            f"mutant/{self.operator.name}",
            self.op,
            CONTRACTS[self.op],
            call,
            in_place=True,
            emulated=True,
            notes=self.sentence,
        )


class Call:
    """What a mutant's kernel does when it is called, with its own memory."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant, self.calls, self.stages = mutant, 0, mutant.operator.install()

    def __call__(self, inputs: Inputs, buffers: Outputs) -> Outputs:
        self.calls += 1
        guard = self.mutant.guard
        if not inputs.row_count or not guard.meets(Facts.of(inputs)) or not guard.called(self.calls):
            return run(inputs, buffers, None)
        if not guard.of_elements:
            return run(inputs, buffers, self.stages)
        copies = {name: tensor.clone() for name, tensor in named_tensors(buffers).items()}
        wrong = run(inputs, inputs.outputs(copies), self.stages)
        return mix(run(inputs, buffers, None), wrong, guard, inputs)


def run(inputs: Inputs, buffers: Outputs, stages: Mapping[str, Stage] | None) -> Outputs:
    """The emulated kernel with stages replaced. A clean one takes the same path: all rows are one chunk. Of no rows
    there is nothing to be wrong in, and no chunk either."""
    first = next(iter(stages_of(inputs.op)))
    chosen = {first: stages_of(inputs.op)[first], **(stages or {})} if inputs.row_count else None
    if inputs.op == "ptpc_gemm":
        return emulated_gemm.execute(inputs, buffers, GEMM_CONTRACTS[CONTRACTS[inputs.op]], stages=chosen)
    return emulated.execute(inputs, buffers, NORM_QUANT_CONTRACTS[CONTRACTS[inputs.op]], stages=chosen)


def mix(
    clean: Outputs,
    wrong: Outputs,
    guard: Guard,
    inputs: Inputs,
    memo: dict[str, Any] | None = None,
    *,
    rows: torch.Tensor | None = None,
) -> Outputs:
    """Elements of ``wrong`` that the guard names, written into ``clean``. An output of one column has no columns to
    choose from: it stays clean behind a guard on columns. rows: the rows that meet it, where that is known."""
    rows = guard.rows(inputs, memo) if rows is None else rows
    by_columns = "columns" in guard.sorts()
    for name, right in named_tensors(clean).items():
        if by_columns and right.shape[-1] == 1:
            continue
        bad = getattr(wrong, name)
        target, source = as_ints(right).view(len(rows), -1), as_ints(bad).view(len(rows), -1)
        hit = rows[:, None] & guard.columns(target.shape[1])[None, :]
        target.copy_(torch.where(hit, source, target))
    return clean


def clean_kernel(op: str) -> Kernel:
    """The kernel that the op's mutants depart from."""
    return Kernel(
        f"mutant/clean-{op}",
        op,
        CONTRACTS[op],
        lambda inputs, buffers: run(inputs, buffers, None),
        in_place=True,
        emulated=True,
    )


@functools.cache
def operators(op: str) -> Mapping[str, Operator]:
    """Every operator of the op by name."""
    found: dict[str, Operator] = {}
    for family in _FAMILIES:
        for operator in family.operators(op):
            if operator.name in found:
                raise ValueError(f"two operators of {op} are called {operator.name}")
            found[operator.name] = operator
    return found


def generate(op: str, seed: int = 0, *, guarded: int = GUARDED) -> Iterator[Mutant]:
    """Every unguarded mutant of the op, then ``guarded`` ones: operators of each kind in turn, guards drawn."""
    known = operators(op)
    for operator in known.values():
        yield Mutant(op, operator, Guard())
    rng = random.Random(f"{op} {seed}")
    by_kind = {kind: [o for o in known.values() if o.kind == kind] for kind in KINDS}
    seen: set[str] = set()
    while len(seen) < guarded:
        operator = rng.choice(by_kind[KINDS[len(seen) % len(KINDS)]])
        mutant = Mutant(op, operator, _drawn(rng, operator, op))
        if mutant.id not in seen:
            seen.add(mutant.id)
            yield mutant


def _drawn(rng: random.Random, operator: Operator, op: str) -> Guard:
    """A guard of one or two conditions on different things, which some call of a feasible size meets."""
    elements = operator.pure and not operator.overwrites
    while True:
        count = rng.choice((1, 2))
        texts = [draw(rng, op, elements=elements) for _ in range(count)]
        guard = Guard.parse("&".join(sorted(texts)))
        about = [c.about for c in guard.conditions]
        # What remembers calls would see only those that the guard names.
        if operator.kind == "state" and "call" in about:
            continue
        if len(set(about)) == len(about) and feasible(op, Mutant(op, operator, guard).shows):
            return guard


def find(identity: str) -> Mutant:
    """The mutant with that id; raises ValueError with one sentence."""
    parts = identity.split("|")
    if len(parts) != 3 or parts[0] not in OPS:
        raise ValueError(f"{identity!r} is no id of a mutant: op|operator|guard")
    op, name, guard = parts
    if name not in operators(op):
        raise ValueError(f"op {op} has no operator {name!r}")
    return Mutant(op, operators(op)[name], Guard.parse(guard))
