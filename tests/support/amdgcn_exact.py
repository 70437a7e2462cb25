"""Arithmetic of the machine stated with Python's integers and fractions, apart from the interpreter's own code."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Format:
    """A binary float: bits of the exponent, of the fraction."""

    exponent: int
    fraction: int

    @property
    def bias(self) -> int:
        """Of the exponent."""
        return 2 ** (self.exponent - 1) - 1

    @property
    def infinity(self) -> int:
        """Bits of +Inf."""
        return ((1 << self.exponent) - 1) << self.fraction

    @property
    def sign(self) -> int:
        """The sign's bit."""
        return 1 << (self.exponent + self.fraction)

    @property
    def quiet(self) -> int:
        """The bit that makes a NaN quiet."""
        return 1 << (self.fraction - 1)

    def is_nan(self, bits: int) -> bool:
        """Whether the bits are a NaN."""
        return bits & ~self.sign > self.infinity

    def is_inf(self, bits: int) -> bool:
        """Whether the bits are an infinity."""
        return bits & ~self.sign == self.infinity

    def value(self, bits: int) -> Fraction:
        """The number of finite bits."""
        exponent, fraction = (bits & ~self.sign) >> self.fraction, bits & ((1 << self.fraction) - 1)
        if exponent:
            fraction |= 1 << self.fraction
        scale = Fraction(2) ** (max(exponent, 1) - self.bias - self.fraction)
        return -fraction * scale if bits & self.sign else fraction * scale

    def round(self, exact: Fraction, negative_zero: bool = False) -> int:
        """Bits of ``exact`` rounded to nearest even."""
        if exact == 0:
            return self.sign if negative_zero else 0
        sign, size = (self.sign if exact < 0 else 0), abs(exact)
        # floor(log2(size)), from the lengths of numerator and denominator
        power = size.numerator.bit_length() - size.denominator.bit_length()
        power -= size < Fraction(2) ** power
        step = Fraction(2) ** (max(power, 1 - self.bias) - self.fraction)
        count = round(size / step)  # Python rounds halves of a Fraction to even
        value = count * step
        if value >= Fraction(2) ** (self.bias + 1):
            return sign | self.infinity
        if count >= 1 << self.fraction:
            power = max(power, 1 - self.bias) + (count >> (self.fraction + 1))
            mantissa = int(value / Fraction(2) ** (power - self.fraction)) - (1 << self.fraction)
            return sign | ((power + self.bias) << self.fraction) | mantissa
        return sign | count


F32, F16, BF16 = Format(8, 23), Format(5, 10), Format(8, 7)
NAN32 = 0x7FC00000


def fma(a: int, b: int, c: int, form: Format = F32) -> int:
    """a * b + c of bits; NaN: the first operand's made quiet, else the default one."""
    default = form.infinity | form.quiet
    for x in (a, b, c):
        if form.is_nan(x):
            return x | form.quiet
    sign = (a ^ b) & form.sign
    if form.is_inf(a) or form.is_inf(b):
        if 0 in (a & ~form.sign, b & ~form.sign) or (form.is_inf(c) and sign != c & form.sign):
            return default
        return sign | form.infinity
    if form.is_inf(c):
        return c
    exact = form.value(a) * form.value(b) + form.value(c)
    zero = exact == 0 and bool(sign) and bool(c & form.sign)
    exact_zero_product = form.value(a) * form.value(b) == 0
    if exact == 0 and not exact_zero_product and form.value(c) == 0:
        zero = bool(sign)
    return form.round(exact, zero)


def add(a: int, b: int, form: Format = F32) -> int:
    """a + b."""
    one = form.bias << form.fraction
    return fma(a, one, b, form)


def multiply(a: int, b: int, form: Format = F32) -> int:
    """a * b."""
    default = form.infinity | form.quiet
    for x in (a, b):
        if form.is_nan(x):
            return x | form.quiet
    sign = (a ^ b) & form.sign
    if form.is_inf(a) or form.is_inf(b):
        return default if 0 in (a & ~form.sign, b & ~form.sign) else sign | form.infinity
    return form.round(form.value(a) * form.value(b), bool(sign))


def maximum(a: int, b: int, form: Format = F32, larger: bool = True) -> int:
    """v_max (or v_min) in IEEE mode, in the order of AMD's pseudo-code."""
    for x in (a, b):
        if form.is_nan(x) and not x & form.quiet:
            return x | form.quiet
    if form.is_nan(a):
        return b
    if form.is_nan(b):
        return a

    def key(x: int) -> int:
        return -(x & ~form.sign) - 1 if x & form.sign else x

    return (max if larger else min)(a, b, key=key)


def flushed(x: int, form: Format = F32) -> int:
    """x, a denormal as zero of its sign."""
    return x & form.sign if (x & ~form.sign) < (1 << form.fraction) else x


def to_code(x: int, fnuz: bool, saturate: bool) -> int:
    """float32 bits to an e4m3 code: the nearest of all codes, found among them."""
    bias, largest = (8, 0x7F) if fnuz else (7, 0x7E)
    nan = 0x80 if fnuz else 0x7F | ((x >> 24) & 0x80)
    if F32.is_nan(x):
        return nan
    sign = (x >> 24) & 0x80
    if F32.is_inf(x):
        return sign | largest if saturate else nan
    value = abs(F32.value(x))

    def of(code: int) -> Fraction:
        e, f = code >> 3, code & 7
        return (
            Fraction(f, 8) * Fraction(2) ** (1 - bias) if e == 0 else (1 + Fraction(f, 8)) * Fraction(2) ** (e - bias)
        )

    # One code more than there are, as if the format went on, decides what overflows.
    low = 0
    while low <= largest and of(low + 1) <= value:
        low += 1
    below, above = value - of(low), of(low + 1) - value
    code = low if below < above or (below == above and low % 2 == 0) else low + 1
    if code > largest:
        return sign | largest if saturate else nan
    return 0 if fnuz and code == 0 else sign | code


def signed(x: int, bits: int = 32) -> int:
    """The two's complement number of bits."""
    return x - (1 << bits) if x >> (bits - 1) else x


def ulps_apart(a: int, b: int) -> int:
    """How many float32 numbers lie between two finite ones."""

    def key(x: int) -> int:
        return -(x & 0x7FFFFFFF) if x >> 31 else x

    return abs(key(a) - key(b))


SPECIAL32 = (
    0,
    0x80000000,
    1,
    0x80000001,
    0x007FFFFF,
    0x00800000,
    0x3F800000,
    0xBF800000,
    0x7F7FFFFF,
    0xFF7FFFFF,
    0x7F800000,
    0xFF800000,
    0x7FC00000,
    0xFFC12345,
    0x7F812345,
    0x33800000,
    0x4B800001,
    0x3F800001,
    0x477FE000,
    0x43E00000,
    0x43E80000,
    0x43700000,
    0x43780000,
    0x3C800000,
    0xFFFFFFFF,
    0x7FFFFFFF,
    0x0000FFFF,
    0xFFFF0000,
    31,
    32,
    16,
)


def operands(seed: str, sources: int, count: int = 128) -> list[list[int]]:
    """``sources`` lists of ``count`` 32-bit values: special ones against each other, random bits, numbers near 1."""
    made = random.Random(seed)

    def one() -> int:
        kind = made.random()
        if kind < 0.4:
            return made.choice(SPECIAL32)
        if kind < 0.6:
            return made.getrandbits(32)
        exponent = 127 + made.randint(-14, 14)
        return (made.getrandbits(1) << 31) | (exponent << 23) | made.getrandbits(23)

    return [[one() for _ in range(count)] for _ in range(sources)]


def root(x: Fraction) -> Fraction:
    """The square root to 80 bits."""
    shift = 400
    return Fraction(math.isqrt((x.numerator << shift) // x.denominator), 1 << (shift // 2))
