"""Formats: every code, every midpoint and both its neighbours, every 16-bit value, both overflow policies."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import formats
from reference.formats import BF16, FORMATS, FP16, FP32, FloatFormat, code_preimages, decode, encode, round_to
from tests.support import oracle

ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes, the witness of the FP8 formats, is not installed")

FP8 = (formats.E4M3FN, formats.E4M3FNUZ)
OVERFLOW = ("saturate", "nan")
WITNESS = {
    "e4m3fn": ml_dtypes.float8_e4m3fn,
    "e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "bf16": ml_dtypes.bfloat16,
    "fp16": np.float16,
    "fp32": np.float32,
}
fp8_formats = pytest.mark.parametrize("fmt", FP8, ids=lambda f: f.name)
policies = pytest.mark.parametrize("overflow", OVERFLOW)
finite = st.floats(allow_nan=False, allow_infinity=False, width=64)


def all_codes() -> torch.Tensor:
    return torch.arange(256, dtype=torch.uint8)


def magnitudes(fmt: FloatFormat) -> torch.Tensor:
    """Every finite non-negative value in order, float64."""
    return decode(torch.arange(fmt.max_code + 1, dtype=torch.uint8), fmt)


def beside(values: torch.Tensor) -> torch.Tensor:
    """Values and both their float64 neighbours, in both signs."""
    inf = torch.tensor(math.inf, dtype=torch.float64)
    found = torch.cat([values, torch.nextafter(values, inf), torch.nextafter(values, -inf)])
    return torch.cat([found, -found])


def points(fmt: FloatFormat) -> torch.Tensor:
    """Values, midpoints (the one past the largest value included) and their neighbours; zero, tiny and huge values."""
    grid = magnitudes(fmt)
    beyond = torch.cat([grid, grid[-1:] + (grid[-1] - grid[-2])])
    special = torch.tensor([0.0, 5e-324, 2.0**-1022, 1e300, 1.7976931348623157e308], dtype=torch.float64)
    return beside(torch.cat([grid, (beyond[1:] + beyond[:-1]) / 2, beyond, special])).nan_to_num()


def sixteen_bits(dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype).double()


@fp8_formats
def test_every_code_decodes_to_its_value(fmt: FloatFormat) -> None:
    witness = all_codes().numpy().view(WITNESS[fmt.name]).astype(np.float64)
    ours = decode(all_codes(), fmt)
    assert torch.equal(ours.isnan(), torch.from_numpy(np.isnan(witness)))
    for code, value in enumerate(ours.tolist()):
        expected = oracle.code_value(code, fmt.name)
        if expected is None:
            assert math.isnan(value)
        else:
            assert Fraction(value) == expected
            assert value == witness[code]
            assert math.copysign(1.0, value) == math.copysign(1.0, witness[code])


@fp8_formats
@policies
def test_every_midpoint_and_neighbour_encodes_exactly(fmt: FloatFormat, overflow: formats.Overflow) -> None:
    values = points(fmt)
    codes = encode(values, fmt, overflow)
    for value, code in zip(values.tolist(), codes.tolist(), strict=True):
        assert code in oracle.codes_of(Fraction(value), fmt.name, overflow), (value.hex(), hex(code))
    negative_zero = (values == 0) & torch.signbit(values)
    assert set(codes[negative_zero].tolist()) == ({0x80} if fmt is formats.E4M3FN else {0})


@fp8_formats
@policies
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_every_16_bit_value_encodes_as_ml_dtypes_does(
    fmt: FloatFormat, overflow: formats.Overflow, dtype: torch.dtype
) -> None:
    values = sixteen_bits(dtype)
    codes = encode(values, fmt, overflow)
    # Both types are exact in fp32, so the witness rounds once. It gives NaN above the overflow threshold.
    witness = torch.from_numpy(values.float().numpy().astype(WITNESS[fmt.name]).view(np.uint8).copy())
    beyond = values.abs() > (464.0 if fmt is formats.E4M3FN else math.nextafter(248.0, 0.0))
    regular = ~beyond & ~values.isnan()
    assert torch.equal(codes[regular], witness[regular])
    assert bool(decode(witness[beyond], fmt).isnan().all())
    assert bool(decode(codes[values.isnan()], fmt).isnan().all())
    got = decode(codes[beyond], fmt)
    if overflow == "nan":
        assert bool(got.isnan().all())
    else:
        assert torch.equal(got, torch.copysign(torch.full_like(got, fmt.max), values[beyond]))


@fp8_formats
@policies
def test_preimages_are_what_encode_gives(fmt: FloatFormat, overflow: formats.Overflow) -> None:
    low, high = code_preimages(fmt, overflow)
    inf = torch.tensor(math.inf, dtype=torch.float64)
    for code in range(256):
        value = oracle.code_value(code, fmt.name)
        if value is None:
            assert (float(low[code]), float(high[code])) == (math.inf, -math.inf)
            continue
        inside = torch.stack([low[code], high[code]])
        outside = torch.stack([torch.nextafter(low[code], -inf), torch.nextafter(high[code], inf)])
        same = decode(encode(inside, fmt, overflow), fmt)
        assert bool((same == float(value)).all()), hex(code)
        moved = outside[outside.isfinite() & inside.isfinite()]
        assert not bool((decode(encode(moved, fmt, overflow), fmt) == float(value)).any()), hex(code)
    # Together they cover the line without a gap, as far as values are finite.
    numbers = sorted(
        {(float(low[c]), float(high[c])) for c in range(256) if oracle.code_value(c, fmt.name) is not None}
    )
    for (_, end), (start, _) in itertools.pairwise(numbers):
        assert math.nextafter(end, math.inf) == start


@pytest.mark.parametrize(("fmt", "dtype"), [(BF16, torch.bfloat16), (FP16, torch.float16)], ids=["bf16", "fp16"])
def test_round_to_16_bits_at_every_value_tie_and_neighbour(fmt: FloatFormat, dtype: torch.dtype) -> None:
    grid = sixteen_bits(dtype)
    grid = grid[grid.isfinite() & (grid >= 0)].unique()
    past = grid[-1:] + (grid[-1] - grid[-2])
    ties = (torch.cat([grid[1:], past]) + grid) / 2
    for values, steps in ((grid, 0), (ties, 0), (ties, 1), (ties, -1)):
        inf = torch.tensor(math.inf * (steps or 1), dtype=torch.float64)
        moved = torch.nextafter(values, inf) if steps else values
        moved = torch.cat([moved, -moved])
        # ml_dtypes rounds float64 to bf16 through fp32, so the expected neighbours are taken from the grid instead.
        magnitude = moved.abs()
        below = torch.bucketize(magnitude, grid, right=True) - 1
        lower, upper = grid[below], torch.cat([grid, torch.full((1,), math.inf, dtype=torch.float64)])[below + 1]
        middle = torch.where(upper.isinf(), (grid[-1] + past) / 2, (lower + upper.nan_to_num(posinf=0.0)) / 2)
        up = (magnitude > middle) | ((magnitude == middle) & (below % 2 == 1))
        nearest = torch.copysign(torch.where(up, upper, lower), moved)
        assert torch.equal(round_to(moved, fmt), nearest)
        assert torch.equal(round_to(moved, fmt, "truncate"), torch.copysign(lower, moved))


@pytest.mark.parametrize("fmt", [BF16, FP16], ids=lambda f: f.name)
def test_round_to_agrees_with_the_witness_on_every_fp32_near_a_tie(fmt: FloatFormat) -> None:
    """fp32 numbers around all bf16 and fp16 ties: exact in fp32, so ml_dtypes and numpy round them once."""
    dtype = torch.bfloat16 if fmt is BF16 else torch.float16
    grid = sixteen_bits(dtype)
    grid = grid[grid.isfinite()].unique()
    ties = ((grid[1:] + grid[:-1]) / 2).float()
    inf = torch.tensor(math.inf)
    values = torch.cat([ties, torch.nextafter(ties, inf), torch.nextafter(ties, -inf)])
    values = torch.cat(
        [values, torch.tensor([0.0, -0.0, math.inf, -math.inf, 3.4e38, -3.4e38, 65520.0, 65519.996, 1e-45])]
    )
    with np.errstate(over="ignore"):
        witness = torch.from_numpy(values.numpy().astype(WITNESS[fmt.name]).astype(np.float64))
    ours = round_to(values.double(), fmt)
    assert torch.equal(ours, witness)
    assert torch.equal(torch.signbit(ours), torch.signbit(witness))
    assert bool(round_to(torch.tensor([math.nan], dtype=torch.float64), fmt).isnan().all())


def test_the_conversion_that_the_norm_uses_agrees_with_round_to() -> None:
    """``norm_input`` stores bf16 by the framework's fp32 conversion: all 65,536 values, ties and fp32 neighbours."""
    high = torch.arange(1 << 16, dtype=torch.int64) << 16
    low = torch.tensor([0x0000, 0x0001, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    bits = (high[:, None] | low[None, :]).flatten()
    values = torch.where(bits >= 1 << 31, bits - (1 << 32), bits).to(torch.int32).view(torch.float32)
    values = values[~values.isnan()]
    by_framework = values.to(torch.bfloat16).double()
    ours = round_to(values.double(), BF16)
    assert torch.equal(by_framework, ours)
    assert torch.equal(torch.signbit(by_framework), torch.signbit(ours))


@given(finite)
@settings(max_examples=400, deadline=None)
def test_round_to_fp32_is_the_fraction_oracle(value: float) -> None:
    expected = oracle.rne(Fraction(value), oracle.GRIDS["fp32"])
    got = float(round_to(torch.tensor([value], dtype=torch.float64), FP32))
    hardware = float(formats.round_fp32(torch.tensor([value], dtype=torch.float64)))
    assert got == hardware
    assert math.isinf(got) if expected is None else Fraction(got) == expected


@pytest.mark.parametrize("name", ["bf16", "fp16", "fp32"])
@given(value=finite)
@settings(max_examples=200, deadline=None)
def test_rounding_both_ways_is_the_fraction_oracle(name: str, value: float) -> None:
    tensor, grid = torch.tensor([value], dtype=torch.float64), oracle.GRIDS[name]
    nearest, down = float(round_to(tensor, FORMATS[name])), float(round_to(tensor, FORMATS[name], "truncate"))
    expected = oracle.rne(Fraction(value), grid)
    assert math.isinf(nearest) if expected is None else Fraction(nearest) == expected
    assert Fraction(down) == oracle.toward_zero(Fraction(value), grid)


@pytest.mark.parametrize("name", ["e4m3fn", "e4m3fnuz"])
@given(value=st.floats(-1000, 1000, width=64) | finite, nan=st.booleans())
@settings(max_examples=400, deadline=None)
def test_encode_is_the_fraction_oracle(name: str, value: float, nan: bool) -> None:
    overflow = "nan" if nan else "saturate"
    code = int(encode(torch.tensor([value], dtype=torch.float64), FORMATS[name], overflow)[0])  # type: ignore[arg-type]
    assert code in oracle.codes_of(Fraction(value), name, overflow)


@pytest.mark.parametrize("fmt", [BF16, FP16], ids=lambda f: f.name)
def test_keys_count_steps_and_neighbours_are_one_step_away(fmt: FloatFormat) -> None:
    grid = sixteen_bits(torch.bfloat16 if fmt is BF16 else torch.float16)
    grid = grid[grid.isfinite()].unique()
    keys = formats.key_of(grid, fmt)
    assert torch.equal(keys[1:] - keys[:-1], torch.ones_like(keys[1:]))
    down, up = formats.neighbours(grid, fmt)
    assert torch.equal(up[:-1], grid[1:])
    assert torch.equal(down[1:], grid[:-1])
    # Half way in value is half way in key: distances below one step keep their size.
    middle = (grid[1:] + grid[:-1]) / 2
    assert torch.equal(formats.key_of(middle, fmt) - keys[:-1], torch.full_like(middle, 0.5))


@pytest.mark.parametrize("fmt", [BF16, FP16, FP32, *FP8], ids=lambda f: f.name)
def test_ulp_is_the_spacing_of_the_grid(fmt: FloatFormat) -> None:
    exponents = range(-149 if fmt.bits > 8 else -12, 127 if fmt.bits > 16 else 9)
    values = torch.tensor([s * 2.0**e for e in exponents for s in (1.0, 1.5, -1.75)] + [0.0], dtype=torch.float64)
    values = values[values.abs() <= fmt.max]
    for value, step in zip(values.tolist(), formats.ulp(values, fmt).tolist(), strict=True):
        assert Fraction(step) == oracle.spacing(Fraction(value), oracle.GRIDS[fmt.name])
    other = torch.tensor([1.0, math.inf, -math.inf, math.nan], dtype=torch.float64)
    assert formats.ulp(other, fmt).unique().tolist() == [2.0**-fmt.mantissa]


@fp8_formats
def test_order_keys_follow_values(fmt: FloatFormat) -> None:
    codes = all_codes()
    values = decode(codes, fmt)
    good = ~values.isnan()
    keys, values = formats.order_key(codes)[good].int(), values[good]
    order = keys.argsort(stable=True)
    assert bool((values[order][1:] >= values[order][:-1]).all())
    assert torch.equal(keys[:, None] == keys[None, :], values[:, None] == values[None, :])


def test_tables_are_what_the_format_says() -> None:
    for name, grid in oracle.GRIDS.items():
        fmt = FORMATS[name]
        assert Fraction(fmt.max) == grid.top
        assert Fraction(fmt.min_subnormal) == oracle.spacing(Fraction(0), grid)
        assert fmt.significand == grid.p
    assert formats.overflow_threshold(formats.E4M3FN) == 464.0
    assert formats.overflow_threshold(formats.E4M3FNUZ) == math.nextafter(248.0, 0.0)
    with pytest.raises(ValueError, match="no format for dtype"):
        formats.format_of(torch.int8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU, whose conversions this compares")
@pytest.mark.gpu
@fp8_formats
def test_a_gpu_gives_the_same_bits(fmt: FloatFormat) -> None:
    values = points(fmt)
    for overflow in OVERFLOW:
        on_gpu = encode(values.cuda(), fmt, overflow)  # type: ignore[arg-type]
        assert torch.equal(on_gpu.cpu(), encode(values, fmt, overflow))  # type: ignore[arg-type]
    for target in (BF16, FP16, FP32):
        assert torch.equal(round_to(values.cuda(), target).cpu(), round_to(values, target))
