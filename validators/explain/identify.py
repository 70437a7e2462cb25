"""Which contract do the outputs of a kernel follow: a preset, or a preset but for one or two fields?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reference.contract import GEMM_CONTRACTS, NORM_QUANT_CONTRACTS, Contract, NormQuantContract, get_contract
from validators.calls import integrity
from validators.calls.call import KernelFault, call, copy_outputs
from validators.cases.case import Case
from validators.cases.inputs import build
from validators.cases.recipes import reasons_impossible
from validators.cases.tensors import GemmInputs, GemmOutputs, Inputs, Outputs
from validators.explain import nearby
from validators.explain.bits import observations
from validators.explain.nearby import AnyContract
from validators.explain.units import match_shares, sentences
from validators.judge.compare import compare
from validators.kernels.kernel import Kernel
from validators.process import doing

MOST_NEAR = 3
"""Changed presets that are named where no preset fits; the first is the one that is used."""
LARGEST_FLOOR = max(nearby.floor_of(contract) for contract in NORM_QUANT_CONTRACTS.values())
"""Largest floor of amax that a preset declares, so that a source settles it: 1/512, vLLM's. Identification takes no
larger one for a property. Whatever stores one scale for all rows fits a contract whose floor lies above them all."""


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


def small_rows(op: str, *, rows: int, dtype: str, fp8: str, seed: int) -> Case:
    """Rows of every size, asked of changed presets alone: they tell a floor from a rule for rows of zeros."""
    return Case(op, rows, 512, "magnitude_ladder", dtype=dtype, fp8=fp8, seed=seed)


def identification_cases(op: str, *, rows: int, dtype: str, fp8: str, seed: int) -> list[Case]:
    """The cases that tell contracts apart: ordinary rows for the rounding points, zero rows for the floors."""
    if op == "ptpc_gemm":
        return [
            Case(op, rows, 128, recipe, k=1024, dtype=dtype, fp8=fp8, seed=seed)
            for recipe in ("gaussian", "positive_mean")
        ]
    names = ["gaussian", "zero_rows"]
    return [
        Case(op, rows, 5120 if name == "gaussian" else 512, name, dtype=dtype, fp8=fp8, seed=seed) for name in names
    ]


def identify(
    kernel: Kernel, *, device: str = "cpu", rows: int = 64, seed: int = 0, dtype: str = "bf16", fp8: str = "e4m3fn"
) -> IdentifyResult:
    """Judge the kernel's outputs under every preset of its op. Raises ``KernelFault`` if the kernel fails."""
    table: Mapping[str, AnyContract] = GEMM_CONTRACTS if kernel.op == "ptpc_gemm" else NORM_QUANT_CONTRACTS
    scenes: list[nearby.Scene] = []
    used: list[str] = []
    units: tuple[str, ...] = ()
    unstable = ""
    for case in identification_cases(kernel.op, rows=rows, dtype=dtype, fp8=fp8, seed=seed):
        if reasons_impossible(case) or kernel.unsupported(case):
            continue
        inputs, outputs, differing = _run(kernel, case, device)
        used.append(case.id)
        unstable = unstable or differing
        if isinstance(inputs, GemmInputs) and case.recipe == "positive_mean":
            assert isinstance(outputs, GemmOutputs)
            # Positive data tells units apart best: on zero-mean data promoted partial sums are often exact.
            units = sentences(match_shares(inputs, outputs))
        scenes.append(nearby.scene_of(inputs, outputs))
    if not used:
        raise KernelFault(f"{kernel.name} supports none of the cases that identification uses")
    candidates = [_candidate(scenes, contract) for contract in table.values()]
    candidates.sort(key=lambda c: (c.total, -c.judged, c.open))
    near: list[Candidate] = []
    refused: list[Candidate] = []
    but_zeros: list[Candidate] = []
    bits: tuple[str, ...] = ()
    order = [table[c.contract] for c in candidates]
    added: list[nearby.Scene] = []
    # A preset without a rule for rows of zeros leaves them open, so that they cannot speak against it.
    silent = not candidates[0].total and candidates[0].judged < max(c.judged for c in candidates)
    if isinstance(order[0], NormQuantContract) and (candidates[0].total or silent):
        case = small_rows(kernel.op, rows=rows, dtype=dtype, fp8=fp8, seed=seed)
        added = [] if kernel.unsupported(case) else [nearby.scene_of(*_run(kernel, case, device)[:2])]
        silent = silent and bool(added) and nearby.admits(added, order[0]) is None
    if isinstance(order[0], NormQuantContract) and (candidates[0].total or silent):
        every = [*scenes, *added]
        most = max(c.judged + nearby.outcome([s.whole for s in added], table[c.contract]).judged for c in candidates)
        found = nearby.first_admitting(every, order, least=most)
        if not found and not silent:
            # A contract that leaves rows of zeros open would admit them whatever they hold, NaN included.
            ordinary = [s for s, case in zip(scenes, used, strict=True) if Case.parse(case).recipe != "zero_rows"]
            names = {c.name for c in order if ordinary and nearby.admits(ordinary, c)}
            but_zeros = [c for c in candidates if c.contract in names]
        if not found and not but_zeros and not silent:
            found = nearby.first_admitting(every, order)
        small = [change for change in found if nearby.floor_of(change.contract) <= LARGEST_FLOOR]
        near = [_candidate(scenes, change.contract) for change in small[:MOST_NEAR]]
        refused = [_candidate(scenes, change.contract) for change in found[:MOST_NEAR]] if not small else []
        bits = (
            () if near or refused or but_zeros or silent else observations([scene.whole for scene in scenes], order[0])
        )
    return IdentifyResult(
        kernel.name,
        tuple(candidates),
        tuple(used),
        units,
        tuple(near),
        bits,
        tuple(refused),
        tuple(but_zeros),
        unstable,
    )


def _run(kernel: Kernel, case: Case, device: str) -> tuple[Inputs, Outputs, str]:
    """Inputs, outputs of the first of two calls, and where the second differs; raises ``KernelFault``."""
    inputs = build(case, device=device)
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


def _candidate(scenes: Sequence[nearby.Scene], contract: AnyContract) -> Candidate:
    totals: dict[str, int] = {}
    judged = several = 0
    for scene in scenes:
        for c in compare(*scene.whole, contract):
            totals[c.output] = totals.get(c.output, 0) + c.violations
            judged += c.judged
            several += c.judged - c.single
    return Candidate(contract.name, totals, judged, several, nearby.title(contract))


_identified: dict[tuple[str, ...], IdentifyResult] = {}


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


def identification(kernel: Kernel, case: Case, device: str) -> IdentifyResult:
    """What ``identify`` finds for the kernel and the types of the case. Raises KernelFault."""
    # Once a process and type: identification calls the kernel on cases of its own and judges every preset.
    key = kernel.name, kernel.op, device, case.dtype, case.fp8
    if key not in _identified:
        _identified[key] = identify(kernel, device=device, dtype=case.dtype, fp8=case.fp8)
    return _identified[key]
