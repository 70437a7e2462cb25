"""``python -m validators amdgcn inspect``: what it reads from the text."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.amdgcn_edit import edited, text_of
from tests.support.amdgcn_fixtures import path_of
from validators.__main__ import main
from validators.process.guard import Exit


def _told(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["amdgcn", "inspect", str(path)]) == Exit.YES
    return capsys.readouterr().out


@pytest.mark.parametrize(("target", "form"), [("gfx942", "e4m3fnuz"), ("gfx950", "e4m3fn")])
def test_the_facts_of_this_project_s_kernel(target: str, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = _told(path_of(target, "any"), capsys)
    for words in (
        f"kernel add_rmsnorm_quant for {target}: ",
        "float32 denormals are kept",
        "s_setreg_imm32_b32 hwreg(HW_REG_MODE, 23, 1), 1",
        "3 IEEE divisions",
        "0 reciprocals of 1 ulp outside of them",
        f"conversions to {form} (line",
        "left open by the instruction set: ",
        "every instruction is implemented",
    ):
        assert words in told
    assert ("v_cvt_pk_bf16_f32, to nearest" if target == "gfx950" else "integer rounding to bfloat16") in told


def test_other_code_has_other_facts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = edited(text_of("gfx942", "any"), r"float_denorm_mode_32 3", "float_denorm_mode_32 0")
    text = edited(
        text, r"\tv_div_fixup_f32[^\n]*\n", "\tv_med3_f32 v1, v1, v2, v3\n\tv_mad_legacy_f32 v1, v2, v3, v4\n"
    )
    (tmp_path / "kernel.s").write_text(text)
    told = _told(tmp_path / "kernel.s", capsys)
    assert "float32 denormals are flushed in and out" in told
    assert "2 IEEE divisions" in told
    assert "1 reciprocals of 1 ulp outside of them" in told
    assert "1 v_med3_f32 or v_min_f32, which may clamp" in told
    assert "1 instructions are not implemented, so it cannot be run: line" in told
    assert "v_mad_legacy_f32 v1, v2, v3, v4" in told


@pytest.mark.parametrize(
    ("content", "words"),
    [("", "has no kernel"), (".amdhsa_kernel k\n", "truncated"), ("\x00\x01\x02", "has no kernel")],
)
def test_a_file_that_is_none_is_one_sentence(
    content: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kernel.s").write_text(content)
    assert main(["amdgcn", "inspect", str(tmp_path / "kernel.s")]) == Exit.USAGE
    assert words in capsys.readouterr().err
    assert main(["amdgcn", "inspect", str(tmp_path / "nowhere.s")]) == Exit.USAGE
    assert "cannot be read" in capsys.readouterr().err
