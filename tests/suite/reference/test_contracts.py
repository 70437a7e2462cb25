"""Contracts and budgets: what a declaration must say, and the numbers that follow from it."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from reference import budgets
from reference.contract import (
    GEMM_CONTRACTS,
    NORM_QUANT_CONTRACTS,
    GemmContract,
    NormQuantContract,
    Reduction,
    get_contract,
)
from reference.evidence import EVIDENCE, INHERITS, KINDS, OPEN, contract_of, declared, evidence_of
from validators.commands import contracts

presets = pytest.mark.parametrize("contract", list(NORM_QUANT_CONTRACTS.values()), ids=lambda c: c.name)


@presets
def test_every_preset_names_its_source_and_itself(contract: NormQuantContract) -> None:
    assert contract.source
    assert NORM_QUANT_CONTRACTS[contract.name] is contract
    assert get_contract("add_rmsnorm_quant", contract.name) is contract
    assert get_contract("per_token_quant", contract.name) is contract


def test_presets_differ_in_arithmetic_and_not_in_name_alone() -> None:
    for table in (NORM_QUANT_CONTRACTS, GEMM_CONTRACTS):
        arithmetic = [dataclasses.replace(c, name="", source="") for c in table.values()]
        assert len(set(arithmetic)) == len(table)


@pytest.mark.parametrize("name", [*NORM_QUANT_CONTRACTS, *GEMM_CONTRACTS])
def test_every_declared_field_has_evidence_of_a_closed_kind(name: str) -> None:
    contract, found = contract_of(name), evidence_of(name)
    fields = {f.name for f in dataclasses.fields(contract)}
    assert set(declared(contract)) <= set(found) <= fields - {"name", "source", "unsettled"}
    assert all(e.kind in KINDS and e.where for e in found.values())


def test_the_evidence_is_of_the_presets_there_are() -> None:
    known = {*NORM_QUANT_CONTRACTS, *GEMM_CONTRACTS}
    assert set(EVIDENCE) == known
    assert set(OPEN) <= known
    for child, parent in INHERITS.items():
        # An inherited field has the parent's value; where it differs, the evidence is the child's own.
        ours, theirs = contract_of(child), contract_of(parent)
        changed = {f for f in declared(ours) if getattr(ours, f) != getattr(theirs, f)}
        assert changed <= set(EVIDENCE[child])


def test_the_page_of_contracts_is_what_the_code_says() -> None:
    assert (Path(__file__).parents[3] / "docs/contracts.md").read_text() == contracts.page()
    lines = list(contracts.brief("per_token_quant"))
    assert "    unsettled: overflow nan or saturate" in lines
    assert sum(line.startswith("per_token_quant  ") for line in lines) == len(NORM_QUANT_CONTRACTS)


def test_a_contract_with_unsettled_fields_stands_for_its_members() -> None:
    unfused = NORM_QUANT_CONTRACTS["unfused"]
    members = unfused.members()
    assert [(m.norm_input, m.amax_floor) for m in members] == [
        ("unrounded", 0.0),
        ("unrounded", 1e-10),
        ("stored", 0.0),
        ("stored", 1e-10),
    ]
    assert all(m.members() == (m,) and m.name == "unfused" for m in members)
    assert unfused.replace(norm_input="stored").unsettled == (("amax_floor", (0.0, 1e-10)),)
    assert unfused.replace(unsettled=()).members() == (members[0],)
    assert NORM_QUANT_CONTRACTS["vllm"].members() == (NORM_QUANT_CONTRACTS["vllm"],)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(KeyError) as caught:
        get_contract("ptpc_gemm", "ck")
    known = ", ".join(sorted(GEMM_CONTRACTS))
    assert caught.value.args == (f"unknown contract 'ck' for op ptpc_gemm; known: {known}",)
    with pytest.raises(KeyError, match="known: aiter-hip-gfx942, aiter-hip-gfx950"):
        get_contract("add_rmsnorm_quant", "fp32")
    with pytest.raises(ValueError, match="unknown FP8 format 'e5m2'"):
        NORM_QUANT_CONTRACTS["vllm"].qmax("e5m2")


def test_contracts_cannot_be_changed_in_place_and_replace_gives_a_new_one() -> None:
    contract = NORM_QUANT_CONTRACTS["vllm"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        contract.amax_floor = 1.0  # type: ignore[misc]
    changed = contract.replace(amax_floor=0.5)
    assert (changed.amax_floor, contract.amax_floor) == (0.5, 0.0)
    with pytest.raises(TypeError):
        contract.replace(epsilon=1.0)
    assert GemmContract("fp32", bias="either") == GemmContract("fp32").replace(bias="either")


def longest_chain(reduction: Reduction, n: int) -> int:
    """Additions that a summand of a row of n goes through in the worst allowed order, by simulation."""
    if reduction.kind == "any":
        return n - 1
    # Partial sums as even as the kind demands; each is a chain, then a balanced tree.
    if reduction.kind == "lanes":
        chains = [len(range(lane, n, reduction.count)) for lane in range(reduction.count)]
    else:
        chains = [len(range(first, min(n, first + reduction.count))) for first in range(0, n, reduction.count)]
    depths = [max(0, length - 1) for length in chains if length]
    while len(depths) > 1:
        pairs = [depths[i : i + 2] for i in range(0, len(depths), 2)]
        depths = [max(pair) + 1 if len(pair) == 2 else pair[0] for pair in pairs]
    return depths[0]


@pytest.mark.parametrize("kind", ["any", "lanes", "serial"])
@pytest.mark.parametrize("count", [1, 2, 8, 32, 64])
@pytest.mark.parametrize("n", [1, 2, 7, 8, 63, 64, 65, 512, 5120, 8192])
def test_declared_depth_is_never_below_the_longest_chain(kind: str, count: int, n: int) -> None:
    reduction = Reduction(kind, count)  # type: ignore[arg-type]
    longest = longest_chain(reduction, n)
    assert longest <= reduction.depth(n) <= n - 1
    # No looser than two additions: one at the start of a chain, one for the tree's last odd partial. More lanes than
    # columns leave lanes empty, which a tree that is built for all of them still passes through.
    if kind != "lanes" or count <= n:
        assert reduction.depth(n) <= longest + 2


@presets
@pytest.mark.parametrize("n", [8, 5120, 8192])
def test_budgets_grow_with_what_they_pay_for(contract: NormQuantContract, n: int) -> None:
    rms = budgets.rms_budget(contract, n)
    assert rms.bound > rms.total_u * budgets.U
    assert budgets.rms_budget(contract.replace(rsqrt_u=contract.rsqrt_u + 1), n).bound > rms.bound
    assert budgets.rms_budget(contract.replace(mean_u=contract.mean_u + 1), n).bound > rms.bound
    assert budgets.rms_budget(contract, 2 * n).bound >= rms.bound
    plain, gemma = (budgets.code_budget(contract, 448.0, gemma=g).total_u for g in (False, True))
    assert gemma == plain + 2.0
    assert dict(rms.scaled(2.0)).keys() == {"reduction", "mean and eps", "rsqrt"}


@pytest.mark.parametrize("contract", [NORM_QUANT_CONTRACTS["aiter-hip-gfx950"]], ids=lambda c: c.name)
def test_the_cancellation_theorem_costs_less_than_nine_units(contract: NormQuantContract) -> None:
    """docs/derivations.md 5: below 9u for a reciprocal good to one ulp, whatever the row's length."""
    for qmax in (448.0, 240.0):
        assert budgets.code_budget(contract, qmax, gemma=False).total_u < 9.0


@pytest.mark.parametrize("qmax", [448.0, 240.0, 224.0])
def test_scale_step_bounds_every_mantissa(qmax: float) -> None:
    """Both scale rules on 2**16 mantissas: the error against amax/Q is within the budget, and uses most of it."""
    amax = (np.arange(1 << 23, 1 << 24, 1 << 7, dtype=np.int64)).astype(np.float32)
    exact = amax.astype(np.float64) / qmax
    for rule, scale in (("divide", amax / np.float32(qmax)), ("multiply", amax * (np.float32(1.0) / np.float32(qmax)))):
        contract = NORM_QUANT_CONTRACTS["unfused"].replace(scale_rule=rule)
        worst = float(np.max(np.abs(scale.astype(np.float64) / exact - 1.0)))
        bound = budgets.scale_step_budget(contract, qmax).bound
        assert bound / 2 < worst <= bound


def test_a_budget_that_bounds_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="is no bound at all"):
        _ = budgets.Budget((("reduction", 2.0**23),)).bound
    both = budgets.Budget((("a", 1.0),)) + budgets.Budget((("b", 2.0),))
    assert both.total_u == 3.0


def test_sums_of_products_bounds() -> None:
    assert budgets.fp32_sum_budget(1) == 0.0
    assert budgets.fp32_sum_budget(5121) == 5120 * budgets.U
    small, large = budgets.unknown_unit_budget(256), budgets.unknown_unit_budget(8192)
    assert all(0 < a < b and math.isfinite(b) for a, b in zip(small, large, strict=True))
    # The derivation holds while alpha stays below 2**-7; 12288 is the longest K of the model.
    assert budgets.unknown_unit_budget(12288)[0] < 2.0**-7
