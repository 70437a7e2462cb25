"""A preset with changed fields has one name, which parses to itself; anything else is refused with a sentence."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest

from reference import notation
from reference.contract import GEMM_CONTRACTS, NORM_QUANT_CONTRACTS, Contract, get_contract

OPS: dict[str, Mapping[str, Contract]] = {"per_token_quant": NORM_QUANT_CONTRACTS, "ptpc_gemm": GEMM_CONTRACTS}


def test_a_changed_field_is_the_preset_but_for_that_field() -> None:
    contract = get_contract("per_token_quant", "eager+amax_floor=1e-10")
    assert contract == NORM_QUANT_CONTRACTS["eager"].replace(name="eager+amax_floor=1e-10", amax_floor=1e-10)
    gemm = get_contract("ptpc_gemm", "fp32+bias=after_store")
    assert gemm == GEMM_CONTRACTS["fp32"].replace(name="fp32+bias=after_store", bias="after_store")


def test_one_contract_has_one_name_whatever_the_order_and_the_spelling() -> None:
    first = get_contract("per_token_quant", "eager+zero_scale=1+amax_floor=0")
    second = get_contract("per_token_quant", "eager+amax_floor=0.0+zero_scale=1.0")
    assert first == second
    assert first.name == "eager+amax_floor=0+zero_scale=1"
    large = get_contract("per_token_quant", "eager+amax_floor=1e+20")
    assert get_contract("per_token_quant", large.name) == large


def test_every_value_of_every_closed_field_parses_to_itself() -> None:
    for op, table in OPS.items():
        for preset in table.values():
            for field in notation.changeable(preset):
                for value in notation.literals(preset, field):
                    if value != getattr(preset, field):
                        changed = notation.named(preset, preset.replace(**{field: value}))
                        assert get_contract(op, changed.name) == changed


def test_numbers_survive_the_notation() -> None:
    values = (1e-10, 1e-12, 2.0**-23, 0.1 + 0.2, 5e-324, 224.0)
    assert [float(notation.text_of(v)) for v in values] == list(values)
    assert [notation.text_of(v) for v in (None, True, 512.0, "divide")] == ["none", "true", "512", "divide"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("eager+amax_floor=1e-12", "amax_floor=1e-12 changes nothing: the preset eager says so already"),
        ("eager+rsqrt_u=9", "'rsqrt_u' is no field that can be changed; known: norm_input, "),
        ("eager+accumulator=ada", "'accumulator' is no field that can be changed"),
        ("eager+", "'' is no field that can be changed"),
        ("eager+division=twice", "field division has no value 'twice'; known: divide, reciprocal"),
        ("eager+amax_floor=-1", "field amax_floor needs a number that is not negative, not '-1'"),
        ("eager+amax_floor=nan", "not 'nan'"),
        ("eager+scale_floor_divisor=0", "field scale_floor_divisor needs a number above zero, not '0'"),
        ("eager+division=reciprocal+division=reciprocal", "field division is changed twice"),
        ("eagre+amax_floor=1", "unknown contract 'eagre+amax_floor=1' for op per_token_quant; known: aiter-hip-gfx942"),
    ],
)
def test_what_the_notation_refuses(name: str, words: str) -> None:
    with pytest.raises(KeyError) as caught:
        get_contract("per_token_quant", name)
    assert words in caught.value.args[0]


def test_allowances_for_errors_cannot_be_widened_by_name() -> None:
    fields = set(itertools.chain(*(notation.changeable(c) for table in OPS.values() for c in table.values())))
    assert not {f for f in fields if f.endswith("_u")} | (fields & {"reduction", "deterministic", "batch_invariant"})
