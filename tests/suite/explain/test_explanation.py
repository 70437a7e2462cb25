"""Explanations hold for right elements too, changed fields come before other contracts, and bits are told as facts.

The kernels are small stand-ins for mechanisms of public reports; each test names its report.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from reference.contract import NORM_QUANT_CONTRACTS, NormQuantContract, get_contract
from reference.formats import E4M3FN, E4M3FNUZ, FloatFormat, Overflow, decode, encode
from tests.support.made import texts
from validators.cases import tensors
from validators.cases.case import Case, Layout
from validators.cases.inputs import build
from validators.cases.recipe import ADD, GEMM, QUANT
from validators.explain import nearby
from validators.explain.explanation import diagnose
from validators.explain.identify import identify
from validators.explain.scene import codes_between
from validators.judge.compare import compare
from validators.kernels.kernel import Kernel
from validators.records import wording
from validators.records.record import Record, Status
from validators.run import validate

Q = 448.0
QuantRule = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def quantizer(rule: QuantRule, contract: str | None = "eager") -> Kernel:
    """A per-token quantizer from a function of x fp32 [m, n] that returns (t [m, n], scale [m, 1])."""

    def call(inputs: tensors.QuantInputs, buffers: object) -> tensors.QuantOutputs:
        t, scale = rule(inputs.x.float())
        return tensors.QuantOutputs(t.clamp(-Q, Q).to(inputs.fp8_dtype), scale)

    return Kernel("demo/quantizer", QUANT, contract, call)


def gemm(change: Callable[[tensors.GemmInputs], torch.Tensor], contract: str = "fp32") -> Kernel:
    """A GEMM from a function of its inputs."""
    return Kernel("demo/gemm", GEMM, contract, lambda inputs, buffers: tensors.GemmOutputs(change(inputs)))


def amax(x: torch.Tensor, floor: float = 1e-12) -> torch.Tensor:
    return x.abs().amax(dim=-1, keepdim=True).clamp(min=floor)


def inverted_twice(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """sgl-project/sglang#4362: an extra inversion where a division is declared."""
    scale = amax(x) / torch.full_like(amax(x), Q)
    return x * (torch.ones_like(scale) / scale), scale


def floored_at_1e_10(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = amax(x, 1e-10) / torch.full_like(amax(x), Q)
    return x / scale, scale


def scale_in_bf16(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = (amax(x) / torch.full_like(amax(x), Q)).bfloat16().float()
    return x / scale, scale


def truncating(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Right scales; nine elements of ten lose a little before they are rounded."""
    scale = amax(x) / torch.full_like(amax(x), Q)
    return (x / scale) * (1 - 2.0**-6), scale


def test_a_hypothesis_that_right_elements_contradict_is_not_offered() -> None:
    record = validate(quantizer(inverted_twice), Case(QUANT, 64, 5120, "gaussian"))
    assert record.status is Status.FAILED
    assert record.reasons[0] == "the outputs follow eager, but for y times a reciprocal of the scale"
    assert record.explanations[0].text.startswith(
        "quotient-by-reciprocal: every violation vanishes if codes are y times "
    )
    assert "(contract eager+division=reciprocal)" in record.explanations[0].text
    assert not any("ties-away-from-zero" in sentence for sentence in texts(record))
    assert any(sentence.startswith("follows torch-compile: ") for sentence in texts(record))


def test_rounding_ties_away_from_zero_is_still_named_where_it_is_so() -> None:
    def away(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scale = amax(x) / torch.full_like(amax(x), Q)
        # Ties of FP8 are exact in fp32: the next fp32 number beyond one rounds away.
        return torch.nextafter(x / scale, torch.sign(x) * float("inf")), scale

    record = validate(quantizer(away), Case(QUANT, 64, 1024, "midpoints"))
    assert record.status is Status.FAILED
    assert record.explanations[0].text.startswith("ties-away-from-zero: every violation vanishes"), record.explanations


def test_one_changed_field_comes_first_and_its_contract_passes() -> None:
    kernel, case = quantizer(floored_at_1e_10), Case(QUANT, 64, 512, "zero_rows")
    record = validate(kernel, case)
    assert record.reasons[0] == "the outputs follow eager, but for an amax floor of 1e-10"
    assert record.explanations[0].text.startswith(
        "amax-floor-1e-10: every violation vanishes if amax has the floor 1e-10"
    )
    again = validate(kernel, case, contract="eager+amax_floor=1e-10")
    assert (again.status, again.contract) == (Status.PASSED, "eager+amax_floor=1e-10")
    assert again.reproduce.endswith(" --contract eager+amax_floor=1e-10")


def test_a_floor_is_found_as_a_property_where_no_contract_is_declared() -> None:
    kernel = quantizer(floored_at_1e_10, None)
    result = identify(kernel)
    assert result.best == "eager+amax_floor=1e-10"
    assert result.lines()[0].startswith("eager, but for an amax floor of 1e-10: admits all ")
    for recipe in ("zero_rows", "gaussian", "midpoints"):
        record = validate(kernel, Case(QUANT, 24, 520, recipe))
        found = record.status, record.contract, record.contract_from
        assert found == (Status.PASSED, "eager+amax_floor=1e-10", "identified")


@pytest.mark.parametrize("floor", [3e-7, 1e-5])
def test_a_floor_that_no_preset_has_is_read_off_the_outputs(floor: float) -> None:
    def rule(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scale = amax(x, floor) / torch.full_like(amax(x), Q)
        return x / scale, scale

    assert identify(quantizer(rule, None)).best == f"eager+amax_floor={floor:g}"


def test_a_scale_in_the_storage_type_is_a_changed_field() -> None:
    best = identify(quantizer(scale_in_bf16, None)).best
    assert best is not None
    contract = get_contract(QUANT, best)
    assert isinstance(contract, NormQuantContract)
    assert (contract.round_scale, contract.amax_floor) == (True, 1e-12)
    record = validate(quantizer(scale_in_bf16), Case(QUANT, 24, 520, "gaussian"))
    assert record.reasons[0] == "the outputs follow eager, but for a scale rounded to the storage type"
    assert "(contract eager+round_scale=true)" in record.explanations[0].text


def test_two_changed_fields_come_after_one_and_before_another_contract() -> None:
    def rule(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scale = x.abs().amax(dim=-1, keepdim=True) / torch.full_like(amax(x), Q)
        scale = torch.where(scale == 0, 1.0, scale)
        return x / scale, scale

    record = validate(quantizer(rule), Case(QUANT, 64, 512, "zero_rows"))
    assert record.reasons[0] == "the outputs follow eager, but for no amax floor and scale 1 for a row of zeros"
    assert "(contract eager+amax_floor=0+zero_scale=1)" in record.explanations[0].text, record.explanations
    assert record.explanations[1].text.startswith("follows aiter-triton: "), record.explanations


def test_what_the_bits_show_where_no_contract_fits() -> None:
    def odd(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # No contract scales to 440; scales that are bf16 numbers on top.
        scale = (amax(x) / torch.full_like(amax(x), 440.0)).bfloat16().float()
        return x / scale, scale

    record = validate(quantizer(odd), Case(QUANT, 64, 512, "gaussian"))
    shown = [s for s in texts(record) if s.startswith("the bits show: ")]
    assert shown[0] == "the bits show: every scale is a bf16 number (the low half of its bits is zero)"
    assert shown[-1] == "the bits show: every code follows from the kernel's own scale of its row"
    lines = identify(quantizer(odd, None)).lines()
    assert lines[0].startswith("the bits show: every scale is a bf16 number")


def test_right_scales_and_codes_toward_zero_are_told_apart() -> None:
    record = validate(quantizer(truncating), Case(QUANT, 64, 512, "gaussian"))
    shown = [s for s in texts(record) if s.startswith("the bits show: ")]
    assert shown[0] == "the bits show: every scale is right"
    assert shown[1].endswith(" codes, by the scale of its row, are one step off toward zero")


def test_amax_right_and_quotient_wrong_is_said() -> None:
    def near(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scale = amax(x) / torch.full_like(amax(x), Q) * (1 + 2.0**-10)
        return x / scale, scale

    record = validate(quantizer(near), Case(QUANT, 64, 512, "gaussian"))
    assert any("amax is right, the quotient is not" in s and "all too large" in s for s in texts(record))


def accumulated(inputs: tensors.GemmInputs) -> torch.Tensor:
    return (inputs.a.float() @ inputs.b.float().t()) * inputs.a_scale * inputs.b_scale.reshape(1, -1)


def after_store(inputs: tensors.GemmInputs) -> torch.Tensor:
    """vllm-project/vllm#28972: the bias is added in the storage type."""
    out = accumulated(inputs).to(inputs.out_dtype)
    return out if inputs.bias is None else out + inputs.bias


def test_a_bias_after_the_store_is_one_changed_field_and_no_other_contract() -> None:
    record = validate(gemm(after_store), Case(GEMM, 24, 48, "gaussian", k=176, bias=True))
    assert record.reasons[0] == "the outputs follow fp32, but for the bias added after the store"
    assert record.explanations[0].text == (
        "bias-after-store: every violation vanishes if the bias is added after the store "
        "(contract fp32+bias=after_store)"
    )
    assert not any("dequantized-fp32" in sentence for sentence in texts(record))


def k_overrun(inputs: tensors.GemmInputs) -> torch.Tensor:
    """pytorch/FBGEMM#4537: the last block of K reads on into the next row."""
    k, block = inputs.a.shape[1], 64
    over = -k % block

    def wide(codes: torch.Tensor) -> torch.Tensor:
        flat = torch.cat([codes.float().contiguous().view(-1), torch.zeros(over)])
        return torch.stack([flat[r * k : r * k + k + over] for r in range(codes.shape[0])])

    sums = wide(inputs.a) @ wide(inputs.b).t()
    return (sums * inputs.a_scale * inputs.b_scale.reshape(1, -1)).to(inputs.out_dtype)


def overhang(inputs: tensors.GemmInputs) -> torch.Tensor:
    """huggingface/kernels-community#1153: what hangs over the last tile of N is stored into the next row."""
    out = accumulated(inputs).to(inputs.out_dtype)
    m, n = out.shape
    for row in range(1, m):
        out[row, : -n % 64] = out[row - 1, -1]
    return out


@pytest.mark.parametrize("defect", [k_overrun, overhang])
def test_what_has_another_sign_is_not_low_in_magnitude(defect: Callable[[tensors.GemmInputs], torch.Tensor]) -> None:
    for recipe in ("small_integers", "gaussian", "one_hot_k"):
        record = validate(gemm(defect), Case(GEMM, 24, 48, recipe, k=176))
        assert record.status is Status.FAILED
        for sentence in texts(record):
            assert "low in magnitude" not in sentence or float(sentence.split(" by ")[1].split(" %")[0]) < 100
    if defect is k_overrun:
        assert record.explanations[0].text.startswith("k-overrun: every violation vanishes if rows are read on")


def test_a_missing_nan_has_words_and_no_figure() -> None:
    """huggingface/transformers#42775: nan_to_num hides NaN behind zeros."""
    record = validate(
        gemm(lambda i: torch.nan_to_num(accumulated(i), nan=0.0).to(i.out_dtype)), Case(GEMM, 24, 48, "nan_row", k=176)
    )
    assert record.status is Status.FAILED
    assert "worst: NaN missing" in record.reasons[0]
    assert wording.worst(record.comparisons[0]) == "worst: NaN missing"
    assert record.explanations[0].text == "nan-replaced: every violation vanishes if NaN is replaced by zero"


def test_the_offset_of_gemma_added_in_the_storage_type_is_named() -> None:
    """linkedin/Liger-Kernel#1462: 1 + weight is rounded to bf16."""

    def call(inputs: tensors.NormQuantInputs, buffers: object) -> tensors.NormQuantOutputs:
        z = inputs.x.float() if inputs.residual is None else inputs.x.float() + inputs.residual.float()
        w = (inputs.weight + 1.0).float() if inputs.gemma else inputs.weight.float()
        y = z * (1.0 / torch.sqrt((z * z).mean(dim=-1, keepdim=True) + inputs.eps)) * w
        scale = amax(y, 1e-10) * (1.0 / Q)
        codes = (y * (1.0 / scale)).clamp(-Q, Q).to(inputs.fp8_dtype)
        return tensors.NormQuantOutputs(codes, scale, None if inputs.residual is None else z.to(inputs.x.dtype))

    kernel = Kernel("demo/gemma", ADD, "aiter-hip-gfx950", call)
    record = validate(kernel, Case(ADD, 34, 1024, "gaussian", gemma=True))
    assert record.status is Status.FAILED
    assert record.explanations[0].text.startswith(
        "gamma-offset-rounded: every violation vanishes if 1 + weight is rounded"
    )


@pytest.mark.parametrize("overflow", ["saturate", "nan"])
@pytest.mark.parametrize("fmt", [E4M3FN, E4M3FNUZ], ids=lambda f: f.name)
def test_a_code_lies_between_two_ends_as_their_own_codes_say(fmt: FloatFormat, overflow: Overflow) -> None:
    """Every code against ends on, next to and between all midpoints, beyond the range, and NaN."""
    t = decode(torch.arange(256, dtype=torch.uint8), fmt)
    values = t[t.isfinite()].unique()
    middle = (values[1:] + values[:-1]) / 2
    beyond = torch.tensor([float("inf"), float("nan"), 463.0, 464.0, 465.0, 1000.0], dtype=torch.float64)
    ends = torch.cat([values, middle, middle * (1 + 2.0**-40), middle * (1 - 2.0**-40), beyond, -beyond])
    codes = torch.arange(256, dtype=torch.uint8)[None, :].expand(len(ends), 256).contiguous()
    got = decode(codes, fmt)
    for other in (ends, ends * (1 + 2.0**-4), ends * (1 - 2.0**-30)):
        first, second = (decode(encode(end, fmt, overflow), fmt)[:, None].expand(got.shape) for end in (ends, other))
        inside = (got >= torch.minimum(first, second)) & (got <= torch.maximum(first, second))
        wanted = inside | (got.isnan() & (first.isnan() | second.isnan()))
        low, high = (end[:, None].expand(got.shape) for end in (ends, other))
        assert torch.equal(codes_between(codes, low, high, fmt, overflow), wanted)
        assert bool(wanted.any())


def test_figures_beyond_use_are_words() -> None:
    assert [wording.times(x) for x in (12.34, 671867.0, 1.41e8, float("inf"), float("nan"))] == [
        "12.3x",
        "671867x",
        "beyond a million times the budget",
        "beyond any budget",
        "not comparable",
    ]
    assert wording.short_times(1.41e8) == ">1e6x"
    assert [wording.percent_low(x) for x in (0.042, 1.0, 42.0, -0.1)] == ["4.2 %", None, None, None]


def test_fields_join_the_search_by_themselves() -> None:
    """Every closed field of a contract that matters for the inputs is tried; values that only say less are not."""
    inputs = validate_inputs(Case(ADD, 8, 64, "gaussian"))
    options = nearby.alternatives(NORM_QUANT_CONTRACTS["eager"], inputs)
    assert options["division"] == ["reciprocal"]
    assert options["norm_input"] == ["unrounded"]
    assert options["round_after_weight"] == [False]
    assert 1e-10 in options["amax_floor"]
    assert "nonfinite" not in options
    quantizing = nearby.alternatives(NORM_QUANT_CONTRACTS["eager"], validate_inputs(Case(QUANT, 8, 64, "gaussian")))
    assert not {"norm_input", "residual_store", "round_after_weight"} & set(quantizing)


def validate_inputs(case: Case) -> tensors.NormQuantInputs | tensors.QuantInputs:
    inputs = build(case)
    assert isinstance(inputs, tensors.NormQuantInputs | tensors.QuantInputs)
    return inputs


def test_a_title_names_the_changed_fields_in_words() -> None:
    eager = NORM_QUANT_CONTRACTS["eager"]
    changed = nearby.changed(eager, {"amax_floor": 1e-10, "division": "reciprocal"})
    assert changed.name == "eager+amax_floor=1e-10+division=reciprocal"
    assert nearby.title(changed) == "eager, but for an amax floor of 1e-10 and y times a reciprocal of the scale"
    assert nearby.title(eager) == "eager"
    assert nearby.changed(changed, {"amax_floor": 1e-12}).name == "eager+division=reciprocal"


def test_a_record_of_a_changed_contract_says_so() -> None:
    record: Record = validate(quantizer(floored_at_1e_10, None), Case(QUANT, 24, 520, "zero_rows"))
    assert record.identified[0].startswith("eager, but for an amax floor of 1e-10: admits all ")


LAYOUTS: tuple[Layout, ...] = ("contiguous", "strided", "3d", "3dstrided")
PLACES = [(op, layout) for op in (ADD, QUANT, GEMM) for layout in LAYOUTS if op != GEMM or "3d" not in layout]


@pytest.mark.parametrize("n", [1, 48])
@pytest.mark.parametrize(("op", "layout"), PLACES)
def test_every_hypothesis_that_applies_can_be_computed(op: str, layout: Layout, n: int) -> None:
    """A hypothesis says by ``needs`` where it applies. One that raises is a bug, and nothing hides it."""
    plain = Case(op, 6, n, "gaussian", k=48 if op == GEMM else 0, layout=layout)
    changes: list[dict[str, Any]] = [{}]
    if layout == "contiguous":
        changes += [{"dtype": "fp16", "fp8": "e4m3fnuz"}]
        changes += [{"gamma": "fp32", "gemma": True}, {"residual": False}] if op == ADD else []
        changes += [{"bias": True}] if op == GEMM else []
    for change in changes:
        case = dataclasses.replace(plain, **change)
        inputs = build(case)
        outputs = inputs.empty()
        for tensor in tensors.named_tensors(outputs).values():
            tensor.copy_(torch.ones(tensor.shape).to(tensor.dtype))
        contract = get_contract(op, "fp32" if op == GEMM else "eager")
        comparisons = compare(inputs, outputs, contract)
        assert sum(c.violations for c in comparisons) > 0
        diagnose(inputs, outputs, contract, comparisons)
