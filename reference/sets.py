"""What an op's oracle answers where every element has a set of its own: the ends of the set, element by element.

An op whose module of this folder has ``CONTRACTS`` and ``sets(inputs, contract, rows)`` needs no judge of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


def between(got: torch.Tensor, exact: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """The membership test: low <= got <= high, or NaN where exact is NaN. float64 of one shape -> bool."""
    return torch.where(exact.isnan(), got.isnan(), (got >= low) & (got <= high))


@dataclass(frozen=True)
class Sets:
    """Admissible values of some rows of one output, float64 [m, n] each.

    exact: before the last rounding; NaN where the output has to be NaN. low, high: the ends, values of the output's
    format. open: bool [m, n], elements that the contract leaves open; they are counted and not judged. why: what leaves
    them open, in a few words.
    """

    exact: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    open: torch.Tensor
    why: str = "what the contract leaves open"

    def admits(self, got: torch.Tensor) -> torch.Tensor:
        """Which values, float64 [m, n], are in their sets, bool; of an open element as of the others."""
        return between(got, self.exact, self.low, self.high)
