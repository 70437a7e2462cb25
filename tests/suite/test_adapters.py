"""Adapters of real kernels: call forms, layouts, outputs in place, and a sentence for every way of not being there.

aiter and vLLM are doubles here (tests/suite/fakes.py); torch and Inductor are the real ones, on small inputs.
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

from reference.contract import get_contract
from tests.suite.fakes import TRITON_FILE, FakeAiter, install_aiter, installed_vllm, norm, quantize, unshuffle
from validators.cases.case import Case
from validators.cases.tensors import (
    GemmInputs,
    GemmOutputs,
    NormQuantInputs,
    NormQuantOutputs,
    QuantInputs,
    QuantOutputs,
)
from validators.kernels import aiter_hip, aiter_triton, arch, inductor, torch_native, triton_own, vllm
from validators.kernels.base import Kernel, KernelError

FN, FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz
PROVIDERS = (torch_native, inductor, aiter_hip, aiter_triton, vllm, triton_own)
NO_BUFFERS = GemmOutputs(torch.empty(0))
needs_cpu_only = pytest.mark.skipif(torch.cuda.is_available(), reason="words the refusal of a machine without a GPU")


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.uint8)


def kernel(provider: object, name: str, op: str) -> Kernel:
    found = [k for k in provider.kernels() if k.name == name and k.op == op]  # type: ignore[attr-defined]
    assert len(found) == 1
    return found[0]


def norm_inputs(
    m: int = 8,
    n: int = 64,
    dtype: torch.dtype = torch.bfloat16,
    fp8: torch.dtype = FN,
    layout: str = "contiguous",
    residual: bool = True,
    gamma: torch.dtype | None = None,
    gemma: bool = False,
) -> NormQuantInputs:
    generator = torch.Generator().manual_seed(m * n)

    def tensor() -> torch.Tensor:
        wide = torch.randn((m, 2 * n if layout == "strided" else n), generator=generator).to(dtype)[:, :n]
        return wide.view(2, m // 2, n) if layout == "3d" else wide

    x, r = tensor(), tensor()
    weight = torch.randn(n, generator=generator) / 8 + (0.0 if gemma else 1.0)
    return NormQuantInputs(x, r if residual else None, weight.to(gamma or dtype), 1e-5, fp8, gemma)


def poisoned(inputs: NormQuantInputs) -> NormQuantOutputs:
    shape = inputs.x.shape
    return NormQuantOutputs(
        torch.full(shape, 0x7F, dtype=torch.uint8).view(inputs.fp8_dtype),
        torch.full((*shape[:-1], 1), float("nan")),
        None if inputs.residual is None else torch.full(shape, float("nan"), dtype=inputs.x.dtype),
    )


def gemm_inputs(m: int, n: int, k: int, fp8: torch.dtype = FN, bias: bool = False) -> GemmInputs:
    generator = torch.Generator().manual_seed(k)

    def values(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return GemmInputs(
        values(m, k).to(fp8),
        values(m, 1).abs() + 0.5,
        values(n, k).to(fp8),
        values(n, 1).abs() + 0.5,
        values(n).bfloat16() if bias else None,
        torch.bfloat16,
    )


def exact_norm(inputs: NormQuantInputs) -> torch.Tensor:
    """y in float64 from the sum as T stores it."""
    z = inputs.x.double()
    if inputs.residual is not None:
        z = (inputs.x.float() + inputs.residual.float()).to(inputs.x.dtype).double()
    weight = inputs.weight.double() + float(inputs.gemma)
    return z / torch.sqrt(z.square().mean(-1, keepdim=True) + inputs.eps) * weight


def assert_quantizes(codes: torch.Tensor, scale: torch.Tensor, y: torch.Tensor, fp8: torch.dtype) -> None:
    """Shapes and dtypes, the row maximum at ±Q, and every code within one step of e4m3 of y/scale."""
    qmax = torch.finfo(fp8).max
    assert (codes.dtype, codes.shape) == (fp8, y.shape)
    assert (scale.dtype, scale.shape) == (torch.float32, (*y.shape[:-1], 1))
    decoded, target = codes.double(), y / scale.double()
    assert torch.equal(decoded.abs().amax(-1), torch.full(y.shape[:-1], qmax, dtype=torch.float64))
    # one step is at most 2^-3 of a normal value, and at most 2^-9 below 2^-6
    assert bool(((decoded - target).abs() <= target.abs() / 8 + 2.0**-9).all())
    assert len(bits(codes).unique()) > 16, "the case is trivial"


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
        "for p in ('torch_native', 'inductor', 'aiter_hip', 'aiter_triton', 'vllm', 'triton_own', 'plugin'):\n"
        "    m = importlib.import_module(f'validators.kernels.{p}')\n"
        "    getattr(m, 'kernels', list)()\n"
        "loaded = {'aiter', 'vllm', 'triton', 'torch._inductor.compile_fx'} & set(sys.modules)\n"
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
    assert [arch.native_fp8(a) for a in names] == ["e4m3fnuz", "e4m3fn", "e4m3fn", "e4m3fn"]


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
    k = kernel(provider, "torch_native/eager" if provider is torch_native else "inductor/add_rmsnorm_quant",
               "add_rmsnorm_quant")  # fmt: skip
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
    if reason := k.unavailable("cpu"):
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


@pytest.mark.parametrize("fp8", [FN, FNUZ])
@pytest.mark.parametrize("name", ["torch_native/eager", "torch_native/scaled_mm"])
def test_cpu_gemms_take_scales_bias_and_odd_sizes(name: str, fp8: torch.dtype) -> None:
    k = kernel(torch_native, name, "ptpc_gemm")
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
        "from tests.suite.test_adapters import *\n"
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


# ---- vLLM -----------------------------------------------------------------------------------------

needs_no_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is not None, reason="the installed vLLM has registered these ops already"
)


@needs_no_vllm
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("layout", ["contiguous", "3d"])
def test_vllm_norm_leaves_its_inputs_alone(monkeypatch: pytest.MonkeyPatch, residual: bool, layout: str) -> None:
    with installed_vllm(monkeypatch):
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


@needs_no_vllm
def test_vllm_quantizer_and_gemm(monkeypatch: pytest.MonkeyPatch) -> None:
    with installed_vllm(monkeypatch):
        x = norm_inputs().x
        quant = kernel(vllm, "vllm/dynamic_per_token_scaled_fp8_quant", "per_token_quant")
        out = quant.call(QuantInputs(x, FN), NO_BUFFERS)
        assert isinstance(out, QuantOutputs)
        assert_quantizes(out.codes, out.scale, x.double(), FN)
        inputs = gemm_inputs(3, 32, 48, bias=True)
        gemm = kernel(vllm, "vllm/cutlass_scaled_mm", "ptpc_gemm")
        assert gemm.unavailable("cpu") is None
        product = gemm.call(inputs, NO_BUFFERS)
    assert isinstance(product, GemmOutputs)
    assert inputs.bias is not None
    wanted = (inputs.a.float() @ inputs.b.float().t()) * inputs.a_scale * inputs.b_scale.t() + inputs.bias.float()
    assert torch.equal(product.out, wanted.bfloat16())


@needs_no_vllm
@needs_cpu_only
def test_vllm_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    norm_kernel, quant, gemm = vllm.kernels()
    assert norm_kernel.unavailable("cpu") == "needs a GPU; the device is cpu"
    assert vllm.missing("cutlass_scaled_mm") == "vllm is not installed"
    with installed_vllm(monkeypatch, ops=("cutlass_scaled_mm",)):
        assert gemm.unavailable("cpu") is None
        assert "registers no torch.ops._C.rms_norm_dynamic" in str(norm_kernel.unavailable("cpu"))
        with pytest.raises(KernelError, match=r"registers no torch\.ops\._C\.dynamic_per_token"):
            quant.call(QuantInputs(norm_inputs().x, FN), NO_BUFFERS)
    monkeypatch.setitem(sys.modules, "vllm", type(sys)("vllm"))
    monkeypatch.setitem(sys.modules, "vllm._C", None)  # type: ignore[arg-type]
    assert "no extension of the vllm at" in str(vllm.missing("cutlass_scaled_mm"))
    case = Case("add_rmsnorm_quant", 4, 64, "gaussian")
    assert norm_kernel.unsupported(dataclasses.replace(case, layout="3d", dtype="fp16", residual=False)) is None
    for change in ({"layout": "strided"}, {"gamma": "fp32"}, {"gemma": True}, {"fp8": "e4m3fnuz"}):
        assert norm_kernel.unsupported(dataclasses.replace(case, **change))  # type: ignore[arg-type]
    assert gemm.unsupported(Case("ptpc_gemm", 1, 32, "one", k=32)) is None
    assert "not K=32 N=24" in str(gemm.unsupported(Case("ptpc_gemm", 1, 24, "one", k=32)))
