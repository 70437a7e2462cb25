"""Which contract do the outputs of a kernel follow: a preset, or a preset but for one or two fields?"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reference.contract import NORM_QUANT_CONTRACTS, Contract, get_contract, presets
from validators.arch import tensor_device
from validators.calls import integrity
from validators.calls.call import KernelFault, call, copy_outputs
from validators.cases.case import Case
from validators.cases.inputs import build
from validators.cases.recipes import reasons_impossible
from validators.cases.tensors import Inputs, Outputs
from validators.explain import nearby
from validators.explain.op import op_explained
from validators.judge.compare import compare
from validators.kernels.kernel import Kernel
from validators.process import doing

MOST_NEAR = 3
"""Changed presets that are named where no preset fits; the first is the one that is used."""
LARGEST_FLOOR = max(contract.floor for contract in NORM_QUANT_CONTRACTS.values())
"""Largest floor of amax that a preset declares, so that a source settles it: 1/512, vLLM's. Identification takes no
larger one for a property. Whatever stores one scale for all rows fits a contract whose floor is above them all."""


@dataclass(frozen=True)
class Candidate:
    """A contract with how many elements of the sample it does not admit, by output."""

    contract: str
    violations: dict[str, int]
    judged: int
    open: int = 0
    """Judged elements with more than one admissible value: of two contracts that admit all, fewer is stricter."""
    title: str = ""
    """In words, for a preset with changed fields."""

    @property
    def total(self) -> int:
        """All violations."""
        return sum(self.violations.values())


@dataclass(frozen=True)
class IdentifyResult:
    """Contracts from best to worst, over the case ids that were used."""

    kernel: str
    candidates: tuple[Candidate, ...]
    cases: tuple[str, ...]
    units: tuple[str, ...] = ()
    """For a GEMM: which accumulator, split-K and epilogue order its outputs equal, in words."""
    near: tuple[Candidate, ...] = ()
    """Where no preset admits every output: presets with one changed field that do, or with two, the strictest first."""
    bits: tuple[str, ...] = ()
    """Where nothing admits every output: what the bits show."""
    refused: tuple[Candidate, ...] = ()
    """Where ``near`` is empty: changed presets that admit every output by a floor above ``LARGEST_FLOOR``."""
    but_zeros: tuple[Candidate, ...] = ()
    """Where neither a preset nor ``near`` admits every output: presets that admit all but rows of zeros."""
    unstable: str = ""
    """Where two runs on the same inputs differ: how. What is said of the outputs is then said of the first run."""

    @property
    def admitted(self) -> list[str]:
        """Contracts that admit every output: presets with changed fields where those are needed, then presets."""
        return [c.contract for c in (*self.near, *self.candidates) if c.total == 0]

    @property
    def best(self) -> str | None:
        """The strictest contract that admits every output, or None. Ties keep the order of the closed list.

        Where only rows of zeros stand against a contract, the kernel is judged by it, and those rows are what fails.
        """
        return next(iter([*self.admitted, *(c.contract for c in self.but_zeros)]), None)

    def lines(self) -> list[str]:
        """Evidence in words, one line a contract."""
        out = [f"two runs differ, and what follows is of the first: {self.unstable}"] if self.unstable else []
        out += [f"{c.title}: admits all {c.judged:,} values (contract {c.contract})" for c in self.near[:MOST_NEAR]]
        out += [
            f"{c.title}: admits all {c.judged:,} values, and is not taken: no preset has a floor above "
            f"{LARGEST_FLOOR:g}, and one that ordinary rows lie below hides what their scales should be (if it is "
            f"meant, give --contract {c.contract})"
            for c in self.refused[:1]
        ]
        out += [
            f"{c.contract}: admits all values but {c.total:,} in rows of zeros, which are judged by it all the same"
            for c in self.but_zeros[:MOST_NEAR]
        ]
        out += [f"the bits show: {sentence}" for sentence in self.bits]
        for c in self.candidates:
            if c.total == 0:
                out.append(f"{c.contract}: admits all {c.judged:,} values")
            else:
                parts = ", ".join(f"{v:,} {k}" for k, v in c.violations.items() if v)
                out.append(f"{c.contract}: does not admit {c.total:,} of {c.judged:,} values ({parts})")
        return [*out, *self.units]


def identification_cases(op: str, *, rows: int, dtype: str, fp8: str, seed: int) -> list[Case]:
    """The cases that tell the contracts of ``op`` apart."""
    asked = op_explained(op).cases
    return [Case(op, rows, recipe=recipe, dtype=dtype, fp8=fp8, seed=seed, **shape) for recipe, shape in asked]


def identify(
    kernel: Kernel, *, device: str = "cpu", rows: int = 64, seed: int = 0, dtype: str = "bf16", fp8: str = "e4m3fn"
) -> IdentifyResult:
    """Judge the kernel's outputs under every preset of its op. Raises ``KernelFault`` if the kernel fails."""
    explained, table = op_explained(kernel.op), presets(kernel.op)
    scenes: list[nearby.Scene] = []
    used: list[Case] = []
    unstable = ""
    for case in identification_cases(kernel.op, rows=rows, dtype=dtype, fp8=fp8, seed=seed):
        if reasons_impossible(case) or kernel.unsupported(case):
            continue
        inputs, outputs, differing = _run(kernel, case, device)
        used.append(case)
        unstable = unstable or differing
        scenes.append(nearby.scene_of(inputs, outputs))
    if not used:
        raise KernelFault(f"{kernel.name} supports none of the cases that identification uses")
    last = explained.cases[-1][0]
    units = explained.units(inputs, outputs) if used[-1].recipe == last else ()
    candidates = [_candidate(scenes, contract) for contract in table.values()]
    candidates.sort(key=lambda c: (c.total, -c.judged, c.open))
    result = IdentifyResult(kernel.name, tuple(candidates), tuple(case.id for case in used), units, unstable=unstable)
    # A preset without a rule for rows of zeros leaves them open, so that they cannot speak against it.
    silent = not candidates[0].total and candidates[0].judged < max(c.judged for c in candidates)
    if not explained.changes or not (candidates[0].total or silent):
        return result
    order = [table[c.contract] for c in candidates]
    small = Case(kernel.op, rows, 512, explained.small, dtype=dtype, fp8=fp8, seed=seed) if explained.small else None
    asked = small is not None and not kernel.unsupported(small)
    added = [nearby.scene_of(*_run(kernel, small, device)[:2])] if small is not None and asked else []
    silent = silent and bool(added) and nearby.admits(added, order[0]) is None
    if not (candidates[0].total or silent):
        return result
    zeros = [case.recipe == explained.zeros for case in used]
    return dataclasses.replace(result, **_changed(scenes, zeros, added, candidates, order, silent=silent))


def _changed(
    scenes: Sequence[nearby.Scene],
    zeros: Sequence[bool],
    added: Sequence[nearby.Scene],
    candidates: Sequence[Candidate],
    order: Sequence[Contract],
    *,
    silent: bool,
) -> dict[str, Any]:
    """What is found among presets with changed fields, by field of ``IdentifyResult``.

    zeros: which scenes hold rows of zeros. added: scenes that presets were not asked about. order: the presets, in the
    order of candidates. silent: the best preset admits all that it judges, and leaves rows open that others judge.
    """
    every = [*scenes, *added]
    open_too = [nearby.outcome([s.whole for s in added], contract).judged for contract in order]
    most = max(c.judged + more for c, more in zip(candidates, open_too, strict=True))
    found = nearby.first_admitting(every, order, least=most)
    but_zeros: list[Candidate] = []
    if not found and not silent:
        # A contract that leaves rows of zeros open would admit them whatever they hold, NaN included.
        ordinary = [scene for scene, empty in zip(scenes, zeros, strict=True) if not empty]
        names = {c.name for c in order if ordinary and nearby.admits(ordinary, c)}
        but_zeros = [c for c in candidates if c.contract in names]
    if not found and not but_zeros and not silent:
        found = nearby.first_admitting(every, order)
    small = [change for change in found if change.contract.floor <= LARGEST_FLOOR]
    near = [_candidate(scenes, change.contract) for change in small[:MOST_NEAR]]
    refused = [_candidate(scenes, change.contract) for change in found[:MOST_NEAR]] if not small else []
    bits: tuple[str, ...] = ()
    if not (near or refused or but_zeros or silent):
        bits = op_explained(scenes[0].whole[0].op).bits([scene.whole for scene in scenes], order[0])
    return {"near": tuple(near), "refused": tuple(refused), "but_zeros": tuple(but_zeros), "bits": bits}


def _run(kernel: Kernel, case: Case, device: str) -> tuple[Inputs, Outputs, str]:
    """Inputs, outputs of the first of two calls, and where the second differs; raises ``KernelFault``."""
    kernel = kernel.on(device)
    inputs = build(case, device=tensor_device(device))
    with doing.during(f"it was run on {case.id} to find its contract"):
        first, _, _ = call(kernel, inputs, 0x7F)
        outputs = copy_outputs(first)  # a static tensor would be written again by the second call
        again, _, _ = call(kernel, inputs, 0x7F)
    try:
        integrity.check_outputs(inputs, first, strict=False)
        integrity.check_outputs(inputs, again, strict=False)
    except integrity.OutputError as error:
        raise KernelFault(f"{error}, on {case.id}, a case to find the contract by") from error
    return inputs, outputs, integrity.describe_differences(integrity.same_bits(outputs, again))


def _candidate(scenes: Sequence[nearby.Scene], contract: Contract) -> Candidate:
    totals: dict[str, int] = {}
    judged = several = 0
    for scene in scenes:
        for c in compare(*scene.whole, contract):
            totals[c.output] = totals.get(c.output, 0) + c.violations
            judged += c.judged
            several += c.judged - c.single
    return Candidate(contract.name, totals, judged, several, nearby.title(contract))


def choose_contract(
    kernel: Kernel, case: Case, given: str | None, device: str
) -> tuple[Contract | None, str, tuple[str, ...]]:
    """(contract or None, where it comes from, evidence lines if identified)."""
    if given not in (None, "identify"):
        return get_contract(kernel.op, str(given)), "given", ()
    if given is None and kernel.contract is not None:
        return get_contract(kernel.op, kernel.contract), "declared", ()
    result = identification(kernel, case, device)
    best = result.best
    return (None if best is None else get_contract(kernel.op, best)), "identified", tuple(result.lines())


def stricter(kernel: Kernel, case: Case, stated: str, device: str) -> str:
    """The contract that admits every output of identification and leaves fewer elements several values than the stated
    one does, or "". Asked once for each kernel, with the types of the first case. Raises KernelFault."""
    key = "stricter", device, stated
    if key not in kernel.answers:
        found = identification(kernel, case, device)
        known = {c.contract: c for c in (*found.candidates, *found.near)}
        best, own = known.get(found.best or ""), known.get(stated)
        less = best is not None and own is not None and not own.total and best.open < own.open
        kernel.answers[key] = best.contract if best is not None and less else ""
    name: str = kernel.answers[key]
    return name


def identification(kernel: Kernel, case: Case, device: str) -> IdentifyResult:
    """What ``identify`` finds for the kernel and the types of the case. Raises KernelFault."""
    # Once per kernel and type: identification calls the kernel on cases of its own and judges every preset. The kernel
    # keeps the answer, since two kernels of one process may have the same name.
    key = "identify", device, case.dtype, case.fp8
    if key not in kernel.answers:
        kernel.answers[key] = identify(kernel, device=device, dtype=case.dtype, fp8=case.fp8)
    found: IdentifyResult = kernel.answers[key]
    return found
