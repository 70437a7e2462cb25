"""The one-pass survey of a GPU: it counts what the judgement without it counts, and steps aside for what is wrong."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from reference.contract import NORM_QUANT_CONTRACTS
from reference.formats import FORMATS, FloatFormat, code_preimages
from reference.quantize import Codes, is_power_of_two, t_bounds
from reference.setting import Setting
from validators.cases.case import Case
from validators.cases.inputs import build
from validators.cases.recipe import ADD
from validators.cases.tensors import NormQuantInputs, NormQuantOutputs
from validators.judge.codes import resolve, survey_tables
from validators.judge.compare import compare
from validators.judge.gpu import survey
from validators.judge.tally import Tally
from validators.kernels import emulated

SURVEYOR = survey.survey_on("cuda") if torch.cuda.is_available() else None
KNOWN = [name for name, c in NORM_QUANT_CONTRACTS.items() if survey.knows(c, torch.bfloat16)]
gpu = pytest.mark.skipif(SURVEYOR is None, reason="the survey is a Triton kernel: it needs a GPU with triton")


def _outputs(name: str, recipe: str = "gaussian", **options: object) -> tuple[NormQuantInputs, NormQuantOutputs]:
    inputs = build(Case(ADD, 1024, 5120, recipe, **options), device="cuda")  # type: ignore[arg-type]
    assert isinstance(inputs, NormQuantInputs)
    outputs = emulated.execute(inputs, None, NORM_QUANT_CONTRACTS[name])
    assert isinstance(outputs, NormQuantOutputs)
    return inputs, outputs


def _clean_outputs() -> NormQuantOutputs:
    made = emulated.execute(build(Case(ADD, 4, 64, "gaussian")), None, NORM_QUANT_CONTRACTS["aiter-hip-gfx950"])
    assert isinstance(made, NormQuantOutputs)
    return made


def _near_boundaries(fmt: FloatFormat, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(code uint8, t float64) with t within some 2**-14 of an end of the code's preimage."""
    draw = torch.Generator().manual_seed(seed)
    codes = torch.tensor([c for c in range(256) if c not in fmt.nan_codes], dtype=torch.uint8)
    code = codes[torch.randint(len(codes), (count,), generator=draw)]
    low, high = code_preimages(fmt, "saturate")
    end = torch.where(torch.rand(count, generator=draw) < 0.5, low[code.long()], high[code.long()])
    end = torch.where(end.isfinite(), end, torch.where(end > 0, low[code.long()], high[code.long()]))
    size = 2.0 ** -torch.randint(14, 46, (count,), generator=draw).double()
    return code, end * (1 + size * torch.randn(count, generator=draw, dtype=torch.float64))


def test_contracts_that_the_survey_does_not_know_are_judged_without_it() -> None:
    unknown = {name for name, c in NORM_QUANT_CONTRACTS.items() if not survey.knows(c, torch.bfloat16)}
    assert unknown == {"torchao", "compressed-tensors"} == set(NORM_QUANT_CONTRACTS) - set(KNOWN)
    truncated = NORM_QUANT_CONTRACTS["aiter-hip-gfx942"].replace(residual_store="truncate")
    assert survey.knows(truncated, torch.bfloat16)
    assert not survey.knows(truncated, torch.float16)


@pytest.mark.parametrize("fp8", ["e4m3fn", "e4m3fnuz"])
@pytest.mark.parametrize("name", KNOWN)
def test_the_surveys_screens_say_what_the_judgement_says(name: str, fp8: str) -> None:
    """On t near the ends of preimages: what the tables call single is single, a choice is none, held has use 0."""
    contract, fmt = NORM_QUANT_CONTRACTS[name].replace(overflow="saturate"), FORMATS[fp8]
    setting, count = Setting(contract, fmt, FORMATS["bf16"], 512), 200_000
    tables = survey_tables(setting, torch.device("cpu"))
    code, t = _near_boundaries(fmt, count, 11)
    if contract.round_after_normalize or contract.round_after_weight:
        draw = torch.Generator().manual_seed(12)
        y_low = (torch.rand(count, generator=draw) + 0.5).bfloat16()
        # At one in three the ends of the rms interval round to two neighbours.
        step = (torch.rand(count, generator=draw) < 1 / 3).short()
        y_high = (y_low.view(torch.int16) + step).view(torch.bfloat16).double()
        y_low = y_low.double()
        y = torch.where(torch.rand(count, generator=draw) < 0.5, y_low, y_high)
        scale = (y / t.abs()).float().double()
        ends = t_bounds(y_low, y_high, scale, setting)
        exact = contract.reciprocal_u <= 1.0
        near, far = ends if exact else (y_low / scale, y_high / scale)
        sure = exact | ~is_power_of_two(scale)
        middle = torch.minimum(torch.maximum(y / scale, ends[0]), ends[1])
        sets = Codes.signed(setting, middle, *ends, negative=t < 0)
        seen = Codes.signed(setting, y / scale, near, far, negative=t < 0)
        centre, lower, upper = seen.nominal, seen.low, seen.high
    else:
        b = setting.code_bound
        sets = Codes(setting, t, torch.minimum(t * (1 - b), t * (1 + b)), torch.maximum(t * (1 - b), t * (1 + b)))
        centre, lower, upper, sure = t, t, t, torch.ones(count, dtype=torch.bool)
    at = tables[:, :, code.long()]
    single = sets.admits(code).single
    called_single = (lower >= at[0, 0]) & (upper <= at[0, 1])
    called_choice = ((lower < at[1, 0]) | (upper > at[1, 1])) & sure
    held = (centre >= at[2, 0]) & (centre <= at[2, 1])
    assert not bool((called_single & ~single).any())
    assert not bool((called_choice & single).any())
    settled = ~called_single & called_choice & held
    assert int(called_single.sum()) > count // 20
    assert int(settled.sum()) > count // 200
    tally = Tally("codes", 1, count)
    index = settled.nonzero().flatten()
    resolve(tally, 0, torch.zeros_like(index), index, code[index], sets.part(index))
    assert (tally.violations, tally.ambiguous, tally.worst_use, tally.steps) == (0, len(index), 0.0, {})


def test_there_is_no_survey_on_a_cpu() -> None:
    assert survey.survey_on("cpu") is None


def test_a_survey_that_counts_otherwise_is_refused() -> None:
    inputs = build(Case(ADD, 4, 64, "gaussian"))
    contract = NORM_QUANT_CONTRACTS["aiter-hip-gfx950"]
    found = compare(inputs, emulated.execute(inputs, None, contract), contract)
    wrong = [dataclasses.replace(found[0], single=found[0].single - 1), *found[1:]]
    with pytest.raises(survey.SurveyMismatch, match="nothing was judged"):
        survey.trust(("a", "test"), found, wrong)
    assert not survey.trusted(("a", "test"))
    survey.trust(("a", "test"), found, found)
    assert survey.trusted(("a", "test"))


def test_trust_is_renewed_now_and_then() -> None:
    found = compare(build(Case(ADD, 4, 64, "gaussian")), _clean_outputs(), NORM_QUANT_CONTRACTS["aiter-hip-gfx950"])
    key = ("another", "test")
    survey.trust(key, found, found)
    asked = [survey.trusted(key) for _ in range(3 * survey.AGAIN)]
    assert asked.count(False) == 3
    wrong = [dataclasses.replace(found[0], violations=found[0].violations + 1), *found[1:]]
    with pytest.raises(survey.SurveyMismatch):
        survey.trust(key, found, wrong)
    assert not survey.trusted(key)


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("name", list(NORM_QUANT_CONTRACTS))
@pytest.mark.parametrize("options", [{}, {"residual": False}, {"gemma": True}, {"dtype": "fp16"}], ids=str)
def test_comparisons_with_and_without_the_survey_are_one(name: str, options: dict[str, object]) -> None:
    contract = NORM_QUANT_CONTRACTS[name]
    assert SURVEYOR is not None
    stood_alone = []

    def survey_of(*given: Any, **more: Any) -> Any:
        stood_alone.append(SURVEYOR(*given, **more))
        return stood_alone[-1]

    for recipe in ("gaussian", "midpoints", "zero_rows"):
        inputs, outputs = _outputs(name, recipe, **options)
        compare(inputs, outputs, contract, survey=survey_of)
        if not survey.fits(inputs.x, inputs.residual, contract):
            assert not survey.knows(contract, inputs.x.dtype)
            assert not stood_alone
            continue
        assert recipe != "gaussian" or stood_alone[-1] is not None  # legitimate outputs leave little to look at
        with_it = [compare(inputs, outputs, contract, survey=SURVEYOR) for _ in range(2)][1]
        for one, other in zip(compare(inputs, outputs, contract), with_it, strict=True):
            assert (one.judged, one.violations, one.single, one.ulp_histogram, one.where) == (
                other.judged,
                other.violations,
                other.single,
                other.ulp_histogram,
                other.where,
            )


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("name", list(NORM_QUANT_CONTRACTS))
@pytest.mark.parametrize("what", ["code", "scale", "residual", "nan"])
def test_one_wrong_element_is_reported_as_without_the_survey(what: str, name: str) -> None:
    contract = NORM_QUANT_CONTRACTS[name]
    inputs, outputs = _outputs(name)
    compare(inputs, outputs, contract, survey=SURVEYOR)
    assert outputs.residual_out is not None
    if what == "code":
        outputs.codes.view(torch.uint8)[77, 123] ^= 1
    elif what == "scale":
        outputs.scale.view(-1)[77] *= 2
    elif what == "residual":
        outputs.residual_out.view(torch.int16)[77, 123] += 1
    else:
        inputs.x[77, 123] = float("nan")
    # As text, because the NaN in a worst element is not equal to itself.
    assert str(compare(inputs, outputs, contract, survey=SURVEYOR)) == str(compare(inputs, outputs, contract))
