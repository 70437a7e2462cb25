"""Adapters that load another project's extension by path: vLLM and sglang-kernel.

The libraries are doubles (tests/support/fakes.py): text files that torch's loader, replaced for the test, registers
under the real schemas. The real ones run on a GPU only; docs/real-kernels.md has their records.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from tests.support.adapter_inputs import (
    FN,
    NO_BUFFERS,
    assert_quantizes,
    bits,
    gemm_inputs,
    kernel,
    needs_cpu_only,
    norm_inputs,
    poisoned,
)
from tests.support.fakes import norm, quantize, unpacked_wheel
from validators import arch
from validators.cases.case import Case
from validators.cases.tensors import GemmOutputs, NormQuantOutputs, QuantInputs, QuantOutputs
from validators.kernels import extension, sgl_kernel, vllm
from validators.kernels.kernel import Kernel, KernelError
from validators.records.record import Status
from validators.run import validate

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is not None for name in ("vllm", "sgl_kernel")),
    reason="an installed vLLM or sglang-kernel could have registered these ops already",
)

MODULES = {"vllm": vllm, "sgl_kernel": sgl_kernel}
QUANTIZERS = {"vllm": "vllm/dynamic_per_token_scaled_fp8_quant", "sgl_kernel": "sgl_kernel/sgl_per_token_quant_fp8"}
GEMMS = {"vllm": "vllm/cutlass_scaled_mm", "sgl_kernel": "sgl_kernel/fp8_scaled_mm"}


@pytest.fixture(autouse=True)
def _no_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VLLM_PATH", "SGL_KERNEL_PATH"):
        monkeypatch.delenv(name, raising=False)
    extension._load.cache_clear()


# ---- the calls ------------------------------------------------------------------------------------


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("layout", ["contiguous", "3d", "strided"])
def test_vllm_norm_leaves_its_inputs_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, residual: bool, layout: str
) -> None:
    with unpacked_wheel(monkeypatch, tmp_path, "vllm"):
        k = kernel(vllm, "vllm/rms_norm_dynamic_per_token_quant", "add_rmsnorm_quant")
        assert k.fake
        assert k.unavailable("cpu") is None
        inputs = norm_inputs(residual=residual, layout=layout)
        before = None if inputs.residual is None else inputs.residual.clone()
        out = k.call(inputs, poisoned(inputs))
    assert isinstance(out, NormQuantOutputs)
    z = inputs.x.float() if inputs.residual is None else inputs.x.float() + inputs.residual.float()
    codes, scale = quantize(norm(z, inputs.weight, inputs.eps, False))
    assert torch.equal(bits(out.codes), bits(codes))
    assert torch.equal(out.scale, scale)
    if before is not None:
        assert inputs.residual is not None
        assert out.residual_out is not None
        assert torch.equal(inputs.residual, before)
        assert torch.equal(out.residual_out, z.bfloat16())


@pytest.mark.parametrize("package", MODULES)
@pytest.mark.parametrize("layout", ["contiguous", "3d"])
def test_quantizers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str, layout: str) -> None:
    with unpacked_wheel(monkeypatch, tmp_path, package):
        x = norm_inputs(layout=layout).x
        quant = kernel(MODULES[package], QUANTIZERS[package], "per_token_quant")
        assert quant.fake
        out = quant.call(QuantInputs(x, FN), NO_BUFFERS)
    assert isinstance(out, QuantOutputs)
    assert out.codes.shape == x.shape
    assert_quantizes(out.codes, out.scale, x.double(), FN)


@pytest.mark.parametrize("package", MODULES)
@pytest.mark.parametrize("bias", [True, False])
def test_gemms(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str, bias: bool) -> None:
    with unpacked_wheel(monkeypatch, tmp_path, package):
        inputs = gemm_inputs(3, 32, 48, bias=bias)
        gemm = kernel(MODULES[package], GEMMS[package], "ptpc_gemm")
        assert gemm.unavailable("cpu") is None
        product = gemm.call(inputs, NO_BUFFERS)
    assert isinstance(product, GemmOutputs)
    wanted = (inputs.a.float() @ inputs.b.float().t()) * inputs.a_scale * inputs.b_scale.t()
    if inputs.bias is not None:
        wanted = wanted + inputs.bias.float()
    assert torch.equal(product.out, wanted.bfloat16())


def test_a_record_of_a_double_says_so_and_names_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with unpacked_wheel(monkeypatch, tmp_path, "vllm") as wheel:
        k = kernel(vllm, GEMMS["vllm"], "ptpc_gemm")
        record = validate(k, Case("ptpc_gemm", 4, 32, "one_hot_k", k=64), device="cpu")
        versions = record.provenance.kernel_versions
    assert record.fake
    assert versions["vllm"] == "9.9"
    assert versions["torch"] == torch.__version__
    assert versions[wheel.library.name].startswith("sha256 ")
    assert versions[wheel.library.name].endswith("built with CUDA 13")


def test_a_slimmed_library_says_what_it_was_slimmed_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with unpacked_wheel(monkeypatch, tmp_path, "sgl_kernel") as wheel:
        note = wheel.library.with_name(wheel.library.name + ".slim.json")
        note.write_text('{"arch": "sm_90", "bytes": 7, "sha256": "0123456789abcdef0123"}')
        known = extension.versions(sgl_kernel.LIBRARY)
    assert known["sglang-kernel"] == "9.9"
    assert known[wheel.library.name].endswith("slimmed for sm_90 from sha256 0123456789abcdef")


# ---- limits ---------------------------------------------------------------------------------------


def test_limits_of_vllm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    norm_kernel, quant, gemm = vllm.kernels()
    case = Case("add_rmsnorm_quant", 4, 64, "gaussian")
    assert norm_kernel.unsupported(dataclasses.replace(case, layout="3d", dtype="fp16", residual=False)) is None
    for change in ({"gamma": "fp32"}, {"gemma": True}, {"fp8": "e4m3fnuz"}):
        assert norm_kernel.unsupported(dataclasses.replace(case, **change))
    strided = dataclasses.replace(case, layout="strided")
    assert "takes contiguous input only (in this version of vLLM)" in str(norm_kernel.unsupported(strided))
    with unpacked_wheel(monkeypatch, tmp_path, "vllm"):
        # The double holds the message of the norm's newer check, not that of the quantizer's.
        assert norm_kernel.unsupported(strided) is None
        sliced = dataclasses.replace(case, layout="3dstrided")
        assert "no common stride, so it offers no slice of three dimensions" in str(norm_kernel.unsupported(sliced))
        assert "contiguous input only" in str(
            quant.unsupported(Case("per_token_quant", 4, 64, "one", layout="strided"))
        )
    assert gemm.unsupported(Case("ptpc_gemm", 1, 32, "one", k=32)) is None
    assert "in multiples of 16, not K=32 N=24" in str(gemm.unsupported(Case("ptpc_gemm", 1, 24, "one", k=32)))
    assert "in multiples of 16, not K=24 N=32" in str(gemm.unsupported(Case("ptpc_gemm", 1, 32, "one", k=24)))
    assert "rows of a and b as packed" in str(gemm.unsupported(Case("ptpc_gemm", 4, 32, "one", k=32, layout="strided")))
    assert "no rows (m = 0)" in str(gemm.unsupported(Case("ptpc_gemm", 0, 32, "one", k=32)))


def test_vllms_quantizer_declares_slices_of_three_dimensions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "holds", lambda library, text: text == b"last dimension of input must be contiguous")
    quant = vllm.kernels()[1]
    rows = Case("per_token_quant", 4, 64, "gaussian", layout="strided")
    assert quant.unsupported(rows) is None
    assert quant.unsupported(dataclasses.replace(rows, layout="3d")) is None
    assert str(quant.unsupported(dataclasses.replace(rows, layout="3dstrided"))) == (
        "dynamic_per_token_scaled_fp8_quant takes one row stride for all batches and does not check it, "
        "so it offers no slice of three dimensions"
    )


def test_limits_of_sgl_kernel() -> None:
    quant, gemm = sgl_kernel.kernels()
    rows = Case("per_token_quant", 4, 64, "gaussian")
    assert quant.unsupported(rows) is None
    assert quant.unsupported(dataclasses.replace(rows, layout="3d", n=68)) is None
    assert quant.unsupported(dataclasses.replace(rows, n=66)) == (
        "sgl_per_token_quant_fp8 wants N in multiples of 4, not N=66"
    )
    assert "contiguous" in str(quant.unsupported(dataclasses.replace(rows, layout="strided")))
    assert "takes e4m3fn, not e4m3fnuz" in str(quant.unsupported(dataclasses.replace(rows, fp8="e4m3fnuz")))
    case = Case("ptpc_gemm", 1, 8, "one", k=32)
    assert gemm.unsupported(case) is None
    assert "not K=32 N=12" in str(gemm.unsupported(dataclasses.replace(case, n=12)))
    assert "not K=40 N=8" in str(gemm.unsupported(dataclasses.replace(case, k=40)))
    assert "rows of a and b as packed" in str(gemm.unsupported(dataclasses.replace(case, layout="strided")))
    assert "no rows (m = 0)" in str(gemm.unsupported(dataclasses.replace(case, m=0)))
    assert "takes e4m3fn" in str(gemm.unsupported(dataclasses.replace(case, fp8="e4m3fnuz")))


def test_a_declared_limit_is_unsupported_with_its_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with unpacked_wheel(monkeypatch, tmp_path, "sgl_kernel"):
        k = kernel(sgl_kernel, QUANTIZERS["sgl_kernel"], "per_token_quant")
        record = validate(k, Case("per_token_quant", 4, 66, "gaussian"), device="cpu")
    assert record.status is Status.UNSUPPORTED
    assert record.reasons == ("sgl_per_token_quant_fp8 wants N in multiples of 4, not N=66",)


# ---- every way of not being there -----------------------------------------------------------------

VARIABLES = {"vllm": "VLLM_PATH", "sgl_kernel": "SGL_KERNEL_PATH"}
ONE_OP = {"vllm": "cutlass_scaled_mm", "sgl_kernel": "fp8_scaled_mm"}


@needs_cpu_only
@pytest.mark.parametrize("package", MODULES)
def test_without_a_gpu_and_without_a_library(package: str) -> None:
    module = MODULES[package]
    assert module.kernels()[0].unavailable("cpu") == "needs a GPU; the device is cpu"
    assert "sees no GPU" in str(module.kernels()[0].unavailable("cuda"))
    wanted = f"{package} is not installed, and {VARIABLES[package]} is not set"
    assert extension.missing(module.LIBRARY, ONE_OP[package]) == wanted
    assert not any(k.fake for k in module.kernels())


@pytest.mark.parametrize("package", MODULES)
def test_places_that_hold_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str) -> None:
    module, variable = MODULES[package], VARIABLES[package]
    monkeypatch.setenv(variable, str(tmp_path / "nowhere"))
    assert (
        extension.missing(module.LIBRARY, ONE_OP[package])
        == f"{variable} names {tmp_path / 'nowhere'}, which does not exist"
    )
    monkeypatch.setenv(variable, str(tmp_path))
    assert str(extension.missing(module.LIBRARY, ONE_OP[package])).startswith(
        f"{variable} names {tmp_path}, which holds no "
    )
    (tmp_path / "it.whl").write_bytes(b"PK")
    monkeypatch.setenv(variable, str(tmp_path / "it.whl"))
    assert "unpack it first: python -m zipfile -e" in str(extension.missing(module.LIBRARY, ONE_OP[package]))


@pytest.mark.parametrize("package", MODULES)
def test_a_library_that_does_not_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str) -> None:
    module = MODULES[package]
    path = tmp_path / "broken.abi3.so"
    path.write_bytes(b"\x7fELF and no more")
    monkeypatch.setenv(VARIABLES[package], str(path))
    reason = str(extension.missing(module.LIBRARY, ONE_OP[package]))
    assert reason.startswith(f"{path} cannot be loaded into torch {torch.__version__} with ")
    assert "\n" not in reason
    # An ELF file is no double, whatever it holds.
    assert not any(k.fake for k in module.kernels())


def test_a_library_of_another_torch_is_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = tmp_path / "other.so"
    other.write_text("text")
    with unpacked_wheel(monkeypatch, tmp_path / "wheel", "vllm"):
        monkeypatch.setenv("VLLM_PATH", str(other))
        reason = str(extension.missing(vllm.LIBRARY, "cutlass_scaled_mm"))
    assert "undefined symbol: _ZN3c105ErrorC2E; it was built for another torch" in reason


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("libcuda.so.1: cannot open shared object file: No such file or directory", "belongs to the driver of the GPU"),
        ("libcudart.so.12: cannot open shared object file: No such file or directory", "the CUDA that it was built"),
    ],
)
def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str, hint: str) -> None:
    def load(path: str) -> None:
        raise OSError(said)

    library = tmp_path / "real.so"
    library.write_bytes(b"\x7fELF")
    monkeypatch.setenv("VLLM_PATH", str(library))
    monkeypatch.setattr(torch.ops, "load_library", load)
    reason = str(extension.missing(vllm.LIBRARY, "cutlass_scaled_mm"))
    assert f"{said}; " in reason
    assert hint in reason.partition(said)[2]


@pytest.mark.parametrize("package", MODULES)
def test_an_op_that_this_version_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str) -> None:
    module = MODULES[package]
    op = ONE_OP[package]
    with unpacked_wheel(monkeypatch, tmp_path, package, ops=(op,)) as wheel:
        quant = kernel(module, QUANTIZERS[package], "per_token_quant")
        gemm = kernel(module, GEMMS[package], "ptpc_gemm")
        assert gemm.unavailable("cpu") is None
        reason = str(quant.unavailable("cpu"))
        assert reason.startswith(f"{wheel.library} ({package} 9.9) registers no torch.ops.")
        with pytest.raises(KernelError, match=r"registers no torch\.ops\."):
            quant.call(QuantInputs(norm_inputs().x, FN), NO_BUFFERS)


# ---- where a library is looked for ----------------------------------------------------------------


@pytest.mark.parametrize("package", MODULES)
def test_the_variable_names_the_wheel_the_package_or_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str
) -> None:
    library = MODULES[package].LIBRARY
    with unpacked_wheel(monkeypatch, tmp_path, package) as wheel:
        for place in (wheel.folder, wheel.folder / package, wheel.library):
            monkeypatch.setenv(VARIABLES[package], str(place))
            assert extension.find(library) == (wheel.library,)
            assert extension.versions(library)[library.distributions[0]] == "9.9"


def test_an_installed_package_is_found_and_not_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with unpacked_wheel(monkeypatch, tmp_path, "vllm") as wheel:
        (tmp_path / "vllm" / "__init__.py").write_text("raise SystemExit('the engine was imported')")
        monkeypatch.delenv("VLLM_PATH")
        monkeypatch.syspath_prepend(str(tmp_path))
        assert extension.find(vllm.LIBRARY) == (wheel.library,)
        assert extension.missing(vllm.LIBRARY, "cutlass_scaled_mm") is None
        assert extension.versions(vllm.LIBRARY)["vllm"] == "9.9"
        assert "vllm" not in sys.modules
        wheel.library.unlink()
        assert "the installed vllm at" in str(extension.find(vllm.LIBRARY))


@pytest.mark.parametrize(("architecture", "build"), [("sm_90", "sm90"), ("sm_100", "sm100"), (None, "sm100")])
def test_sgl_kernel_takes_the_build_that_the_package_takes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, architecture: str | None, build: str
) -> None:
    monkeypatch.setattr(arch, "nvidia_architecture", lambda: architecture)
    monkeypatch.setenv("SGL_KERNEL_PATH", str(tmp_path))
    for folder in ("sm90", "sm100"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "common_ops.abi3.so").write_text("")
    assert extension.find(sgl_kernel.LIBRARY) == (tmp_path / build / "common_ops.abi3.so",)
    contracts = {k.op: k.contract for k in sgl_kernel.kernels()}
    hopper = architecture == "sm_90"
    assert contracts == {
        "per_token_quant": "unfused" if hopper else None,
        "ptpc_gemm": "hopper-fast" if hopper else "unknown",
    }


def test_every_kernel_of_both_is_listed() -> None:
    listed: list[Kernel] = [*vllm.kernels(), *sgl_kernel.kernels()]
    assert sorted(k.name for k in listed) == sorted(
        [
            "vllm/rms_norm_dynamic_per_token_quant",
            *QUANTIZERS.values(),
            *GEMMS.values(),
        ]
    )
