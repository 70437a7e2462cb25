"""The kernels of the zoo: every defect changes what its kernel does, and a guard hides it elsewhere."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from tests import zoo
from tests.support.emulated_inputs import (
    GUARD,
    POISON,
    TORCH_FP8,
    TORCH_T,
    gaussian,
    gemm_inputs,
    guarded_outputs,
    norm_inputs,
    with_bias,
)
from validators.cases import tensors
from validators.cases.case import Case
from validators.cases.inputs import build
from validators.cases.recipe import ADD, QUANT
from validators.kernels import emulated_gemm


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
