"""Failures are reduced to the boundary of what they need, and the sentence says it: kernels that are predicates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from validators.cases.case import Case
from validators.cases.recipes import reasons_impossible
from validators.records.record import Record, Status
from validators.search.conditions import Size, fit
from validators.search.draw import SIZES, Space, cost, draw
from validators.search.reduce import CALLS, Finding, Reduction

NORM, QUANT, GEMM = "add_rmsnorm_quant", "per_token_quant", "ptpc_gemm"
Predicate = Callable[[Case], bool]


def judge_of(fails: Predicate, *, status: Status = Status.FAILED, offers: Predicate = lambda case: True):
    """A kernel that fails where ``fails`` says so, and does not offer the cases where ``offers`` is False."""

    def judge(case: Case) -> Record:
        found = status if fails(case) else Status.PASSED
        return Record(
            status=found if offers(case) else Status.UNSUPPORTED,
            reasons=("said",),
            kernel="k",
            op=case.op,
            case=case.id,
            lane="random",
            contract=None,
            contract_from="declared",
            device="cpu",
            arch="cpu",
        )

    return judge


def reduced(op: str, fails: Predicate, draws: int = 20_000, **settings) -> Finding:
    """The finding of the first draw that fails."""
    space, judge = Space(op), judge_of(fails, **settings)
    for number in range(draws):
        case = draw(space, 0, 0, number)
        if judge(case).status not in (Status.PASSED, Status.UNSUPPORTED):
            return Reduction(space, judge, judge(case)).run()
    raise AssertionError(f"none of {draws} draws fails")


PLANTED: list[tuple[str, Predicate, str, str]] = [
    (
        NORM,
        lambda c: c.n > 6144 and c.dtype == "fp16",
        "m1-n6145-fp16",
        "fails only with n > 6144 and fp16: n = 6145 fails, n = 6144 passes; bf16 passes",
    ),
    (
        NORM,
        lambda c: c.n > 6144 and c.n % 8 == 0,
        "m1-n6152-bf16",
        "fails only with n > 6144 and n % 8 = 0: n = 6152 fails, n = 6144 and n = 6151 pass",
    ),
    (
        NORM,
        lambda c: c.n % 8 != 0 and c.gemma,
        "m1-n1-bf16",
        "fails only with n % 8 > 0 and 1 + weight: n = 1 fails, n = 8 passes; a plain weight passes",
    ),
    (
        NORM,
        lambda c: c.n == 5120 and not c.residual,
        "m1-n5120-bf16",
        "fails only with n = 5120 and no residual: n = 5120 fails, n = 5119 and n = 5121 pass; a residual passes",
    ),
    (
        QUANT,
        lambda c: c.n <= 512 and c.dtype == "bf16",
        "m1-n1-bf16",
        "fails only with n <= 512 and bf16: n = 1 and n = 512 fail, n = 513 passes; fp16 passes",
    ),
    (
        QUANT,
        lambda c: 4096 < c.n <= 8192 and c.layout == "strided",
        "m1-n4097-bf16",
        "fails only with 4096 < n <= 8192 and strided layout: n = 4097 and n = 8192 fail, n = 4096 and n = 8193 pass; "
        "contiguous layout, 3d layout and 3dstrided layout pass",
    ),
    (
        NORM,
        lambda c: c.m > 1024 and c.n > 4096,
        "m1025-n4097-bf16",
        "fails only with n > 4096 and m > 1024: n = 4097 fails, n = 4096 passes; m = 1025 fails, m = 1024 passes",
    ),
    (
        NORM,
        lambda c: c.recipe == "midpoints" and c.n > 1024,
        "m1-n1025-bf16-e4m3fn-midpoints",
        "fails only with n > 1024 and recipe midpoints: n = 1025 fails, n = 1024 passes; recipe gaussian passes",
    ),
    (
        GEMM,
        lambda c: c.k % 128 != 0 and c.bias,
        "m1-n1-k1-bf16",
        "fails only with k % 128 > 0 and a bias: k = 1 fails, k = 128 passes; no bias passes",
    ),
    (
        GEMM,
        lambda c: c.k > 4096 and c.m == 1,
        "m1-n1-k4097-bf16",
        "fails only with k > 4096 and m = 1: k = 4097 fails, k = 4096 passes; m = 1 fails, m = 2 passes",
    ),
]


@pytest.mark.parametrize(("op", "fails", "shape", "sentence"), PLANTED, ids=[said[:40] for *_, said in PLANTED])
def test_a_failure_is_reduced_to_the_boundary_of_what_it_needs(
    op: str, fails: Predicate, shape: str, sentence: str
) -> None:
    found = reduced(op, fails)
    assert found.sentence == sentence
    assert found.case.startswith(f"{op}-{shape}")
    assert fails(Case.parse(found.case))
    assert found.finished
    assert found.calls <= CALLS
    assert found.covers(Case.parse(found.first))


def test_a_failure_without_conditions_says_so() -> None:
    found = reduced(NORM, lambda case: True)
    assert found.sentence == "fails without any condition that was found"
    assert found.case.startswith(f"{NORM}-m1-n1-bf16-e4m3fn-gaussian-s")
    assert found.conditions == ()


def test_what_a_kernel_does_not_offer_is_no_boundary() -> None:
    """Widths below 8 are refused: nothing is known of them, and the sentence does not say that they pass."""
    found = reduced(NORM, lambda c: c.dtype == "fp16", offers=lambda c: c.n >= 8)
    assert found.sentence == "fails only with fp16: bf16 passes"
    assert Case.parse(found.case).n == 8


def test_another_status_is_another_failure() -> None:
    """An ERROR of narrow rows is not what a FAILED of ragged rows is reduced to."""

    def judge(case: Case) -> Record:
        status = Status.ERROR if case.n < 8 else Status.FAILED if case.n % 8 else Status.PASSED
        return judge_of(lambda case: True, status=status)(case)

    first = Case(NORM, 33, 1002, "shape_walk")
    found = Reduction(Space(NORM), judge, judge(first)).run()
    assert found.record.status is Status.FAILED
    assert found.sentence == "fails only with n % 8 > 0: n = 9 fails, n = 8 passes"


def test_a_failure_by_chance_is_not_taken_for_a_bound() -> None:
    """Half of the seeds show the defect; those that do not are no passing sizes."""
    found = reduced(NORM, lambda c: c.n > 1024 and (c.seed % 2 == 0 or c.n == 77))
    assert found.sentence == "fails only with n > 1024: n = 1025 fails, n = 1024 passes"
    assert Case.parse(found.case).seed % 2 == 0


def test_what_few_seeds_show_has_no_conditions() -> None:
    """One seed of 50 fails: whatever passes may do so by chance, so nothing is said to be needed."""
    found = reduced(NORM, lambda c: c.n > 1024 and c.seed % 50 == 7)
    assert not found.known
    assert "what it needs is not known, because few seeds show it; seen with recipe " in found.sentence
    first = Case.parse(found.first)
    assert found.covers(first)
    others = [name for name in Space(NORM).recipes if name != first.recipe]
    assert not found.covers(dataclasses.replace(first, recipe=others[0]))


def test_no_row_is_a_condition() -> None:
    judge = judge_of(lambda case: case.m == 0 and case.dtype == "fp16")
    found = Reduction(Space(NORM), judge, judge(Case(NORM, 0, 5120, "shape_walk", dtype="fp16"))).run()
    assert found.sentence == "fails only with m = 0 and fp16: m = 0 fails, m = 1 passes; bf16 passes"


def test_a_reduction_that_has_no_time_says_that_it_ended_early() -> None:
    judge = judge_of(lambda case: case.n > 64)
    first = judge(Case(NORM, 8, 5120, "gaussian"))
    calls = iter(range(6))
    found = Reduction(Space(NORM), judge, first, lambda: next(calls, None) is not None).run()
    assert not found.finished
    assert "ended early" in found.sentence
    assert found.record.status is Status.FAILED


def test_sizes_that_fit_no_condition_are_said_to_be_some() -> None:
    found = fit("n", {95: False, 96: True, 97: False, 128: False, 192: True, 193: False})
    assert found == Size("n", above=95, partial=True)
    assert found.words == "some n > 95"


# ---- the draw


@pytest.mark.parametrize("op", [NORM, QUANT, GEMM, "static_quant"])
def test_the_same_seed_draws_the_same_possible_cases(op: str) -> None:
    space = Space(op)
    cases = [draw(space, 7, 1, number) for number in range(300)]
    assert cases == [draw(Space(op), 7, 1, number) for number in range(300)]
    assert all(reasons_impossible(case) is None for case in cases)
    assert all(Case.parse(case.id) == case for case in cases)
    assert len({case.id for case in cases}) > 250
    for other in ((8, 1), (7, 0)):
        assert cases != [draw(space, *other, number) for number in range(300)]


def test_draws_are_mostly_small_some_large_and_none_beyond_the_bound() -> None:
    costs = sorted(cost(draw(Space(NORM), 0, 0, number)) for number in range(2000))
    assert costs[len(costs) // 2] <= SIZES[0][1]
    assert SIZES[-2][1] < costs[-1] <= SIZES[-1][1]


def test_every_option_and_pair_of_options_is_drawn() -> None:
    space = Space(NORM)
    cases = [draw(space, 0, 0, number) for number in range(3000)]
    names = list(space.options)
    for one in names:
        for other in names[names.index(one) + 1 :]:
            seen = {(getattr(case, one), getattr(case, other)) for case in cases}
            assert len(seen) == len(space.options[one]) * len(space.options[other]), (one, other)


def test_a_type_that_was_asked_for_is_the_only_one() -> None:
    space = Space(QUANT, dtypes=("fp16",), fp8s=("e4m3fnuz",))
    drawn = [draw(space, 0, 0, number) for number in range(100)]
    assert {(case.dtype, case.fp8) for case in drawn} == {("fp16", "e4m3fnuz")}


def test_a_recipe_that_cannot_be_without_a_residual_is_never_drawn_without() -> None:
    cases = [draw(Space(NORM), 3, 0, number) for number in range(2000)]
    assert any(case.recipe == "cancellation" for case in cases)
    assert all(case.residual for case in cases if case.recipe == "cancellation")
