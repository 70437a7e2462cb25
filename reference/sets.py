"""What an op's oracle answers where every element has a set of its own: the ends of the set, element by element.

An op whose module of this folder has ``CONTRACTS`` and ``sets(inputs, contract, rows)`` needs no judge of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Sets:
    """Admissible values of some rows of one output, float64 [m, n] each.

    exact: before the last rounding; NaN where the output has to be NaN. low, high: the ends, values of the output's
    format. open: bool [m, n], elements that the contract leaves open; they are counted and not judged.
    """

    exact: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    open: torch.Tensor
