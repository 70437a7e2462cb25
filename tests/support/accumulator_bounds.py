"""How far a matrix unit's accumulator can be from the exact sum: a running bound and an a-priori bound per unit.

Neither emulates. The running bound follows the declared order of k with exact float64 prefix sums: the accumulator
before a step is within the error so far of the exact prefix, which bounds every exponent that decides what a step
loses. The a-priori bound needs sum|a*b| and the largest exponents only, so it holds for every order, k-map and tile.
Derived in the docstrings below; asserted against emulated outputs in the tests and in tests/benchmarks/bounds.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from reference.accumulators import (
    LOWEST,
    NONE,
    Operand,
    Unit,
    arrange,
    decode_operand,
    floor,
    get_unit,
    largest_exponent,
    slices,
    truncate,
)
from reference.budgets import FLOAT64_SLACK, U
from reference.formats import FloatFormat, exponent_of, pow2


@dataclass
class _Sum:
    """An accumulator: exact [m, n] is the true sum of what was added, error [m, n] bounds |held - exact|. float64."""

    exact: Tensor
    error: Tensor

    @staticmethod
    def zero(shape: tuple[int, int], device: torch.device) -> _Sum:
        zeros = torch.zeros(shape, dtype=torch.float64, device=device)
        return _Sum(zeros, zeros.clone())

    def exponents(self) -> tuple[Tensor, Tensor]:
        """(lower, upper) bound of floor(log2|held|), int64; NONE where the value may be or is zero."""
        size = self.exact.abs()
        low, high = (size - self.error).clamp(min=0), size + self.error
        lower, upper = (torch.where(x == 0, NONE, exponent_of(x).clamp(min=LOWEST)) for x in (low, high))
        return lower, upper

    def add(self, other: _Sum) -> _Sum:
        """fl32(self + other): half an ulp of the largest possible sum, or what is lost of an exactly known one."""
        exact, error = self.exact + other.exact, self.error + other.error
        rounded = _half_ulp(exact.abs() + error)
        return _Sum(exact, torch.where(error == 0, (exact.float().double() - exact).abs(), error + rounded))


def _half_ulp(size: Tensor) -> Tensor:
    """Half the fp32 spacing at |x| <= size, zero at zero."""
    return torch.where(size == 0, torch.zeros_like(size), pow2(exponent_of(size).clamp(min=LOWEST) - 24))


def _count_below(a: Operand, b: Operand, limit: Tensor) -> Tensor:
    """Number of nonzero products with e_a + e_b < limit, float64 [m, n]; limit int64 [m, n]."""
    low = limit.to(torch.int16)
    count = torch.zeros(low.shape, dtype=torch.int16, device=low.device)
    for ea, eb in zip(a.exponent, b.exponent, strict=True):
        # A zero operand has NONE: its sum is far below every real product exponent.
        e = ea[:, None] + eb[None, :]
        count += (e < low) & (e > NONE // 2)
    return count.double()


def _aligned_step(held: _Sum, a: Operand, b: Operand, unit: Unit) -> _Sum:
    """Products below 2^(E-F+6) and an accumulator below the alignment lose less than q = 2^(E-F) each; then the cut.

    A product is a multiple of 2^(e-6), so it is exact from e = E - F + 6 on; the accumulator is exact while e_c = E
    (it has ``kept`` <= F fraction bits). E grows with |c|, so the upper bound of e_c bounds every loss. The sum is a
    multiple of q: the last cut to ``kept`` bits loses nothing while e - kept <= E - F.
    """
    low, high = held.exponents()
    products = largest_exponent(a, b)
    top = torch.maximum(products, high)
    lost = _count_below(a, b, top - (unit.fraction - 6))
    lost += ((high > NONE) & (low < products)).double()
    loss = torch.where(lost > 0, lost * pow2(top - unit.fraction), torch.zeros_like(lost))
    exact = held.exact + a.value.t() @ b.value
    error = held.error + loss
    size = exact.abs() + error
    e = exponent_of(size).clamp(min=LOWEST)
    grid = torch.maximum(products, low) - unit.fraction
    cut = torch.where((size > 0) & (e - unit.kept > grid), pow2(e - unit.kept), torch.zeros_like(size))
    # Nothing lost so far: the sum is the exact prefix, and so is what the cut takes from it.
    known = size - truncate(size * pow2(unit.kept - e)) * pow2(e - unit.kept)
    return _Sum(exact, torch.where(error == 0, known, error + cut))


def _mfma_step(held: _Sum, a: Operand, b: Operand, unit: Unit) -> _Sum:
    """The losses of one group of 16, each left out where the operand is on the coarser grid already.

    Half sums: products with e < E_h - 18. Joining the halves: the half with the smaller exponent. Against the
    accumulator: dot is a multiple of 2^(E_d-24), so only E > E_d + 8 cuts it; c is a multiple of 2^(e_c-23), so only
    E > e_c + 1 does. Then the floor to 32 bits (t is a multiple of 2^(E-32)) and one RNE.
    """
    low, high = held.exponents()
    loss = torch.zeros_like(held.exact)
    tops = []
    for half in (0, 1):
        part_a, part_b = (Operand(x.value[half::2], x.exponent[half::2]) for x in (a, b))
        top = largest_exponent(part_a, part_b)
        count = _count_below(part_a, part_b, top - 18)
        loss += torch.where(count > 0, count * pow2(top - 24), torch.zeros_like(loss))
        tops.append(top)
    e_d = torch.maximum(*tops)
    for top in tops:
        loss += torch.where((top < e_d) & (top > NONE), pow2(e_d - 24), torch.zeros_like(loss))
    top = torch.maximum(e_d, high).clamp(min=LOWEST)
    loss += torch.where((top > e_d + 8) & (e_d > NONE), pow2(top - 32), torch.zeros_like(loss))
    loss += torch.where((e_d > low + 1) & (high > NONE), pow2(e_d - 24), torch.zeros_like(loss))
    exact = held.exact + a.value.t() @ b.value
    error = held.error + loss
    size = exact.abs() + error
    e = exponent_of(size).clamp(min=LOWEST)
    grid = torch.maximum(e_d, low).clamp(min=LOWEST) - 32
    cut = torch.where((size > 0) & (e - 31 > grid), pow2(e - 31), torch.zeros_like(size))
    known = floor(exact * pow2(31 - e)) * pow2(e - 31)
    known = (known.float().double() - exact).abs()
    return _Sum(exact, torch.where(error == 0, known, error + cut + _half_ulp(size + cut)))


def _rounded_step(held: _Sum, a: Operand, b: Operand, unit: Unit) -> _Sum:
    """An exact group and one RNE (a group of one for the serial chain)."""
    return held.add(_Sum(a.value.t() @ b.value, torch.zeros_like(held.error)))


_STEPS: dict[str, Callable[[_Sum, Operand, Operand, Unit], _Sum]] = {
    "aligned": _aligned_step,
    "mfma": _mfma_step,
    "exact-rne": _rounded_step,
    "serial": _rounded_step,
}


def running_bound(
    a: Tensor, b: Tensor, fmt: FloatFormat, unit: str | Unit, *, k_map: Tensor | None = None, splits: int = 1
) -> Tensor:
    """Bound of |accumulator - exact sum| for the unit in this order of k: codes a [m, K], b [n, K] -> float64 [m, n].

    Arguments as for ``accumulators.emulate``. One block: the caller chooses m and n. NaN codes count as zero.
    """
    u = get_unit(unit) if isinstance(unit, str) else unit
    shape, total = (a.shape[0], b.shape[0]), None
    for first, last in slices(a.shape[1], splits):
        left, right = (decode_operand(arrange(x[:, first:last], k_map, u.group), fmt) for x in (a, b))
        main, held = _Sum.zero(shape, a.device), _Sum.zero(shape, a.device)
        for k in range(0, left.value.shape[0], u.group):
            if u.promote and k and k % u.promote == 0:
                main, held = main.add(held), _Sum.zero(shape, a.device)
            held = _STEPS[u.kind](held, left.part(k, k + u.group), right.part(k, k + u.group), u)
        partial = main.add(held) if u.promote else held
        total = partial if total is None else total.add(partial)
    assert total is not None
    return total.error * (1 + FLOAT64_SLACK)


def a_priori_bound(a: Tensor, b: Tensor, fmt: FloatFormat, unit: str | Unit, *, splits: int = 1) -> Tensor:
    """Bound of |accumulator - exact sum| for any order of k: codes a [m, K], b [n, K] -> float64 [m, n].

    S = sum|a*b|, P = 2^(max e_a + max e_b) bounds every product exponent, T = steps of all slices, L = steps of the
    longest chain, R = fp32 additions of chains and slices.

    aligned: truncation toward zero never increases a magnitude, so |c| <= S_chain before every step and
    2^E <= P + S_chain. A step loses at most (group + 1) 2^(E-F) by aligning and 2^-kept S_chain by its last cut; summed
    over the chains: 2^-F (group + 1) (T P + L S) + 2^-kept L S.
    mfma: (1 + 2^-6)(1 + 2 T u) T (u S + 19 * 2^-24 P).
    exact-rne, serial: gamma_T S. Each fp32 addition of partial sums rounds once more: gamma_R of S plus earlier error.
    """
    u = get_unit(unit) if isinstance(unit, str) else unit
    left, right = decode_operand(a, fmt), decode_operand(b, fmt)
    size = left.value.abs().t() @ right.value.abs()
    tops = [x.exponent.amax(0).long() for x in (left, right)]
    e = tops[0][:, None] + tops[1][None, :]
    largest = torch.where(e > NONE // 2, pow2(e.clamp(min=LOWEST)), torch.zeros_like(size))
    lengths = [-(-(last - first) // u.group) for first, last in slices(a.shape[1], splits)]
    # A k-map may pad a slice: one group more at most for each, and zero products lose nothing.
    steps = sum(lengths)
    longest = min(max(lengths), u.promote // u.group) if u.promote else max(lengths)
    additions = len(lengths) - 1 + (sum(-(-n // longest) for n in lengths) if u.promote else 0)
    if u.kind == "aligned":
        align = 2.0**-u.fraction * (u.group + 1) * (steps * largest + longest * size)
        error = align + 2.0**-u.kept * longest * size
    elif u.kind == "mfma":
        error = (1 + 2.0**-6) * (1 + 2 * steps * U) * steps * (U * size + 19 * 2.0**-24 * largest)
    else:
        error = steps * U / (1 - steps * U) * size
    again = additions * U / (1 - additions * U)
    return (error * (1 + again) + again * size) * (1 + FLOAT64_SLACK)
