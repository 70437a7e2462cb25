"""Adapters of real kernels: call forms, layouts, and a sentence for every way of not being there.

torch and Inductor are the real ones, on small inputs. Those of aiter and of Triton are in test_adapters_aiter.py,
those of vLLM and sglang-kernel in test_extensions.py.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import torch

from reference.contract import get_contract
from tests.support.adapter_inputs import (
    FN,
    FNUZ,
    NO_BUFFERS,
    assert_quantizes,
    exact_norm,
    kernel,
    needs_cpu_only,
    norm_inputs,
    poisoned,
)
from validators import arch
from validators.cases.case import Case
from validators.cases.tensors import (
    GemmInputs,
    GemmOutputs,
    NormQuantOutputs,
    QuantInputs,
    QuantOutputs,
)
from validators.kernels import aiter_hip, aiter_triton, inductor, sgl_kernel, torch_native, triton_own, vllm
from validators.records.record import Status
from validators.run import validate
from validators.words import native_fp8

PROVIDERS = (torch_native, inductor, aiter_hip, aiter_triton, vllm, sgl_kernel, triton_own)


# ---- the list -------------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", PROVIDERS)
def test_kernels_are_named_after_their_provider_and_declare_known_contracts(provider: object) -> None:
    kernels = provider.kernels()  # type: ignore[attr-defined]
    assert len({(k.name, k.op) for k in kernels}) == len(kernels) > 0
    for k in kernels:
        assert "/" in k.name
        if k.contract is not None:
            assert get_contract(k.op, k.contract).name == k.contract
        assert k.versions()["torch"] == torch.__version__
        assert not k.fake
        assert not k.emulated


def test_listing_kernels_imports_no_library() -> None:
    script = (
        "import importlib, sys\n"
        "for p in ('torch_native', 'inductor', 'aiter_hip', 'aiter_triton', 'vllm', 'sgl_kernel', 'triton_own',\n"
        "          'plugin'):\n"
        "    m = importlib.import_module(f'validators.kernels.{p}')\n"
        "    getattr(m, 'kernels', list)()\n"
        "loaded = {'aiter', 'vllm', 'sgl_kernel', 'triton', 'torch._inductor.compile_fx'} & set(sys.modules)\n"
        "sys.exit(' '.join(sorted(loaded)) or None)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---- arch -----------------------------------------------------------------------------------------


def test_architecture_names_the_cpu_and_refuses_unknown_devices() -> None:
    assert arch.architecture("cpu") == "cpu"
    with pytest.raises(arch.ArchError, match="unknown device 'tpu'; known: cpu, cuda, cuda:INDEX"):
        arch.architecture("tpu")


@needs_cpu_only
def test_a_gpu_that_does_not_exist_is_a_sentence() -> None:
    with pytest.raises(arch.ArchError, match=r"device 'cuda:3' does not exist here: torch .* sees no GPU"):
        arch.architecture("cuda:3")
    assert arch.no_gpu("cpu") == "needs a GPU; the device is cpu"
    assert "sees no GPU" in str(arch.no_gpu("cuda"))
    assert arch.rocm_architecture() is None


def test_an_amd_architecture_is_read_without_its_feature_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = type("Properties", (), {"gcnArchName": "gfx942:sramecc+:xnack-", "major": 9, "minor": 4})()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert arch.architecture("cuda") == "gfx942"
    assert arch.rocm_architecture() == "gfx942"
    with pytest.raises(arch.ArchError, match=r"torch sees 1 GPU\(s\)"):
        arch.architecture("cuda:1")
    contracts = {k.name: k.contract for k in aiter_hip.kernels()}
    assert contracts["aiter_hip/add_rmsnorm_quant"] == "aiter-hip-gfx942"
    assert contracts["aiter_hip/unfused"] is None
    monkeypatch.setattr(torch.version, "hip", None)
    assert arch.architecture("cuda") == "sm_94"


def test_native_formats() -> None:
    names = ("gfx942", "gfx950", "sm_90", "cpu")
    assert [native_fp8(a) for a in names] == ["e4m3fnuz", "e4m3fn", "e4m3fn", "e4m3fn"]


# ---- torch and Inductor, for real -----------------------------------------------------------------

VARIANTS = [
    {},
    {"fp8": FNUZ},
    {"dtype": torch.float16},
    {"residual": False},
    {"gamma": torch.float32},
    {"gemma": True},
    {"layout": "3d"},
    {"layout": "strided"},
    {"m": 1, "n": 33},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("provider", [torch_native, inductor])
def test_fused_forms_quantize_the_norm(provider: object, options: dict[str, object]) -> None:
    k = kernel(
        provider,
        "torch_native/eager" if provider is torch_native else "inductor/add_rmsnorm_quant",
        "add_rmsnorm_quant",
    )
    if reason := k.unavailable("cpu"):
        pytest.skip(reason)
    inputs = norm_inputs(**options)  # type: ignore[arg-type]
    before = inputs.x.clone()
    out = k.call(inputs, poisoned(inputs))
    assert isinstance(out, NormQuantOutputs)
    assert_quantizes(out.codes, out.scale, exact_norm(inputs), inputs.fp8_dtype)
    assert torch.equal(inputs.x, before)
    if inputs.residual is None:
        assert out.residual_out is None
    else:
        assert out.residual_out is not None
        assert torch.equal(out.residual_out, (inputs.x.float() + inputs.residual.float()).to(inputs.x.dtype))


@pytest.mark.parametrize("provider", [torch_native, inductor])
def test_per_token_quantizers(provider: object) -> None:
    k = [k for k in provider.kernels() if k.op == "per_token_quant"][0]  # type: ignore[attr-defined]  # noqa: RUF015
    if reason := k.unavailable("cpu"):
        pytest.skip(reason)
    x = norm_inputs().x
    out = k.call(QuantInputs(x, FN), NO_BUFFERS)
    assert isinstance(out, QuantOutputs)
    assert_quantizes(out.codes, out.scale, x.double(), FN)
    broken = x.clone()
    broken[1, 3] = float("nan")
    out = k.call(QuantInputs(broken, FN), NO_BUFFERS)
    assert isinstance(out, QuantOutputs)
    assert out.scale.isnan()[:, 0].tolist() == [row == 1 for row in range(len(x))], "contract: NaN fills its row only"
    assert bool(out.codes[1].float().isnan().all())


def test_inductor_is_told_its_vector_width_so_that_its_cache_knows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    options: list[dict[str, object]] = []

    def compile_nothing(function: object, **given: object) -> object:
        options.append(dict(given["options"] or {}))  # type: ignore[call-overload]
        return function

    monkeypatch.setattr(torch, "compile", compile_nothing)
    inductor._compiled.cache_clear()
    widths = []
    for capability in ("default", "avx2"):
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", capability)
        widths.append(inductor._vector_bits())
        inductor._compiled(inductor._per_token, ("cpu", capability), True, False)
    inductor._compiled(inductor._per_token, ("cuda",), True, False)
    inductor._compiled.cache_clear()
    assert [chosen.get("cpp.simdlen") for chosen in options] == [*widths, None]
    assert widths[0] == 0


def test_inductor_compiles_and_never_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, object, object]] = []

    def compile_(function: object, **options: object) -> object:
        asked.append((function.__name__, options["dynamic"], options["fullgraph"]))  # type: ignore[attr-defined]
        return function

    monkeypatch.setattr(torch, "compile", compile_)
    inductor._compiled.cache_clear()
    try:
        k = kernel(inductor, "inductor/add_rmsnorm_quant", "add_rmsnorm_quant")
        for inputs in (norm_inputs(), norm_inputs(n=48), norm_inputs(fp8=FNUZ)):
            k.call(inputs, poisoned(inputs))
    finally:
        inductor._compiled.cache_clear()
    assert len(asked) == 2, "one function a combination of types, whatever the shape"
    assert asked[0][0] != asked[1][0]
    assert {options[1:] for options in asked} == {(True, True)}


def test_strict_casts_keep_the_rounding_of_the_stored_sum_with_strided_rows() -> None:
    k = kernel(inductor, "inductor/add_rmsnorm_quant", "add_rmsnorm_quant")
    case = Case("add_rmsnorm_quant", 8, 40, "gaussian", layout="strided")
    if reason := k.unavailable("cpu") or k.unsupported(case):
        pytest.skip(reason)
    inputs = norm_inputs(layout="strided")
    out = k.call(inputs, poisoned(inputs))
    assert isinstance(out, NormQuantOutputs)
    assert inputs.residual is not None
    weight = inputs.weight.double()

    def scale(z: torch.Tensor) -> torch.Tensor:
        """The scale if the mean of squares is that of ``z``."""
        rms = torch.sqrt(z.double().square().mean(-1, keepdim=True) + inputs.eps)
        return (stored.double() / rms * weight).abs().amax(-1, keepdim=True) / 448

    unrounded = inputs.x.float() + inputs.residual.float()
    stored = unrounded.bfloat16()
    far = (out.scale.double() - scale(unrounded)).abs()
    near = (out.scale.double() - scale(stored)).abs()
    # single rows can agree by chance; over all rows the two readings are thousands of fp32 roundings apart
    assert near.max() < far.max() / 100


def test_inductors_default_options_skip_the_rounding_of_the_stored_sum_and_fail() -> None:
    k = inductor.default_options()
    case = Case("add_rmsnorm_quant", 8, 40, "gaussian", layout="strided")
    if reason := k.unavailable("cpu") or k.unsupported(case):
        pytest.skip(reason)
    record = validate(k, case)
    assert record.status is Status.FAILED
    assert record.reasons[0].startswith("scale: 8 of 8 rows outside their admissible set (100 %)")


@pytest.mark.parametrize("fp8", [FN, FNUZ])
@pytest.mark.parametrize("name", ["torch_native/eager", "torch_native/scaled_mm"])
def test_cpu_gemms_take_scales_bias_and_odd_sizes(name: str, fp8: torch.dtype) -> None:
    k = kernel(torch_native, name, "ptpc_gemm")
    if reason := k.unavailable("cpu"):
        pytest.skip(reason)
    assert k.contract == {"torch_native/eager": "fp32", "torch_native/scaled_mm": "dequantized-fp32"}[name]
    # Small integers and power-of-two scales: every fp32 accumulation in any order gives these bits.
    a = torch.arange(3 * 7).view(3, 7) % 5 - 2.0
    b = torch.arange(5 * 7).view(5, 7) % 3 - 1.0
    scales = torch.tensor([[1.0], [0.5], [4.0]]), torch.tensor([[2.0], [1.0], [0.25], [8.0], [0.5]])
    bias = torch.tensor([1.0, -2.0, 0.5, 64.0, 0.0]).bfloat16()
    inputs = GemmInputs(a.to(fp8), scales[0], b.to(fp8), scales[1], bias, torch.bfloat16)
    expected = ((a @ b.t()) * scales[0] * scales[1].t() + bias.float()).bfloat16()
    assert expected.count_nonzero() > 8
    for given, wanted in ((inputs, expected), (dataclasses.replace(inputs, bias=None), expected - bias)):
        out = k.call(given, NO_BUFFERS)
        assert isinstance(out, GemmOutputs)
        assert torch.equal(out.out, wanted)


def test_gpu_gemms_say_what_they_do_not_take() -> None:
    contracts = {"hopper": "hopper-promote128", "hopper_fast": "hopper-fast", "gpu": "unknown"}
    for name, contract in contracts.items():
        k = kernel(torch_native, f"torch_native/scaled_mm_{name}", "ptpc_gemm")
        assert k.contract == contract
        assert "the device is cpu" in str(k.unavailable("cpu"))
        case = Case("ptpc_gemm", 4, 32, "gaussian", k=64)
        assert k.unsupported(case) is None
        assert "multiples of 16, not K=63" in str(k.unsupported(dataclasses.replace(case, k=63)))
        assert "stores bf16 only, not fp16" in str(k.unsupported(dataclasses.replace(case, dtype="fp16")))
        assert "not e4m3fnuz" in str(k.unsupported(dataclasses.replace(case, fp8="e4m3fnuz")))
    cpu = kernel(torch_native, "torch_native/scaled_mm", "ptpc_gemm")
    assert "torch_native/scaled_mm_hopper and scaled_mm_gpu are the GPU's" in str(cpu.unavailable("cuda"))
