"""Inputs: every recipe builds, the same bits however they are made, layouts and options."""

from __future__ import annotations

import pytest
import torch

from tests.support.case_inputs import ADD, QUANT, case_of, decode, gemm_case, norm_case
from validators.cases import inputs
from validators.cases.case import Case, CaseError
from validators.cases.generator import GAUSSIAN_MAX
from validators.cases.inputs import build, describe, digest
from validators.cases.layout import batch_of, matrix
from validators.cases.recipes import lane_of, reasons_impossible, recipe_names
from validators.cases.situations import EVERY
from validators.cases.tensors import GemmInputs, Inputs, NormQuantInputs, QuantInputs
from validators.words import DTYPES, FP8_FORMATS, OPS


def tensors(built: Inputs) -> list[torch.Tensor]:
    return [value for value in vars(built).values() if isinstance(value, torch.Tensor)]


EACH = [
    (op, name, dtype, fp8)
    for op in OPS
    for name in recipe_names(op)
    for dtype in DTYPES
    for fp8 in FP8_FORMATS
    if reasons_impossible(case_of(op, name, dtype=dtype, fp8=fp8)) is None
]


@pytest.mark.parametrize(("op", "name", "dtype", "fp8"), EACH)
def test_every_recipe_builds(op: str, name: str, dtype: str, fp8: str) -> None:
    case = case_of(op, name, dtype=dtype, fp8=fp8)
    built = build(case)
    if name.startswith(EVERY):
        # Its rows promise what their recipes do: tests/suite/cases/test_situations.py holds them against those.
        assert case.recipe in describe(case)
        return
    stored = {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    if isinstance(built, GemmInputs):
        assert built.a.shape == (24, 200)
        assert built.b.shape == (72, 200)
        assert built.a.dtype == built.b.dtype
        assert str(built.a.dtype) == f"torch.float8_{fp8}"
        assert built.out_dtype == stored
        assert built.bias is None
        for scale, rows in ((built.a_scale, 24), (built.b_scale, 72)):
            assert scale.shape == (rows, 1)
            assert scale.dtype == torch.float32
            assert bool((scale > 0).all() & scale.isfinite().all())
            assert bool((scale[1:] != scale[:-1]).all())
            mantissa = torch.frexp(scale.double()).mantissa
            if name == "odd_scales":  # exact without powers of two alone: at most 3 bits each
                assert not bool((mantissa == 0.5).all())
                assert bool((mantissa * 8 == (mantissa * 8).round()).all())
            else:
                assert bool(((mantissa == 0.5) == (lane_of(case) == "exact")).all())
        values_a, values_b = decode(built.a, fp8), decode(built.b, fp8)
        assert bool(values_b.isfinite().all())
        assert values_a.isnan().any(1).sum().item() == (1 if name == "nan_row" else 0)
        out = values_a.nan_to_num() @ values_b.T * built.a_scale.double() * built.b_scale.double().T
        assert out.abs().max().item() < torch.finfo(stored).max
        return
    assert built.leading.shape == (24, 72)
    assert built.leading.dtype == stored
    sums = built.leading.float()
    if isinstance(built, NormQuantInputs):
        assert built.residual is not None
        assert built.weight.shape == (72,)
        assert built.weight.dtype == stored
        assert bool(built.weight.isfinite().all())
        assert built.eps == 1e-5
        assert not torch.equal(built.x, built.residual) or name in ("midpoints", "subnormal_codes")
        sums = sums + built.residual.float()
    if name != "nonfinite":
        assert bool(sums.to(stored).isfinite().all())
    assert case.recipe in describe(case)


# Same bits ---------------------------------------------------------------------------------------

PINNED = {
    "add_rmsnorm_quant-m8-n130-bf16-e4m3fn-gaussian-s0": "319d988dfd7435ce",
    "add_rmsnorm_quant-m8-n130-fp16-e4m3fnuz-double_rounding-s1": "9fc5b002d3261697",
    "add_rmsnorm_quant-m7-n65-bf16-e4m3fn-gaussian_gain-gammafp32-strided-s0": "9d8ec921adb2e6eb",
    "per_token_quant-m8-n130-bf16-e4m3fn-midpoints-s0": "3593c6550b66441a",
    "per_token_quant-m8-n130-bf16-e4m3fn-nonfinite-s0": "9e57aa7c90ef0022",
    "ptpc_gemm-m8-n20-k72-bf16-e4m3fn-gaussian-bias-s0": "ca4546f38aef14a2",
    "ptpc_gemm-m8-n20-k72-fp16-e4m3fnuz-small_integers-s2": "378ede32294003f7",
}


@pytest.mark.parametrize(("case_id", "expected"), PINNED.items())
def test_known_inputs_do_not_change(case_id: str, expected: str) -> None:
    assert digest(build(Case.parse(case_id)))[:16] == expected


@pytest.mark.parametrize("op", OPS)
def test_chunks_equal_whole(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in recipe_names(op):
        case = case_of(op, name, 23, 70)
        whole = digest(build(case))
        monkeypatch.setattr(inputs, "CHUNK", 3 * 70)
        assert digest(build(case)) == whole, name
        monkeypatch.undo()


@pytest.mark.parametrize("op", OPS)
def test_global_state_of_torch_is_neither_read_nor_moved(op: str) -> None:
    for name in recipe_names(op):
        case = case_of(op, name)
        torch.manual_seed(1)
        before = torch.get_rng_state()
        first = digest(build(case))
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(2)
        torch.set_default_dtype(torch.bfloat16)
        try:
            assert digest(build(case)) == first, name
        finally:
            torch.set_default_dtype(torch.float32)


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="compares a GPU's bits with the CPU's; this machine has no GPU"
)
@pytest.mark.parametrize("op", OPS)
def test_devices_agree(op: str) -> None:
    for name in recipe_names(op):
        case = case_of(op, name)
        assert digest(build(case, "cuda")) == digest(build(case)), name


def test_a_tensor_of_a_new_name_has_a_gap_between_rows_too() -> None:
    case = case_of(QUANT, "gaussian", layout="strided")
    named, other = (matrix(case, name, 4, 40, torch.bfloat16, "cpu") for name in ("x", "codes"))
    assert named.stride() == other.stride() == (40 + 64, 1)


def test_seed_and_fields_change_the_bits() -> None:
    digests = {digest(build(case_of(QUANT, "gaussian", seed=seed, fp8=fp8))) for seed in (0, 1) for fp8 in FP8_FORMATS}
    assert len(digests) == 4


def test_digest_sees_values_types_shapes_and_options_but_not_strides() -> None:
    x = torch.arange(12, dtype=torch.bfloat16).view(3, 4)
    base = QuantInputs(x, torch.float8_e4m3fn)
    wide = torch.full((3, 7), float("nan"), dtype=torch.bfloat16)
    wide[:, :4] = x
    assert digest(QuantInputs(wide[:, :4], torch.float8_e4m3fn)) == digest(base)
    changed = x.clone()
    changed[2, 3] = 11.0625
    others = [
        QuantInputs(changed, torch.float8_e4m3fn),
        QuantInputs(x.view(4, 3), torch.float8_e4m3fn),
        QuantInputs(x.view(1, 3, 4), torch.float8_e4m3fn),
        QuantInputs(x.to(torch.float16), torch.float8_e4m3fn),
        QuantInputs(x, torch.float8_e4m3fnuz),
    ]
    assert len({digest(base), *map(digest, others)}) == 1 + len(others)


# Layouts and options -----------------------------------------------------------------------------


@pytest.mark.parametrize("n", [64, 769])
def test_strided_rows_are_apart_and_the_gap_is_nan(n: int) -> None:
    built = norm_case("gaussian", 6, n, layout="strided")
    assert built.residual is not None
    assert built.x.stride(0) != built.residual.stride(0)
    for tensor in (built.x, built.residual):
        stride = tensor.stride(0)
        assert tensor.stride(1) == 1
        assert stride > n
        assert stride * tensor.element_size() % 16 == 0
        everything = tensor.as_strided((6, stride), (stride, 1))
        assert bool(everything[:, n:].isnan().all())
        assert bool(everything[:, :n].isfinite().all())


@pytest.mark.parametrize("fp8", FP8_FORMATS)
def test_strided_operands_are_apart_and_the_gap_is_nan(fp8: str) -> None:
    built = gemm_case("gaussian", 6, 10, 50, layout="strided", fp8=fp8)
    assert built.a.stride(0) != built.b.stride(0)
    for tensor, rows in ((built.a, 6), (built.b, 10)):
        stride = tensor.stride(0)
        everything = decode(tensor.view(torch.uint8).as_strided((rows, stride), (stride, 1)), fp8)
        assert bool(everything[:, 50:].isnan().all())
        assert bool(everything[:, :50].isfinite().all())


def test_three_dimensional_layout() -> None:
    assert [batch_of(m) for m in (1, 2, 6, 9, 11, 35)] == [1, 1, 2, 3, 1, 5]
    built = norm_case("gaussian", 6, 64, layout="3d")
    assert built.x.shape == (2, 3, 64)
    assert built.residual is not None
    assert built.residual.shape == (2, 3, 64)


def test_weight_options() -> None:
    fp32 = norm_case("gaussian", 2, 512, gamma="fp32").weight
    assert fp32.dtype == torch.float32
    assert bool((fp32 != fp32.bfloat16().float()).float().mean() > 0.9)
    gemma = norm_case("gaussian", 2, 512, gemma=True)
    assert gemma.gemma
    assert gemma.weight.abs().max().item() <= GAUSSIAN_MAX / 8
    assert norm_case("gaussian", 2, 8, eps="1e-6").eps == 1e-6
    assert norm_case("gaussian", 2, 8, residual=False).residual is None
    signed = norm_case("gaussian_gain", 2, 512).weight
    assert bool((signed < 0).any() & (signed > 0).any() & (signed == 0).any())
    assert bool(((signed != 0) & (signed.abs() < 2.0**-10)).any())


def test_bias_has_the_output_type_and_an_exact_one_stays_on_the_grid() -> None:
    built = gemm_case("gaussian", 4, 40, 64, bias=True, dtype="fp16")
    assert built.bias is not None
    assert built.bias.dtype == torch.float16
    assert built.bias.shape == (40,)
    assert built.bias.unique().numel() > 30
    for name in ("small_integers", "tiny_integers"):
        exact = gemm_case(name, 4, 40, 64, bias=True)
        assert exact.bias is not None
        steps = exact.bias.double().view(1, -1) / (exact.a_scale.double() * exact.b_scale.double().T)
        assert torch.equal(steps, steps.round())
        assert steps.abs().max().item() <= 512


def test_impossible_cases_are_refused() -> None:
    with pytest.raises(CaseError, match="cannot be built: overflow_sum needs bf16"):
        build(case_of(ADD, "overflow_sum", dtype="fp16"))
