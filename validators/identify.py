"""Which contract do outputs follow, and what would explain the violations of a kernel that failed?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from reference.contract import GEMM_CONTRACTS, NORM_QUANT_CONTRACTS, GemmContract, NormQuantContract
from validators.cases.case import Case
from validators.cases.inputs import build
from validators.cases.recipes import reasons_impossible
from validators.cases.tensors import GemmInputs, GemmOutputs, Inputs, NormQuantInputs, Outputs, QuantInputs
from validators.compare import compare
from validators.records import Check, Comparison

if TYPE_CHECKING:
    from validators.kernels.base import Kernel

SAMPLE_ROWS = 48
"""Rows that a hypothesis is tried on; violating rows first. Enough to tell hypotheses apart, cheap to try all."""
MOST = 0.95
"""A hypothesis is offered as *the* explanation if it meets this share of the violations and breaks none of 100 others;
some elements near a rounding boundary go either way under any hypothesis. Wording only: no verdict depends on it."""


@dataclass(frozen=True)
class Candidate:
    """A contract with how many elements of the sample it does not admit, by output."""

    contract: str
    violations: dict[str, int]
    judged: int

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

    @property
    def admitted(self) -> list[str]:
        """Contracts that admit every output."""
        return [c.contract for c in self.candidates if c.total == 0]

    @property
    def best(self) -> str | None:
        """The strictest contract that admits every output, or None. Ties keep the order of the closed list."""
        return self.admitted[0] if self.admitted else None

    def lines(self) -> list[str]:
        """Evidence in words, one line a contract."""
        out = []
        for c in self.candidates:
            if c.total == 0:
                out.append(f"{c.contract}: admits all {c.judged:,} values")
            else:
                parts = ", ".join(f"{v:,} {k}" for k, v in c.violations.items() if v)
                out.append(f"{c.contract}: does not admit {c.total:,} of {c.judged:,} values ({parts})")
        return [*out, *self.units]


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
    """Judge the kernel's outputs under every preset of its op. Raises ``run.KernelFault`` if the kernel fails."""
    from validators.run import KernelFault, call

    table: dict[str, NormQuantContract] | dict[str, GemmContract]
    table = GEMM_CONTRACTS if kernel.op == "ptpc_gemm" else NORM_QUANT_CONTRACTS
    totals: dict[str, dict[str, int]] = {name: {} for name in table}
    judged = dict.fromkeys(table, 0)
    used: list[str] = []
    units: tuple[str, ...] = ()
    for case in identification_cases(kernel.op, rows=rows, dtype=dtype, fp8=fp8, seed=seed):
        if reasons_impossible(case) or kernel.unsupported(case):
            continue
        inputs = build(case, device=device)
        outputs, _, _ = call(kernel, inputs, 0x7F)
        from validators import integrity

        try:
            integrity.check_outputs(inputs, outputs, kernel.op, strict=False)
        except integrity.OutputError as error:
            raise KernelFault(str(error)) from error
        used.append(case.id)
        if isinstance(inputs, GemmInputs) and case.recipe == "positive_mean":
            from validators.identify_gemm import match_shares, sentences

            assert isinstance(outputs, GemmOutputs)
            # Positive data tells units apart best: on zero-mean data promoted partial sums are often exact.
            units = sentences(match_shares(inputs, outputs))
        for name, contract in table.items():
            for c in compare(inputs, outputs, contract):
                totals[name][c.output] = totals[name].get(c.output, 0) + c.violations
                judged[name] += c.judged
    if not used:
        raise KernelFault(f"{kernel.name} supports none of the cases that identification uses")
    candidates = [Candidate(name, totals[name], judged[name]) for name in table]
    candidates.sort(key=lambda c: (c.total, -c.judged))
    return IdentifyResult(kernel.name, tuple(candidates), tuple(used), units)


def explain(
    inputs: Inputs, outputs: Outputs, contract: NormQuantContract | GemmContract, comparisons: Sequence[Comparison],
    checks: Sequence[Check] = (),
) -> tuple[str, ...]:  # fmt: skip
    """Sentences that would explain the violations, best first; empty if nothing known does.

    A failed integrity check (unwritten elements, overwritten guards or inputs) explains before any arithmetic does;
    a failed invariance is a symptom and comes after.
    """
    first = tuple(f"{c.name}: {c.detail}" for c in checks if c.ok is False and c.kind == "integrity")
    last = tuple(f"{c.name}: {c.detail}" for c in checks if c.ok is False and c.kind == "invariance")
    failing = [c.output for c in comparisons if c.violations]
    if not failing:
        return first + last
    with torch.inference_mode():
        if isinstance(inputs, GemmInputs):
            from validators.explain_gemm import explain_gemm

            assert isinstance(outputs, GemmOutputs)
            assert isinstance(contract, GemmContract)
            return first + explain_gemm(inputs, outputs, contract) + last
        assert isinstance(contract, NormQuantContract)
        return first + _explain_norm(inputs, outputs, contract, failing, comparisons) + last


def violating_rows(comparisons: Sequence[Comparison], rows: int, inputs: Inputs, outputs: Outputs) -> torch.Tensor:
    """Up to SAMPLE_ROWS row numbers: those of the worst elements, then evenly spread ones."""
    chosen: list[int] = []
    for c in comparisons:
        chosen += [e.row for e in c.worst]
    spread = torch.linspace(0, rows - 1, min(rows, SAMPLE_ROWS)).long().tolist()
    chosen += [rows - 1, 0, *spread]
    return torch.tensor(list(dict.fromkeys(chosen))[:SAMPLE_ROWS])


def _explain_norm(
    inputs: NormQuantInputs | QuantInputs, outputs: Outputs, contract: NormQuantContract, failing: list[str],
    comparisons: Sequence[Comparison],
) -> tuple[str, ...]:  # fmt: skip
    from validators import explain_scene as norm
    from validators.explain_norm import HYPOTHESES

    n = inputs.x.shape[-1]
    count = inputs.x.numel() // n
    rows = violating_rows(comparisons, count, inputs, outputs).to(inputs.x.device)
    scene = norm.make_scene(inputs, outputs, rows, contract)  # type: ignore[arg-type]
    widths = norm.tolerances(scene, contract)
    base = norm.met(scene, norm.predict(scene, contract, {}), widths)
    scored = []
    for position, hypothesis in enumerate(HYPOTHESES):
        if not hypothesis.needs(scene):
            continue
        changed = contract.replace(**hypothesis.contract)
        if hypothesis.contract and changed == contract:
            continue
        try:
            found = norm.met(scene, norm.predict(scene, changed, hypothesis.stages), widths)
        except (RuntimeError, IndexError):  # a layout that this hypothesis cannot describe
            continue
        share, broken = _score(base, found, failing)
        # Among hypotheses that meet the same violations, the one whose scales lie nearest comes first.
        far = norm.scale_distance(scene, norm.predict(scene, changed, hypothesis.stages))
        scored.append((share, -broken, -far, -position, hypothesis))
    scored.sort(key=lambda s: s[:4], reverse=True)
    return tuple(_sentence(h.slug, h.sentence, share, -broken) for share, broken, _, _, h in scored[:3] if share > 0.3)


def _score(base: dict[str, torch.Tensor], found: dict[str, torch.Tensor], failing: list[str]) -> tuple[float, float]:
    """(share of what the contract misses that the hypothesis meets, share of what it met that the hypothesis breaks).

    The first is the smallest over the failing outputs, less what it breaks anywhere.
    """
    shares, broken = [], 0.0
    for output, was in base.items():
        now = found[output]
        missed, kept = int((~was).sum()), int(was.sum())
        if output in failing and missed:
            shares.append(float((now & ~was).sum()) / missed)
        if kept:
            broken = max(broken, float((was & ~now).sum()) / kept)
    share = min(shares) if shares else 0.0
    return round(max(0.0, share - broken), 3), round(broken, 4)


def _sentence(slug: str, sentence: str, share: float, broken: float) -> str:
    if share >= MOST and broken <= 1 - MOST:
        return f"{slug}: every violation vanishes if {sentence}"
    return f"{slug}: {100 * share:.0f} % of the violations vanish if {sentence}"
