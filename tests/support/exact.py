"""Correctly rounded values by Python's integers alone, and numbers at which rounding matters."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

FORMATS = {
    torch.bfloat16: (8, -126, 127),
    torch.float16: (11, -14, 15),
    torch.float32: (24, -126, 127),
    torch.float64: (53, -1022, 1023),
}
"""dtype -> significand bits, least and largest exponent of a normal number."""


def nearest(value: Fraction, dtype: torch.dtype) -> float:
    """``value`` rounded to nearest, ties to even, as a float; overflow gives an infinity."""
    bits, least, most = FORMATS[dtype]
    size = abs(value)
    if size == 0:
        return 0.0
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= size < Fraction(2) ** exponent
    step = Fraction(2) ** (max(exponent, least) - bits + 1)
    # Python rounds a Fraction half to even, exactly.
    rounded = round(size / step) * step
    top = (2 - Fraction(2) ** (1 - bits)) * Fraction(2) ** most
    found = math.inf if rounded > top else float(rounded)
    return -found if value < 0 else found


def root(value: Fraction, dtype: torch.dtype, power: int) -> float:
    """``value ** (power / 2)`` for power 1 or -1, rounded to nearest: 200 bits of an integer root, sticky."""
    value = value if power == 1 else 1 / value
    shift = 2 * (200 + max(0, value.denominator.bit_length() - value.numerator.bit_length()))
    scaled = (value.numerator << shift) // value.denominator
    root = math.isqrt(scaled)
    sticky = root * root != scaled or (value.numerator << shift) % value.denominator != 0
    return nearest(Fraction(2 * root + sticky, 2 << (shift // 2)), dtype)


def numbers(dtype: torch.dtype, count: int, seed: int) -> Tensor:
    """Finite numbers, both signs: all bits at random (any binade, subnormal numbers), and 1 .. 2**8, where sums round
    and, of a quarter that has few bits, tie."""
    width, kind = {2: (16, np.int16), 4: (32, np.int32), 8: (64, np.int64)}[dtype.itemsize]
    draw = np.random.default_rng(seed)
    words = draw.integers(-(1 << (width - 1)), 1 << (width - 1), count).astype(kind)
    anywhere = torch.from_numpy(words).view(dtype)
    bits = FORMATS[dtype][0]
    fraction = draw.integers(1 << (bits - 1), 1 << bits, count)
    fraction[::2] &= -(1 << (bits // 2))
    near = np.ldexp(fraction.astype(np.float64), draw.integers(0, 8, count) - bits + 1) * draw.choice([-1, 1], count)
    value = torch.stack((anywhere, torch.from_numpy(near).to(dtype)), 1).flatten()
    return value[value.isfinite()]


def ties(wide: torch.dtype, narrow: torch.dtype) -> Tensor:
    """Numbers of ``wide`` at, just below and just above midpoints of ``narrow``, over its whole range."""
    bits, least, most = FORMATS[narrow]
    draw = np.random.default_rng(7)
    odd = draw.integers(1 << bits, 2 << bits, 3000) | 1
    power = draw.integers(least - bits - 1, most - bits + 1, 3000)
    tie = np.ldexp(odd.astype(np.float64), power)
    subnormal = np.ldexp(draw.integers(0, 1 << (bits - 1), 500) * 2.0 + 1.0, least - bits)
    both = torch.from_numpy(np.concatenate([tie, subnormal]))
    value = both.to(torch.float32) if wide == torch.float32 else both
    word = value.view(torch.int32 if wide == torch.float32 else torch.int64)
    value = torch.cat([(word + step).view(wide) for step in (-1, 0, 1)])
    value = value[value.isfinite()]
    return torch.cat([value, -value])
