"""Every vector operation of the tables against a statement of its own in Python's integers and fractions."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest

from tests.support import amdgcn_exact as exact
from tests.support.amdgcn_bench import MODE, OVFL, execute
from tests.support.amdgcn_exact import BF16, F16, F32, operands, signed
from validators.amdgcn.policies import POLICIES
from validators.amdgcn.vector import OPS

M32, M64 = (1 << 32) - 1, (1 << 64) - 1
Statement = Callable[..., int]


def _reverse(a: int) -> int:
    return int(f"{a:032b}"[::-1], 2)


def _field(a: int, offset: int, width: int) -> int:
    return (a >> (offset & 31)) & ((1 << (width & 31)) - 1)


def _field_signed(a: int, offset: int, width: int) -> int:
    width &= 31
    return signed(_field(a, offset, width), width) & M32 if width else 0


def _permute(a: int, b: int, selector: int) -> int:
    pool = [(b >> (8 * i)) & 255 for i in range(4)] + [(a >> (8 * i)) & 255 for i in range(4)]
    result = 0
    for at in range(4):
        wanted = (selector >> (8 * at)) & 255
        if wanted >= 13:
            byte = 255
        elif wanted == 12:
            byte = 0
        elif wanted >= 8:
            byte = 255 if pool[(wanted - 8) * 2 + 1] & 128 else 0
        else:
            byte = pool[wanted]
        result |= byte << (8 * at)
    return result


def _s24(a: int) -> int:
    return signed(a & 0xFFFFFF, 24)


INTEGER: dict[str, Statement] = {
    "v_mov_b32": lambda a: a,
    "v_not_b32": lambda a: a ^ M32,
    "v_bfrev_b32": _reverse,
    "v_ffbl_b32": lambda a: (a & -a).bit_length() - 1 if a else M32,
    "v_ffbh_u32": lambda a: 32 - a.bit_length() if a else M32,
    "v_add_u32": lambda a, b: (a + b) & M32,
    "v_sub_u32": lambda a, b: (a - b) & M32,
    "v_subrev_u32": lambda a, b: (b - a) & M32,
    "v_and_b32": lambda a, b: a & b,
    "v_or_b32": lambda a, b: a | b,
    "v_xor_b32": lambda a, b: a ^ b,
    "v_xnor_b32": lambda a, b: (a ^ b) ^ M32,
    "v_lshlrev_b32": lambda a, b: (b << (a & 31)) & M32,
    "v_lshrrev_b32": lambda a, b: b >> (a & 31),
    "v_ashrrev_i32": lambda a, b: (signed(b) >> (a & 31)) & M32,
    "v_max_u32": max,
    "v_min_u32": min,
    "v_max_i32": lambda a, b: max(a, b, key=signed),
    "v_min_i32": lambda a, b: min(a, b, key=signed),
    "v_mul_lo_u32": lambda a, b: (a * b) & M32,
    "v_mul_hi_u32": lambda a, b: (a * b) >> 32,
    "v_mul_hi_i32": lambda a, b: ((signed(a) * signed(b)) >> 32) & M32,
    "v_mul_u32_u24": lambda a, b: ((a & 0xFFFFFF) * (b & 0xFFFFFF)) & M32,
    "v_mul_i32_i24": lambda a, b: (_s24(a) * _s24(b)) & M32,
    "v_bcnt_u32_b32": lambda a, b: (a.bit_count() + b) & M32,
    "v_add3_u32": lambda a, b, c: (a + b + c) & M32,
    "v_add_lshl_u32": lambda a, b, c: ((a + b) << (c & 31)) & M32,
    "v_lshl_add_u32": lambda a, b, c: ((a << (b & 31)) + c) & M32,
    "v_lshl_or_b32": lambda a, b, c: ((a << (b & 31)) & M32) | c,
    "v_and_or_b32": lambda a, b, c: (a & b) | c,
    "v_or3_b32": lambda a, b, c: a | b | c,
    "v_xad_u32": lambda a, b, c: ((a ^ b) + c) & M32,
    "v_bfe_u32": _field,
    "v_bfe_i32": _field_signed,
    "v_bfi_b32": lambda a, b, c: (a & b) | (~a & c & M32),
    "v_alignbit_b32": lambda a, b, c: (((a << 32) | b) >> (c & 31)) & M32,
    "v_alignbyte_b32": lambda a, b, c: (((a << 32) | b) >> (8 * (c & 3))) & M32,
    "v_perm_b32": _permute,
    "v_mad_u32_u24": lambda a, b, c: ((a & 0xFFFFFF) * (b & 0xFFFFFF) + c) & M32,
    "v_mad_i32_i24": lambda a, b, c: (_s24(a) * _s24(b) + c) & M32,
    "v_max3_u32": max,
    "v_min3_u32": min,
    "v_med3_u32": lambda a, b, c: sorted((a, b, c))[1],
    "v_max3_i32": lambda *x: max(x, key=signed),
    "v_min3_i32": lambda *x: min(x, key=signed),
    "v_med3_i32": lambda *x: sorted(x, key=signed)[1],
    "v_add_u16": lambda a, b: (a + b) & 0xFFFF,
    "v_sub_u16": lambda a, b: (a - b) & 0xFFFF,
    "v_mul_lo_u16": lambda a, b: (a * b) & 0xFFFF,
    "v_lshlrev_b16": lambda a, b: (b << (a & 15)) & 0xFFFF,
    "v_lshrrev_b16": lambda a, b: (b & 0xFFFF) >> (a & 15),
    "v_max_u16": lambda a, b: max(a & 0xFFFF, b & 0xFFFF),
    "v_min_u16": lambda a, b: min(a & 0xFFFF, b & 0xFFFF),
}


def _median(a: int, b: int, c: int) -> int:
    if any(F32.is_nan(x) for x in (a, b, c)):
        return exact.maximum(exact.maximum(a, b, larger=False), c, larger=False)
    return sorted((a, b, c), key=lambda x: -(x & 0x7FFFFFFF) - 1 if x >> 31 else x)[1]


def _whole(choose: Callable[[Fraction], int]) -> Statement:
    def of(a: int) -> int:
        if F32.is_nan(a) or F32.is_inf(a):
            return a | (F32.quiet if F32.is_nan(a) else 0)
        return F32.round(Fraction(choose(F32.value(a))), bool(a >> 31))

    return of


def _power(a: int, b: int) -> int:
    if F32.is_nan(a) or F32.is_inf(a):
        return a | (F32.quiet if F32.is_nan(a) else 0)
    return F32.round(F32.value(a) * Fraction(2) ** max(-400, min(400, signed(b))), bool(a >> 31))


FLOAT: dict[str, Statement] = {
    "v_add_f32": exact.add,
    "v_sub_f32": lambda a, b: exact.add(a, b if F32.is_nan(b) else b ^ F32.sign),
    "v_subrev_f32": lambda a, b: _reversed_sub(a, b),
    "v_mul_f32": exact.multiply,
    "v_max_f32": exact.maximum,
    "v_min_f32": lambda a, b: exact.maximum(a, b, larger=False),
    "v_fma_f32": exact.fma,
    "v_max3_f32": lambda a, b, c: exact.maximum(exact.maximum(a, b), c),
    "v_min3_f32": lambda a, b, c: exact.maximum(exact.maximum(a, b, larger=False), c, larger=False),
    "v_med3_f32": _median,
    "v_floor_f32": _whole(lambda x: x.numerator // x.denominator),
    "v_ceil_f32": _whole(lambda x: -(-x.numerator // x.denominator)),
    "v_trunc_f32": _whole(int),
    "v_rndne_f32": _whole(round),
    "v_ldexp_f32": _power,
}


def _reversed_sub(a: int, b: int) -> int:
    if F32.is_nan(a) or F32.is_nan(b):
        return (a if F32.is_nan(a) else b) | F32.quiet
    return exact.add(b, a ^ F32.sign)


def _f16_from(a: int) -> int:
    if F32.is_nan(a):
        return ((a >> 16) & 0x8000) | 0x7E00 | ((a >> 13) & 0x3FF)
    return ((a >> 16) & 0x8000) | F16.infinity if F32.is_inf(a) else F16.round(F32.value(a), bool(a >> 31))


def _f16_to(a: int) -> int:
    a &= 0xFFFF
    sign = (a & 0x8000) << 16
    if F16.is_nan(a):
        return sign | 0x7FC00000 | ((a & 0x3FF) << 13)
    return sign | F32.infinity if F16.is_inf(a) else F32.round(F16.value(a), bool(sign))


def _bf16_from(a: int) -> int:
    if F32.is_nan(a):
        return (a | F32.quiet) >> 16
    return ((a >> 16) & 0x8000) | BF16.infinity if F32.is_inf(a) else BF16.round(F32.value(a), bool(a >> 31))


def _to_integer(low: int, high: int) -> Statement:
    def of(a: int) -> int:
        if F32.is_nan(a):
            return 0
        value = (high if a >> 31 == 0 else low) if F32.is_inf(a) else int(F32.value(a))
        return min(max(value, low), high) & M32

    return of


def _half(fn: Callable[..., int]) -> Statement:
    return lambda a, b: fn(a & 0xFFFF, b & 0xFFFF, F16)


def _both(fn: Callable[..., int]) -> Statement:
    return lambda a, b: fn(a & 0xFFFF, b & 0xFFFF, F16) | fn(a >> 16, b >> 16, F16) << 16


def _least(a: int, b: int, form: exact.Format) -> int:
    return exact.maximum(a, b, form, larger=False)


CONVERT: dict[str, Statement] = {
    "v_cvt_f32_i32": lambda a: F32.round(Fraction(signed(a))),
    "v_cvt_f32_u32": lambda a: F32.round(Fraction(a)),
    "v_cvt_i32_f32": _to_integer(-(2**31), 2**31 - 1),
    "v_cvt_u32_f32": _to_integer(0, 2**32 - 1),
    **{f"v_cvt_f32_ubyte{k}": lambda a, k=k: F32.round(Fraction((a >> (8 * k)) & 255)) for k in range(4)},
    "v_cvt_f16_f32": _f16_from,
    "v_cvt_f32_f16": _f16_to,
    "v_cvt_f32_bf16": lambda a: (a & 0xFFFF) << 16,
    "v_cvt_pk_bf16_f32": lambda a, b: _bf16_from(a) | _bf16_from(b) << 16,
    "v_cvt_pk_f16_f32": lambda a, b: _f16_from(a) | _f16_from(b) << 16,
    "v_pack_b32_f16": lambda a, b: (a & 0xFFFF) | (b & 0xFFFF) << 16,
    "v_add_f16": _half(exact.add),
    "v_sub_f16": lambda a, b: exact.add(a & 0xFFFF, (b & 0xFFFF) ^ 0x8000, F16),
    "v_mul_f16": _half(exact.multiply),
    "v_max_f16": _half(exact.maximum),
    "v_min_f16": _half(_least),
    "v_pk_add_f16": _both(exact.add),
    "v_pk_mul_f16": _both(exact.multiply),
    "v_pk_max_f16": _both(exact.maximum),
    "v_pk_min_f16": _both(_least),
}

STATEMENTS = {**INTEGER, **FLOAT, **CONVERT}
ELSEWHERE = {
    # Tested below, each in its own way.
    "v_cndmask_b32",
    "v_add_co_u32",
    "v_sub_co_u32",
    "v_subrev_co_u32",
    "v_addc_co_u32",
    "v_subb_co_u32",
    "v_mad_u64_u32",
    "v_lshlrev_b64",
    "v_lshrrev_b64",
    "v_ashrrev_i64",
    "v_lshl_add_u64",
    "v_mov_b64",
    "v_fmac_f32",
    "v_fmaak_f32",
    "v_fmamk_f32",
    "v_rcp_f32",
    "v_rcp_iflag_f32",
    "v_rsq_f32",
    "v_sqrt_f32",
    "v_exp_f32",
    "v_log_f32",
    "v_div_scale_f32",
    "v_div_fmas_f32",
    "v_div_fixup_f32",
    "v_fract_f32",
    "v_cmp_class_f32",
    "v_pk_add_f32",
    "v_pk_mul_f32",
    "v_pk_fma_f32",
    "v_cvt_f32_fp8",
    "v_cvt_pk_f32_fp8",
    "v_cvt_pk_fp8_f32",
    "v_cvt_scalef32_pk_fp8_f32",
}


def test_every_operation_of_the_table_has_a_statement() -> None:
    assert set(STATEMENTS) | ELSEWHERE == set(OPS)


def _signalling_half(x: int) -> bool:
    return F16.is_nan(x & 0xFFFF) or F16.is_nan(x >> 16)


@pytest.mark.parametrize("name", STATEMENTS)
def test_an_operation_is_what_it_is_stated_to_be(name: str) -> None:
    statement, count = STATEMENTS[name], len(OPS[name].ins)
    sources = operands(name, count)
    line = f"\t{name} v10, {', '.join(f'v{k}' for k in range(count))}"
    got = execute(line, dict(enumerate(sources)), 10)
    for lane, values in enumerate(zip(*sources, strict=True)):
        if "f16" in name and name.startswith(("v_pk", "v_max", "v_min")) and any(map(_signalling_half, values)):
            continue  # which payload a NaN of 16 bits keeps goes through 32 bits here, and no verdict looks at it
        wanted = statement(*values)
        assert got[lane] == wanted, f"{name}{tuple(map(hex, values))} gave {got[lane]:#x}, not {wanted:#x}"


@pytest.mark.parametrize("name", ["v_add_f32", "v_mul_f32", "v_fma_f32", "v_max_f32"])
def test_denormals_are_flushed_where_the_mode_says_so(name: str) -> None:
    count = len(OPS[name].ins)
    sources = operands(name + "flush", count)
    line = f"\t{name} v10, {', '.join(f'v{k}' for k in range(count))}"
    got = execute(line, dict(enumerate(sources)), 10, mode=MODE & ~0x30)
    for lane, values in enumerate(zip(*sources, strict=True)):
        assert got[lane] == exact.flushed(STATEMENTS[name](*(exact.flushed(x) for x in values)))


@pytest.mark.parametrize("name", ["v_fmac_f32", "v_fmaak_f32", "v_fmamk_f32"])
def test_the_forms_of_the_fused_multiply_add(name: str) -> None:
    a, b, c = operands(name, 3)
    line = {
        "v_fmac_f32": "\tv_fmac_f32_e32 v10, v0, v1",
        "v_fmaak_f32": "\tv_fmaak_f32 v10, v0, v1, 0x40490fdb",
        "v_fmamk_f32": "\tv_fmamk_f32 v10, v0, 0x40490fdb, v1",
    }[name]
    got = execute(line, {0: a, 1: b, 10: c}, 10)
    pi = 0x40490FDB
    for lane, (x, y, z) in enumerate(zip(a, b, c, strict=True)):
        order = {"v_fmac_f32": (x, y, z), "v_fmaak_f32": (x, y, pi), "v_fmamk_f32": (x, pi, y)}[name]
        assert got[lane] == exact.fma(*order)


def test_a_fused_multiply_add_rounds_once() -> None:
    # (1 + 2**-12)**2 lies halfway between two float32 numbers, and the addend is lost in a float64 sum: rounding that
    # sum again would not know on which side the exact value lies.
    made = [(0x3F800800, 0x3F800800, 0x0C000000), (0x3F800800, 0x3F800800, 0x8C000000)]
    assert exact.fma(*made[0]) == exact.fma(*made[1]) + 1
    made += [(0x3F800001, 0x3F800800, 0x0C000000), (0x00800001, 0x3F000000, 1), (0x00800001, 0x33000001, 0x80000001)]
    sources = [[row[k] for row in made] + [0] * (64 - len(made)) for k in range(3)]
    got = execute("\tv_fma_f32 v10, v0, v1, v2", dict(enumerate(sources)), 10)
    assert got[: len(made)] == [exact.fma(*row) for row in made]


UNITS: dict[str, Callable[[Fraction], Fraction]] = {
    "v_rcp_f32": lambda x: 1 / x,
    "v_rsq_f32": lambda x: 1 / exact.root(x),
    "v_sqrt_f32": exact.root,
    "v_exp_f32": lambda x: Fraction(2.0 ** float(x)),
    "v_rcp_iflag_f32": lambda x: 1 / x,
}


@pytest.mark.parametrize("policy", ["nearest", "ulp-up", "ulp-down"])
@pytest.mark.parametrize("name", UNITS)
def test_a_transcendental_unit_is_within_an_ulp(name: str, policy: str) -> None:
    made = [x & 0x7FFFFFFF if "rcp" not in name and "exp" not in name else x for x in operands(name, 1)[0]]
    got = execute(f"\t{name}_e32 v10, v0", {0: made}, 10, policy=POLICIES[policy])
    judged = 0
    for x, result in zip(made, got, strict=True):
        if F32.is_nan(x) or F32.is_inf(x) or exact.flushed(x) & 0x7FFFFFFF == 0:
            continue
        value = F32.value(x)
        if name == "v_exp_f32" and abs(value) > 120:
            continue
        wanted = exact.flushed(F32.round(UNITS[name](value)))
        if wanted & 0x7FFFFFFF in (0, F32.infinity):
            continue
        judged += 1
        assert exact.ulps_apart(result, wanted) <= (1 if policy != "nearest" or name == "v_rsq_f32" else 0)
    assert judged > 50


@pytest.mark.parametrize(
    ("name", "x", "result"),
    [
        ("v_rcp_f32", 0, 0x7F800000),
        ("v_rcp_f32", 0x80000000, 0xFF800000),
        ("v_rcp_f32", 0xFF800000, 0x80000000),
        ("v_rcp_f32", 0x00000001, 0x7F800000),
        ("v_rcp_f32", 0x7F812345, 0x7FC12345),
        ("v_rsq_f32", 0, 0x7F800000),
        ("v_rsq_f32", 0x80000000, 0xFF800000),
        ("v_rsq_f32", 0xBF800000, 0x7FC00000),
        ("v_sqrt_f32", 0x80000000, 0x80000000),
        ("v_log_f32", 0x41000000, 0x40400000),
        ("v_log_f32", 0, 0xFF800000),
        ("v_exp_f32", 0x40400000, 0x41000000),
    ],
)
def test_special_values_of_the_transcendental_units(name: str, x: int, result: int) -> None:
    assert execute(f"\t{name}_e32 v10, v0", {0: [x] * 64}, 10)[0] == result


def test_division_in_seven_steps_is_correctly_rounded() -> None:
    """The sequence that compilers write for a / b: whatever the reciprocal's last bit is, the quotient is IEEE's."""
    a, b = operands("division", 2, 256)
    code = """
	v_div_scale_f32 v4, s[6:7], v1, v1, v0
	v_rcp_f32_e32 v5, v4
	v_fma_f32 v6, -v4, v5, 1.0
	v_fmac_f32_e32 v5, v6, v5
	v_div_scale_f32 v6, vcc, v0, v1, v0
	v_mul_f32_e32 v7, v6, v5
	v_fma_f32 v8, -v4, v7, v6
	v_fmac_f32_e32 v7, v8, v5
	v_fma_f32 v4, -v4, v7, v6
	v_div_fmas_f32 v4, v4, v5, v7
	v_div_fixup_f32 v10, v4, v1, v0"""
    for policy in ("nearest", "ulp-up", "ulp-down"):
        got = execute(code, {0: a, 1: b}, 10, policy=POLICIES[policy])
        judged = 0
        for n, d, result in zip(a, b, got, strict=True):
            assert result == _quotient(n, d) or exact.ulps_apart(result, _quotient(n, d)) <= _slack(n, d), (n, d)
            judged += 1
        assert judged == 256


def _slack(n: int, d: int) -> int:
    """A denormal quotient is rounded twice by the sequence: by the last fma and when it is scaled back."""
    wanted = _quotient(n, d)
    return 1 if not F32.is_nan(wanted) and wanted & 0x7FFFFFFF < 0x00800000 else 0


def _quotient(n: int, d: int) -> int:
    for x in (n, d):
        if F32.is_nan(x):
            return x | F32.quiet
    sign = (n ^ d) & F32.sign
    zero_d, zero_n = d & 0x7FFFFFFF == 0, n & 0x7FFFFFFF == 0
    if (zero_d and zero_n) or (F32.is_inf(n) and F32.is_inf(d)):
        return 0xFFC00000
    if zero_d or F32.is_inf(n):
        return sign | F32.infinity
    if zero_n or F32.is_inf(d):
        return sign
    return F32.round(F32.value(n) / F32.value(d), bool(sign))


@pytest.mark.parametrize("saturate", [False, True])
@pytest.mark.parametrize("target", ["gfx942", "gfx950"])
def test_codes_are_the_nearest(target: str, saturate: bool) -> None:
    a, b = operands(target, 2, 512)
    mode = MODE | (OVFL if saturate else 0)
    line = "\tv_cvt_pk_fp8_f32 v10, v0, v1\n\tv_cvt_pk_fp8_f32 v10, v1, v0 op_sel:[0,0,1]"
    got = execute(line, {0: a, 1: b, 10: [0x12345678] * 512}, 10, mode=mode, target=target)
    fnuz = target == "gfx942"
    for x, y, result in zip(a, b, got, strict=True):
        first, second = exact.to_code(x, fnuz, saturate), exact.to_code(y, fnuz, saturate)
        assert result == first | second << 8 | second << 16 | first << 24


def test_a_conversion_leaves_the_other_half_alone() -> None:
    got = execute("\tv_cvt_pk_fp8_f32 v10, v0, v0", {0: [0x3F800000] * 64, 10: [0x12345678] * 64}, 10)
    assert got[0] == 0x12344040


def test_an_infinite_operand_is_a_policy() -> None:
    for policy, code in (("nearest", 0x7F), ("fp8-inf-is-nan", 0x80)):
        got = execute(
            "\tv_cvt_pk_fp8_f32 v10, v0, v0", {0: [F32.infinity] * 64}, 10, mode=MODE | OVFL, policy=POLICIES[policy]
        )
        assert got[0] & 0xFF == code


@pytest.mark.parametrize("target", ["gfx942", "gfx950"])
def test_codes_are_read_back(target: str) -> None:
    codes = [k % 256 for k in range(256)]
    got = execute("\tv_cvt_f32_fp8_e32 v10, v0", {0: codes}, 10, target=target)
    pairs = execute("\tv_cvt_pk_f32_fp8_e32 v[10:11], v0", {0: [c | 0x3800 for c in codes]}, 10, target=target)
    fnuz = target == "gfx942"
    for code, value in zip(codes, got, strict=True):
        nan = code == 0x80 if fnuz else code & 0x7F == 0x7F
        assert F32.is_nan(value) == nan
        assert nan or exact.to_code(value, fnuz, True) == code
    assert [p for p in pairs if not F32.is_nan(p)] == [g for g in got if not F32.is_nan(g)]


@pytest.mark.parametrize("name", ["v_pk_add_f32", "v_pk_mul_f32", "v_pk_fma_f32"])
def test_pairs_of_float32(name: str) -> None:
    count = len(OPS[name].ins)
    low, high = operands(name, count), operands(name + "high", count)
    sources = {2 * k + h: (low, high)[h][k] for k in range(count) for h in (0, 1)}
    registers = ", ".join(f"v[{2 * k}:{2 * k + 1}]" for k in range(count))
    statements: dict[str, Statement] = {
        "v_pk_add_f32": exact.add,
        "v_pk_mul_f32": exact.multiply,
        "v_pk_fma_f32": exact.fma,
    }
    fn = statements[name]
    assert execute(f"\t{name} v[10:11], {registers}", sources, 11) == [fn(*x) for x in zip(*high, strict=True)]
    # op_sel: the low result takes the upper word of the first source; op_sel_hi: the upper one its lower word.
    select = f"op_sel:[1{',0' * (count - 1)}] op_sel_hi:[0{',1' * (count - 1)}]"
    got = execute(f"\t{name} v[10:11], {registers} {select}", sources, 10)
    assert got == [fn(*x) for x in zip(high[0], *low[1:], strict=True)]
    got = execute(f"\t{name} v[10:11], {registers} {select}", sources, 11)
    assert got == [fn(*x) for x in zip(low[0], *high[1:], strict=True)]


def test_sums_with_carry() -> None:
    a, b = operands("carry", 2)
    code = "\tv_add_co_u32_e32 v10, vcc, v0, v1\n\tv_addc_co_u32_e32 v11, vcc, v0, v1, vcc"
    sums = [x + y for x, y in zip(a, b, strict=True)]
    assert execute(code, {0: a, 1: b}, 10) == [s & M32 for s in sums]
    assert execute(code, {0: a, 1: b}, 11) == [(s + (s >> 32)) & M32 for s in sums]
    code = "\tv_sub_co_u32_e32 v10, vcc, v0, v1\n\tv_subb_co_u32_e32 v11, vcc, v0, v1, vcc"
    differences = [x - y for x, y in zip(a, b, strict=True)]
    assert execute(code, {0: a, 1: b}, 10) == [d & M32 for d in differences]
    assert execute(code, {0: a, 1: b}, 11) == [(d - (d < 0)) & M32 for d in differences]
    code = "\tv_subrev_co_u32_e32 v10, vcc, v0, v1"
    assert execute(code, {0: a, 1: b}, 10) == [(y - x) & M32 for x, y in zip(a, b, strict=True)]


WIDE: dict[str, tuple[str, Statement]] = {
    "v_mad_u64_u32": ("v[10:11], vcc, v0, v1, v[2:3]", lambda a, b, c, d: a * b + (c | d << 32)),
    "v_lshlrev_b64": ("v[10:11], v0, v[2:3]", lambda a, b, c, d: (c | d << 32) << (a & 63)),
    "v_lshrrev_b64": ("v[10:11], v0, v[2:3]", lambda a, b, c, d: (c | d << 32) >> (a & 63)),
    "v_ashrrev_i64": ("v[10:11], v0, v[2:3]", lambda a, b, c, d: signed(c | d << 32, 64) >> (a & 63)),
    "v_lshl_add_u64": ("v[10:11], v[0:1], 3, v[2:3]", lambda a, b, c, d: ((a | b << 32) << 3) + (c | d << 32)),
    "v_mov_b64": ("v[10:11], v[2:3]", lambda a, b, c, d: c | d << 32),
}


@pytest.mark.parametrize("name", WIDE)
def test_operations_on_pairs(name: str) -> None:
    sources = operands(name, 4)
    given, statement = WIDE[name]
    wanted = [statement(*x) & M64 for x in zip(*sources, strict=True)]
    assert execute(f"\t{name} {given}", dict(enumerate(sources)), 10) == [w & M32 for w in wanted]
    assert execute(f"\t{name} {given}", dict(enumerate(sources)), 11) == [w >> 32 for w in wanted]
