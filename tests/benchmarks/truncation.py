"""What truncating the residual costs a model: two adds a layer, 92 layers, against rounding to nearest.

``python -m tests.benchmarks.truncation`` adds 184 random updates to a residual stream that is stored in bf16 after each
add, once rounded to nearest even and once toward zero, and compares both with the float64 sum of the same bf16 numbers.
Each rounding toward zero takes part of an ulp off the magnitude, always in the same direction, so the losses add up;
errors of rounding to nearest largely cancel. The updates are independent and of one size, which no real model's are:
the numbers show the size of the effect, not the effect on a model.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from validators.cases.generator import bits, stream_key, to_gaussian
from validators.kernels.emulated_rounding import round_to, truncate_to

LAYERS = 92
ADDS_A_LAYER = 2


@dataclass(frozen=True)
class Drift:
    """error: |stored - exact| / |exact|, 2-norms over all elements. shrink: 1 - <stored, exact> / <exact, exact>."""

    store: str
    adds: int
    error: float
    shrink: float


def drift(
    store: Callable[[torch.Tensor, torch.dtype], torch.Tensor],
    name: str,
    *,
    adds: int = LAYERS * ADDS_A_LAYER,
    rows: int = 64,
    n: int = 5120,
) -> Drift:
    """The residual stream [rows, n] bf16 after ``adds`` normal updates (bf16); the same on every machine."""

    def update(index: int) -> torch.Tensor:
        words = bits(stream_key("truncation", f"update {index}"), 0, rows * n)
        return to_gaussian(words).view(rows, n).bfloat16()

    stream = update(0)
    exact = stream.double()
    for index in range(adds):
        x = update(index + 1)
        exact += x.double()
        # As the kernels do: one fp32 addition, then the store.
        stream = store(x.float() + stream.float(), torch.bfloat16)
    error = (stream.double() - exact).norm() / exact.norm()
    shrink = 1.0 - (stream.double() * exact).sum() / (exact * exact).sum()
    return Drift(name, adds, float(error), float(shrink))


def table(rows: int = 64) -> list[Drift]:
    """Both stores, after one add, one layer, and all layers."""
    stores = (("nearest even", round_to), ("toward zero", truncate_to))
    counts = (1, ADDS_A_LAYER * 8, ADDS_A_LAYER * LAYERS)
    return [drift(store, name, adds=adds, rows=rows) for adds in counts for name, store in stores]


def markdown(found: Sequence[Drift]) -> str:
    """The table as Markdown."""
    lines = ["| adds | store | relative error | shrink |", "|---|---|---|---|"]
    lines += [f"| {d.adds} | {d.store} | {100 * d.error:.1f} % | {100 * d.shrink:.1f} % |" for d in found]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.truncation", description=__doc__)
    parser.add_argument("--rows", type=int, default=64)
    print(markdown(table(parser.parse_args(arguments).rows)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
