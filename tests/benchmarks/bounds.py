"""Error bounds against emulated accumulators, on as many outputs as you have patience for.

    python -m tests.benchmarks.bounds --outputs 100000000 --k 64

Prints, for every unit and kind of data: outputs, violations of the running and of the a-priori bound, the largest
error as a share of each, and the share of bf16 outputs that the running bound leaves a single admissible value.
The exit code is 1 if any bound is violated.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from reference.accumulators import emulate
from reference.budgets import FLOAT64_SLACK, U
from reference.formats import BF16, E4M3FN, E4M3FNUZ, FloatFormat, decode, encode, round_to
from tests.support.accumulator_bounds import a_priori_bound, running_bound

UNITS = ("hopper-fast", "hopper-promote128", "ada", "cdna3-mfma", "blackwell-mma", "blackwell-tcgen05", "fp32-serial")
BLOCK = 256


@dataclass
class Score:
    """What one unit did on one kind of data."""

    outputs: int = 0
    violations: int = 0
    a_priori_violations: int = 0
    worst: float = 0.0
    worst_a_priori: float = 0.0
    single: int = 0


def format_for(unit: str) -> FloatFormat:
    """The FP8 format that the unit takes."""
    return E4M3FNUZ if unit.startswith("cdna3") else E4M3FN


def codes(kind: str, shape: tuple[int, int], fmt: FloatFormat, g: torch.Generator) -> Tensor:
    """uint8 codes of a kind of data: gaussian, mean1, outliers, wide, bytes."""
    if kind == "bytes":
        raw = torch.randint(0, 256, shape, generator=g).to(torch.uint8)
        return torch.where(torch.isin(raw, torch.tensor(fmt.nan_codes, dtype=torch.uint8)), 0, raw).to(torch.uint8)
    x = torch.randn(shape, generator=g, dtype=torch.float64)
    if kind == "mean1":
        x = x + 1.0
    if kind == "outliers":
        x = x * torch.where(torch.arange(shape[1]) % 61 == 7, 60.0, 1.0)
    if kind == "wide":
        x = x * torch.exp2(torch.randint(-16, 1, shape, generator=g).double())
    return encode(x * (fmt.max / x.abs().amax(1, keepdim=True)), fmt)


KINDS = ("gaussian", "mean1", "outliers", "wide", "bytes")


def score(unit: str, kind: str, m: int, n: int, k: int, seed: int, total: Score) -> Score:
    """Adds one block of m x n outputs to ``total``."""
    fmt, g = format_for(unit), torch.Generator().manual_seed(seed)
    a, b = codes(kind, (m, k), fmt, g), codes(kind, (n, k), fmt, g)
    exact = decode(a, fmt) @ decode(b, fmt).t()
    error = (emulate(a, b, fmt, unit).double() - exact).abs()
    running, a_priori = running_bound(a, b, fmt, unit), a_priori_bound(a, b, fmt, unit)
    total.outputs += error.numel()
    total.violations += int((error > running).sum())
    total.a_priori_violations += int((error > a_priori).sum())
    total.worst = max(total.worst, float((error / running)[running > 0].max()) if bool((running > 0).any()) else 0.0)
    total.worst_a_priori = max(total.worst_a_priori, float((error / a_priori).nan_to_num(0.0).max()))
    # Two fp32 multiplications by scales that are no powers of two.
    sa = torch.rand(m, 1, generator=g, dtype=torch.float64) + 0.5
    sb = torch.rand(1, n, generator=g, dtype=torch.float64) + 0.5
    width = (running + (2 * U + FLOAT64_SLACK) * (exact.abs() + running)) * sa * sb
    value = exact * sa * sb
    total.single += int((round_to(value - width, BF16) == round_to(value + width, BF16)).sum())
    return total


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--outputs", type=int, default=1_000_000, help="outputs over all units and kinds of data")
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--units", nargs="+", default=list(UNITS), choices=UNITS)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parsed = parser.parse_args()
    each = -(-parsed.outputs // (len(parsed.units) * len(parsed.kinds)))
    side = min(BLOCK, max(1, round(each**0.5)))
    start, bad, done = time.perf_counter(), 0, 0
    print(f"{'unit':18} {'data':9} {'outputs':>11} {'violations':>10} {'worst':>7} {'a priori':>9} {'single bf16':>11}")
    for unit in parsed.units:
        for kind in parsed.kinds:
            total = Score()
            for block in range(-(-each // side**2)):
                score(unit, kind, side, side, parsed.k, parsed.seed + block, total)
            bad += total.violations + total.a_priori_violations
            done += total.outputs
            print(
                f"{unit:18} {kind:9} {total.outputs:11,} {total.violations + total.a_priori_violations:10,} "
                f"{total.worst:7.3f} {total.worst_a_priori:9.4f} {100 * total.single / total.outputs:9.2f} %",
                flush=True,
            )
    print(f"{done:,} outputs of K = {parsed.k}, {bad:,} violations, {time.perf_counter() - start:.0f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
