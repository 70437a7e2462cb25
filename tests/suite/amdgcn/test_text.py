"""Text that is not understood is one sentence with file and line."""

from __future__ import annotations

import pytest

from tests.support.amdgcn_edit import edited, text_of
from validators.amdgcn.errors import MachineFault, TextError
from validators.amdgcn.launch import Machine
from validators.amdgcn.operands import Operand, parse_operand
from validators.amdgcn.text import Program, parse_program, read_program


def _program(text: str) -> Program:
    return parse_program(text, "add_rmsnorm_quant", where="kernel.s")


@pytest.mark.parametrize(
    ("text", "operand"),
    [
        ("v3", Operand("v", 3)),
        ("v[4:7]", Operand("v", 4, 4)),
        ("s[0:1]", Operand("s", 0, 2)),
        ("a12", Operand("a", 12)),
        ("vcc", Operand("s", 106, 2)),
        ("exec_lo", Operand("s", 126)),
        ("m0", Operand("s", 124)),
        ("-v2", Operand("v", 2, neg=True)),
        ("|v2|", Operand("v", 2, abs=True)),
        ("-|s2|", Operand("s", 2, neg=True, abs=True)),
        ("neg(0)", Operand("const", value=0, neg=True)),
        ("0x7fff", Operand("const", value=0x7FFF)),
        ("-16", Operand("const", value=-16)),
        ("-4.0", Operand("const", value=-4.0)),
        ("off", Operand("off")),
        (".LBB0_2", Operand("label", name=".LBB0_2")),
    ],
)
def test_an_operand_is_read(text: str, operand: Operand) -> None:
    assert parse_operand(text) == operand


@pytest.mark.parametrize("text", ["v256", "s[4:2]", "s102", "v[1:", "", "||", "%3"])
def test_no_operand(text: str) -> None:
    assert parse_operand(text) is None


def test_the_launch_is_read_from_the_text() -> None:
    program = _program(text_of("gfx942", "any"))
    assert (program.target, program.name, program.meta.kernarg_size) == ("gfx942", "add_rmsnorm_quant", 80)
    assert [arg.offset for arg in program.meta.args] == [0, 8, 16, 24, 32, 40, 48, 52, 56, 60, 64, 72]
    assert program.meta.threads == 512
    assert program.descriptor["user_sgpr_count"] == 16
    assert any(found.loc.startswith("triton_own.py:") for found in program.instructions)


BROKEN = {
    "an unknown mnemonic": (
        r"v_rsq_f32_e32",
        "v_rsqrt_f32_e32",
        r"kernel\.s:\d+: instruction 'v_rsqrt_f32_e32 .*' is not",
    ),
    "an unknown modifier": (r"row_shr:8", "row_hop:8", r"kernel\.s:\d+: .*row_hop"),
    "a modifier of another class": (r"(v_rsq_f32_e32 v\d+, v\d+)", r"\1 clamp", r"kernel\.s:\d+: modifier clamp"),
    "an operand": (r"(v_rsq_f32_e32 v\d+, )v\d+", r"\1%5", r"kernel\.s:\d+: operand '%5'"),
    "a register beyond the file": (r"(v_rsq_f32_e32 v\d+, )v\d+", r"\1v256", r"kernel\.s:\d+: .*v256"),
    "another target": ("gfx942", "gfx906", r"kernel\.s is for gfx906; known: gfx942, gfx950"),
    "no target": (r"\t\.amdgcn_target[^\n]*\n", "", r"names no \.amdgcn_target"),
    "a branch out of the kernel": (r"s_branch \S+", "s_branch .Lelsewhere", r"kernel\.s:\d+: .*leaves the kernel"),
    "another hardware register": ("HW_REG_MODE", "HW_REG_STATUS", r"kernel\.s:\d+: only the register MODE"),
    "a wait of an unknown counter": (r"s_waitcnt vmcnt\(0\)", "s_waitcnt vscnt(0)", r"kernel\.s:\d+: .*vscnt"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_not_understood_is_one_sentence(name: str) -> None:
    old, new, words = BROKEN[name]
    with pytest.raises(TextError, match=words) as raised:
        Machine(_program(edited(text_of("gfx942", "any"), old, new)))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.97])
def test_a_truncated_text_is_refused(share: float) -> None:
    text = text_of("gfx942", "any")
    with pytest.raises(TextError, match=r"truncated|has no kernel|lacks"):
        Machine(_program(text[: int(len(text) * share)]))


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(TextError, match="cannot be read"):
        read_program("nowhere/kernel.s")


def test_another_kernel_s_name() -> None:
    with pytest.raises(TextError, match="has no kernel other; it has: add_rmsnorm_quant"):
        parse_program(text_of("gfx942", "any"), "other")


def _launch(text: str, **options: int) -> None:
    Machine(_program(text)).launch([None] * 12, (1, 1, 1), (512, 1, 1), **options)  # type: ignore[arg-type]


def test_a_kernel_that_never_ends_uses_its_budget_up() -> None:
    text = edited(text_of("gfx942", "any"), r"\ts_branch \S+", "\ts_branch add_rmsnorm_quant")
    with pytest.raises(MachineFault, match="does not end"):
        _launch(text, lds=2048, budget=1000)


def test_too_much_local_memory() -> None:
    with pytest.raises(MachineFault, match="bytes of LDS are more than gfx942 has"):
        _launch(text_of("gfx942", "any"), lds=65540)


def test_the_number_of_arguments_is_checked() -> None:
    with pytest.raises(TextError, match="takes 12 arguments, not 3"):
        Machine(_program(text_of("gfx942", "any"))).launch([None] * 3, (1, 1, 1), (512, 1, 1), lds=2048)


def test_a_null_pointer_is_no_buffer() -> None:
    with pytest.raises(MachineFault, match=r"kernel\.s:\d+: .*belongs to no buffer"):
        _launch(
            edited(text_of("gfx942", "any"), r"\tbuffer_load_\w+ [^\n]*\n", "\tglobal_load_dword v1, v2, s[2:3]\n"),
            lds=2048,
        )


def test_another_size_of_workgroup_than_compiled_for() -> None:
    with pytest.raises(MachineFault, match="1024 threads are not what"):
        Machine(_program(text_of("gfx942", "any"))).launch([None] * 12, (1, 1, 1), (1024, 1, 1), lds=2048)
