"""Adapters of aiter's kernels and of the own Triton kernel: outputs in place, layouts, and what they refuse.

aiter is a double here (tests/support/fakes.py): it computes honest values, and sees a wrong order of arguments, a wrong
layout and a lost output.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.adapter_inputs import (
    FN,
    NO_BUFFERS,
    assert_quantizes,
    bits,
    exact_norm,
    gemm_inputs,
    kernel,
    needs_cpu_only,
    norm_inputs,
    poisoned,
)
from tests.support.fakes import TRITON_FILE, FakeAiter, install_aiter, norm, quantize, unshuffle
from validators import arch
from validators.cases.case import Case
from validators.cases.tensors import (
    GemmOutputs,
    NormQuantOutputs,
    QuantInputs,
    QuantOutputs,
)
from validators.kernels import aiter_hip, aiter_triton, triton_own
from validators.kernels.kernel import KernelError

# ---- aiter HIP ------------------------------------------------------------------------------------


@pytest.fixture
def aiter(monkeypatch: pytest.MonkeyPatch) -> FakeAiter:
    return install_aiter(monkeypatch)


@pytest.mark.parametrize("layout", ["contiguous", "strided", "3d"])
@pytest.mark.parametrize("gemma", [False, True])
def test_aiter_fused_writes_into_the_buffers(aiter: FakeAiter, layout: str, gemma: bool) -> None:
    k = kernel(aiter_hip, "aiter_hip/add_rmsnorm_quant", "add_rmsnorm_quant")
    assert k.fake
    assert k.in_place
    assert k.unavailable("cpu") is None
    assert k.versions()["aiter"] == "0.0.fake"
    inputs = norm_inputs(layout=layout, gemma=gemma)
    buffers = poisoned(inputs)
    out = k.call(inputs, buffers)
    assert isinstance(out, NormQuantOutputs)
    assert (out.codes is buffers.codes, out.scale is buffers.scale) == (True, True)
    assert out.residual_out is buffers.residual_out
    assert inputs.residual is not None
    z = inputs.x.float() + inputs.residual.float()
    codes, scale = quantize(norm(z, inputs.weight, inputs.eps, gemma))
    assert torch.equal(bits(out.codes), bits(codes))
    assert torch.equal(out.scale, scale)
    assert out.residual_out is not None
    assert torch.equal(out.residual_out, z.bfloat16())
    [(name, given)] = aiter.calls
    assert name == "add_rmsnorm_quant"
    assert (given["group_size"], given["shuffle_scale"], given["gemma_norm"]) == (0, False, gemma)
    assert (given["epsilon"], given["weight"] is inputs.weight) == (1e-5, True)


def test_aiter_fused_without_a_residual_is_rmsnorm_quant(aiter: FakeAiter) -> None:
    k = kernel(aiter_hip, "aiter_hip/add_rmsnorm_quant", "add_rmsnorm_quant")
    inputs = norm_inputs(residual=False)
    buffers = poisoned(inputs)
    out = k.call(inputs, buffers)
    assert isinstance(out, NormQuantOutputs)
    assert out.residual_out is None
    assert [name for name, _ in aiter.calls] == ["rmsnorm_quant"]
    assert torch.equal(bits(buffers.codes), bits(quantize(norm(inputs.x.float(), inputs.weight, 1e-5, False))[0]))


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("layout", ["contiguous", "3d"])
def test_aiter_unfused_quantizes_the_stored_norm(aiter: FakeAiter, residual: bool, layout: str) -> None:
    k = kernel(aiter_hip, "aiter_hip/unfused", "add_rmsnorm_quant")
    inputs = norm_inputs(residual=residual, layout=layout)
    out = k.call(inputs, poisoned(inputs))
    assert isinstance(out, NormQuantOutputs)
    z = inputs.x.float() if inputs.residual is None else inputs.x.float() + inputs.residual.float()
    codes, scale = quantize(norm(z, inputs.weight, inputs.eps, False).bfloat16().float())
    assert torch.equal(bits(out.codes), bits(codes))
    assert torch.equal(out.scale, scale)
    assert (out.residual_out is not None) == residual
    first = "add_rmsnorm" if residual else "rmsnorm2d_fwd"
    assert [name for name, _ in aiter.calls] == [first, "per_token_quant_hip"]


def test_aiter_quantizer(aiter: FakeAiter) -> None:
    k = kernel(aiter_hip, "aiter_hip/per_token_quant_hip", "per_token_quant")
    x = norm_inputs().x
    out = k.call(QuantInputs(x, FN), NO_BUFFERS)
    assert isinstance(out, QuantOutputs)
    assert_quantizes(out.codes, out.scale, x.double(), FN)
    assert "contiguous" in str(k.unsupported(Case("per_token_quant", 4, 64, "gaussian", layout="strided")))


@pytest.mark.parametrize("own_shuffle", [True, False])
def test_aiter_bpreshuffle_gets_a_shuffled_weight_and_no_bias(
    aiter: FakeAiter, monkeypatch: pytest.MonkeyPatch, own_shuffle: bool
) -> None:
    shuffled_by_aiter = []
    if not own_shuffle:
        ops, module = type(sys)("aiter.ops"), type(sys)("aiter.ops.shuffle")

        def shuffle_weight(x: torch.Tensor, layout: tuple[int, int] = (16, 16), use_int4: bool = False) -> torch.Tensor:
            shuffled_by_aiter.append(layout)
            return aiter_hip.shuffle_16x16(x)

        module.shuffle_weight = shuffle_weight  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "aiter.ops", ops)
        monkeypatch.setitem(sys.modules, "aiter.ops.shuffle", module)
    k = kernel(aiter_hip, "aiter_hip/gemm_a8w8_bpreshuffle", "ptpc_gemm")
    inputs = gemm_inputs(5, 32, 192, bias=True)
    out = k.call(inputs, NO_BUFFERS)
    assert isinstance(out, GemmOutputs)
    assert inputs.bias is not None
    stored = ((inputs.a.float() @ inputs.b.float().t()) * inputs.a_scale * inputs.b_scale.t()).bfloat16()
    assert torch.equal(out.out, stored + inputs.bias), "the bias is added in T to the stored result"
    assert aiter.calls[0][1]["bias"] is None
    assert shuffled_by_aiter == ([] if own_shuffle else [(16, 16)])


def test_the_shuffle_is_the_layout_that_kernels_want() -> None:
    weight = torch.arange(32 * 64, dtype=torch.int64).remainder(251).to(torch.uint8).view(32, 64).view(FN)
    shuffled = aiter_hip.shuffle_16x16(weight)
    assert torch.equal(bits(unshuffle(shuffled)), bits(weight))
    assert not torch.equal(bits(shuffled), bits(weight))
    # row 1 of the first tile follows the first 16 columns of row 0
    assert torch.equal(bits(shuffled).reshape(-1)[16:32], bits(weight)[1, :16])
    for shape in ((24, 64), (32, 48)):
        with pytest.raises(KernelError, match=f"N={shape[0]} K={shape[1]}"):
            aiter_hip.shuffle_16x16(torch.zeros(shape).to(FN))


def test_aiter_ck_gets_the_plain_weight_and_the_bias(aiter: FakeAiter) -> None:
    k = kernel(aiter_hip, "aiter_hip/gemm_a8w8_CK", "ptpc_gemm")
    inputs = gemm_inputs(3, 16, 32, bias=True)
    out = k.call(inputs, NO_BUFFERS)
    assert isinstance(out, GemmOutputs)
    [(_, given)] = aiter.calls
    assert given["WQ"] is inputs.b
    assert given["bias"] is inputs.bias
    assert given["dtype"] == torch.bfloat16
    assert out.out.shape == (3, 16)


@needs_cpu_only
def test_aiter_says_which_cases_it_does_not_take() -> None:
    k = kernel(aiter_hip, "aiter_hip/add_rmsnorm_quant", "add_rmsnorm_quant")
    case = Case("add_rmsnorm_quant", 4, 8192, "gaussian")
    assert k.contract == "aiter-hip-gfx950", "the documented default without an AMD GPU"
    assert k.unsupported(case) is None
    assert k.unsupported(dataclasses.replace(case, dtype="fp16", layout="3d", gemma=True, residual=False)) is None
    assert "at most 8192 elements, not 8194" in str(k.unsupported(dataclasses.replace(case, n=8194)))
    assert "even widths only, not 63" in str(k.unsupported(dataclasses.replace(case, n=63)))
    assert "no fp32 weight" in str(k.unsupported(dataclasses.replace(case, gamma="fp32")))
    assert "on gfx950 is e4m3fn, not e4m3fnuz" in str(k.unsupported(dataclasses.replace(case, fp8="e4m3fnuz")))
    unfused = kernel(aiter_hip, "aiter_hip/unfused", "add_rmsnorm_quant")
    assert "no 1 + weight" in str(unfused.unsupported(dataclasses.replace(case, gemma=True, residual=False)))
    gemm = kernel(aiter_hip, "aiter_hip/gemm_a8w8_bpreshuffle", "ptpc_gemm")
    assert "K % 64 == 0 and K >= 192, not N=16 K=128" in str(gemm.unsupported(Case("ptpc_gemm", 1, 16, "one", k=128)))
    ck = kernel(aiter_hip, "aiter_hip/gemm_a8w8_CK", "ptpc_gemm")
    assert ck.unsupported(Case("ptpc_gemm", 1, 16, "one", k=32)) is None
    assert "N=16 K=31" in str(ck.unsupported(Case("ptpc_gemm", 1, 16, "one", k=31)))


def _only(monkeypatch: pytest.MonkeyPatch, folder: Path, source: str | None) -> None:
    """Makes ``aiter`` the package in ``folder``, or absent."""
    monkeypatch.delitem(sys.modules, "aiter", raising=False)
    aiter_hip._import_failure.cache_clear()
    if source is not None:
        (folder / "aiter").mkdir()
        (folder / "aiter" / "__init__.py").write_text(source)
        monkeypatch.syspath_prepend(str(folder))
    importlib.invalidate_caches()


SENTENCES = {
    "raises": ("raise RuntimeError('ROCm version file not found')", "raised RuntimeError: ROCm version file not found"),
    "asyncio": ("async def map(f, it): ...", "is not AMD's but another library of that name"),
    "old": ("dtypes = object(); __version__ = '0.1.7'", "has no add_rmsnorm_quant"),
}


@pytest.mark.parametrize("what", list(SENTENCES))
def test_an_aiter_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, what: str) -> None:
    source, words = SENTENCES[what]
    _only(monkeypatch, tmp_path, source)
    k = kernel(aiter_hip, "aiter_hip/add_rmsnorm_quant", "add_rmsnorm_quant")
    reason = str(k.unavailable("cuda"))
    assert words in reason
    assert str(tmp_path / "aiter") in reason
    assert k.unavailable("cuda") == reason, "the second time as the first"
    assert k.unavailable("cpu") == "needs an AMD GPU; the device is cpu"
    sys.modules.pop("aiter", None)
    aiter_hip._import_failure.cache_clear()


def test_an_aiter_without_its_hip_functions_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _only(monkeypatch, tmp_path, SENTENCES["old"][0])
    monkeypatch.setenv("AITER_TRITON_ONLY", "1")
    k = kernel(aiter_hip, "aiter_hip/add_rmsnorm_quant", "add_rmsnorm_quant")
    assert "AITER_TRITON_ONLY is set, which leaves aiter's HIP functions out" in str(k.unavailable("cuda"))
    monkeypatch.setenv("AITER_TRITON_ONLY", "0")
    assert "is set" not in str(k.unavailable("cuda"))
    sys.modules.pop("aiter", None)
    aiter_hip._import_failure.cache_clear()


@needs_cpu_only
def test_no_aiter_and_no_amd_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if importlib.util.find_spec("aiter") is None:
        _only(monkeypatch, tmp_path, None)
        assert str(aiter_hip.kernels()[0].unavailable("cuda")).startswith("aiter is not installed (AMD's distribution")
        with pytest.raises(KernelError, match="aiter is not installed"):
            aiter_hip.kernels()[0].call(norm_inputs(), poisoned(norm_inputs()))
    _only(monkeypatch, tmp_path, "dtypes = object()\ndef add_rmsnorm_quant(): ...")
    assert "ROCm build of torch" in str(aiter_hip.kernels()[0].unavailable("cuda"))
    sys.modules.pop("aiter", None)


# ---- aiter Triton ---------------------------------------------------------------------------------


def _checkout(folder: Path, place: str, source: str) -> Path:
    path = folder / "aiter" / place
    path.parent.mkdir(parents=True)
    (folder / "aiter" / "__init__.py").write_text("raise RuntimeError('aiter itself must not be imported')")
    path.write_text(source)
    return path


@pytest.mark.parametrize("place", aiter_triton._PLACES)
@pytest.mark.parametrize("n", [64, 40_000])
def test_aiter_triton_launches_as_the_wrapper_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str, n: int
) -> None:
    path = _checkout(tmp_path, place, TRITON_FILE)
    monkeypatch.setenv(aiter_triton.PATH_VARIABLE, str(tmp_path))
    k = kernel(aiter_triton, "aiter_triton/add_rmsnorm_quant", "add_rmsnorm_quant")
    assert k.fake
    assert k.unavailable("cpu") is None
    assert k.versions()["aiter_triton_file"] == "/".join(path.parts[-3:])
    blocked = n > 32768
    for residual in (True, False):
        inputs = norm_inputs(m=4, n=n, layout="3d", residual=residual)
        out = k.call(inputs, poisoned(inputs))
        assert isinstance(out, NormQuantOutputs)
        assert_quantizes(out.codes, out.scale, exact_norm(inputs), FN)
        name, grid, values = aiter_triton.load(path).calls[-1]
        assert (name, grid) == ("with residual" if residual else "without residual", (4,))
        wanted = {"BLOCK_SIZE": 32768 if blocked else 64, "USE_BLOCKED": blocked, "NUM_PRGMS": 4, "DTYPE_MAX": 448.0}
        assert {key: values[key] for key in wanted} == wanted
        assert (values["input_row_stride"], values["n_rows"], values["n_cols"]) == (n, 4, n)
        assert (values["aux_ptr"] is not None) == blocked
    assert not any(name.split(".")[0] == "aiter" for name in sys.modules), "the hollow parents are gone"


def test_aiter_triton_resolves_helpers_beside_it_and_restores_aiter(
    aiter: FakeAiter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = "from ..utils.helper import TWO\nfrom aiter.ops.triton.utils import helper\n" + TRITON_FILE
    path = _checkout(tmp_path, "ops/triton/_triton_kernels/rmsnorm.py", source)
    (tmp_path / "aiter/ops/triton/utils").mkdir()
    (tmp_path / "aiter/ops/triton/utils/helper.py").write_text("TWO = 2")
    module = aiter_triton.load(path)
    assert (module.TWO, module.helper.TWO) == (2, 2)
    assert sys.modules["aiter"] is aiter
    assert "aiter.ops" not in sys.modules


def test_aiter_triton_refuses_what_it_does_not_know(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "kernel_with_news.py"
    path.write_text(TRITON_FILE.replace('"IS_SMOOTH", *LAST]', '"IS_SMOOTH", "PID_ORDER", *LAST]'))
    monkeypatch.setenv(aiter_triton.PATH_VARIABLE, str(path))
    k = kernel(aiter_triton, "aiter_triton/add_rmsnorm_quant", "add_rmsnorm_quant")
    with pytest.raises(KernelError, match="parameters that this adapter does not know: PID_ORDER"):
        k.call(norm_inputs(), poisoned(norm_inputs()))
    path = tmp_path / "broken.py"
    path.write_text("import a_module_that_is_not_there\ndef _quant_fused_add_rmsnorm_kernel(x): ...")
    with pytest.raises(KernelError, match=r"cannot be loaded: ModuleNotFoundError: .*a_module_that_is_not_there"):
        aiter_triton.load(path)
    case = Case("add_rmsnorm_quant", 4, 64, "gaussian")
    assert k.unsupported(case) is None
    assert "row stride of x" in str(k.unsupported(dataclasses.replace(case, layout="strided")))
    assert "no 1 + weight" in str(k.unsupported(dataclasses.replace(case, gemma=True)))


def test_aiter_triton_says_where_it_looked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def words() -> str:
        with pytest.raises(KernelError) as caught:
            aiter_triton.find_file()
        return str(caught.value)

    monkeypatch.setenv(aiter_triton.PATH_VARIABLE, str(tmp_path / "gone"))
    assert words().endswith("gone does not exist")
    monkeypatch.setenv(aiter_triton.PATH_VARIABLE, str(tmp_path))
    assert "holds no Triton file that defines _quant_fused_add_rmsnorm_kernel" in words()
    (tmp_path / "other.py").write_text("x = 1")
    monkeypatch.setenv(aiter_triton.PATH_VARIABLE, str(tmp_path / "other.py"))
    assert words().endswith("other.py has no _quant_fused_add_rmsnorm_kernel")
    monkeypatch.delenv(aiter_triton.PATH_VARIABLE)
    monkeypatch.setattr(aiter_triton, "_installed", list)
    assert "no aiter is installed" in words()


@needs_cpu_only
def test_triton_kernels_say_how_they_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(arch, "_find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    compiled, interpreted = triton_own.kernels()
    assert compiled.unavailable("cpu") == "needs a GPU; the device is cpu"
    assert interpreted.unavailable("cpu") == "triton is not installed"
    monkeypatch.setattr(arch, "_find_spec", lambda name: object())
    assert "set TRITON_INTERPRET=1 before the process starts" in str(interpreted.unavailable("cpu"))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert interpreted.unavailable("cpu") is None
    assert "on a CPU only" in str(interpreted.unavailable("cuda"))
    assert "would be interpreted" in str(arch.no_triton(interpreted=False))
    assert "at most 32768" in str(interpreted.unsupported(Case("add_rmsnorm_quant", 1, 32769, "gaussian")))


def test_the_own_triton_kernel_in_the_interpreter() -> None:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed, so its interpreter cannot run")
    script = (
        "from tests.support.adapter_inputs import *\n"
        "from validators.kernels import triton_own\n"
        "k = triton_own.kernels()[1]\n"
        "assert k.unavailable('cpu') is None\n"
        "for options in ({}, {'residual': False}, {'gemma': True}, {'layout': 'strided'}, {'gamma': torch.float32}):\n"
        "    inputs = norm_inputs(dtype=torch.float16, n=40, **options)\n"
        "    out = k.call(inputs, poisoned(inputs))\n"
        "    y = exact_norm(inputs)\n"
        "    scale = y.abs().amax(-1, keepdim=True) / 448\n"
        "    assert ((out.scale - scale).abs() <= scale * 2**-16).all(), options\n"
        # the interpreter drops FP8 carries, so single codes are not looked at
        "    assert (out.codes.double() != 0).double().mean() > 0.9, options\n"
        "    if inputs.residual is not None:\n"
        "        assert torch.equal(out.residual_out, inputs.x + inputs.residual)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert done.returncode == 0, done.stderr
