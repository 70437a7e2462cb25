"""Matrix units against a slow oracle: exact rationals, written from the prose of each unit, one product at a time."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest
import torch

from reference import accumulators
from reference.accumulators import AccumulatorError, Operand, decode_operand, emulate, get_unit
from reference.formats import E4M3FN, E4M3FNUZ, FORMATS, FloatFormat, decode, encode

NO_EXPONENT = -10_000


# ---- the oracle: nothing below shares code with the emulator ------------------------------------------------------


def _code(code: int, fmt: FloatFormat) -> tuple[int, int, int]:
    """(sign, m, e) with value = sign * m * 2^(e-3)."""
    bias = {"e4m3fn": 7, "e4m3fnuz": 8}[fmt.name]
    sign, field, fraction = (-1 if code & 128 else 1), (code >> 3) & 15, code & 7
    return (sign, 8 + fraction, field - bias) if field else (sign, fraction, 1 - bias)


def _power(e: int) -> Fraction:
    return Fraction(2) ** e


def _floor_log2(x: Fraction) -> int:
    x = abs(x)
    e = x.numerator.bit_length() - x.denominator.bit_length()
    return e if _power(e) <= x else e - 1


def _trunc(x: Fraction, unit: Fraction) -> Fraction:
    n = abs(x) // unit * unit
    return n if x >= 0 else -n


def _floor(x: Fraction, unit: Fraction) -> Fraction:
    return x // unit * unit


def _rne32(x: Fraction) -> Fraction:
    if x == 0:
        return x
    quantum = _power(max(_floor_log2(x), -126) - 23)
    n, rest = divmod(x, quantum)
    up = rest * 2 > quantum or (rest * 2 == quantum and n % 2 == 1)
    return (n + up) * quantum


def _products(a: list[int], b: list[int], fmt: FloatFormat) -> list[tuple[Fraction, int]]:
    """(value, exponent) of each product; NO_EXPONENT for zeros."""
    out = []
    for x, y in zip(a, b, strict=True):
        (sa, ma, ea), (sb, mb, eb) = _code(x, fmt), _code(y, fmt)
        value = Fraction(sa * sb * ma * mb) * _power(ea + eb - 6)
        out.append((value, ea + eb if value else NO_EXPONENT))
    return out


def _aligned(products: list[tuple[Fraction, int]], c: Fraction, fraction: int, kept: int, lowest: int) -> Fraction:
    terms = [p for p in products if p[0]]
    if c:
        terms.append((c, max(_floor_log2(c), -126)))
    if not terms:
        return Fraction(0)
    top = max(lowest, *(e for _, e in terms)) if len(terms) > 1 else max(lowest, terms[0][1])
    s = sum((_trunc(value, _power(top - fraction)) for value, _ in terms), Fraction(0))
    return _trunc(s, _power(max(_floor_log2(s), -126) - kept)) if s else s


def _cdna3(products: list[tuple[Fraction, int]], c: Fraction) -> Fraction:
    halves = []
    for half in (products[0::2], products[1::2]):
        top = max(e for _, e in half)
        halves.append((top, sum((_trunc(v, _power(top - 24)) for v, e in half if v), Fraction(0))))
    e_d = max(top for top, _ in halves)
    dot = sum((_floor(s, _power(e_d - 24)) for top, s in halves if s), Fraction(0))
    e_c = max(_floor_log2(c), -126) if c else -126
    e = max(e_d, e_c)
    y = Fraction(0) if e_c < e - 25 else _floor(c, _power(e - 24))
    t = _floor(dot, _power(e - 32)) + y
    if t == 0:
        return t
    return _rne32(_floor(t, _power(max(_floor_log2(t), -126) - 31)))


def _exact(products: list[tuple[Fraction, int]], c: Fraction) -> Fraction:
    return _rne32(sum((v for v, _ in products), c))


def _oracle_step(unit: str, products: list[tuple[Fraction, int]], c: Fraction) -> Fraction:
    if unit.startswith("hopper"):
        return _aligned(products, c, 13, 13, -133)
    if unit == "ada":
        return _aligned(products, c, 13, 13, -132)
    if unit == "blackwell-tcgen05":
        return _aligned(products, c, 25, 23, -133)
    return {"cdna3-mfma": _cdna3, "blackwell-mma": _exact, "fp32-serial": _exact}[unit](products, c)


GROUPS = {
    "hopper-fast": 32,
    "hopper-promote128": 32,
    "ada": 16,
    "cdna3-mfma": 16,
    "blackwell-mma": 32,
    "blackwell-tcgen05": 32,
    "fp32-serial": 1,
}


def _oracle(unit: str, a: list[int], b: list[int], fmt: FloatFormat, promote: int | None = None) -> Fraction:
    products, main, c = _products(a, b, fmt), Fraction(0), Fraction(0)
    group = GROUPS[unit]
    products += [(Fraction(0), NO_EXPONENT)] * (-len(products) % group)
    for first in range(0, len(products), group):
        if promote and first and first % promote == 0:
            main, c = _rne32(main + c), Fraction(0)
        c = _oracle_step(unit, products[first : first + group], c)
    return _rne32(main + c) if promote else c


# ---- data ---------------------------------------------------------------------------------------------------------


def _random(g: torch.Generator, shape: tuple[int, int], fmt: FloatFormat) -> torch.Tensor:
    codes = torch.randint(0, 256, shape, generator=g, dtype=torch.int64)
    for nan in fmt.nan_codes:
        codes[codes == nan] = 0x38
    return codes.to(torch.uint8)


def _normal(g: torch.Generator, shape: tuple[int, int]) -> torch.Tensor:
    return torch.randn(shape, generator=g, dtype=torch.float64)


def _wide(g: torch.Generator, shape: tuple[int, int]) -> torch.Tensor:
    return _normal(g, shape) * torch.exp2(torch.randint(-9, 8, shape, generator=g).double())


def _sparse(g: torch.Generator, shape: tuple[int, int], fmt: FloatFormat) -> torch.Tensor:
    return _random(g, shape, fmt) * (torch.rand(shape, generator=g) < 0.15).to(torch.uint8)


DATA: dict[str, Callable[[torch.Generator, tuple[int, int], FloatFormat], torch.Tensor]] = {
    "random bytes": _random,
    "gaussian": lambda g, s, f: encode(_normal(g, s) * 30, f),
    "positive": lambda g, s, f: encode(_normal(g, s).abs() * 30 + 1, f),
    "wide": lambda g, s, f: encode(_wide(g, s), f),
    "sparse": _sparse,
    "subnormal": lambda g, s, f: encode(_normal(g, s) * f.min_subnormal * 4, f),
    "one large": lambda g, s, f: encode(
        _normal(g, s) * torch.where(torch.arange(s[1]) % 37 == 5, 100.0, 2.0**-7)[None, :], f
    ),
}


def _format(unit: str) -> FloatFormat:
    return E4M3FNUZ if unit.startswith("cdna3") else E4M3FN


def _bits(x: Fraction) -> int:
    return int(torch.tensor(float(x), dtype=torch.float64).float().view(torch.int32))


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("unit", GROUPS)
def test_emulation_equals_the_oracle_bit_for_bit(unit: str, data: str) -> None:
    fmt, g = _format(unit), torch.Generator().manual_seed(len(data) * 31 + len(unit))
    promote = 128 if "promote" in unit else None
    for k, m, n in ((16, 4, 4), (33, 4, 3), (200, 2, 3)):
        a, b = DATA[data](g, (m, k), fmt), DATA[data](g, (n, k), fmt)
        got = emulate(a, b, fmt, unit, tile=6).view(torch.int32)
        want = [[_bits(_oracle(unit, x, y, fmt, promote)) for y in b.tolist()] for x in a.tolist()]
        assert got.tolist() == want


@pytest.mark.parametrize("unit", GROUPS)
def test_a_step_with_any_accumulator_equals_the_oracle(unit: str) -> None:
    """c from the smallest fp32 subnormal to far above the products, both signs."""
    fmt, group = _format(unit), GROUPS[unit]
    g = torch.Generator().manual_seed(5)
    a, b = _random(g, (40, group), fmt), _random(g, (6, group), fmt)
    a[:3] = 0  # c alone
    a[3:12] = encode(_normal(g, (9, group)) * fmt.min_subnormal * 3, fmt)
    exponents = torch.randint(-149, 90, (40, 6), generator=g).double()
    near = torch.randint(-30, 30, (40, 6), generator=g).double()
    scale = torch.where(torch.rand(40, 6, generator=g) < 0.7, near, exponents)
    c = (_normal(g, (40, 6)) * torch.exp2(scale)).float().double()
    c[5:8] = (_normal(g, (3, 6)) * 2.0**-140).float().double()
    got = accumulators.step(decode_operand(a, fmt), decode_operand(b, fmt), c, get_unit(unit)).float().view(torch.int32)
    for i in range(40):
        for j in range(6):
            want = _oracle_step(unit, _products(a[i].tolist(), b[j].tolist(), fmt), Fraction(float(c[i, j])))
            assert int(got[i, j]) == _bits(want), (i, j, float(c[i, j]))


def test_the_oracle_tells_the_units_apart() -> None:
    """The data would show a wrong unit: every pair of units disagrees somewhere on it."""
    g = torch.Generator().manual_seed(1)
    a, b = encode(_wide(g, (32, 1024)), E4M3FN), encode(_wide(g, (32, 1024)), E4M3FN)
    outs = {unit: emulate(a, b, E4M3FN, unit) for unit in GROUPS}
    names = sorted(outs)
    equal = [(x, y) for x in names for y in names if x < y and torch.equal(outs[x], outs[y])]
    assert equal == []


@pytest.mark.parametrize("interval", [32, 64, 256, 512])
def test_promotion_intervals_are_told_apart(interval: int) -> None:
    g = torch.Generator().manual_seed(2)
    a, b = encode(_normal(g, (8, 1024)) * 30, E4M3FN), encode(_normal(g, (8, 1024)) * 30, E4M3FN)
    got = emulate(a, b, E4M3FN, f"hopper-promote{interval}")
    assert int(got[0, 0].view(torch.int32)) == _bits(
        _oracle("hopper-fast", a[0].tolist(), b[0].tolist(), E4M3FN, interval)
    )
    assert not torch.equal(got, emulate(a, b, E4M3FN, "hopper-promote128"))


@pytest.mark.parametrize("name", ["e4m3fn", "e4m3fnuz"])
def test_every_pair_of_codes_is_multiplied_exactly(name: str) -> None:
    """K = 1: all 65,536 products; every unit holds one product without loss, and NaN codes give the canonical NaN."""
    fmt = FORMATS[name]
    codes = torch.arange(256, dtype=torch.uint8)[:, None]
    exact = decode(codes, fmt) * decode(codes, fmt).t()
    for unit in GROUPS:
        got = emulate(codes, codes, fmt, unit)
        assert torch.equal(got.isnan(), exact.isnan())
        assert torch.equal(got.double().nan_to_num(), exact.nan_to_num())
        assert set(got[got.isnan()].view(torch.int32).tolist()) == {accumulators.CANONICAL_NAN}


def test_a_permutation_of_k_changes_the_groups_and_nothing_else() -> None:
    g = torch.Generator().manual_seed(3)
    a, b = _random(g, (4, 130), E4M3FNUZ), _random(g, (3, 130), E4M3FNUZ)
    k_map = accumulators.K_MAPS["lane16-16x16x32"]
    got = emulate(a, b, E4M3FNUZ, "cdna3-mfma", k_map=k_map)
    padded = [torch.nn.functional.pad(x, (0, 62)) for x in (a, b)]
    order = torch.cat([64 * t + k_map for t in range(3)])
    for i in range(4):
        for j in range(3):
            want = _oracle("cdna3-mfma", padded[0][i, order].tolist(), padded[1][j, order].tolist(), E4M3FNUZ)
            assert int(got[i, j].view(torch.int32)) == _bits(want)
    assert not torch.equal(got, emulate(a, b, E4M3FNUZ, "cdna3-mfma"))


def test_lane_maps_are_permutations_with_the_documented_positions() -> None:
    wide = accumulators.K_MAPS["lane16-16x16x32"].tolist()
    assert sorted(wide) == list(range(64))
    # instruction 1, lane group 2, byte 3 holds byte 8 + 3 of the 16 bytes that lane group 2 loaded
    assert wide[32 * 1 + 8 * 2 + 3] == 16 * 2 + 8 + 3
    assert sorted(accumulators.K_MAPS["lane16-32x32x16"].tolist()) == list(range(32))


def test_split_k_adds_the_slices_in_fp32() -> None:
    g = torch.Generator().manual_seed(4)
    a, b = _random(g, (5, 700), E4M3FN), _random(g, (6, 700), E4M3FN)
    parts = [emulate(a[:, i:j], b[:, i:j], E4M3FN, "hopper-fast") for i, j in ((0, 384), (384, 700))]
    assert torch.equal(emulate(a, b, E4M3FN, "hopper-fast", splits=2), parts[0] + parts[1])
    assert accumulators.slices(700, 2) == [(0, 384), (384, 700)]
    assert accumulators.slices(700, 16)[-1] == (640, 700)


def test_the_size_of_a_tile_does_not_matter() -> None:
    g = torch.Generator().manual_seed(6)
    a, b = _random(g, (9, 96), E4M3FN), _random(g, (17, 96), E4M3FN)
    whole = emulate(a, b, E4M3FN, "hopper-promote128", tile=1 << 20)
    for tile in (1, 7, 40):
        assert torch.equal(whole, emulate(a, b, E4M3FN, "hopper-promote128", tile=tile))


def test_zero_products_leave_the_accumulator_alone() -> None:
    """K is padded with zero codes, so this must hold for every unit."""
    g = torch.Generator().manual_seed(7)
    for unit in GROUPS:
        fmt = _format(unit)
        a, b = _random(g, (4, 256), fmt), _random(g, (4, 256), fmt)
        more_a, more_b = (torch.nn.functional.pad(x, (0, 160)) for x in (a, b))
        assert torch.equal(emulate(a, b, fmt, unit), emulate(more_a, more_b, fmt, unit)), unit


def test_round_to_odd_is_exact_or_odd() -> None:
    x = torch.tensor([1.0, 1.0, -1.0, 2.0**30, 1.0, 3.0], dtype=torch.float64)
    y = torch.tensor([2.0**-60, -(2.0**-60), 2.0**-60, 2.0**-149, 0.5, -3.0], dtype=torch.float64)
    got = accumulators.add_to_odd(x, y)
    for a, b, total in zip(x.tolist(), y.tolist(), got.tolist(), strict=True):
        exact = Fraction(a) + Fraction(b)
        if Fraction(total) != exact:
            mantissa = int(torch.tensor(total, dtype=torch.float64).view(torch.int64)) & 1
            assert mantissa == 1
            assert abs(Fraction(total) - exact) < abs(exact) * _power(-52)
    assert got[4] == 1.5
    assert got[5] == 0.0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"unit": "hopper"}, "unknown matrix unit 'hopper'; known: hopper-fast, .*"),
        ({"unit": "hopper-promote48"}, "unknown matrix unit 'hopper-promote48'"),
        ({"b": torch.zeros(2, 9, dtype=torch.uint8)}, r"operands \(2, 8\) and \(2, 9\) are not \[m, K\] and \[n, K\]"),
        ({"splits": 0}, "a GEMM has at least one slice along K, not 0"),
        ({"k_map": torch.tensor([0, 0])}, r"a k-map of length 2 must be a permutation of 0\.\.1"),
        ({"k_map": torch.arange(96), "splits": 2}, "with split-K a k-map's length divides 128; this one has 96"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(change: dict[str, object], sentence: str) -> None:
    codes = torch.zeros(2, 8, dtype=torch.uint8)
    arguments: dict[str, object] = {"a": codes, "b": codes, "fmt": E4M3FN, "unit": "ada"} | change
    with pytest.raises(AccumulatorError, match=sentence):
        emulate(**arguments)  # type: ignore[arg-type]


def test_no_products_are_refused() -> None:
    empty = torch.zeros(2, 0, dtype=torch.uint8)
    with pytest.raises(AccumulatorError, match="without products"):
        emulate(empty, empty, E4M3FN, "ada")


def test_an_operand_is_decoded_once_per_code() -> None:
    codes = torch.arange(256, dtype=torch.uint8)[None, :]
    operand = decode_operand(codes, E4M3FN)
    assert isinstance(operand, Operand)
    for code in range(256):
        if code in E4M3FN.nan_codes:
            continue
        sign, m, e = _code(code, E4M3FN)
        assert Fraction(float(operand.value[code, 0])) == sign * m * _power(e - 3)
        assert int(operand.exponent[code, 0]) == (e if m else accumulators.NONE)


@pytest.mark.parametrize("unit", ["hopper-fast", "hopper-promote128", "ada", "cdna3-mfma"])
def test_products_of_a_group_formed_together_give_the_same_bits(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU forms them together for small tiles; the loop and the whole must agree in every bit."""
    draw = torch.Generator().manual_seed(5)
    a, b = (torch.randint(0, 256, (rows, 192), generator=draw, dtype=torch.int16).to(torch.uint8) for rows in (9, 17))
    a[0], b[3] = 0, 0
    a[1:, ::3] &= 0x8F
    one = emulate(a, b, E4M3FN, unit)
    monkeypatch.setattr(accumulators, "_together", lambda x, y: True)
    other = emulate(a, b, E4M3FN, unit)
    assert torch.equal(one.view(torch.int32), other.view(torch.int32))
