"""Identification: from 64 rows of a kernel's outputs, which contract does it follow?

``python -m tests.benchmarks.identification --seeds 100`` asks ``identify`` for kernels that follow five contracts
exactly, with a legitimate variant that changes with the seed, and counts how often the right contract is the best
one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass

from reference.contract import NORM_QUANT_CONTRACTS
from tests.support.variants import legitimate_variants
from validators.cases.recipe import ADD
from validators.explain.identify import IdentifyResult, identify
from validators.kernels import emulated
from validators.kernels.kernel import Kernel

CONTRACTS = ("aiter-hip-gfx942", "aiter-hip-gfx950", "aiter-triton", "vllm", "unfused")
ROWS = 64


@dataclass(frozen=True)
class Outcome:
    """One question: who asked, which contracts admit every output, and the violations of the nearest other contract."""

    contract: str
    seed: int
    admitted: tuple[str, ...]
    margin: int

    @property
    def right(self) -> bool:
        """Is the kernel's own contract the best?"""
        return self.admitted[:1] == (self.contract,)


def ask(name: str, seed: int, *, device: str = "cpu", fp8: str = "e4m3fn") -> tuple[Outcome, IdentifyResult]:
    """Identify an emulated kernel of the contract ``name`` whose low bits depend on ``seed``."""
    variants = legitimate_variants(name)
    variant = variants[seed % len(variants)]
    call = emulated.make(NORM_QUANT_CONTRACTS[name], variant)
    kernel = Kernel(f"emulated/{name}+{variant.name}", ADD, None, call, in_place=True, emulated=True)
    result = identify(kernel, device=device, rows=ROWS, seed=seed, fp8=fp8)
    others = [c.total for c in result.candidates if c.contract != name]
    return Outcome(name, seed, tuple(result.admitted), min(others)), result


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 if any answer is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.identification", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    outcomes = [ask(name, seed, device=options.device)[0] for name in CONTRACTS for seed in range(options.seeds)]
    for name in CONTRACTS:
        own = [o for o in outcomes if o.contract == name]
        print(
            f"{name:18} right {sum(o.right for o in own)} of {len(own)}; "
            f"alone {sum(len(o.admitted) == 1 for o in own)}; "
            f"the nearest other contract misses {min(o.margin for o in own)} values or more"
        )
    wrong = [o for o in outcomes if not o.right]
    for outcome in wrong[:10]:
        print(f"wrong: {outcome}")
    print(f"{len(outcomes)} questions of {ROWS} rows, {time.perf_counter() - start:.0f} s")
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
