"""What no single element can show: bias. A check states its false-alarm probability and the smallest effect seen."""

from __future__ import annotations

import math
from dataclasses import dataclass

FALSE_ALARM = 1e-12
"""Probability that one check fails a kernel whose rounding errors satisfy the check's hypothesis. With a million
checks a year that is one false alarm in a million years; it costs only a factor 1.7 in sensitivity against 1e-4."""


@dataclass(frozen=True)
class BiasResult:
    """Sum of signed errors against its bound. effect: smallest mean relative bias that would have been seen."""

    total: float
    bound: float
    elements: int
    effect: float
    relative: float

    @property
    def ok(self) -> bool:
        """Whether the sum is within the bound."""
        return abs(self.total) <= self.bound


def azuma_lambda(probability: float = FALSE_ALARM) -> float:
    """lambda with 2*exp(-lambda**2/2) = probability (Azuma-Hoeffding, two sided)."""
    return math.sqrt(2.0 * math.log(2.0 / probability))


def rounding_bias(
    signed_sum: float, variance_proxy: float, weight_sum: float, elements: int, floor: float = 0.0
) -> BiasResult:
    """Are round-to-nearest errors balanced?

    signed_sum: sum over elements of error * sign(exact), beyond what rounding the exact value itself causes.
    variance_proxy: sum of squares of the bounds of all single rounding errors that entered. weight_sum: sum of |exact|,
    to express the effect as a mean relative bias. floor: an absolute allowance for the mean of the errors, what they
    carry over a boundary of the store (``gemm_bias``).
    Hypothesis: given the past, each rounding error has mean zero (Higham & Mary 2019, Connolly, Higham & Mary 2021;
    violated by truncation, which is what the check looks for). Then Azuma-Hoeffding bounds the sum by
    lambda*sqrt(variance_proxy) except with probability ``FALSE_ALARM``.
    """
    bound = azuma_lambda() * math.sqrt(variance_proxy) + floor
    scale = weight_sum if weight_sum > 0 else math.inf
    return BiasResult(signed_sum, bound, elements, bound / scale, signed_sum / scale)
