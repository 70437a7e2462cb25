"""The bias of very many outputs of a GEMM: may they lean to one side together, where each alone is admissible?

For one output let x be the exact value and s its sign, R the rounding to nearest of the store, v what the kernel
stores, so got = R(v). Let e = v - x. The check sums

    W = s (got - R(x)) = s (R(x + e) - R(x))

that is, got is compared with the store of the exact value, and not with the exact value. What the store does to x is
computed, so no density of the outputs enters.

What e is. e = m + c. m is the error of the n fp32 additions (and products, where the operands are scaled first) of
this output. Each is at most b = u |sa sb| ((S + |sum|) / 2 + (2K + 8) u S): a partial sum of any order is between the
sum of the negative products and that of the positive ones, the larger of which is (S + |sum|) / 2 in size; the last
term pays for the partial sums' own errors. c is all that one rounded number may cause for a whole row or column, so no
chance is claimed for it: |c| <= C, 2u of the value for the two scales, or 2u of sum|a*b| where the operands are scaled.

Hypothesis (that of ``statistics.rounding_bias``): given the past, each error in m has mean zero. So m has mean zero,
and by Azuma P(m >= d) <= g(d) = exp(-d^2 / (2 r^2)) with r^2 = n b^2. Nothing is supposed of the store.

Mean of W. Let d be the distance of |x| from the rounding boundary outwards, h the largest step of T that v can meet.
1. W > 0 needs s e >= d. Then W = s e + (rounding of v) - (rounding of x) <= (s e - d) + h, since each rounding is at
   most half a step. With z = (d - C) / r, at least 0, the mean of W is at most h P(m >= z r) + mean of max(m - z r, 0).
   The first is at most min(exp(-z^2/2), 1 / (1 + z^2)) (Azuma; Cantelli, as m has a variance of at most r^2), and the
   second r min(sqrt(pi/2) exp(-z^2/2), (sqrt(1 + z^2) - z) / 2) (Azuma's bound integrated; Cauchy and Schwarz:
   max(y, 0) = (y + |y|) / 2 and the mean of |m - z r| is at most r sqrt(1 + z^2)).
2. In any case the mean of W is at most C + h/2 - (rounding of x), since m has mean zero.
The smaller one is the allowance; inwards alike. It is a fact of these inputs: what is near a boundary is counted.
An element whose admissible set is one value has W = 0, and is neither allowed anything nor left to chance.

Spread of W about its mean. W has at most the width of its admissible set. W - m has at most the width h + 2C. Sums of
the first kind and of W - m are martingales over the outputs with V2 = sum (width/2)^2, the sum of the m is one over the
single operations with V1 = sum n b^2. By Hoelder a sum of two dependent ones has the proxy (sqrt V1 + sqrt V2)^2, so

    |sum W| <= max(sum of allowances outwards, sum inwards) + lambda (sqrt V1 + sqrt V2)

except with probability ``FALSE_ALARM``. Outputs of the same two rows of codes repeat one error. Where up to q outputs
share their rows, such a group is one step of the martingale; by Cauchy and Schwarz (sum of q widths)^2 <= q sum of
their squares, so V1 and V2 are multiplied by q.
"""

from __future__ import annotations

import math
from collections import Counter

import torch

from reference import budgets
from reference.contract import GemmContract
from reference.formats import FloatFormat, bytes_of, round_to, ulp
from reference.ptpc_gemm import GemmTruth
from validators.judge.statistics import BiasResult, rounding_bias

TINY = 2.0**-500
"""In place of r = 0, so that d / r is 0 at d = 0 and beyond every exponent elsewhere."""


OPEN_ELEMENTS = 2**15
"""Elements that are handled at a time on a CPU, so that some 20 temporaries of 256 KiB stay in its cache."""


class Bias:
    """Running sums for the bias check over the judged, finite elements of a GEMM with K products per output."""

    def __init__(self, out_format: FloatFormat, contract: GemmContract, k: int) -> None:
        self.format, self.contract, self.k = out_format, contract, k
        self.signed = self.weight = self.sums = self.stores = self.outwards = self.inwards = 0.0
        self.elements = 0

    def add(self, got: torch.Tensor, truth: GemmTruth, judged: torch.Tensor, near: torch.Tensor | None = None) -> None:
        """got and truth float64 [m, n], judged bool [m, n], of one block without a bias vector; near: R(x) if known."""
        if near is None:
            near = round_to(truth.value, self.format)
        # Most outputs are the store of the exact value and most sets have one value; both cost nothing further.
        moved = judged & (got != near)
        self.signed += float(((got[moved] - near[moved]) * torch.sign(truth.value[moved])).sum())
        self.weight += float(truth.value.abs().masked_fill(~judged, 0.0).sum())
        self.elements += int(judged.sum())
        # Other contracts than fp32's do not bound this error; there the numbers are those that fp32 would have.
        bounded = self.contract.accumulator == "fp32"
        open_ = judged & (truth.value != 0)
        if bounded:
            open_ &= truth.low < truth.high
        at = open_.flatten().nonzero().squeeze(1)
        piece = OPEN_ELEMENTS if at.device.type == "cpu" else max(at.numel(), 1)
        for part in at.split(piece) if at.numel() else ():
            self._open(truth.part(part), near.flatten()[part], bounded)

    def _open(self, truth: GemmTruth, near: torch.Tensor, bounded: bool) -> None:
        """Elements with more than one admissible value: fields of truth and near = R(x), float64 [j] each."""
        x, size, low, high, error = truth.value, truth.magnitude * truth.scales, truth.low, truth.high, truth.error
        operands = self.contract.scaling == "operands"
        operations = self.k * (2 if operands else 1)
        b = (0.5 * budgets.U) * x.abs() + (0.5 * budgets.U + (2 * self.k + 8) * budgets.U**2) * size
        two_u = 2 * budgets.U / (1 - 2 * budgets.U) + budgets.FLOAT64_SLACK
        certain = two_u * (size if operands else x.abs() + operations * b)
        # Below 2^-100 a product may be flushed.
        certain = certain + 2.0**-126 * (x.abs() < 2.0**-100)
        if not bounded:
            error = operations * b + certain
            low, high = round_to(x - error, self.format), round_to(x + error, self.format)
        r = math.sqrt(operations) * b
        out, into, h = allowances(x, near, r, certain, error, self.format)
        up, down, negative = high > near, near > low, x < 0
        self.outwards += float((out * torch.where(negative, down, up)).sum())
        self.inwards += float((into * torch.where(negative, up, down)).sum())
        whole, rest = high - low, h + 2 * certain
        self.sums += float((r * r * (whole > rest)).sum())
        self.stores += float((torch.minimum(whole, rest) ** 2).sum()) / 4

    def result(self, a: torch.Tensor, b: torch.Tensor) -> BiasResult:
        """The check's numbers; a [M, K] and b [N, K]: the codes, whose equal rows are counted."""
        repeated = copies(a) * copies(b) if self.stores else 1
        proxy = repeated * (math.sqrt(self.sums) + math.sqrt(self.stores)) ** 2
        return rounding_bias(self.signed, proxy, self.weight, self.elements, max(self.outwards, self.inwards))


def copies(codes: torch.Tensor) -> int:
    """The largest number of equal rows of FP8 codes [r, K], rows of zeros aside: their outputs are exact."""
    rows = Counter(row.tobytes() for row in bytes_of(codes).cpu().numpy())
    return max((count for row, count in rows.items() if row.count(0) < len(row)), default=1)


def allowances(
    x: torch.Tensor,
    near: torch.Tensor,
    r: torch.Tensor,
    certain: torch.Tensor,
    error: torch.Tensor,
    fmt: FloatFormat,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(mean of W at most, mean of -W at most, h), float64 [j]; see the module.

    x: exact values, not zero; near = R(x); r and certain: r and C; error: bound of |v - x|. Float64 is exact in the
    distances (near and x are within a factor of two, or near is zero), and its other roundings are far below C.
    """
    size, rounded = x.abs(), near.abs()
    outer = ulp(rounded, fmt)
    # Below a power of two the step is half as wide, unless it is the smallest normal number.
    power = (rounded.view(torch.int64) << 12 == 0) & (rounded > math.ldexp(1.0, fmt.min_exponent))
    inner = torch.where(power, outer / 2, outer)
    h = ulp(torch.maximum(size + error, rounded), fmt)
    rounding = rounded - size

    def mean(distance: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        z = (distance - certain).clamp(min=0) / r.clamp(min=TINY)
        square = z * z
        tail = torch.exp(-0.5 * square)
        reach = torch.minimum(tail, 1 / (1 + square)) * h
        beyond = torch.minimum(math.sqrt(math.pi / 2) * tail, 0.5 / (z + torch.sqrt(1 + square))) * r
        # The slack pays for the library's exponential and root.
        return torch.minimum((reach + beyond) * (1 + budgets.FLOAT64_SLACK), certain + h / 2 + other)

    return mean(outer / 2 + rounding, -rounding), mean(inner / 2 - rounding, rounding), h
