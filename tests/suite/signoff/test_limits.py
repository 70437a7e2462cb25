"""What a kernel does not offer: from records alone, by reason, with the model's shapes that it hides."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from validators.cases import shapes
from validators.cases.case import Case
from validators.records.evidence import BY_CONTRACT, DECLARED, IMPOSSIBLE, MACHINE, Limit
from validators.records.record import Check, Comparison, Record, Status
from validators.records.wording import how_to_declare
from validators.signoff.judged import identified_sentences, never_judged_sentences
from validators.signoff.limits import condition, declared_limits, hints, is_declared, sentences

ADD, QUANT, GEMM = "add_rmsnorm_quant", "per_token_quant", "ptpc_gemm"


def record(
    case: Case, status: Status = Status.PASSED, reason: str = "", kernel: str = "mine.py:fused", limit: str = ""
) -> Record:
    reasons = (reason,) if reason else ()
    return Record(
        status=status,
        reasons=reasons,
        kernel=kernel,
        op=case.op,
        case=case.id,
        lane="shapes",
        contract="eager",
        contract_from="declared",
        device="cpu",
        arch="cpu",
        limit=Limit(limit) if limit else None,
        fault="raised" if reason.startswith("the kernel raised") else "",
    )


def quant(n: int, m: int = 4, **options: object) -> Case:
    return Case(QUANT, m, n, "gaussian", **options)  # type: ignore[arg-type]


def away(case: Case, reason: str = "no", feature: str = "") -> Record:
    return dataclasses.replace(record(case, Status.UNSUPPORTED, reason), limit=Limit(DECLARED, feature))


def test_a_model_width_that_limits_hide_is_named() -> None:
    records = [record(quant(n)) for n in (64, 192, 384, 768, 1536, 3072, 5120)]
    records += [away(quant(n), f"n must be at most 5120, not {n}") for n in (8192, 6144, 12288)]
    (found,) = declared_limits(records)
    assert found.hidden == ("n = 12288", "n = 6144")
    assert found.model_shapes == len(shapes.model_widths(QUANT)) == 8
    assert [(limit.cases, limit.reason) for limit in found.limits] == [(3, "n must be at most 5120, not 8192")]
    assert found.limits[0].examples[0] == quant(8192).id
    assert found.sentences() == [
        "mine.py:fused does not offer 3 of 10 cases of per_token_quant: n must be at most 5120, not 8192 (3)",
        "that leaves out 2 of the 8 widths of GLM-4.7: n = 12288; n = 6144",
    ]


def test_a_width_that_some_case_was_judged_at_is_not_hidden() -> None:
    records = [record(quant(12288, m=1)), away(quant(12288, m=0)), away(quant(12288, dtype="fp16"))]
    (found,) = declared_limits(records)
    assert found.hidden == ()
    assert dict(found.features) == {"fp16": 1, "zero rows": 1}
    assert found.sentences() == [
        "mine.py:fused does not offer 2 of 3 cases of per_token_quant: fp16 (1); zero rows (1); no (2)"
    ]


def test_a_gemm_shape_is_hidden_by_its_pair() -> None:
    records = [record(Case(GEMM, 16, 5120, "model", k=192)), away(Case(GEMM, 16, 5120, "model", k=1536))]
    (found,) = declared_limits(records)
    assert found.hidden == ("n = 5120, k = 1536",)
    assert "leaves out 1 of the 18 GEMM shapes of GLM-4.7" in found.sentences()[-1]


def test_features_are_named_and_reasons_are_grouped_without_their_numbers() -> None:
    plain = [record(Case(ADD, 4, 5120, "gaussian")), record(Case(ADD, 4, 1024, "gaussian"))]
    reason = 'the kernel does not offer "3d" (its attribute supports, or the default)'
    layouts = [away(Case(ADD, 4, n, "gaussian", layout="3d"), reason, "3d") for n in (64, 512, 1024)]
    widths = [away(Case(ADD, 4, n, "gaussian"), f"n = {n} is odd") for n in (769, 1001)]
    (found,) = declared_limits([*plain, *layouts, *widths])
    assert [limit.cases for limit in found.limits] == [3, 2]
    assert (found.cases, found.declared) == (7, 5)
    assert dict(found.features) == {"three dimensions": 3}
    assert found.sentences() == [
        "mine.py:fused does not offer 5 of 7 cases of add_rmsnorm_quant: three dimensions (3); n = 769 is odd (2)"
    ]


def test_a_case_without_a_row_shows_no_type_and_no_option() -> None:
    found = declared_limits([record(quant(5120, 0)), away(quant(5120))])
    assert dict(found[0].features)["bf16"] == 1
    assert "zero rows" not in dict(declared_limits([record(quant(5120, 0)), away(quant(5120, 0, seed=1))])[0].features)


def test_what_is_not_the_kernels_own_limit_is_not_counted() -> None:
    open_rows = Comparison("codes", 4, 0, 4, 0, 0, 0.0, 0.0, "", 0, 0)
    by_contract = dataclasses.replace(away(quant(64)), comparisons=(open_rows,), limit=Limit(BY_CONTRACT))
    by_machine = record(quant(5120, m=419_584), Status.UNSUPPORTED, "needs 26 GB", limit=MACHINE)
    by_recipe = record(quant(64), Status.UNSUPPORTED, "needs bf16", limit=IMPOSSIBLE)
    assert not any(map(is_declared, (by_contract, by_machine, by_recipe, record(quant(64)))))
    assert is_declared(dataclasses.replace(away(quant(64)), limit=None)), "one that does not say whose limit it is"
    (found,) = declared_limits([by_contract, by_machine, by_recipe])
    assert (found.declared, found.machine) == (0, 1)
    assert sentences([by_machine]) == ["1 case needs more memory than this machine offers, and did not run"]
    assert declared_limits([record(quant(64))]) == []


def test_a_case_that_was_judged_once_is_judged_and_other_stages_are_passed_over() -> None:
    walk = dataclasses.replace(away(quant(64)), op="model", case="layers-0")
    golden = dataclasses.replace(away(quant(64)), case="golden")
    assert declared_limits([away(quant(64)), record(quant(64)), walk, golden]) == []


def test_kernels_and_ops_are_apart() -> None:
    other = dataclasses.replace(away(quant(64)), kernel="other")
    assert [(found.kernel, found.op) for found in declared_limits([away(quant(64)), other])] == [
        ("mine.py:fused", QUANT),
        ("other", QUANT),
    ]


# ---- kernels that raise


def error(case: Case) -> Record:
    return record(case, Status.ERROR, "the kernel raised ValueError: no")


@pytest.mark.parametrize(
    ("wrong", "right", "text"),
    [
        ((quant(1002), quant(769)), (quant(64), quant(1024)), "case.n % 4"),
        ((quant(264), quant(520)), (quant(64), quant(1024)), "case.n % 16"),
        ((quant(6144), quant(8192)), (quant(5120), quant(64)), "case.n >= 6144"),
        ((quant(64, m=1), quant(512, m=1)), (quant(64), quant(512)), "case.m == 1"),
        ((quant(64, dtype="fp16"), quant(512, dtype="fp16")), (quant(64), quant(512)), 'case.dtype == "fp16"'),
        (
            (Case(GEMM, 16, 100, "gaussian", k=64), Case(GEMM, 16, 64, "gaussian", k=250)),
            (Case(GEMM, 16, 64, "gaussian", k=64), Case(GEMM, 17, 32, "gaussian", k=32)),
            "case.n % 8 or case.k % 8",
        ),
        ((quant(64), quant(512)), (quant(64, m=5), quant(512, m=9)), "case.m <= 4"),
        ((quant(64),), (quant(512),), None),
        ((quant(64), quant(512)), (), None),
        ((quant(64), quant(512)), (quant(64, seed=1), quant(512, seed=1)), None),
    ],
)
def test_the_condition_that_tells_the_errors_from_the_rest(
    wrong: tuple[Case, ...], right: tuple[Case, ...], text: str | None
) -> None:
    assert condition(wrong, right) == text
    if text is not None:
        assert all(eval(text, {"case": case}) for case in wrong)
        assert not any(eval(text, {"case": case}) for case in right)


def test_the_hint_names_the_kernel_the_condition_and_the_line_to_write() -> None:
    records = [error(quant(1002)), error(quant(769)), record(quant(64)), away(quant(66))]
    assert hints(records) == [
        "mine.py:fused raised in 2 of 3 cases: those, and no others, where case.n % 4; if that is a limit, declare it: "
        'fused.unsupported = lambda case: "why" if case.n % 4 else None'
    ]
    assert hints([record(quant(64)), record(quant(1002), Status.FAILED, "codes")]) == []
    assert "adapter's unsupported(case)" in how_to_declare("vllm/cutlass_scaled_mm")


def test_advice_about_other_errors_is_given_once() -> None:
    wrong = [record(quant(n), Status.ERROR, "the kernel returned 2 values") for n in (64, 512)]
    wrong = [dataclasses.replace(r, reasons=(*r.reasons, "give it a copy")) for r in wrong]
    assert hints(wrong) == ["mine.py:fused: give it a copy"]


def test_limits_need_no_torch() -> None:
    code = "import sys; import validators.signoff.limits; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_check_that_the_contract_leaves_open_names_the_contract() -> None:
    open_check = Check("batch invariance", None, "row 0 alone: 3 elements differ", "invariance")
    records = [dataclasses.replace(record(quant(n)), checks=(open_check,), contract="fp32") for n in (64, 512)]
    (sentence,) = never_judged_sentences(records)
    assert sentence.endswith(" by mine.py:fused (contract fp32 does not promise it)")
    alone = Check("batch invariance", None, "the case has one row, so there is no other batch", "invariance", "nothing")
    one_row = dataclasses.replace(records[0], checks=(alone,))
    assert never_judged_sentences([one_row, *records]) == [sentence]
    assert never_judged_sentences([one_row])[0].endswith("(the case has one row, so there is no other batch)")
    said = "not judged, for row 0 alone: the kernel raised"
    raised = Check("batch invariance", None, said, "invariance", "raised")
    raising = dataclasses.replace(records[0], checks=(raised,))
    assert never_judged_sentences([one_row, *records, raising])[0].endswith(
        "(not judged, for row 0 alone: the kernel raised)"
    )


def test_a_contract_that_was_identified_is_said_once_for_each_kernel() -> None:
    found = [dataclasses.replace(record(quant(n)), contract="eager", contract_from="identified") for n in (64, 512)]
    assert identified_sentences(found) == [
        "mine.py:fused declares no contract; its outputs follow eager, which they were judged by"
    ]
    assert identified_sentences([dataclasses.replace(r, contract_from="given") for r in found]) == []
