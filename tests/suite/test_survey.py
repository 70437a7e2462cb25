"""The one-pass survey of a GPU: it counts what the judgement without it counts, and steps aside for what is wrong."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from reference.contract import NORM_QUANT_CONTRACTS
from validators import survey
from validators.cases.case import Case
from validators.cases.inputs import build
from validators.cases.recipes import ADD
from validators.cases.tensors import NormQuantInputs, NormQuantOutputs
from validators.compare import compare
from validators.kernels import emulated

SURVEYOR = survey.survey_on("cuda") if torch.cuda.is_available() else None
gpu = pytest.mark.skipif(SURVEYOR is None, reason="the survey is a Triton kernel: it needs a GPU with triton")


def _outputs(name: str, recipe: str = "gaussian", **options: object) -> tuple[NormQuantInputs, NormQuantOutputs]:
    inputs = build(Case(ADD, 1024, 5120, recipe, **options), device="cuda")  # type: ignore[arg-type]
    assert isinstance(inputs, NormQuantInputs)
    outputs = emulated.execute(inputs, None, NORM_QUANT_CONTRACTS[name])
    assert isinstance(outputs, NormQuantOutputs)
    return inputs, outputs


def _clean_outputs() -> NormQuantOutputs:
    made = emulated.execute(
        build(Case(ADD, 4, 64, "gaussian")), None, NORM_QUANT_CONTRACTS["aiter-hip-gfx950"]
    )  # fmt: skip
    assert isinstance(made, NormQuantOutputs)
    return made


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
    found = compare(
        build(Case(ADD, 4, 64, "gaussian")), _clean_outputs(), NORM_QUANT_CONTRACTS["aiter-hip-gfx950"]
    )  # fmt: skip
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
            assert (contract.residual_store, options) == ("truncate", {"dtype": "fp16"})
            assert not stood_alone
            continue
        assert recipe != "gaussian" or stood_alone[-1] is not None  # legitimate outputs leave little to look at
        with_it = [compare(inputs, outputs, contract, survey=SURVEYOR) for _ in range(2)][1]
        for one, other in zip(compare(inputs, outputs, contract), with_it, strict=True):
            assert (one.judged, one.violations, one.single, one.ulp_histogram, one.where) == (
                other.judged, other.violations, other.single, other.ulp_histogram, other.where,
            )  # fmt: skip


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
