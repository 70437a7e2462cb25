"""Kernels' names as profiles of AMD GPUs have them: mangled ones taken apart, and the roles of all."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.traces import GEMM, LAYERS, run, write_trace
from validators.trace.mangled import CUT, Mangled, demangle
from validators.trace.names import readable, role_of

NORM = "_ZN5aiter24add_rmsnorm_quant_kernelI"
FUSED = NORM + "DF16bDB8_Li256ELi24ELb1ELb1ELb1ELi1EEEvPT0_PT_PfS4_S4_S4_diiiiiiib"
PLAIN = NORM + "DF16bDF16bLi256ELi32ELb0ELb0ELb1ELi1EEEvPT0_PT_PfS4_S4_S4_diiiiiiib"
QUANT = "_ZN5aiter37dynamic_per_group_scaled_quant_kernelIDF16bDB8_Li32EEEvPT0_PfPKT_PKfiliibPKii"
REDUCE = "_ZN5aiter30allreduce_fusion_kernel_1stageI{}Li4EEEvPv"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (FUSED, "aiter::add_rmsnorm_quant_kernel<__bf16, _BitInt(8), 256, 24, true, true, true, 1>"),
        (PLAIN, "aiter::add_rmsnorm_quant_kernel<__bf16, __bf16, 256, 32, false, false, true, 1>"),
        (FUSED + ".kd", "aiter::add_rmsnorm_quant_kernel<__bf16, _BitInt(8), 256, 24, true, true, true, 1>"),
        (NORM + "u6__bf16DB8_Li256EEEvPT_", "aiter::add_rmsnorm_quant_kernel<__bf16, _BitInt(8), 256>"),
        (
            NORM + "14__hip_bfloat16S1_Li256EEEvPT_",
            "aiter::add_rmsnorm_quant_kernel<__hip_bfloat16, __hip_bfloat16, 256>",
        ),
        (
            NORM + "N4opus6bf16_tENS1_5fp8_tELi256EEEvPT_",
            "aiter::add_rmsnorm_quant_kernel<opus::bf16_t, opus::fp8_t, 256>",
        ),
        (NORM + "DF16bDB8_Li256E...", f"aiter::add_rmsnorm_quant_kernel<__bf16, _BitInt(8), {CUT}>"),
        (QUANT, "aiter::dynamic_per_group_scaled_quant_kernel<__bf16, _BitInt(8), 32>"),
        ("_Z9transposePKfPf", "transpose"),
        ("_ZN12_GLOBAL__N_16kernelILin5ELj3EEEvv", "(anonymous namespace)::kernel<-5, 3u>"),
        (
            "_ZN7ck_tile6kentryILi2ENS_3RmsINS_5TupleIJfDF16_EEELNS_4ModeE1EEEJEEEvv",
            "ck_tile::kentry<2, ck_tile::Rms<ck_tile::Tuple<float, _Float16>, (ck_tile::Mode)1>>",
        ),
        # What is no mangled name, or not understood, stays as it is.
        ("triton_red_fused_add_0", "triton_red_fused_add_0"),
        ("_Zap", "_Zap"),
        ("_ZN5aiter", "_ZN5aiter"),
        ("_ZN9999999999x", "_ZN9999999999x"),
    ],
)
def test_a_mangled_name_is_shown_readable(name: str, shown: str) -> None:
    assert readable(name) == shown


@pytest.mark.parametrize(
    ("name", "role"),
    [
        (FUSED, "fused"),
        (PLAIN, "norm"),
        (NORM + "u6__bf16DB8_Li256EEEvPT_", "fused"),
        (NORM + "u6__bf16u6__bf16Li256EEEvPT_", "norm"),
        (NORM + "14__hip_bfloat16S1_Li256EEEvPT_", "norm"),
        (NORM + "DF16bDB8_Li256E...", "fused"),
        (NORM + "DF16bDF16bLi256E…", "norm"),
        (NORM + "DF16_DF16bLi256EEEvPT_", "fused"),
        # Cut in the second type, or before it is known to be complete: no evidence.
        (NORM + "DF16bDF16", "unclear"),
        (NORM + "14__hip_bfloat16S1_", "unclear"),
        (NORM + "DF16b...", "unclear"),
        (NORM + "fEEvPT_", "unclear"),
        (NORM + "DF16bXadL_Z1fvEELi2EEEvv", "unclear"),
        ("_ZN5aiter24add_rmsnorm_quant_kernelE", "unclear"),
        ("void aiter::add_rmsnorm_quant_kernel<__hip_bfloat16, __hip_b", "unclear"),
        (QUANT, "quant"),
        (REDUCE.format("DF16bDF16b"), "norm"),
        (REDUCE.format("DF16bDB8_"), "fused"),
        ("void aiter::allreduce_fusion_kernel_2stage<__hip_bfloat16, _BitInt(8), 8>(int)", "fused"),
        ("void aiter::allreduce_fusion_kernel_2stage<__hip_bfloat16, __hip_bfloat16, 8>(int)", "norm"),
        ("void aiter::allreduce_fusion_kernel_1stage_per_group<__bf16, opus::fp8_t, 8, false>(int)", "fused"),
        ("void aiter::allreduce_fusion_kernel_split_per_group<__bf16, opus::fp8_t, 8, false>(int)", "fused"),
        ("allreduce_fusion_kernel_1stage", "unclear"),
        ("void aiter::allreduce_fusion_kernel_1stage_mxfp4<__bf16, 8>(int)", "fused"),
        ("void aiter::local_device_load_rmsnorm_quant_naive<__bf16, opus::fp8_t, 1024>(int)", "fused"),
        ("void aiter::local_device_load_rmsnorm_quant_naive<__bf16, __bf16>(int)", "norm"),
        ("void aiter::local_device_load_rmsnorm_naive<__bf16>(int)", "norm"),
        ("triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_0", "norm"),
        ("triton_per_fused__fused_rms_norm_3", "norm"),
        ("triton_red_fused__to_copy_abs_add_amax_clamp_div_mean_mul_pow_rsqrt_2", "fused"),
        ("triton_red_fused__to_copy_abs_add_amax_clamp_div_mean_mul_pow_reciprocal_4", "fused"),
        ("triton_red_fused__to_copy_abs_clamp_div_max_1", "quant"),
        ("triton_red_fused__softmax_amax_sub_1", "other"),
        ("triton_poi_fused_mul_silu_1", "other"),
        ("void ck_tile::kentry<1, R<(ck_tile::Rmsnorm2dFusedQuantEnum)2>>()", "fused"),
        ("void ck_tile::kentry<1, Rmsnorm2dFwd<(ck_tile::Rmsnorm2dFusedQuantEnum)0>>()", "norm"),
    ],
)
def test_the_role_of_a_kernel(name: str, role: str) -> None:
    assert role_of(readable(name)) == role


def test_what_compilers_mangle_otherwise_is_not_guessed() -> None:
    """By the ABI's text ``u6__bf16`` is S1_ and can be referred to; clang does not count it. Both read ``S2_``: one
    as the type after it, one as nothing."""
    found = demangle("_ZN1a1fIu6__bf163xyzS2_Li1EEEvv")
    assert found == Mangled("a::f", ("__bf16", "xyz", CUT))


def test_hostile_names_end(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("_ZN1a1fI" + "P" * 100_000, "_ZN1a1fI" + "J" * 100_000, "_Z" + "N" * 10_000, "_Z1fI" * 2_000):
        assert isinstance(readable(name), str)


@pytest.mark.skipif(not (shutil.which("nm") and shutil.which("c++filt")), reason="no nm and c++filt: no second reader")
def test_a_demangler_agrees_on_the_names_of_a_large_library() -> None:
    """Names of torch's own library that are read to the end are in c++filt's text of the same names."""
    import torch

    library = Path(torch.__file__).parent / "lib" / "libc10.so"
    if not library.exists():
        pytest.skip(f"this build of torch has no {library.name}: no names to compare")
    listed = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True).stdout
    names = [n for n in (line.split()[-1] for line in listed.splitlines()) if n.startswith("_Z") and "I" in n]
    theirs = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    read, wrong = 0, []
    for name, other in zip(names, theirs.splitlines(), strict=False):
        ours = demangle(name)
        if ours is None or CUT in ours.arguments or other.startswith("_Z"):
            continue
        read += 1
        # A template without arguments is written without brackets here; c++filt spells one type otherwise.
        other = other.replace("decltype(nullptr)", "std::nullptr_t")
        if str(ours).replace(" ", "") not in other.replace(" ", "").replace("<>", ""):
            wrong.append((name, str(ours), other))
    assert read > 100
    assert not wrong


def test_a_profile_with_mangled_names_is_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--layers", str(LAYERS))
    code, out, _ = run(capsys, write_trace(tmp_path / "fused.json", [FUSED, GEMM]), *options)
    assert code == 0
    assert "aiter::add_rmsnorm_quant_kernel<__bf16, _BitInt(8), 256, 24, true, true, true, 1>" in out
    code, out, _ = run(capsys, write_trace(tmp_path / "plain.json", [PLAIN, QUANT, GEMM]), *options)
    assert code == 1
    assert "NOT MET: 5 or 10 fused norm + quantization launches in every pass; seen in step 3: 0, step 4: 0" in out
    # A name may be given as the trace writes it, or as it is shown.
    for name in ("_ZN5aiter24add_rmsnorm", "add_rmsnorm_quant_kernel<__bf16, _BitInt(8)"):
        assert run(capsys, write_trace(tmp_path / "n.json", [FUSED, GEMM]), "--expect", f"{name}={LAYERS}")[0] == 0


def test_types_that_the_name_does_not_give_are_no_evidence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut = NORM + "DF16b..."
    path = write_trace(tmp_path / "cut.json", [cut, GEMM])
    code, out, _ = run(capsys, path, "--layers", str(LAYERS))
    assert code == 1
    assert "do not name their types" in out
    assert "--role fused=NAME" in out
    code, out, _ = run(capsys, path, "--layers", str(LAYERS), "--role", "fused=add_rmsnorm_quant_kernel")
    assert code == 0
    assert "note: given by --role, not found here: add_rmsnorm_quant_kernel is fused" in out
    assert run(capsys, path, "--layers", str(LAYERS), "--role", "norm=add_rmsnorm_quant_kernel")[0] == 1


def test_kernels_that_nothing_is_known_of_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_trace(tmp_path / "own.json", ["my_norm_and_quant", "my_norm_and_quant", "my_rope", GEMM])
    code, out, _ = run(capsys, path, "--layers", str(LAYERS))
    assert code == 1
    lines = out.splitlines()
    at = next(i for i, line in enumerate(lines) if "nothing is known as fused" in line)
    assert "--role fused=NAME" in lines[at]
    assert [line.split() for line in lines[at + 1 : at + 3]] == [
        ["20", "in", "all", "my_norm_and_quant"],
        ["10", "in", "all", "my_rope"],
    ]
    code, out, _ = run(capsys, path, "--layers", str(LAYERS), "--role", "fused=my_norm_and")
    assert code == 0
    assert "most frequent others" not in out


def test_group_scales_are_pointed_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    per_group = "void aiter::allreduce_fusion_kernel_1stage_per_group<__bf16, opus::fp8_t, 8, false>(int)"
    code, out, _ = run(capsys, write_trace(tmp_path / "g.json", [per_group, GEMM]), "--layers", str(LAYERS))
    assert code == 0
    assert "note: 10 fused norms quantize in groups or to MXFP4, not a row by one scale" in out
