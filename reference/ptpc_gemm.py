"""Float64 truth of the PTPC GEMM: out = store_T((sum_k a*b) * sa * sb (+ bias)), and its admissible sets.

The float64 product is exact: every FP8 product is an integer multiple of 2**-18 (e4m3fn) or 2**-20
(e4m3fnuz), and so is every partial sum; while sum|a*b| stays below 2**53 of those units no order, tree
or FMA rounds (docs/derivations.md 6). That holds for every K up to ``EXACT_K``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from reference import accumulators, budgets
from reference.contract import GemmContract
from reference.formats import FloatFormat, bytes_of, decode_table, exponent_of, format_of, pow2, round_fp32, round_to
from reference.quantize import is_power_of_two
from reference.sets import between
from reference.setting import GemmSetting

EXACT_K = {"e4m3fn": 171_196, "e4m3fnuz": 149_130}
"""Largest K for which K * max**2 <= 2**53 * (product grid): the float64 sum is exact for any operands."""


class Given(Protocol):
    """Inputs. a [M, K], b [N, K]: FP8. a_scale [M, 1], b_scale [N, 1]: fp32. bias: [N] of T, or None. out_dtype: T."""

    @property
    def a(self) -> torch.Tensor: ...

    @property
    def a_scale(self) -> torch.Tensor: ...

    @property
    def b(self) -> torch.Tensor: ...

    @property
    def b_scale(self) -> torch.Tensor: ...

    @property
    def bias(self) -> torch.Tensor | None: ...

    @property
    def out_dtype(self) -> torch.dtype: ...


@dataclass(frozen=True)
class GemmTruth:
    """Truth and admissible outputs of an [m, n] block, all float64 [m, n].

    accumulator: sum_k a*b, exact. magnitude: an upper bound of sum_k |a*b|, within 2**-10 of it.
    value: accumulator*sa*sb (+ bias), the exact output. low, high: ends of the admissible outputs, values of T.
    error: bound of |output before the last rounding - value|. scales: |sa*sb|.
    """

    setting: GemmSetting
    accumulator: torch.Tensor
    magnitude: torch.Tensor
    value: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    error: torch.Tensor
    scales: torch.Tensor

    @property
    def spilled(self) -> torch.Tensor:
        """Sets that reach beyond T's largest value, bool [m, n]: there a kernel may store Inf or saturate."""
        return (self.low.isinf() | self.high.isinf()) & ~self.value.isnan()

    @property
    def wide(self) -> torch.Tensor:
        """Sets as wide as an output, bool [m, n]; see ``says_nothing``. A known unit has none."""
        if is_emulated(self.setting.contract):
            return torch.zeros_like(self.value, dtype=torch.bool)
        return says_nothing(self, self.setting.k) & ~self.spilled

    def admits(self, got: torch.Tensor) -> torch.Tensor:
        """Which outputs, float64 [m, n], are in their sets, bool. Beyond T's range: a value of the set, Inf with its
        sign, or T's largest value where the whole set is beyond it; not a zero, a NaN or the other sign."""
        most = self.setting.out.max
        low = torch.where(self.low == math.inf, torch.full_like(self.low, most), self.low)
        high = torch.where(self.high == -math.inf, torch.full_like(self.high, -most), self.high)
        return between(got, self.value, low, high)

    def part(self, index: torch.Tensor) -> GemmTruth:
        """The elements of these places of the flattened block, [j] each."""
        tensors = {name: v for name, v in vars(self).items() if isinstance(v, torch.Tensor)}
        return GemmTruth(self.setting, **{n: v.flatten().index_select(0, index) for n, v in tensors.items()})


def operand(codes: torch.Tensor, fmt: FloatFormat) -> torch.Tensor:
    """FP8 codes [r, K] -> exact float64 values."""
    table = decode_table(fmt, str(codes.device))
    if codes.device.type == "cpu":
        # numpy indexes by bytes as they are, at half the cost of widening them first.
        return torch.from_numpy(table.numpy()[bytes_of(codes).numpy()])
    return torch.index_select(table, 0, bytes_of(codes).to(torch.int32).flatten()).view(codes.shape)


def exact_sums(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum_k a*b exactly, an upper bound of sum_k |a*b|) for float64 a [m, K], b [n, K]: float64 [m, n].

    The magnitude is summed in fp32 (half the cost): its terms are non-negative, so the relative error is at most
    gamma_K <= K*u/(1 - K*u), which the factor gives back. TF32 would void that, so the precision is pinned by
    the caller's device: float64 is used on GPUs, where the setting is global.
    """
    k = a.shape[1]
    exact = a @ b.T
    if a.is_cuda:
        return exact, a.abs() @ b.abs().T
    gamma = k * budgets.U / (1 - k * budgets.U)
    magnitude = (a.abs().float() @ b.abs().float().T).double() * (1 + 2 * gamma)
    return exact, magnitude


def largest_exponent(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """2**(max_k e_a + max_k e_b) per output, with e the exponent of a code's binade: float64 [m, n]."""

    def top(v: torch.Tensor) -> torch.Tensor:
        largest = v.abs().amax(dim=1)
        # A NaN's row is judged as NaN; its exponent only has to be finite.
        mantissa_free = pow2(exponent_of(largest).clamp(max=10))
        # A subnormal code keeps the lowest normal exponent (never renormalised).
        return torch.where(largest == 0, torch.zeros_like(largest), mantissa_free.clamp(min=2.0**-6))

    return top(a)[:, None] * top(b)[None, :]


def granularity(v: torch.Tensor) -> torch.Tensor:
    """Largest power of two that divides every value of a row: float64 [r, K] -> float64 [r]; 2**10 for a zero row.

    Every FP8 value is an integer multiple of 2**-10; its lowest set bit is the power of two that divides it.
    """
    units = (v * 2.0**10).to(torch.int32)
    lowest = units & -units
    lowest = torch.where(units == 0, torch.full_like(lowest, 1 << 20), lowest)
    return lowest.amin(dim=1).double() / 2.0**10


SCREEN_K = 256
"""Leading products whose granularity is an upper bound of that of all; ordinary data settle the question with it."""


def where_grain_allows(a: torch.Tensor, b: torch.Tensor, test: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """test(g_a*g_b) with the granularities of a [m, K] and b [n, K], bool [m, n].

    test must be monotone: where a larger granularity fails, a smaller one does. A row's granularity is the smallest of
    its parts', so what the first products rule out is ruled out, and the rest need not be looked at.
    """

    def grain(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return granularity(x)[:, None] * granularity(y)[None, :]

    if a.shape[1] > SCREEN_K:
        possible = test(grain(a[:, :SCREEN_K], b[:, :SCREEN_K]))
        if not bool(possible.any()):
            return possible
    return test(grain(a, b))


EXACT_RANGE = {"fp32": 2.0**24, "unknown": 2.0**20}
"""sum|a*b| in units of the products' common granularity g, below which the accumulator cannot round. fp32: every
partial sum is an integer multiple of g of at most 24 bits. unknown (at least 23 fraction bits of the largest
exponent, and an unnormalised product exponent of at most 8 times the product, for a subnormal operand): 2**23 / 8."""


def significant_bits(values: torch.Tensor) -> torch.Tensor:
    """Significand bits that fp32 values (as float64) really use: 1 for a power of two, 0 for zero; float64."""
    mantissa = (torch.frexp(values.abs()).mantissa * 2.0**24).to(torch.int64)
    lowest = (mantissa & -mantissa).clamp(min=1).double()
    return torch.where(mantissa == 0, torch.zeros_like(lowest), 24.0 - exponent_of(lowest))


def unrounded_scaling(
    accumulator: torch.Tensor, a: torch.Tensor, b: torch.Tensor, a_scale: torch.Tensor, b_scale: torch.Tensor
) -> torch.Tensor:
    """Where acc*sa*sb rounds in no order, bool [m, n]: the significand bits of the three add up to at most 24.

    The accumulator is a multiple of g_a*g_b, so it has at most as many bits as |acc|/(g_a*g_b) needs. A product of two
    numbers of p and q bits has at most p + q, so every product of two or three of them is exact in fp32.
    """
    scales = significant_bits(a_scale.double())[:, None] + significant_bits(b_scale.double())[None, :]

    def fits(grain: torch.Tensor) -> torch.Tensor:
        # The quotient is an integer, and exact; NaN counts as one of 1,025 bits.
        bits = exponent_of(accumulator.abs() / grain).clamp(min=-1) + 1
        return bits + scales <= 24.0

    return where_grain_allows(a, b, fits)


def accumulator_error(
    contract: GemmContract,
    a: torch.Tensor,
    b: torch.Tensor,
    magnitude: torch.Tensor,
    free: torch.Tensor | None = None,
) -> torch.Tensor:
    """Bound of |kernel's accumulator - exact sum|, float64 [m, n]; derivations in ``budgets``.

    Zero where the operands themselves prove that nothing rounds in any order: products and partial sums are
    integer multiples of g = g_a*g_b and stay within ``EXACT_RANGE`` of it. One-hot rows and small integers
    are judged with zero tolerance that way, whatever the lane is called. free: where the scales are powers of two,
    bool [m, n]; needed where they multiply the operands, whose products are exact only then.
    """
    k = a.shape[1]
    if contract.accumulator == "fp32":
        scaled_first = contract.scaling == "operands"
        error = (budgets.dequantized_sum_budget(k) if scaled_first else budgets.fp32_sum_budget(k)) * magnitude
    else:
        alpha, beta = budgets.unknown_unit_budget(k)
        error = alpha * magnitude + beta * largest_exponent(a, b)
    exact = where_grain_allows(a, b, lambda grain: magnitude <= EXACT_RANGE[contract.accumulator] * grain)
    if free is not None:
        exact = exact & free
    return torch.where(exact, torch.zeros_like(error), error)


def gemm_truth(
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    bias: torch.Tensor | None,
    out_format: FloatFormat,
    contract: GemmContract,
) -> GemmTruth:
    """Truth of a block: a float64 [m, K], b float64 [n, K] (decoded), scales fp32 [m] and [n], bias [n] or None.

    Epilogue: (acc*sa)*sb or acc*(sa*sb), two fp32 multiplications in any order: relative 2u of the value
    plus the accumulator's own error times the scales. A bias in the epilogue costs one fp32 addition, u of
    the sum; a bias after the store is added in T, which rounds the GEMM's output first. Results below
    2**-126 may be flushed: an absolute 2**-126.
    """
    accumulator, magnitude = exact_sums(a, b)
    scales = a_scale.double()[:, None] * b_scale.double()[None, :]
    product = accumulator * scales
    free = is_power_of_two(a_scale.double())[:, None] & is_power_of_two(b_scale.double())[None, :]
    setting = GemmSetting(contract, out_format, a.shape[1])
    need = free if contract.scaling == "operands" else None
    error = accumulator_error(contract, a, b, magnitude, need) * scales.abs()
    two_u = 2 * budgets.U / (1 - 2 * budgets.U) + budgets.FLOAT64_SLACK
    # A product with two powers of two does not round, nor one whose factors have few bits.
    still = free | unrounded_scaling(accumulator, a, b, a_scale, b_scale)
    rounding = torch.where(still, torch.zeros_like(product), two_u * product.abs())
    flushed = (product.abs() < 2.0**-100) & (product != 0)
    error = error * (1 + two_u) + rounding + 2.0**-126 * flushed
    if bias is None:
        low, high = round_to(product - error, out_format), round_to(product + error, out_format)
        return GemmTruth(setting, accumulator, magnitude, product, low, high, error, scales.abs())
    shift = bias.double()[None, :]
    value = product + shift
    sets = []
    if contract.bias in ("epilogue", "either"):
        # fl32 is monotone: rounding the ends of the sum bounds every rounded sum, FMA included.
        ends = round_fp32(product - error + shift), round_fp32(product + error + shift)
        sets.append((round_to(ends[0], out_format), round_to(ends[1], out_format)))
        error_out = error + budgets.U * value.abs()
    if contract.bias in ("after_store", "either"):
        first = round_to(product - error, out_format), round_to(product + error, out_format)
        sets.append((round_to(first[0] + shift, out_format), round_to(first[1] + shift, out_format)))
        error_out = error + budgets.U * value.abs()
    low = torch.stack([s[0] for s in sets]).amin(dim=0)
    high = torch.stack([s[1] for s in sets]).amax(dim=0)
    return GemmTruth(setting, accumulator, magnitude, value, low, high, error_out, scales.abs())


def says_nothing(truth: GemmTruth, k: int) -> torch.Tensor:
    """Elements whose admissible set is as wide as an output, bool [m, n]: the contract says nothing about the output.

    A set of half-width err that is as wide as the output v, 2 err >= |v|, admits v/2 as well as 3v/2: half of the sum
    may be lost, or come twice, unseen. v alone is the wrong yardstick where a sum happens to cancel, for an error as
    large as an ordinary output is seen there too; so the set must also be as wide as an output whose products have
    independent signs. That one has the root mean square sqrt(sum (a*b)^2) >= sum|a*b| / sqrt(K) (Cauchy-Schwarz).
    K terms of any signs: from K = 8,900 on, ``unknown`` says nothing about most outputs of zero-mean data (its bound
    grows with K, outputs with sqrt(K)), and all about integers that it proves exact. fp32 gets there beyond K = 40,000.
    """
    product = truth.accumulator.abs() * truth.scales
    ordinary = truth.magnitude * truth.scales / math.sqrt(max(k, 1))
    return (truth.low < truth.high) & (2 * truth.error >= torch.maximum(product, ordinary))


Accumulate = Callable[[torch.Tensor, torch.Tensor, FloatFormat, GemmContract], torch.Tensor]
"""(codes a [m, K], codes b [n, K], format, contract) -> the accumulator, fp32 [m, n], bit for bit."""


def is_emulated(contract: GemmContract) -> bool:
    """Whether the contract names a matrix unit whose arithmetic is known bit for bit."""
    return contract.accumulator not in ("fp32", "unknown")


def emulate(a: torch.Tensor, b: torch.Tensor, fmt: FloatFormat, contract: GemmContract) -> torch.Tensor:
    """The contract's accumulator by ``accumulators.emulate``."""
    k_map = accumulators.K_MAPS[contract.k_map]
    return accumulators.emulate(
        a, b, fmt, contract.accumulator, k_map=k_map if len(k_map) > 1 else None, splits=contract.splits
    )


def epilogues(
    accumulator: torch.Tensor, a_scale: torch.Tensor, b_scale: torch.Tensor, contract: GemmContract
) -> list[torch.Tensor]:
    """The scaled fp32 values that the contract's order of multiplications allows: fp32 [m, n] each.

    Every step is one IEEE fp32 multiplication, which torch performs as such.
    """
    sa, sb = a_scale.float()[:, None], b_scale.float()[None, :]
    orders: dict[str, Callable[[], torch.Tensor]] = {
        "token_first": lambda: (accumulator * sa) * sb,
        "channel_first": lambda: (accumulator * sb) * sa,
        "scales_first": lambda: accumulator * (sa * sb),
    }
    chosen = orders if contract.scale_order == "any" else {contract.scale_order: orders[contract.scale_order]}
    return [make() for make in chosen.values()]


def emulated_truth(
    a: torch.Tensor,
    b: torch.Tensor,
    fmt: FloatFormat,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    bias: torch.Tensor | None,
    out_format: FloatFormat,
    contract: GemmContract,
    accumulate: Accumulate = emulate,
) -> GemmTruth:
    """Truth of a block for a known matrix unit: a [m, K], b [n, K] codes (bytes or FP8), the rest as ``gemm_truth``.

    low and high span the stores of the few epilogue orders that the contract leaves open (one value where it leaves
    none, or where they round alike). error is how far the unit itself is from the exact sum: information, not freedom.
    """
    decoded = operand(a, fmt), operand(b, fmt)
    exact, magnitude = exact_sums(*decoded)
    scales = a_scale.double()[:, None] * b_scale.double()[None, :]
    accumulator = accumulate(a, b, fmt, contract)
    # NaN codes: the emulation returns the canonical NaN for the whole row, exact_sums a NaN as well.
    values = [v.double() for v in epilogues(accumulator, a_scale, b_scale, contract)]
    shift = None if bias is None else bias.double()[None, :]
    stores = []
    for value in values:
        if shift is None:
            stores.append(round_to(value, out_format))
            continue
        if contract.bias in ("epilogue", "either"):
            stores.append(round_to(round_fp32(value + shift), out_format))
        if contract.bias in ("after_store", "either"):
            stores.append(round_to(round_to(value, out_format) + shift, out_format))
    if shift is not None and contract.bias in ("epilogue", "either"):
        # An FMA rounds (acc*s)*t + bias once.
        fused = [accumulator.double() * first for first in (a_scale.double()[:, None], b_scale.double()[None, :])]
        lasts = (b_scale.double()[None, :], a_scale.double()[:, None])
        stores += [
            round_to(round_fp32(round_fp32(f) * t + shift), out_format) for f, t in zip(fused, lasts, strict=True)
        ]
    value = exact * scales if shift is None else exact * scales + shift
    stacked = torch.stack(stores)
    error = (accumulator.double() - exact).abs() * scales.abs()
    setting = GemmSetting(contract, out_format, a.shape[1])
    return GemmTruth(setting, exact, magnitude, value, stacked.amin(dim=0), stacked.amax(dim=0), error, scales.abs())


Place = slice | torch.Tensor
"""Rows or columns: a slice, or int64 numbers."""


def truth_of(
    inputs: Given, contract: GemmContract, rows: Place, cols: Place, accumulate: Accumulate = emulate
) -> GemmTruth:
    """Truth of the outputs in these rows and columns: of ``emulated_truth`` where the unit is known."""
    fmt, out_format = format_of(inputs.a.dtype), format_of(inputs.out_dtype)
    # FP8 tensors cannot be indexed everywhere; bytes can.
    a, b = (bytes_of(v)[place].view(v.dtype) for v, place in ((inputs.a, rows), (inputs.b, cols)))
    scales = inputs.a_scale.reshape(-1)[rows], inputs.b_scale.reshape(-1)[cols]
    bias = None if inputs.bias is None else inputs.bias[cols]
    if is_emulated(contract):
        return emulated_truth(a, b, fmt, *scales, bias, out_format, contract, accumulate)
    return gemm_truth(operand(a, fmt), operand(b, fmt), *scales, bias, out_format, contract)
