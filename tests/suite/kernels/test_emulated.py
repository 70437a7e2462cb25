"""The emulated kernels, their legitimate variants, and the zoo: each defect is shown to change its kernel."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from reference.contract import GEMM_CONTRACTS, NORM_QUANT_CONTRACTS
from tests import zoo
from tests.support.variants import legitimate_variants
from validators.cases import tensors
from validators.cases.case import Case
from validators.cases.inputs import build
from validators.cases.recipe import ADD, QUANT
from validators.kernels import emulated, emulated_gemm
from validators.kernels.emulated_rounding import encode
from validators.kernels.emulated_variant import FP8_NAMES, EmulatedError, Variant

FORMATS = ("e4m3fn", "e4m3fnuz")
TORCH_FP8 = {name: dtype for dtype, name in FP8_NAMES.items()}
TORCH_T = {"bf16": torch.bfloat16, "fp16": torch.float16}
POISON = 0x55
GUARD = 16


# --- outputs ---------------------------------------------------------------------------------------------------


def guarded_buffer(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A poisoned tensor with GUARD bytes behind it, and the bytes of both."""
    size = math.prod(shape) * torch.empty((), dtype=dtype).element_size()
    memory = torch.full((size + GUARD,), POISON, dtype=torch.uint8)
    return memory[:size].view(dtype).view(shape), memory


def guarded_outputs(inputs: tensors.Inputs) -> tuple[tensors.Outputs, list[Tensor]]:
    if isinstance(inputs, tensors.GemmInputs):
        out, memory = guarded_buffer((len(inputs.a), len(inputs.b)), inputs.out_dtype)
        return tensors.GemmOutputs(out), [memory]
    if inputs.op not in (ADD, QUANT):
        made = {name: guarded_buffer(shape, torch.uint8) for name, (shape, _) in inputs.expected().items()}
        views = {name: made[name][0].view(dtype) for name, (_, dtype) in inputs.expected().items()}
        return inputs.outputs(views), [memory for _, memory in made.values()]
    shape = tuple(inputs.x.shape)
    codes, code_memory = guarded_buffer(shape, torch.uint8)
    scale, scale_memory = guarded_buffer((*shape[:-1], 1), torch.float32)
    codes = codes.view(inputs.fp8_dtype)
    if isinstance(inputs, tensors.QuantInputs):
        return tensors.QuantOutputs(codes, scale), [code_memory, scale_memory]
    if inputs.residual is None:
        return tensors.NormQuantOutputs(codes, scale), [code_memory, scale_memory]
    residual, residual_memory = guarded_buffer(shape, inputs.x.dtype)
    return tensors.NormQuantOutputs(codes, scale, residual), [code_memory, scale_memory, residual_memory]


def norm_inputs(x: Tensor, residual: Tensor | None = None, **changes: object) -> tensors.NormQuantInputs:
    generator = torch.Generator().manual_seed(7)
    weight = (1 + 0.1 * torch.randn(x.shape[-1], generator=generator)).to(x.dtype)
    return dataclasses.replace(tensors.NormQuantInputs(x, residual, weight, 1e-5, torch.float8_e4m3fn), **changes)  # type: ignore[arg-type]


def gaussian(m: int, n: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("op", ["add_rmsnorm_quant", "per_token_quant"])
@pytest.mark.parametrize("name", list(NORM_QUANT_CONTRACTS))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fp8", FORMATS)
def test_every_contract_gives_close_values_in_the_buffers(op: str, name: str, dtype: torch.dtype, fp8: str) -> None:
    """Half a step of E4M3 is at most 1/16 of a normal value, or half the smallest step; T rounding adds 2**-7."""
    x = gaussian(5, 96, dtype=dtype)
    inputs: tensors.Inputs
    if op == "per_token_quant":
        inputs, y = tensors.QuantInputs(x, TORCH_FP8[fp8]), x.double()
    else:
        r = gaussian(5, 96, 1, dtype)
        norm = norm_inputs(x, r, fp8_dtype=TORCH_FP8[fp8])
        inputs, z = norm, x.double() + r.double()
        y = z / (z.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight.double()
    kernel = next(k for k in emulated.kernels() if k.op == op and k.name == f"emulated/{name}")
    buffers, memories = guarded_outputs(inputs)
    out = kernel.call(inputs, buffers)
    assert isinstance(out, tensors.NormQuantOutputs | tensors.QuantOutputs)
    assert out is buffers
    assert all(memory[-GUARD:].eq(POISON).all() for memory in memories)
    value = emulated_gemm.decode(out.codes.view(torch.uint8), fp8).double() * out.scale.double()
    assert bool(((value - y).abs() <= y.abs() * (2**-4 + 2**-6) + out.scale * 2.0**-9).all())


@pytest.mark.parametrize("name", list(NORM_QUANT_CONTRACTS))
def test_layouts_and_the_first_layer_give_the_same_rows(name: str) -> None:
    kernel = emulated.make(NORM_QUANT_CONTRACTS[name])
    x, r = gaussian(6, 80), gaussian(6, 80, 1)
    plain = kernel(norm_inputs(x, r))
    strided = torch.full((6, 100), math.nan, dtype=x.dtype)
    strided[:, :80] = x
    for again in (
        kernel(norm_inputs(strided[:, :80], r)),
        kernel(norm_inputs(x.view(2, 3, 80), r.view(2, 3, 80))),
        kernel(norm_inputs(x, r, weight=norm_inputs(x).weight.float())),
    ):
        assert torch.equal(again.codes.view(torch.uint8).view(6, 80), plain.codes.view(torch.uint8))
        assert torch.equal(again.scale.view(6, 1), plain.scale)
    first = kernel(norm_inputs(x))
    assert isinstance(first, tensors.NormQuantOutputs)
    assert first.residual_out is None
    zero = kernel(norm_inputs(x, torch.zeros_like(x)))
    assert torch.equal(first.scale, zero.scale)


@pytest.mark.parametrize("name", list(NORM_QUANT_CONTRACTS))
def test_a_row_with_nan_stays_in_its_row(name: str) -> None:
    contract = NORM_QUANT_CONTRACTS[name]
    x = gaussian(4, 64)
    clean = emulated.make(contract)(norm_inputs(x, torch.zeros_like(x)))
    x[2, 5] = math.nan
    out = emulated.make(contract)(norm_inputs(x, torch.zeros_like(x)))
    others = [0, 1, 3]
    assert torch.equal(out.codes.view(torch.uint8)[others], clean.codes.view(torch.uint8)[others])
    if contract.nonfinite == "propagate":
        assert bool(out.scale[2].isnan())
        assert bool((out.codes.view(torch.uint8)[2] == 0x7F).all())


def test_zero_rows_follow_the_contract() -> None:
    x = torch.zeros(1, 64, dtype=torch.bfloat16)
    expected = {
        "aiter-hip-gfx950": np.float32(1e-10) * np.float32(1 / 448),
        "aiter-triton": np.float32(1),
        "vllm": np.float32(1) / np.float32(448 * 512),
        "eager": np.float32(1e-12) / np.float32(448),
    }
    for name, scale in expected.items():
        out = emulated.make(NORM_QUANT_CONTRACTS[name])(tensors.QuantInputs(x, torch.float8_e4m3fn))
        assert out.scale.item() == float(scale), name
        assert not bool(out.codes.view(torch.uint8).any())


def residual_bits(out: tensors.Outputs) -> Tensor:
    assert isinstance(out, tensors.NormQuantOutputs)
    assert out.residual_out is not None
    return out.residual_out.view(torch.int16)


# --- variants --------------------------------------------------------------------------------------------------

VARIANTS = [(name, variant) for name in NORM_QUANT_CONTRACTS for variant in legitimate_variants(name)]


def test_there_are_a_hundred_legitimate_variants_with_names_of_their_own() -> None:
    assert len(VARIANTS) >= 100
    assert len({(name, variant.name) for name, variant in VARIANTS}) == len(VARIANTS)


@pytest.mark.parametrize("name", list(NORM_QUANT_CONTRACTS))
def test_variants_move_few_codes_by_one_step(name: str) -> None:
    """Low bits of fp32 move a code only next to a rounding boundary: one element in 256 is far above what they can do,
    and far below what the mildest defect does (N03: 2 % of the codes)."""
    contract = NORM_QUANT_CONTRACTS[name]
    inputs = norm_inputs(gaussian(64, 1000), gaussian(64, 1000, 1))
    default = emulated.make(contract)(inputs)
    expected = default.codes.view(torch.uint8).int()
    # Rounding to T absorbs nearly all low bits, so that the variants are told apart without it.
    unrounded = contract.replace(round_after_normalize=False, round_after_weight=False, round_scale=False)
    scales = set()
    for variant in legitimate_variants(name):
        out = emulated.make(contract, variant)(inputs)
        moved = (out.codes.view(torch.uint8).int() - expected).abs()
        assert int(moved.max()) <= 1, variant.name
        assert int(moved.sum()) * 256 <= moved.numel(), variant.name
        assert torch.equal(residual_bits(out), residual_bits(default))
        scales.add(emulated.make(unrounded, variant)(inputs).scale.numpy().tobytes())
    assert len(scales) > len(legitimate_variants(name)) // 2, "most variants change nothing"


@pytest.mark.parametrize(("name", "variant"), [(n, v) for n, v in VARIANTS if v.order in ("chunks", "lanes")])
def test_variants_respect_the_declared_reduction(name: str, variant: Variant) -> None:
    reduction = NORM_QUANT_CONTRACTS[name].reduction
    for n in (1, 63, 769, 5120, 8192, 12288):
        chain = emulated.chain_length(NORM_QUANT_CONTRACTS[name], variant, n)
        partials = -(-n // chain)
        assert chain + math.ceil(math.log2(partials)) <= max(1, reduction.depth(n)) + 1
        assert chain <= reduction.count if reduction.kind == "serial" else partials >= min(n, reduction.count)


def test_illegal_variants_are_refused_in_one_sentence() -> None:
    for contract, variant in (
        ("vllm", Variant(product="weight_first")),
        ("aiter-hip-gfx950", Variant(rsqrt="ulp_up")),
        ("aiter-hip-gfx950", Variant(scale="up")),
        ("vllm", Variant(reciprocal="up")),
        ("eager", Variant(order="tree", fma=True)),
    ):
        with pytest.raises(EmulatedError, match=r"contract|order"):
            emulated.make(NORM_QUANT_CONTRACTS[contract], variant)


def test_inexact_reciprocals_leave_powers_of_two_alone() -> None:
    x = torch.full((1, 8), 448.0, dtype=torch.bfloat16)
    contract = NORM_QUANT_CONTRACTS["aiter-triton"]
    for direction in ("up", "down", "ulp_up", "ulp_down"):
        out = emulated.make(contract, Variant(reciprocal=direction))(tensors.QuantInputs(x, torch.float8_e4m3fn))
        assert out.scale.item() == 1.0
        assert bool((out.codes.view(torch.uint8) == 0x7E).all())


# --- gemm ------------------------------------------------------------------------------------------------------


def gemm_inputs(m: int = 33, n: int = 48, k: int = 160, dtype: torch.dtype = torch.bfloat16) -> tensors.GemmInputs:
    generator = torch.Generator().manual_seed(3)
    a = encode(torch.randn(m, k, generator=generator) * 30, "e4m3fn", "saturate").view(torch.float8_e4m3fn)
    b = encode(torch.randn(n, k, generator=generator) * 30, "e4m3fn", "saturate").view(torch.float8_e4m3fn)
    a_scale = torch.rand(m, 1, generator=generator) + 0.5
    b_scale = torch.rand(n, 1, generator=generator) + 0.5
    return tensors.GemmInputs(a, a_scale, b, b_scale, None, dtype)


def with_bias(inputs: tensors.GemmInputs) -> tensors.GemmInputs:
    bias = torch.randn(len(inputs.b), generator=torch.Generator().manual_seed(4)) * 1000
    return dataclasses.replace(inputs, bias=bias.to(inputs.out_dtype))


@pytest.mark.parametrize("name", emulated_gemm.EMULATED)
@pytest.mark.parametrize("order", ["token_first", "channel_first", "product_first"])
@pytest.mark.parametrize("serial", [False, True])
def test_gemm_is_within_the_error_of_its_accumulator(name: str, order: str, serial: bool) -> None:
    """fp32 in any order: K u S; two scale multiplies: 2u of the result, and one u for fl32(sa * sb)."""
    inputs = with_bias(gemm_inputs(dtype=torch.float32))
    a, b = (emulated_gemm.decode(t.view(torch.uint8), "e4m3fn").double() for t in (inputs.a, inputs.b))
    scales = inputs.a_scale.double() * inputs.b_scale.double().t()
    exact = (a @ b.t()) * scales + inputs.bias.double()  # type: ignore[union-attr]
    magnitude = (a.abs() @ b.abs().t()) * scales + inputs.bias.double().abs()  # type: ignore[union-attr]
    variant = emulated_gemm.GemmVariant(scale_order=order, serial=serial)  # type: ignore[arg-type]
    out = emulated_gemm.make(GEMM_CONTRACTS[name], variant)(inputs).out
    assert bool(((out.double() - exact).abs() <= (a.shape[1] + 4) * 2.0**-24 * magnitude).all())


def test_bias_after_the_store_rounds_twice() -> None:
    inputs = with_bias(gemm_inputs())
    contract = GEMM_CONTRACTS["fp32"]
    epilogue = emulated_gemm.make(contract)(inputs).out
    after = emulated_gemm.make(contract.replace(bias="after_store"))(inputs).out
    unbiased = emulated_gemm.make(contract)(dataclasses.replace(inputs, bias=None)).out
    assert torch.equal(after, (unbiased.float() + inputs.bias.float()).to(torch.bfloat16))  # type: ignore[union-attr]
    assert not torch.equal(after, epilogue)


def test_wrong_inputs_are_refused_in_one_sentence() -> None:
    with pytest.raises(EmulatedError, match="expected inputs of ptpc_gemm"):
        emulated_gemm.make(GEMM_CONTRACTS["fp32"])(tensors.QuantInputs(gaussian(1, 8), torch.float8_e4m3fn))
    with pytest.raises(EmulatedError, match="has no stage 'nope'"):
        emulated.execute(
            tensors.QuantInputs(gaussian(1, 8), torch.float8_e4m3fn),
            None,
            NORM_QUANT_CONTRACTS["vllm"],
            stages={"nope": lambda w: None},
        )
    with pytest.raises(EmulatedError, match="cannot quantize"):
        emulated.make(NORM_QUANT_CONTRACTS["vllm"])(tensors.QuantInputs(torch.ones(1, 8), torch.float8_e4m3fn))


# --- the zoo ---------------------------------------------------------------------------------------------------


def revealing_inputs(case: Case) -> tensors.Inputs:
    """Hand-made inputs with the idea of the case's recipe, so that the zoo is tested without the suite's recipes."""
    t, fp8, m, n = TORCH_T[case.dtype], TORCH_FP8[case.fp8], case.m, case.n
    if case.op == "ptpc_gemm":
        return revealing_gemm_inputs(case)
    if case.op not in (ADD, QUANT):
        return build(case)
    x = gaussian(m, n, dtype=t)
    rows = torch.arange(m)
    if case.recipe == "crest_ladder":
        x[rows, rows % n] = torch.exp2(rows % 8).to(t) * 8
    elif case.recipe == "spike_walk":
        x[rows, n - 1 - rows % n] = -64.0
    elif case.recipe == "energy_walk":
        x = torch.where(torch.arange(n) // 8 == (n - 1) // 8 - rows[:, None] % (n // 8), x * 64, x)
    elif case.recipe == "magnitude_ladder":
        x = (x.float() * torch.exp2(-rows % 24)[:, None]).to(t)
    elif case.recipe == "zero_rows":
        x[rows % 3 == 0] = 0.0
    elif case.recipe == "subnormal_codes":
        x[:, ::2] *= 2.0**-13
    elif case.recipe == "midpoints":
        finite = torch.arange(0x7F if case.fp8 == "e4m3fn" else 0x80, dtype=torch.uint8)
        grid = emulated_gemm.decode(finite, case.fp8)
        points = ((grid[1:] + grid[:-1]) / 2).to(t)
        x[:, : len(points)] = points
        x[:, len(points) :] = grid[-1].item()
    if case.op == "per_token_quant":
        return tensors.QuantInputs(x, fp8)
    residual = gaussian(m, n, 1, t) * (0.0 if case.recipe in ("magnitude_ladder", "zero_rows", "energy_walk") else 1.0)
    inputs = norm_inputs(x, residual, fp8_dtype=fp8)
    if case.recipe == "gaussian_gain":
        inputs = dataclasses.replace(inputs, weight=gaussian(1, n, 2, t)[0])
    if case.gamma == "fp32":
        inputs = dataclasses.replace(inputs, weight=inputs.weight.float() * (1 + 2.0**-12))
    if case.layout == "strided":
        gap = torch.full((m, n + 16), math.nan, dtype=t)
        gap[:, :n] = x
        inputs = dataclasses.replace(inputs, x=gap[:, :n])
    return inputs


def revealing_gemm_inputs(case: Case) -> tensors.GemmInputs:
    inputs = gemm_inputs(case.m, case.n, case.k, TORCH_T[case.dtype])
    if case.recipe == "nan_row":
        a = inputs.a.view(torch.uint8).clone()
        a[case.m // 2] = 0x7F
        inputs = dataclasses.replace(inputs, a=a.view(torch.float8_e4m3fn))
    if case.recipe == "positive_mean":
        a, b = (inputs.a.view(torch.uint8) & 0x7F, inputs.b.view(torch.uint8) & 0x7F)
        inputs = dataclasses.replace(inputs, a=a.view(torch.float8_e4m3fn), b=b.view(torch.float8_e4m3fn))
    if case.recipe == "cancellation":
        half = case.k // 2
        a, b = inputs.a.view(torch.uint8).clone(), inputs.b.view(torch.uint8).clone()
        a[:, half:], b[:, half:] = a[:, :half] ^ 0x80, b[:, :half]
        a[:, -1] = 0x38
        inputs = dataclasses.replace(inputs, a=a.view(torch.float8_e4m3fn), b=b.view(torch.float8_e4m3fn))
    if case.layout == "strided":
        gap = torch.full((case.n, case.k + 16), 0x7F, dtype=torch.uint8)
        gap[:, : case.k] = inputs.b.view(torch.uint8)
        inputs = dataclasses.replace(inputs, b=gap[:, : case.k].view(torch.float8_e4m3fn))
    return with_bias(inputs) if case.bias else inputs


def memory_of(inputs: tensors.Inputs) -> list[Tensor]:
    """Bytes of all input tensors, copied."""
    values = [getattr(inputs, f.name) for f in dataclasses.fields(inputs)]
    return [t.contiguous().view(torch.uint8).clone() for t in values if isinstance(t, Tensor)]


def observed(kernel: zoo.Kernel, inputs: tensors.Inputs) -> list[Tensor]:
    """Everything that a harness can see: outputs and guards of two runs, and the inputs afterwards."""
    seen = []
    for _ in range(2):
        buffers, memories = guarded_outputs(inputs)
        kernel.call(inputs, buffers)
        seen += memories
    return seen + memory_of(inputs)


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


DEFECTS = zoo.all_defects()


def test_the_catalogue_is_complete() -> None:
    expected = [f"N{i:02}" for i in range(1, 23)] + [f"Q{i:02}" for i in range(1, 24)]
    expected += [f"G{i:02}" for i in range(1, 22)] + ["XG7"] + [f"S{i:02}" for i in range(1, 9)]
    assert [defect.id for defect in DEFECTS] == expected
    assert len({defect.name for defect in DEFECTS}) == len(DEFECTS)


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda d: f"{d.id}-{d.name}")
def test_every_defect_changes_what_its_kernel_does(defect: zoo.Defect) -> None:
    assert defect.kernel.in_place
    assert defect.summary.endswith(".")
    for text in defect.reveals:
        case = Case.parse(text)
        expected = observed(zoo.clean_kernel(case.op), revealing_inputs(case))
        seen = observed(zoo.find_defect(defect.id).kernel, revealing_inputs(case))
        assert not same(seen, expected), f"{text} does not reveal {defect.id}"


@pytest.mark.parametrize("text", sorted({text for defect in DEFECTS for text in defect.reveals}))
def test_the_cases_that_reveal_a_defect_do(text: str) -> None:
    case = Case.parse(text)
    expected = observed(zoo.clean_kernel(case.op), build(case))
    for defect in DEFECTS:
        if text in defect.reveals:
            fresh = zoo.find_defect(defect.id).kernel
            assert not same(observed(fresh, build(case)), expected), f"{text} does not reveal {defect.id}"


def test_the_order_by_coin_differs_between_two_runs() -> None:
    defect = zoo.find_defect("G21")
    inputs = revealing_inputs(Case.parse(defect.reveals[0]))
    first, second, *_ = observed(defect.kernel, inputs)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda d: f"{d.id}-{d.name}")
def test_defects_stay_within_three_bytes_of_their_buffers(defect: zoo.Defect) -> None:
    inputs = revealing_inputs(Case.parse(defect.reveals[0]))
    buffers, memories = guarded_outputs(inputs)
    defect.kernel.call(inputs, buffers)
    for memory in memories:
        guard = memory[-GUARD:]
        assert bool((guard[3:] == POISON).all())
        assert defect.id == "Q21" or bool((guard == POISON).all())


BEHIND = [(g, i) for g in zoo.GUARDS if g != "one block" for i in ("N01", "N13", "Q12", "G03", "G07")]


@pytest.mark.parametrize(("guard", "identity"), [(g, i) for g, i in BEHIND if g != "k%128" or i.startswith("G")])
def test_a_guarded_defect_shows_only_behind_its_guard(guard: str, identity: str) -> None:
    defect = zoo.guarded(zoo.find_defect(identity), guard)
    case = Case.parse(defect.reveals[0])
    elsewhere = case if guard == "second call" else dataclasses.replace(case, m=64, n=64)
    if guard == "k%128":
        elsewhere = dataclasses.replace(case, k=256)
    clean = zoo.clean_kernel(defect.op)

    def outputs(kernel: zoo.Kernel, inputs: tensors.Inputs) -> list[Tensor]:
        buffers, memories = guarded_outputs(inputs)
        kernel.call(inputs, buffers)
        return memories

    hidden = revealing_inputs(elsewhere)
    assert same(outputs(defect.kernel, hidden), outputs(clean, hidden))
    shown = revealing_inputs(case)
    assert not same(outputs(defect.kernel, shown), outputs(clean, shown))


@pytest.mark.parametrize("identity", ["N01", "Q01", "G03", "G12"])
def test_a_defect_in_one_block_leaves_the_other_columns_clean(identity: str) -> None:
    defect = zoo.guarded(zoo.find_defect(identity), "one block")
    inputs = revealing_inputs(Case.parse(defect.reveals[0]))
    found = []
    for kernel in (defect.kernel, zoo.clean_kernel(defect.op)):
        buffers, _ = guarded_outputs(inputs)
        found.append(kernel.call(inputs, buffers))
    differing = set()
    for field in dataclasses.fields(found[0]):
        one, other = (getattr(outputs, field.name) for outputs in found)
        if one is not None:
            bits = [tensors.as_ints(v) for v in (one, other)]
            columns = (bits[0] != bits[1]).reshape(-1, one.shape[-1]).any(0).nonzero().flatten().tolist()
            first = zoo.BLOCK if one.shape[-1] > zoo.BLOCK else 0
            assert all(first <= column < first + zoo.BLOCK for column in columns)
            differing.update(columns)
    assert differing


def test_unknown_defects_and_guards_are_refused() -> None:
    with pytest.raises(zoo.ZooError, match="belongs to ptpc_gemm"):
        zoo.guarded(zoo.find_defect("N01"), "k%128")
    with pytest.raises(zoo.ZooError, match="unknown defect 'N99'"):
        zoo.find_defect("N99")
    with pytest.raises(zoo.ZooError, match="unknown guard 'tuesday'"):
        zoo.guarded(DEFECTS[0], "tuesday")
