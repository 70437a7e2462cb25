"""Scratch, local memory, waits, branches, and what is not implemented; classes and fractions of floats."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.amdgcn_bench import Bench, execute
from tests.support.amdgcn_exact import F32, operands, signed
from validators.amdgcn.errors import MachineFault, TextError

M32 = (1 << 32) - 1
LANES = 64


def test_fractions_and_classes() -> None:
    (a,) = operands("fract", 1)
    for x, got in zip(a, execute("\tv_fract_f32_e32 v10, v0", {0: a}, 10), strict=True):
        if not F32.is_nan(x) and not F32.is_inf(x):
            value = F32.value(x)
            wanted = min(F32.round(value - value.numerator // value.denominator), 0x3F7FFFFF)
            assert got == wanted
    code = "\tv_cmp_class_f32_e64 s[4:5], v0, 3\n\tv_cndmask_b32_e64 v10, 0, 1, s[4:5]"
    assert execute(code, {0: a}, 10) == [int(F32.is_nan(x)) for x in a]
    # Bits 5, 6 and 9: -0, +0 and +Inf.
    of_class = [int(x in (0, 0x80000000, F32.infinity)) for x in a]
    assert execute(code.replace(", 3", ", 0x260"), {0: a}, 10) == of_class


def test_registers_are_spilled_and_come_back() -> None:
    code = (
        "\tscratch_store_dwordx2 off, v[0:1], off offset:8\n\tscratch_store_dword off, v0, s4 offset:4\n"
        "\ts_waitcnt vmcnt(0)\n\tscratch_load_dwordx3 v[10:12], off, off offset:8\n\ts_waitcnt vmcnt(0)"
    )
    first, second = list(range(LANES)), list(range(100, 164))
    bench = Bench(1)
    bench.v, bench.s = {0: np.array(first), 1: np.array(second)}, {4: np.array([12])}
    state = bench.run(code)
    assert [list(map(int, state.vector[k][0])) for k in (10, 11, 12)] == [first, second, first]


def test_accumulation_registers_are_loaded_and_stored() -> None:
    code = (
        "\tv_accvgpr_write_b32 a3, v1\n\tds_write_b32 v0, a3\n\ts_waitcnt lgkmcnt(0)\n\tds_read_b32 a4, v0\n"
        "\ts_waitcnt lgkmcnt(0)\n\tv_accvgpr_read_b32 v10, a4"
    )
    values = list(range(500, 564))
    assert execute(code, {0: [4 * lane for lane in range(LANES)], 1: values}, 10) == values


@pytest.mark.parametrize("line", ["load_dword v0, off, off offset:64", "store_dword off, v0, off offset:62"])
def test_scratch_has_an_end(line: str) -> None:
    with pytest.raises(MachineFault, match="of scratch, of which a lane has 64"):
        Bench(1).run("\tscratch_" + line)


def test_local_memory_of_every_width() -> None:
    base = [lane * 16 for lane in range(LANES)]
    words = {k: [k * 0x01010101 + lane for lane in range(LANES)] for k in (4, 5, 6, 7)}
    code = "\tds_write_b128 v0, v[4:7]\n\ts_waitcnt lgkmcnt(0)\n"
    for line, register, wanted in (
        ("ds_read_b128 v[10:13], v0", 13, words[7]),
        ("ds_read_b64 v[10:11], v0 offset:8", 11, words[7]),
        ("ds_read_b32 v10, v0 offset:4", 10, words[5]),
        ("ds_read2_b32 v[10:11], v0 offset0:1 offset1:2", 11, words[6]),
        ("ds_read_u16 v10, v0 offset:2", 10, [x >> 16 for x in words[4]]),
        ("ds_read_u8 v10, v0 offset:3", 10, [x >> 24 for x in words[4]]),
        ("ds_read_i8 v10, v0", 10, [signed(x & 255, 8) & M32 for x in words[4]]),
    ):
        assert execute(f"{code}\t{line}\n\ts_waitcnt lgkmcnt(0)", {0: base, **words}, register) == wanted, line


def test_lanes_are_permuted_through_local_memory() -> None:
    lanes = [(lane * 7 + 3) % LANES for lane in range(LANES)]
    code = "\tds_bpermute_b32 v10, v0, v1\n\ts_waitcnt lgkmcnt(0)"
    assert execute(code, {0: [4 * x for x in lanes], 1: list(range(100, 164))}, 10) == [100 + x for x in lanes]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("\tds_read_b32 v10, v0\n\tv_mov_b32_e32 v11, v10", "v10 is used before an s_waitcnt lgkmcnt"),
        (
            "\tds_read_b32 v10, v0\n\tds_read_b32 v11, v0\n\ts_waitcnt lgkmcnt(1)\n\tv_mov_b32_e32 v12, v11",
            "v11 is used",
        ),
        ("\tds_read_b32 v10, v0 offset:4093", "of LDS, of which a workgroup has 4,096"),
        ("\tglobal_load_dword v10, v0, s[2:3]", "belongs to no buffer"),
        ("\ts_branch k", "does not end"),
    ],
)
def test_what_a_gpu_leaves_undefined_is_a_fault_with_its_line(code: str, words: str) -> None:
    bench = Bench(1)
    bench.v, bench.s = {0: np.zeros(LANES)}, {2: np.zeros(1), 3: np.zeros(1)}
    with pytest.raises(MachineFault, match=rf"bench\.s:\d+: .*{words}"):
        bench.run(code)


def test_a_wait_lets_the_oldest_load_be_used() -> None:
    code = "\tds_read_b32 v10, v0\n\tds_read_b32 v11, v0\n\ts_waitcnt lgkmcnt(1)\n\tv_mov_b32_e32 v12, v10"
    assert execute(code, {0: [0] * LANES}, 12) == [0xA5A5A5A5] * LANES


def test_waves_part_at_a_branch_and_meet_again() -> None:
    bench = Bench(4)
    bench.v, bench.s = {0: np.zeros((4, LANES)), 1: np.zeros((4, LANES))}, {4: np.array([3, 1, 2, 0])}
    state = bench.run(
        "\ts_cmp_eq_u32 s4, 0\n\ts_cbranch_scc1 .Lend\n.Lloop:\n\tv_add_u32_e32 v0, 5, v0\n\ts_add_i32 s4, s4, -1\n"
        "\ts_cmp_lg_u32 s4, 0\n\ts_cbranch_scc1 .Lloop\n.Lend:\n\tv_add_u32_e32 v1, 1, v0"
    )
    assert [int(x) for x in state.vector[0][:, 0]] == [15, 5, 10, 0]
    assert [int(x) for x in state.vector[1][:, 63]] == [16, 6, 11, 1]


@pytest.mark.parametrize(
    "line",
    [
        "v_add_f32_e64 v0, v1, v2 clamp",
        "v_add_f32_e64 v0, v1, v2 mul:2",
        "v_mfma_f32_16x16x32_fp8_bf8 v[0:3], v[4:5], v[6:7], 0",
        "s_getpc_b64 s[0:1]",
        "s_swappc_b64 s[0:1], s[2:3]",
        "buffer_atomic_add v0, v1, s[0:3], 0 offen",
        "v_add_u32_e32 v0, -v1, v2",
        "v_pk_add_f32 v[0:1], v[2:3], 1.0",
        "s_trap 2",
        "buffer_store_dword v0, s[0:3], 0 offen lds",
    ],
)
def test_what_is_not_implemented_is_one_sentence(line: str) -> None:
    with pytest.raises(TextError, match=r"bench\.s:\d+: "):
        Bench(1).run("\t" + line)


@pytest.mark.parametrize("mode", [0x3F1, 0x3FC])
def test_a_rounding_mode_that_is_not_implemented_is_refused(mode: int) -> None:
    with pytest.raises(MachineFault, match="rounding mode"):
        execute("\tv_add_f32_e32 v10, v0, v0", {0: [0] * LANES}, 10, mode=mode)
