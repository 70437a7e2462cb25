"""Runs the waves of a chunk of workgroups in lockstep.

Waves that are at the same instruction run as one group. Where a branch is taken by some waves only, the group splits;
the group at the lowest instruction runs next, and groups that meet become one. A barrier parks a group until no other
can run. Results of loads are there at once, and reading them before the s_waitcnt that a GPU needs is a fault.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from validators.amdgcn import matrix, memory_ops, scalar, vector, vector_other
from validators.amdgcn.errors import MachineFault, TextError
from validators.amdgcn.operands import EXEC, VCC
from validators.amdgcn.state import Group, State
from validators.amdgcn.text import Instruction, Program

BUDGET = 300_000
"""Instructions that the waves of a chunk may execute: a kernel that never ends is a sentence, not a hang."""

Registers = frozenset[tuple[str, int]]


@dataclass(frozen=True)
class Step:
    """An instruction that can run. kind: "run", "access", "branch", "wait", "barrier" or "end". uses: registers that
    it reads or writes. target: of a branch."""

    kind: str
    run: Callable[[State], Any]
    uses: Registers
    access: memory_ops.Access | None = None
    target: int = -1
    waits: tuple[tuple[str, int], ...] = ()


def assemble(program: Program) -> tuple[Step, ...]:
    """Every instruction as a step; TextError for the first that is not implemented."""
    return tuple(step_of(program, index) for index in range(len(program.instructions)))


def step_of(program: Program, index: int) -> Step:
    """The instruction ``index`` as a step; TextError where it is not implemented."""
    found, place = program.instructions[index], f"{program.where}:{program.instructions[index].line}"
    uses = _uses(found)
    if found.mnemonic == "s_endpgm":
        return Step("end", _nothing, uses)
    if found.mnemonic == "s_barrier":
        return Step("barrier", _nothing, uses)
    if found.mnemonic == "s_waitcnt":
        return Step("wait", _nothing, uses, waits=tuple(scalar.waits(found, place).items()))
    if taken := scalar.branch(found.mnemonic):
        label = found.operands[0].name if found.operands else ""
        if label not in program.labels:
            raise TextError(f"{place}: {found.text!r} leaves the kernel")
        return Step("branch", taken, uses, target=program.labels[label])
    if access := memory_ops.build(found, place):
        return Step("access", access.run, uses, access)
    for module in (scalar, vector, vector_other, matrix):
        if run := module.build(found, place):
            return Step("run", run, uses)
    raise TextError(f"{place}: instruction {found.text!r} is not implemented")


def _nothing(state: State) -> None:
    return None


def _uses(found: Instruction) -> Registers:
    named = {(o.kind, i) for o in found.operands if o.kind in ("v", "a", "s") for i in o.registers}
    if "vcc" in found.mnemonic or "div_fmas" in found.mnemonic:
        named |= {("s", VCC), ("s", VCC + 1)}
    if "exec" in found.mnemonic:
        named |= {("s", EXEC), ("s", EXEC + 1)}
    return frozenset(named)


class Scheduler:
    """Runs ``steps`` for the waves of a ``State`` until all have ended."""

    def __init__(self, state: State, steps: Sequence[Step], mode: int, budget: int = BUDGET) -> None:
        self.state, self.steps, self.budget = state, steps, budget
        self.groups = [Group(np.arange(state.exec_bits.shape[0]), 0, mode)]

    def run(self) -> None:
        """All waves to their s_endpgm. Raises MachineFault with the place of what went wrong."""
        with np.errstate(all="ignore"):
            while self.groups:
                running = [group for group in self.groups if not group.parked]
                if not running:
                    self._release()
                    continue
                self._advance(min(running, key=lambda group: group.pc))

    def _release(self) -> None:
        """No wave can run: those at the barrier go on."""
        self.state.lds.barrier()
        for group in self.groups:
            group.parked = False
            group.pc += 1
        self._merge()

    def _advance(self, group: Group) -> None:
        """Run one group until it meets another, splits, parks or ends."""
        state, steps = self.state, self.steps
        state.enter(group)
        others = sorted(other.pc for other in self.groups if other is not group and not other.parked)
        limit = others[0] if others else len(steps)
        while True:
            if group.pc >= len(steps):
                raise MachineFault(f"{state.program.where}: the code ends without s_endpgm")
            self.budget -= 1
            if self.budget < 0:
                raise state.fault("the budget of instructions is used up; the kernel does not end")
            step = steps[group.pc]
            state.executed[group.pc] = True
            if group.pending:
                self._check_pending(group, step)
            if step.kind == "run":
                step.run(state)
            elif step.kind == "access":
                self._access(group, step)
            elif step.kind == "wait":
                _wait(group, step)
            elif step.kind == "end":
                self.groups.remove(group)
                return
            elif step.kind == "barrier":
                group.parked = True
                self._merge()
                return
            elif self._branch(group, step):
                return
            else:
                if group.pc <= limit:
                    continue
                return
            group.pc += 1
            if group.pc >= limit:
                self._merge()
                return

    def _access(self, group: Group, step: Step) -> None:
        assert step.access is not None
        step.run(self.state)
        group.pending = [*group.pending, (step.access.counter, step.access.registers)]

    def _check_pending(self, group: Group, step: Step) -> None:
        for counter, registers in group.pending:
            if early := registers & step.uses:
                kind, index = min(early)
                raise self.state.fault(f"{kind}{index} is used before an s_waitcnt {counter} has waited for its load")

    def _branch(self, group: Group, step: Step) -> bool:
        """Set where the group goes on; True where it split or met another, so that another may be next."""
        taken = np.broadcast_to(step.run(self.state), (self.state.n,))
        if taken.all() or not taken.any():
            group.pc = step.target if taken.any() else group.pc + 1
            alone = len(self.groups) == 1
            if not alone:
                self._merge()
            return not alone
        away = replace(group, waves=group.waves[taken], pc=step.target, pending=list(group.pending))
        group.waves, group.pc = group.waves[~taken], group.pc + 1
        self.groups.append(away)
        self._merge()
        return True

    def _merge(self) -> None:
        """Groups that are at the same instruction in the same state become one."""
        if len(self.groups) == 1:
            return
        known: dict[tuple[object, ...], Group] = {}
        for group in self.groups:
            met = known.get(group.key())
            if met is None:
                known[group.key()] = group
            else:
                met.waves = np.sort(np.concatenate([met.waves, group.waves]))
        self.groups = list(known.values())


def _wait(group: Group, step: Step) -> None:
    """Loads return in order, so of each counter the oldest are done; scalar loads do not, so only 0 is sure."""
    for counter, allowed in step.waits:
        mine = [item for item in group.pending if item[0] == counter]
        scalar_loads = [item for item in mine if any(kind == "s" for kind, _ in item[1])]
        done = mine[: max(0, len(mine) - allowed)]
        if scalar_loads and allowed:
            done = []
        for item in done:
            group.pending.remove(item)
        if done:
            group.pending = list(group.pending)
