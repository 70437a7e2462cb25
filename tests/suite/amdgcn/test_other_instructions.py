"""Scalar operations, compares, movement between lanes, local and global memory: each against a statement of its own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.support import amdgcn_exact as exact
from tests.support.amdgcn_bench import Bench, execute
from tests.support.amdgcn_exact import F16, F32, operands, signed
from validators.amdgcn import alu_scalar

M32, M64 = (1 << 32) - 1, (1 << 64) - 1
LANES = 64


def _bits(fn: Callable[[int, int], int], width: int) -> Callable[..., tuple[int, int | None]]:
    def of(a: int, b: int, scc: int) -> tuple[int, int | None]:
        result = fn(a, b) & ((1 << width) - 1)
        return result, int(result != 0)

    return of


_LOGIC: dict[str, Callable[[int, int], int]] = {
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "andn2": lambda a, b: a & ~b,
    "orn2": lambda a, b: a | ~b,
    "nand": lambda a, b: ~(a & b),
    "nor": lambda a, b: ~(a | b),
    "xnor": lambda a, b: ~(a ^ b),
}


def _with_carry(total: int) -> tuple[int, int]:
    return total & M32, int(not 0 <= total <= M32)


def _with_overflow(total: int) -> tuple[int, int]:
    return total & M32, int(not -(2**31) <= total < 2**31)


def _field(a: int, b: int, is_signed: bool) -> int:
    offset, width = b & 31, (b >> 16) & 127
    if width >= 32:
        return ((signed(a) if is_signed else a) >> offset) & M32
    field = (a >> offset) & ((1 << width) - 1)
    return signed(field, width) & M32 if is_signed and width else field


Two = Callable[[int, int, int], tuple[int, int | None]]
"""(result, SCC or None where it is kept) of two 32-bit sources and SCC."""


def _shifted_add(by: int) -> Two:
    return lambda a, b, scc: _with_carry((a << by) + b)


SCALAR: dict[str, Two] = {
    **{f"s_{name}_b32": _bits(fn, 32) for name, fn in _LOGIC.items()},
    "s_add_u32": lambda a, b, c: _with_carry(a + b),
    "s_sub_u32": lambda a, b, c: _with_carry(a - b),
    "s_addc_u32": lambda a, b, c: _with_carry(a + b + c),
    "s_subb_u32": lambda a, b, c: _with_carry(a - b - c),
    "s_add_i32": lambda a, b, c: _with_overflow(signed(a) + signed(b)),
    "s_sub_i32": lambda a, b, c: _with_overflow(signed(a) - signed(b)),
    "s_mul_i32": lambda a, b, c: ((a * b) & M32, None),
    "s_mul_hi_u32": lambda a, b, c: ((a * b) >> 32, None),
    "s_mul_hi_i32": lambda a, b, c: (((signed(a) * signed(b)) >> 32) & M32, None),
    "s_min_i32": lambda a, b, c: (min(a, b, key=signed), int(signed(a) < signed(b))),
    "s_min_u32": lambda a, b, c: (min(a, b), int(a < b)),
    "s_max_i32": lambda a, b, c: (max(a, b, key=signed), int(signed(a) > signed(b))),
    "s_max_u32": lambda a, b, c: (max(a, b), int(a > b)),
    "s_cselect_b32": lambda a, b, c: (a if c else b, None),
    "s_lshl_b32": lambda a, b, c: _bits(lambda x, y: x << (y & 31), 32)(a, b, c),
    "s_lshr_b32": lambda a, b, c: _bits(lambda x, y: x >> (y & 31), 32)(a, b, c),
    "s_ashr_i32": lambda a, b, c: _bits(lambda x, y: signed(x) >> (y & 31), 32)(a, b, c),
    "s_bfm_b32": lambda a, b, c: ((((1 << (a & 31)) - 1) << (b & 31)) & M32, None),
    "s_bfe_u32": lambda a, b, c: _bits(lambda x, y: _field(x, y, False), 32)(a, b, c),
    "s_bfe_i32": lambda a, b, c: _bits(lambda x, y: _field(x, y, True), 32)(a, b, c),
    **{f"s_lshl{k}_add_u32": _shifted_add(k) for k in (1, 2, 3, 4)},
    "s_pack_ll_b32_b16": lambda a, b, c: ((a & 0xFFFF) | (b & 0xFFFF) << 16, None),
    "s_pack_lh_b32_b16": lambda a, b, c: ((a & 0xFFFF) | (b & 0xFFFF0000), None),
    "s_pack_hh_b32_b16": lambda a, b, c: ((a >> 16) | (b & 0xFFFF0000), None),
}
ONE: dict[str, Callable[[int], tuple[int, int | None]]] = {
    "s_mov_b32": lambda a: (a, None),
    "s_not_b32": lambda a: (a ^ M32, int(a != M32)),
    "s_brev_b32": lambda a: (int(f"{a:032b}"[::-1], 2), None),
    "s_bcnt1_i32_b32": lambda a: (a.bit_count(), int(a != 0)),
    "s_ff1_i32_b32": lambda a: ((a & -a).bit_length() - 1 & M32, None),
    "s_flbit_i32_b32": lambda a: (32 - a.bit_length() if a else M32, None),
    "s_sext_i32_i8": lambda a: (signed(a & 255, 8) & M32, None),
    "s_sext_i32_i16": lambda a: (signed(a & 0xFFFF, 16) & M32, None),
    "s_abs_i32": lambda a: (abs(signed(a)) & M32, int(a != 0)),
}
PAIRS: dict[str, Two] = {
    **{f"s_{name}_b64": _bits(fn, 64) for name, fn in _LOGIC.items()},
    "s_cselect_b64": lambda a, b, c: (a if c else b, None),
    "s_lshl_b64": lambda a, b, c: _bits(lambda x, y: x << (y & 63), 64)(a, b, c),
    "s_lshr_b64": lambda a, b, c: _bits(lambda x, y: x >> (y & 63), 64)(a, b, c),
    "s_ashr_i64": lambda a, b, c: _bits(lambda x, y: signed(x, 64) >> (y & 63), 64)(a, b, c),
}
ONE_PAIR: dict[str, Callable[[int], tuple[int, int | None]]] = {
    "s_mov_b64": lambda a: (a, None),
    "s_not_b64": lambda a: (a ^ M64, int(a != M64)),
    "s_bcnt1_i32_b64": lambda a: (a.bit_count(), int(a != 0)),
    "s_ff1_i32_b64": lambda a: ((a & -a).bit_length() - 1 & M32, None),
    "s_flbit_i32_b64": lambda a: (64 - a.bit_length() if a else M32, None),
}
CONSTANTS = {"s_movk_i32", "s_addk_i32", "s_mulk_i32"}


def test_every_scalar_operation_has_a_statement() -> None:
    assert {*SCALAR, *ONE, *PAIRS, *ONE_PAIR, *CONSTANTS} == set(alu_scalar.OPS)


def _scalar(line: str, values: list[list[int]], scc: list[int]) -> tuple[Bench, list[int]]:
    bench = Bench(len(scc))
    bench.s = {10 + k: np.array(column, dtype=np.uint64).astype(np.uint32) for k, column in enumerate(values)}
    bench.scc = np.array(scc, dtype=bool)
    state = bench.run(line)
    return bench, [int(x) for x in state.scc_bits]


def _words(column: list[int]) -> list[list[int]]:
    return [[x & M32 for x in column], [x >> 32 for x in column]]


@pytest.mark.parametrize("name", [*SCALAR, *ONE])
def test_a_scalar_operation(name: str) -> None:
    a, b = operands(name, 2)
    scc = [k % 2 for k in range(len(a))]
    given = "s10, s11" if name in SCALAR else "s10"
    bench, after = _scalar(f"\t{name} s20, {given}", [a, b], scc)
    for wave, (x, y, c) in enumerate(zip(a, b, scc, strict=True)):
        result, flag = SCALAR[name](x, y, c) if name in SCALAR else ONE[name](x)
        assert int(bench.state.scalar[20][wave]) == result, (hex(x), hex(y))
        assert after[wave] == (c if flag is None else flag), (hex(x), hex(y))


@pytest.mark.parametrize("name", [*PAIRS, *ONE_PAIR])
def test_a_scalar_operation_on_pairs(name: str) -> None:
    parts = operands(name, 4)
    a, b = ([x | y << 32 for x, y in zip(*parts[k : k + 2], strict=True)] for k in (0, 2))
    scc = [k % 2 for k in range(len(a))]
    second = "" if name in ONE_PAIR else ", s12" if "sh" in name else ", s[12:13]"
    wide = name.endswith(("b64", "i64")) and "i32" not in name
    bench, after = _scalar(f"\t{name} {'s[20:21]' if wide else 's20'}, s[10:11]{second}", [*_words(a), *_words(b)], scc)
    low, high = bench.state.scalar[20], bench.state.scalar[21]
    for wave, (x, y, c) in enumerate(zip(a, b, scc, strict=True)):
        result, flag = PAIRS[name](x, y, c) if name in PAIRS else ONE_PAIR[name](x)
        got = int(low[wave]) | (int(high[wave]) << 32 if wide else 0)
        assert got == result, (hex(x), hex(y))
        assert after[wave] == (c if flag is None else flag)


@pytest.mark.parametrize(
    ("line", "before", "after"),
    [
        ("s_movk_i32 s10, 0x7fff", 5, 0x7FFF),
        ("s_movk_i32 s10, 0x8000", 5, 0xFFFF8000),
        ("s_addk_i32 s10, 0xffff", 5, 4),
        ("s_mulk_i32 s10, 0xfffe", 5, M32 - 9),
        ("s_mov_b32 s10, -16", 5, M32 - 15),
        ("s_mov_b32 s10, 1.0", 5, 0x3F800000),
        ("s_mov_b32 s10, 0x12345678", 5, 0x12345678),
    ],
)
def test_constants_of_scalar_instructions(line: str, before: int, after: int) -> None:
    bench, _ = _scalar(f"\t{line}", [[before]], [0])
    assert int(bench.state.scalar[10][0]) == after


_RELATIONS: dict[str, Callable[[int, int], bool]] = {
    "eq": lambda a, b: a == b,
    "lg": lambda a, b: a != b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
}


@pytest.mark.parametrize("name", [n for n in alu_scalar.COMPARES if not n.startswith("s_cmpk")])
def test_a_scalar_compare(name: str) -> None:
    a, b = operands(name, 2)
    a[:8] = b[:8]
    wide = name.endswith("u64")
    columns = [*_words(a), *_words(b)] if wide else [a, b]
    _, after = _scalar(f"\t{name} {'s[10:11], s[12:13]' if wide else 's10, s11'}", columns, [0] * len(a))
    for x, y, got in zip(a, b, after, strict=True):
        if name.startswith("s_bitcmp"):
            wanted = (x >> (y & 31)) & 1 == int(name[8])
        else:
            relation, kind = name.split("_")[2:]
            wanted = _RELATIONS[relation](*((signed(x), signed(y)) if kind == "i32" else (x, y)))
        assert got == int(wanted)


@pytest.mark.parametrize("name", ["s_cmpk_eq_i32", "s_cmpk_lt_i32", "s_cmpk_lt_u32", "s_cmpk_ge_u32"])
def test_a_compare_with_a_constant(name: str) -> None:
    (a,) = operands(name, 1)
    a[:3] = [0xFFFF8000, 0x8000, 5]
    _, after = _scalar(f"\t{name} s10, 0x8000", [a], [0] * len(a))
    relation, kind = name.split("_")[2:]
    for x, got in zip(a, after, strict=True):
        pair = (signed(x), -0x8000) if kind == "i32" else (x, 0x8000)
        assert got == int(_RELATIONS[relation](*pair))


@pytest.mark.parametrize("name", alu_scalar.SAVE_EXEC)
def test_exec_is_saved_and_changed(name: str) -> None:
    bench = Bench(1)
    bench.exec, mask = 0xF0F0F0F012345678, 0x0FF00FF0DEADBEEF
    bench.s = {10: np.array([mask & M32], dtype=np.uint32), 11: np.array([mask >> 32], dtype=np.uint32)}
    state = bench.run(f"\t{name} s[20:21], s[10:11]")
    wanted = _LOGIC[name.split("_")[1]](mask, bench.exec) & M64
    assert int(state.scalar[20][0]) | int(state.scalar[21][0]) << 32 == bench.exec
    assert int(state.scalar[126][0]) | int(state.scalar[127][0]) << 32 == wanted
    assert [int(x) for x in state.exec_bits[0]] == [(wanted >> lane) & 1 for lane in range(LANES)]
    assert bool(state.scc_bits[0]) == (wanted != 0)


# ---- compares of lanes

_FLOATS: dict[str, Callable[[float, float], bool]] = {
    "lt": lambda a, b: a < b,
    "eq": lambda a, b: a == b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "lg": lambda a, b: a < b or a > b,
    "ge": lambda a, b: a >= b,
    "o": lambda a, b: a == a and b == b,
    "u": lambda a, b: a != a or b != b,
    "nge": lambda a, b: not a >= b,
    "nlg": lambda a, b: not (a < b or a > b),
    "ngt": lambda a, b: not a > b,
    "nle": lambda a, b: not a <= b,
    "neq": lambda a, b: a != b,
    "nlt": lambda a, b: not a < b,
    "f": lambda a, b: False,
    "tru": lambda a, b: True,
}


def _number(x: int, form: exact.Format) -> float:
    if form.is_nan(x):
        return float("nan")
    return float("-inf" if x & form.sign else "inf") if form.is_inf(x) else float(form.value(x))


@pytest.mark.parametrize("kind", ["f32", "f16"])
@pytest.mark.parametrize("relation", _FLOATS)
def test_a_compare_of_floats(relation: str, kind: str) -> None:
    a, b = operands(relation + kind, 2)
    a[:10] = b[:10]
    code = f"\tv_cmp_{relation}_{kind}_e64 s[4:5], v0, v1\n\tv_cndmask_b32_e64 v10, 0, 1, s[4:5]"
    form, mask = (F32, M32) if kind == "f32" else (F16, 0xFFFF)
    for x, y, got in zip(a, b, execute(code, {0: a, 1: b}, 10), strict=True):
        assert got == int(_FLOATS[relation](_number(x & mask, form), _number(y & mask, form)))


@pytest.mark.parametrize("kind", ["i32", "u32", "i16", "u16", "i64", "u64"])
@pytest.mark.parametrize("relation", ["lt", "eq", "le", "gt", "ne", "ge"])
def test_a_compare_of_integers(relation: str, kind: str) -> None:
    sources = operands(relation + kind, 4)
    sources[2][:20], sources[3][:20] = sources[0][:20], sources[1][:20]
    width = int(kind[1:])
    given = "v[0:1], v[2:3]" if width == 64 else "v0, v2"
    code = f"\tv_cmp_{relation}_{kind}_e32 vcc, {given}\n\tv_cndmask_b32_e32 v10, v5, v6, vcc"
    every = {**dict(enumerate(sources)), 5: [7] * len(sources[0]), 6: [9] * len(sources[0])}
    relation = "lg" if relation == "ne" else relation
    for lane, got in enumerate(execute(code, every, 10)):
        x, y = (sources[k][lane] | sources[k + 1][lane] << 32 for k in (0, 2))
        x, y = x & ((1 << width) - 1), y & ((1 << width) - 1)
        pair = (signed(x, width), signed(y, width)) if kind[0] == "i" else (x, y)
        assert got == (9 if _RELATIONS[relation](*pair) else 7)


def test_a_compare_gives_zero_for_lanes_that_are_off() -> None:
    bench = Bench(1)
    bench.exec, bench.v = 0x00FF00FF00FF00FF, {0: np.zeros(LANES)}
    state = bench.run("\tv_cmp_eq_u32_e32 vcc, 0, v0")
    assert int(state.scalar[106][0]) | int(state.scalar[107][0]) << 32 == bench.exec


# ---- between lanes

_SOURCE: dict[str, Callable[[int], int | None]] = {
    "quad_perm:[1,0,3,2]": lambda i: i ^ 1,
    "quad_perm:[3,3,0,1]": lambda i: i // 4 * 4 + (3, 3, 0, 1)[i % 4],
    "row_shl:3": lambda i: i + 3 if i % 16 < 13 else None,
    "row_shr:4": lambda i: i - 4 if i % 16 >= 4 else None,
    "row_ror:5": lambda i: i // 16 * 16 + (i % 16 - 5) % 16,
    "row_mirror": lambda i: i // 16 * 16 + 15 - i % 16,
    "row_half_mirror": lambda i: i // 8 * 8 + 7 - i % 8,
    "row_bcast:15": lambda i: i // 16 * 16 - 1 if i >= 16 else None,
    "row_bcast:31": lambda i: 31 if i >= 32 else None,
    "row_newbcast:7": lambda i: i // 16 * 16 + 7,
}


@pytest.mark.parametrize(
    "rest", ["row_mask:0xf bank_mask:0xf bound_ctrl:1", "row_mask:0xa bank_mask:0xf", "row_mask:0xf bank_mask:0x5"]
)
@pytest.mark.parametrize("on", [M64, 0x0F0FFFFF00FF0FF1])
@pytest.mark.parametrize("control", _SOURCE)
def test_dpp(control: str, on: int, rest: str) -> None:
    bench = Bench(1)
    bench.exec, bench.v = on, {0: np.arange(100, 164), 10: np.arange(1000, 1064)}
    state = bench.run(f"\tv_mov_b32_dpp v10, v0 {control} {rest}")
    rows, banks = (int(rest.split(f"{word}:")[1].split()[0], 0) for word in ("row_mask", "bank_mask"))
    for lane in range(LANES):
        source = _SOURCE[control](lane)
        if source is not None and not on >> source & 1:
            source = None
        written = on >> lane & 1 and rows >> (lane // 16) & 1 and banks >> (lane % 16 // 4) & 1
        value = 100 + source if source is not None else 0 if "bound_ctrl" in rest else 1000 + lane
        assert int(state.vector[10][0][lane]) == (value if written else 1000 + lane), lane


def test_dpp_belongs_to_the_first_source() -> None:
    got = execute(
        "\tv_sub_u32_dpp v10, v0, v1 row_shr:1 row_mask:0xf bank_mask:0xf bound_ctrl:1",
        {0: list(range(LANES)), 1: [1000] * LANES},
        10,
    )
    assert got == [((lane - 1 if lane % 16 else 0) - 1000) & M32 for lane in range(LANES)]


_PART = "dst_unused:UNUSED_PAD"


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        (f"v_and_b32_sdwa v10, v0, v1 dst_sel:DWORD {_PART} src0_sel:WORD_1 src1_sel:DWORD", 0x89AB & 0xFF),
        (f"v_or_b32_sdwa v10, v3, v0 dst_sel:DWORD {_PART} src0_sel:BYTE_0 src1_sel:BYTE_3", 0x89),
        (f"v_lshrrev_b32_sdwa v10, v2, v0 dst_sel:BYTE_1 {_PART} src0_sel:DWORD src1_sel:DWORD", 0xBC << 8),
        (
            "v_lshrrev_b32_sdwa v10, v2, v0 dst_sel:WORD_1 dst_unused:UNUSED_PRESERVE src0_sel:DWORD src1_sel:DWORD",
            0x9ABC << 16 | 0x5678,
        ),
        (f"v_add_u32_sdwa v10, sext(v0), v3 dst_sel:DWORD {_PART} src0_sel:BYTE_3 src1_sel:DWORD", 0xFFFFFF89),
    ],
)
def test_sdwa(line: str, wanted: int) -> None:
    registers = {0: [0x89ABCDEF] * LANES, 1: [0xFF] * LANES, 2: [12] * LANES, 3: [0] * LANES, 10: [0x12345678] * LANES}
    assert execute("\t" + line, registers, 10)[0] == wanted


def test_lanes_read_and_written() -> None:
    bench = Bench(2)
    bench.v = {0: np.arange(128).reshape(2, 64), 10: np.full((2, 64), 7)}
    bench.exec = 0xFFFFFFFFFFFFFF00
    code = "\tv_readfirstlane_b32 s4, v0\n\tv_readlane_b32 s5, v0, 63\n\tv_writelane_b32 v10, s5, 3"
    state = bench.run(code)
    assert [int(x) for x in state.scalar[4]] == [8, 72]
    assert [int(x) for x in state.scalar[5]] == [63, 127]
    assert [int(x) for x in state.vector[10][1][:5]] == [7, 7, 7, 127, 7]


def test_lanes_are_counted() -> None:
    code = "\tv_mbcnt_lo_u32_b32 v10, s4, 0\n\tv_mbcnt_hi_u32_b32 v10, s5, v10"
    bench, mask = Bench(1), 0xDEADBEEF12345678
    bench.s = {4: np.array([mask & M32]), 5: np.array([mask >> 32])}
    state = bench.run(code)
    assert [int(x) for x in state.vector[10][0]] == [(mask & ((1 << lane) - 1)).bit_count() for lane in range(LANES)]


@pytest.mark.parametrize("table", [0x6C, 0x96, 0xE8, 0xEC, 0x36, 0x00, 0xFF])
def test_bitop3(table: int) -> None:
    a, b, c = operands("bitop", 3)
    got = execute(f"\tv_bitop3_b32 v10, v0, v1, v2 bitop3:{table:#x}", {0: a, 1: b, 2: c}, 10, target="gfx950")
    for lane, (x, y, z) in enumerate(zip(a, b, c, strict=True)):
        wanted = 0
        for bit in range(32):
            index = (x >> bit & 1) << 2 | (y >> bit & 1) << 1 | z >> bit & 1
            wanted |= (table >> index & 1) << bit
        assert got[lane] == wanted


def test_mixed_precision() -> None:
    a, b, c = operands("mix", 3)

    def half(x: int) -> int:
        sign = (x & 0x8000) << 16
        if F16.is_nan(x):
            return sign | 0x7FC00000 | (x & 0x3FF) << 13
        return sign | F32.infinity if F16.is_inf(x) else F32.round(F16.value(x), bool(sign))

    line = "\tv_fma_mix_f32 v10, v0, v1, neg(0) op_sel:[1,0,0] op_sel_hi:[1,0,0]"
    for x, y, got in zip(a, b, execute(line, {0: a, 1: b}, 10), strict=True):
        assert got == exact.fma(half(x >> 16), y, 0x80000000)
    line = "\tv_fma_mix_f32 v10, v0, -v1, v2 op_sel_hi:[1,1,0]"
    for x, y, z, got in zip(a, b, c, execute(line, {0: a, 1: b, 2: c}, 10), strict=True):
        assert got == exact.fma(half(x & 0xFFFF), half((y & 0xFFFF) ^ 0x8000), z)


def test_accumulation_registers_hold_what_is_moved_there() -> None:
    code = "\tv_accvgpr_write_b32 a3, v0\n\tv_accvgpr_mov_b32 a5, a3\n\tv_accvgpr_read_b32 v10, a5"
    assert execute(code, {0: list(range(LANES))}, 10) == list(range(LANES))


def test_groups_that_end_apart_are_told_apart() -> None:
    # Three groups of other sizes at the same time, each of which ends on its own.
    bench = Bench(8)
    bench.v, bench.s = {0: np.zeros((8, LANES))}, {4: np.array([0, 1, 1, 2, 2, 2, 2, 0])}
    state = bench.run(
        "\ts_cmp_eq_u32 s4, 0\n\ts_cbranch_scc1 .Lzero\n\ts_cmp_eq_u32 s4, 1\n\ts_cbranch_scc1 .Lone\n"
        "\tv_add_u32_e32 v0, 5, v0\n\ts_barrier\n\ts_endpgm\n.Lzero:\n\ts_endpgm\n.Lone:\n"
        "\tv_add_u32_e32 v0, 7, v0\n\ts_barrier"
    )
    assert [int(x) for x in state.vector[0][:, 0]] == [0, 7, 7, 5, 5, 5, 5, 0]


def test_words_of_pairs_are_moved() -> None:
    sources = {k: [k + 1] * LANES for k in range(4)}
    code = "\tv_pk_mov_b32 v[10:11], v[0:1], v[2:3] op_sel:[1,0]"
    assert (execute(code, sources, 10)[0], execute(code, sources, 11)[0]) == (2, 3)


@pytest.mark.parametrize("width", [16, 32])
def test_rows_are_swapped(width: int) -> None:
    code = f"\tv_permlane{width}_swap_b32 v10, v11"
    first, second = list(range(LANES)), list(range(100, 100 + LANES))
    rows = range(0, LANES, width)
    a, b = ([x[r : r + width] for r in rows] for x in (first, second))
    for odd in range(1, len(a), 2):
        a[odd], b[odd - 1] = b[odd - 1], a[odd]
    assert execute(code, {10: first, 11: second}, 10, target="gfx950") == [x for row in a for x in row]
    assert execute(code, {10: first, 11: second}, 11, target="gfx950") == [x for row in b for x in row]
