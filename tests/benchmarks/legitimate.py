"""False alarms: every legitimate execution of every contract must be admitted, over as many elements as asked for.

``python -m tests.benchmarks.legitimate --elements 1e8`` draws inputs (recipe, shape, types, seed in turn), runs every
(contract, variant) pair of ``tests.support.variants``, every variant of the emulated GEMMs and the kernels that torch
itself brings on them, and counts violations. The elements counted are judged codes and GEMM outputs. ``static_quant``
is judged on every case of the default depth instead, once per variant.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from reference.contract import GEMM_CONTRACTS, NORM_QUANT_CONTRACTS, Contract
from reference.static_quant import CONTRACTS as STATIC_CONTRACTS
from tests.support.variants import legitimate_variants
from validators.cases.case import Case
from validators.cases.inputs import build
from validators.cases.ops.static_quant import NAME as STATIC
from validators.cases.recipe import ADD, GEMM, QUANT
from validators.cases.recipes import reasons_impossible, recipe_names
from validators.cases.suite import cases_for
from validators.cases.tensors import Inputs, Outputs
from validators.judge.compare import compare
from validators.kernels import emulated, emulated_gemm, emulated_static_quant
from validators.kernels.registry import all_kernels
from validators.words import DTYPES, FP8_FORMATS

# Rows x columns: model width, the widest, both sides of a vector and of a block, one column more than a block.
NORM_SHAPES = ((8, 5120), (33, 769), (64, 512), (4, 8192), (20, 1002), (1, 2048), (72, 264), (7, 4104))
GPU_ROWS = 4
"""On a GPU a launch costs as much as these many times the rows, so that 1e9 elements take minutes there too."""
GEMM_SHAPES = ((32, 48, 512), (17, 33, 250), (16, 64, 5120), (40, 24, 1056))
OPTIONS: tuple[dict[str, object], ...] = ({}, {"residual": False}, {"gemma": True}, {"gamma": "fp32"}, {"eps": "1e-6"})

Call = Callable[[Inputs], Outputs]


@dataclass(frozen=True)
class Claimant:
    """A legitimate execution: who it is, the contract that it keeps, and how to run it on inputs."""

    name: str
    ops: tuple[str, ...]
    contract: Contract
    call: Call
    unsupported: Callable[[Case], str | None] = lambda case: None


@dataclass
class Totals:
    """What was seen: judged elements and violations by claimant, and the cases that had any."""

    elements: dict[str, int] = field(default_factory=dict)
    scales: int = 0
    residuals: int = 0
    single: int = 0
    violations: dict[str, int] = field(default_factory=dict)
    failing: list[str] = field(default_factory=list)
    cases: int = 0
    seeds: int = 0
    first_seed: int = 0
    last_case: str = ""
    seconds: float = 0.0

    @property
    def judged(self) -> int:
        """Judged codes and GEMM outputs."""
        return sum(self.elements.values())


def emulated_claimants() -> list[Claimant]:
    """Every (contract, variant) pair of the norm and quantization ops."""
    found = []
    for name, contract in NORM_QUANT_CONTRACTS.items():
        for variant in legitimate_variants(name):
            call = emulated.make(contract, variant)
            found.append(Claimant(f"{name}/{variant.name}", (ADD, QUANT), contract, call))
    return found


def gemm_claimants() -> list[Claimant]:
    """Every order of scales for both accumulators; block lengths and the serial sum for fp32."""
    orders = ("token_first", "channel_first", "product_first")
    found = []
    for order in orders:
        variants = [emulated_gemm.GemmVariant(f"block-{b}+{order}", b, False, order) for b in (1 << 5, 1 << 7, 1 << 9)]  # type: ignore[arg-type]
        variants.append(emulated_gemm.GemmVariant(f"serial+{order}", serial=True, scale_order=order))  # type: ignore[arg-type]
        found += [_gemm("fp32", variant) for variant in variants]
        found.append(_gemm("unknown", emulated_gemm.GemmVariant(order, scale_order=order)))  # type: ignore[arg-type]
    return found


def _gemm(name: str, variant: emulated_gemm.GemmVariant) -> Claimant:
    contract = GEMM_CONTRACTS[name]
    return Claimant(f"{name}/{variant.name}", (GEMM,), contract, emulated_gemm.make(contract, variant))


def static_claimants() -> list[Claimant]:
    """Every static quantizer: a reciprocal that the contract leaves open is rounded in each direction."""
    found = []
    for name, contract in STATIC_CONTRACTS.items():
        is_open = any(member.reciprocal_u > 1.0 for member in contract.members())
        for direction in ("nearest", "up", "down") if is_open else ("nearest",):
            call = emulated_static_quant.make(contract, direction)  # type: ignore[arg-type]
            found.append(Claimant(f"{STATIC} {name}/{direction}", (STATIC,), contract, call))
    return found


def default_cases(op: str) -> list[Case]:
    """Every case of the default depth, in both FP8 formats."""
    found = {case.id: case for fp8 in FP8_FORMATS for case in cases_for(op, depth="default", fp8=fp8)}
    return list(found.values())


def native_claimants(device: str = "cpu") -> list[Claimant]:
    """Kernels of torch itself that can run here: eager, ``torch._scaled_mm``, ``torch.compile``."""
    found = []
    for kernel in all_kernels():
        if not kernel.name.startswith(("torch_native/", "inductor/")) or kernel.unavailable(device):
            continue
        table = GEMM_CONTRACTS if kernel.op == GEMM else NORM_QUANT_CONTRACTS
        assert kernel.contract is not None

        def call(inputs: Inputs, run: Callable[..., Outputs] = kernel.call) -> Outputs:
            return run(inputs, None)

        contract: Contract = table[kernel.contract]
        found.append(Claimant(f"{kernel.name} ({kernel.op})", (kernel.op,), contract, call, kernel.unsupported))
    return found


def draw_cases(ops: Sequence[str] = (ADD, QUANT, GEMM), *, seed: int = 0, rows: int = 1) -> Iterator[Case]:
    """Cases without end, the ops in turn; recipes, shapes, types and options turn at their own pace; then new seeds.

    rows: how many times the rows of a norm's or quantizer's shape.
    """
    for current in itertools.count(seed):
        rounds = [list(_of_seed(op, current, rows)) for op in ops]
        yield from (case for turn in itertools.zip_longest(*rounds) for case in turn if case is not None)


def _of_seed(op: str, seed: int, rows: int) -> Iterator[Case]:
    pairs = itertools.product(DTYPES, FP8_FORMATS, recipe_names(op))
    for turn, (dtype, fp8, name) in enumerate(pairs):
        at = turn + seed * 3
        if op == GEMM:
            m, n, k = GEMM_SHAPES[at % len(GEMM_SHAPES)]
            case = Case(op, m, n, name, k=k, dtype=dtype, fp8=fp8, seed=seed, bias=at % 3 == 1)
        else:
            m, n = NORM_SHAPES[at % len(NORM_SHAPES)]
            m = max(1, m * rows)
            options = OPTIONS[at % len(OPTIONS)] if op == ADD else {}
            case = Case(op, m, n, name, dtype=dtype, fp8=fp8, seed=seed, **options)  # type: ignore[arg-type]
        if reasons_impossible(case) is None:
            yield case


def judge(claimant: Claimant, case: Case, inputs: Inputs, totals: Totals) -> None:
    """One execution of one claimant."""
    outputs = claimant.call(inputs)
    for c in compare(inputs, outputs, claimant.contract):
        if c.output in ("codes", "out"):
            totals.elements[claimant.name] = totals.elements.get(claimant.name, 0) + c.judged
            totals.single += c.single
        elif c.output == "scale":
            totals.scales += c.judged
        else:
            totals.residuals += c.judged
        if c.violations:
            totals.violations[claimant.name] = totals.violations.get(claimant.name, 0) + c.violations
            totals.failing.append(f"{claimant.name} on {case.id}: {c.violations} of {c.judged} of {c.output}")


def run(
    claimants: Sequence[Claimant],
    elements: float,
    *,
    device: str = "cpu",
    cases: Iterator[Case] | None = None,
    echo: bool = False,
    keep: Callable[[Totals], None] = lambda totals: None,
    every_s: float = 30.0,
) -> Totals:
    """Judge all claimants on case after case until ``elements`` codes and GEMM outputs were judged.

    keep: called with the totals so far every ``every_s`` seconds and at the end: a run that is cut loses little.
    """
    totals, start, told = Totals(), time.perf_counter(), 0.0
    ops = tuple(dict.fromkeys(op for claimant in claimants for op in claimant.ops))
    for case in draw_cases(ops) if cases is None else cases:
        inputs = build(case, device=device)
        for claimant in claimants:
            if case.op in claimant.ops and claimant.unsupported(case) is None:
                judge(claimant, case, inputs, totals)
        totals.cases += 1
        totals.last_case, totals.seeds = case.id, max(totals.seeds, case.seed + 1)
        totals.seconds = time.perf_counter() - start
        if totals.seconds - told > every_s:
            told = totals.seconds
            keep(totals)
            if not echo:
                continue
            print(f"{totals.judged:.3g} elements, {totals.seconds:.0f} s, {len(totals.failing)} failures", flush=True)
        if totals.judged >= elements:
            break
    keep(totals)
    return totals


def lines(title: str, totals: Totals) -> list[str]:
    """The result in words."""
    bad = sum(totals.violations.values())
    return [
        f"{title}: {bad} violations in {totals.judged:,} codes and outputs ({totals.scales:,} scales, "
        f"{totals.residuals:,} residuals) of {len(totals.elements)} executions, {totals.cases:,} cases, "
        f"seeds {totals.first_seed} to {totals.seeds - 1}, {totals.seconds:.0f} s; "
        f"{100 * totals.single / max(1, totals.judged):.4f} % had one admissible value",
        *totals.failing[:20],
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 if there is a violation."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.legitimate", description=__doc__)
    parser.add_argument("--elements", type=float, default=1e8, help="elements of the emulated variants (default 1e8)")
    parser.add_argument("--native-elements", type=float, default=5e6, help="elements of torch's own kernels")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0, help="of the first round of cases; a later one for more of them")
    parser.add_argument("--write", type=Path, metavar="FILE", help="append the totals so far as JSON lines, as it goes")
    options = parser.parse_args(arguments)
    device, failing = options.device, 0
    rows = GPU_ROWS if device.startswith("cuda") else 1
    name = torch.cuda.get_device_name() if device.startswith("cuda") else "cpu"
    started = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    for title, claimants, elements, given in (
        ("emulated", emulated_claimants() + gemm_claimants(), options.elements, None),
        ("torch", native_claimants(device), options.native_elements, None),
        (STATIC, static_claimants(), math.inf, default_cases(STATIC)),
    ):

        def keep(totals: Totals, title: str = title) -> None:
            if options.write:
                line = {
                    "what": title,
                    "started": started,
                    "torch": torch.__version__,
                    "device": name,
                    "elements": totals.judged,
                    "violations": sum(totals.violations.values()),
                    "rows": rows,
                    "first_seed": options.seed,
                    "seeds": totals.seeds - options.seed,
                    "last_case": totals.last_case,
                    "cases": totals.cases,
                    "scales": totals.scales,
                    "residuals": totals.residuals,
                    "single": totals.single,
                    "executions": len(totals.elements),
                    "failing": totals.failing[:20],
                    "seconds": round(totals.seconds, 1),
                }
                with options.write.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")

        ops = tuple(dict.fromkeys(op for claimant in claimants for op in claimant.ops))
        cases = draw_cases(ops, seed=options.seed, rows=rows) if given is None else iter(given)
        totals = run(claimants, elements, device=device, cases=cases, echo=True, keep=keep)
        totals.first_seed = options.seed
        print("\n".join(lines(title, totals)))
        failing += len(totals.failing)
    return int(failing > 0)


if __name__ == "__main__":
    raise SystemExit(main())
