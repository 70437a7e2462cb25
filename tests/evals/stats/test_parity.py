"""The verdict: each of the three, what gates it, what there is no verdict on, and the words."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from evals.commands import report
from evals.commands.record import Subject, case_name, record
from evals.errors import EvalError
from evals.gsm8k.samples import Header, Sample
from evals.stats.criterion import CRITERIA, Criterion, Verdict, find_criterion
from evals.stats.parity import Parity, decide, decide_totals
from evals.stats.token_gates import TokenLevel, Yardstick
from tests.support.eval_arms import BASELINE, CANDIDATE, answered, two_arms
from tests.support.token_arms import arms
from validators.records.record import Status
from validators.records.store import from_json, to_json

DEFAULT = CRITERIA["non-inferiority"]
HEADERS = (BASELINE, CANDIDATE)


def gate(parity: Parity, name: str) -> tuple[bool | None, str]:
    [found] = [g for g in parity.gates if g.name == name]
    return found.ok, found.sentence


@pytest.mark.parametrize(
    ("margin", "verdict"), [(0.01, Verdict.INCONCLUSIVE), (0.015, Verdict.PARITY), (0.02, Verdict.PARITY)]
)
def test_the_seed_case_from_runs_and_from_totals(margin: float, verdict: Verdict) -> None:
    """0.948 and 0.943 of 1,319 with 3 % discordance."""
    a, b = two_arms(1319, 1250, 23, 17)
    criterion = Criterion(margin=margin)
    from_runs = decide(a, b, criterion=criterion, headers=HEADERS)
    from_totals = decide_totals(1250, 1244, 1319, 0.03, criterion)
    for parity in (from_runs, from_totals):
        assert parity.verdict is verdict
        assert (parity.table.lost, parity.table.gained) == (23, 17)
        assert "1,250 -> 1,244 of 1,319 right (23 lost, 17 gained" in parity.sentence
        assert "95 % interval [-1.45, +0.51], one-sided lower bound -1.28" in parity.sentence
    if verdict is Verdict.INCONCLUSIVE:
        # From the runs the discordance is 40 of 1,319, which is not quite the 3 % of the totals.
        assert (from_runs.needed, from_totals.needed) == (1875, 1855)
        assert "1,855 questions (536 more than here) settle it four times of five" in from_totals.sentence
        assert "if the difference is what was seen, 6,242" in from_totals.sentence
    else:
        assert from_runs.needed is from_totals.needed is None
    assert "Assumed: 3 % discordance." in from_totals.sentence


def test_the_sentence_of_parity_can_be_quoted() -> None:
    parity = decide(*two_arms(1319, 1250, 23, 17), criterion=Criterion(margin=0.02), headers=HEADERS)
    assert parity.sentence == (
        "PARITY: fused is no worse than unfused by 2 points (plain/1, gsm8k-test, tiny-glm): 1,250 -> 1,244 of 1,319 "
        "right (23 lost, 17 gained, discordance 3 %); difference -0.45 points, 95 % interval [-1.45, +0.51], one-sided "
        "lower bound -1.28; margin 2 points. By accuracy alone: token-level scores were not given."
    )


def test_a_large_loss_is_a_regression_and_a_loss_within_the_margin_is_parity() -> None:
    worse = decide(*two_arms(1319, 1250, 60, 10))
    assert worse.verdict is Verdict.REGRESSION
    assert gate(worse, "accuracy")[0] is False
    assert worse.sentence.startswith("REGRESSION: the candidate against the baseline: accuracy: 1,250 -> 1,200")
    # What the token level leaves open does not excuse it.
    open_ = decide(
        *two_arms(1319, 1250, 60, 10),
        tokens=TokenLevel(arms(1, 5), None, Yardstick(arms(2, 5), arms(3, 5))),
    )
    assert (gate(open_, "noise")[0], open_.verdict) == (None, Verdict.REGRESSION)
    # Significant harm (p = 0.046), and yet within the two points that were accepted beforehand.
    within = decide(*two_arms(1319, 1250, 10, 3), criterion=Criterion(margin=0.02))
    assert within.verdict is Verdict.PARITY
    assert "0.046 for harm" in gate(within, "McNemar")[1]


def test_nothing_changed_among_few_questions_is_planned_as_if_one_had() -> None:
    a, b = two_arms(48, 43, 0, 0)
    parity = decide(a, b)
    assert (parity.verdict, parity.needed) == (Verdict.INCONCLUSIVE, math.ceil(6.1826 / 48 / 0.015**2))
    assert "573 questions (525 more than here) settle it four times of five" in parity.sentence
    assert "d = 2.1 %); if the difference is what was seen, 573." in parity.sentence


def test_a_loss_at_the_margin_will_never_be_shown_to_be_within_it() -> None:
    parity = decide_totals(190, 186, 200, 0.05, DEFAULT)
    assert parity.verdict is Verdict.INCONCLUSIVE
    assert "if the difference is what was seen, it is not within the margin" in parity.sentence


def test_not_significant_is_never_parity() -> None:
    parity = decide(*two_arms(200, 190, 6, 5), criterion=Criterion(margin=0.02))
    assert "p = 1 two-sided" in gate(parity, "McNemar")[1]
    assert parity.verdict is Verdict.INCONCLUSIVE


def test_accuracy_passes_and_the_token_level_says_no() -> None:
    """A truncating cast raised accuracy from 0.454 to 0.459 in a measured case: 31 lost, 37 gained."""
    a, b = two_arms(1319, 599, 31, 37)
    alone = decide(a, b, criterion=Criterion(margin=0.02))
    assert alone.verdict is Verdict.PARITY
    yardstick = Yardstick(arms(9), arms(8, spread=0.055))
    parity = decide(a, b, tokens=TokenLevel(arms(1, spread=0.1), None, yardstick), criterion=Criterion(margin=0.02))
    assert parity.verdict is Verdict.REGRESSION
    assert gate(parity, "accuracy")[0] is True
    assert gate(parity, "noise")[0] is False
    assert (
        "REGRESSION: the candidate against the baseline: noise: at a typical token the candidate's quantisation noise"
        in parity.sentence
    )
    assert " Accuracy: 599 -> 605" in parity.sentence
    good = decide(
        a,
        b,
        tokens=TokenLevel(arms(1), arms(2, spread=0.01), Yardstick(arms(9), arms(8))),
        criterion=Criterion(margin=0.02),
    )
    assert good.verdict is Verdict.PARITY
    assert "accuracy alone" not in good.sentence


def test_no_verdict_while_an_error_is_left_or_a_question_is_missing() -> None:
    a, b = two_arms(1319, 1250, 3, 3)
    broken = [*b[:-1], replace(b[-1], text=None, error="HTTP 503 after 5 attempts")]
    with pytest.raises(EvalError, match=r"1 of 1319 questions of candidate ended in an error.*q1318: HTTP 503"):
        decide(a, broken, headers=HEADERS)
    with pytest.raises(EvalError, match="candidate lacks 1 questions that the other arm answered"):
        decide(a, b[:-1])
    with pytest.raises(EvalError, match="fused has 1,318 of 1,319 questions"):
        decide(a, b[:-1], headers=HEADERS)
    with pytest.raises(EvalError, match="baseline lacks 1 questions"):
        decide(a[:-1], b)
    with pytest.raises(EvalError, match="candidate holds a question twice"):
        decide(a, [*b, b[0]])
    with pytest.raises(EvalError, match="candidate holds no answer"):
        decide(a, [])
    with pytest.raises(EvalError, match="its re-run lacks"):
        decide(a, b, rerun=a[:-1])


def test_arms_that_cannot_be_compared() -> None:
    a, b = two_arms(1319, 1250, 3, 3)

    def refuse(words: str, criterion: Criterion = DEFAULT, **changes: object) -> None:
        with pytest.raises(EvalError, match=words):
            decide(a, b, headers=(BASELINE, replace(CANDIDATE, **changes)), criterion=criterion)  # type: ignore[arg-type]

    refuse("more than the kernels: profile is 'plain/1' in one and 'vllm-ci/1'", profile="vllm-ci/1")
    refuse("data_sha256 is", data_sha256="cd" * 32)
    refuse("seed is 0 in one and 1", seed=1)
    refuse("setting max_tokens is 512 in one and 256", settings={**BASELINE.settings, "max_tokens": 256})
    refuse("served different models, 'tiny-glm' and 'other'", model="other")
    refuse("a run would be compared with itself", kernels=BASELINE.kernels)
    refuse(
        "a run would be compared with itself",
        kernels=BASELINE.kernels,
        fingerprint={"startup_time": 3, "args": {"port": 7}},
    )
    other = replace(CANDIDATE, model="other")
    assert decide(a, b, headers=(BASELINE, other), criterion=replace(DEFAULT, any_model=True)).verdict is Verdict.PARITY
    server = replace(CANDIDATE, kernels=BASELINE.kernels, fingerprint={"commit": "abc"})
    assert "commit abc in the candidate alone" in gate(decide(a, b, headers=(BASELINE, server)), "arms")[1]
    nested = replace(server, fingerprint={"args": {"support": "aiter", "port": 1}})
    assert "args.support aiter" in gate(decide(a, b, headers=(BASELINE, nested)), "arms")[1]
    with pytest.raises(EvalError, match="q0 has the gold answer 0 in one arm and 5"):
        decide(a, [replace(b[0], gold="5"), *b[1:]])
    with pytest.raises(EvalError, match="q0 was asked with different prompts"):
        decide([replace(a[0], prompt_sha256="x"), *a[1:]], [replace(b[0], prompt_sha256="y"), *b[1:]])


def test_a_run_against_itself_on_purpose() -> None:
    a, b = two_arms(1319, 1250, 2, 2)
    parity = decide(a, b, headers=(BASELINE, BASELINE), criterion=replace(DEFAULT, aa=True))
    assert (parity.verdict, gate(parity, "arms")[1]) == (Verdict.PARITY, "the arms differ: the same arm twice")
    with pytest.raises(EvalError, match="is no re-run of the baseline"):
        decide(a, b, headers=HEADERS, criterion=replace(DEFAULT, aa=True))


def test_identical_completions_are_remarked_upon() -> None:
    a, _ = two_arms(1319, 1250, 0, 0)
    parity = decide(a, a, headers=HEADERS)
    assert gate(parity, "arms")[1].endswith("all completions are identical, so make sure that the change was on")
    assert parity.verdict is Verdict.PARITY


def test_a_baseline_that_has_nothing_right_shows_nothing() -> None:
    a, b = two_arms(1319, 6, 6, 0)
    parity = decide(a, b)
    assert gate(parity, "accuracy")[0] is True
    assert parity.verdict is Verdict.INCONCLUSIVE
    assert "even a total loss would pass" in parity.sentence


def test_guards_of_format_and_length() -> None:
    a, b = two_arms(1319, 1000, 5, 5)
    cut = [replace(s, finish="length") if i % 20 == 0 else s for i, s in enumerate(b)]
    assert gate(decide(a, cut), "cut by the length limit") == (False, "0 -> 66 of 1,319")
    assert decide(a, cut).verdict is Verdict.REGRESSION
    # Wrong answers that turn into none at all leave accuracy where it was.
    dumb = [replace(s, text="so it is") if "1000099" in (s.text or "") and i % 2 else s for i, s in enumerate(b)]
    assert gate(decide(a, dumb), "no number found")[0] is False
    long = [replace(s, text=f"{'so ' * 30}{s.text}") for s in b]
    assert gate(decide(a, long), "mean length")[0] is False
    few = [replace(s, finish="length") if i < 2 else s for i, s in enumerate(b)]
    assert decide(a, few).verdict is Verdict.PARITY


def test_excess_flips_are_reported_and_gate_nothing() -> None:
    a, b = two_arms(1319, 1250, 20, 20)
    parity = decide(a, b, rerun=two_arms(1319, 1250, 1, 1)[1])
    assert parity.verdict is Verdict.PARITY
    ok, words = gate(parity, "excess flips")
    assert ok is None
    assert words.startswith("40 flips against 2 of the baseline's own re-run")


def test_the_verdict_says_whether_it_depends_on_the_extractor() -> None:
    a, b = two_arms(1319, 1250, 3, 3)
    assert gate(decide(a, b), "extractors")[1].startswith("no extractor changes the accuracy gate (strict +0.00 PARITY")
    # The candidate talks on after its answer: strict sees nothing, the last number is another one.
    chatty = [replace(s, text=f"{s.text}\n\nThat took 3 steps.") for s in b]
    assert "the accuracy gate DEPENDS on the extractor" in gate(decide(a, chatty), "extractors")[1]
    assert decide(a, chatty, criterion=replace(DEFAULT, extractor="last-number")).verdict is Verdict.REGRESSION


def test_mlperf_keeps_a_ratio_and_no_error_bar() -> None:
    a, b = two_arms(1319, 1250, 23, 17)
    kept, lost = (decide(a, b, criterion=find_criterion(name)) for name in ("mlperf-99", "mlperf-99.9"))
    assert (kept.verdict, lost.verdict) == (Verdict.PARITY, Verdict.REGRESSION)
    assert kept.sentence.startswith("PARITY by mlperf-99: the candidate keeps 99 % of the baseline: 99.52 %")
    assert "95 % interval" in lost.sentence
    with pytest.raises(EvalError, match="unknown criterion 'mlperf'; known: non-inferiority, mlperf-99"):
        find_criterion("mlperf")


def test_repeats_are_clustered_by_question() -> None:
    a, b = two_arms(400, 380, 4, 4)
    repeats = [[replace(s, repeat=r) for r in range(5) for s in arm] for arm in (a, b)]
    once, often = decide(a, b), decide(*repeats)
    assert often.questions == once.questions == 400
    width = once.numbers["lower_bound"], often.numbers["lower_bound"]
    assert width[1] == pytest.approx(-1.645 * math.sqrt(8 / 399) / math.sqrt(400), rel=1e-3)
    assert width[0] == pytest.approx(width[1], rel=0.2)
    with pytest.raises(EvalError, match="repeated more often than others"):
        decide([*a, replace(a[0], repeat=1)], [*b, replace(b[0], repeat=1)])


def test_early_stop_takes_the_contiguous_beginning_only() -> None:
    a, b = two_arms(1319, 1250, 10, 10)
    criterion = replace(DEFAULT, margin=0.02, early_stop=True)
    # 900 answered in order, then a gap, then 100 easy ones that came in first.
    part = [s for s in b if s.order < 900 or s.order > 1200]
    parity = decide(a, part, criterion=criterion, headers=HEADERS)
    assert (parity.verdict, parity.questions) == (Verdict.PARITY, 900)
    assert gate(parity, "accuracy")[1].startswith("by betting on the first ")
    collapse = decide(a, answered([i % 3 > 0 for i in range(200)]), criterion=criterion, headers=HEADERS)
    assert collapse.verdict is Verdict.REGRESSION
    start = decide(a, b[:20], criterion=criterion, headers=HEADERS)
    assert start.verdict is Verdict.INCONCLUSIVE
    with pytest.raises(EvalError, match="first question of the permutation is not answered yet"):
        decide(a, b[1:], criterion=criterion)


@pytest.mark.parametrize("numbers", [(1320, 1, 1319), (-1, 1, 10), (1, 1, 0)])
def test_impossible_totals(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(EvalError, match="are no totals"):
        decide_totals(*numbers, 0.03, DEFAULT)


@pytest.mark.parametrize("discordance", [0.001, 0.2, 1.5])
def test_an_impossible_discordance(discordance: float) -> None:
    with pytest.raises(EvalError, match=r"is impossible with 1250 and 1244 of 1319; it is at least 0.45 %"):
        decide_totals(1250, 1244, 1319, discordance, DEFAULT)


def test_the_report_shows_every_gate_and_json_holds_the_same() -> None:
    import json

    parity = decide(*two_arms(1319, 1250, 60, 10), tokens=TokenLevel(arms(1)), headers=HEADERS)
    text = report.text(parity)
    assert text.startswith("REGRESSION: fused against unfused")
    for g in parity.gates:
        assert f"{g.name} " in text
        assert g.sentence in text
    assert "  NO    accuracy" in text
    value = json.loads(report.as_json(parity))
    assert value["verdict"] == "REGRESSION"
    assert [g["ok"] for g in value["gates"]] == [g.ok for g in parity.gates]
    assert value["table"] == {"both": 1190, "lost": 60, "gained": 10, "neither": 59, "count": 1319}


@pytest.mark.parametrize(
    ("lost", "gained", "margin", "status"),
    [(5, 5, 0.015, Status.PASSED), (60, 10, 0.015, Status.FAILED), (23, 17, 0.01, Status.MISTRUSTED)],
)
def test_the_record_of_each_verdict(lost: int, gained: int, margin: float, status: Status) -> None:
    parity = decide(*two_arms(1319, 1250, lost, gained), criterion=Criterion(margin=margin), headers=HEADERS)
    subject = Subject(
        kernel="emulated/aiter-hip-gfx950",
        model="some/tiny-glm",
        device="cpu",
        arch="cpu",
        contract="aiter-hip-gfx950",
        emulated=True,
        reproduce="python -m evals parity",
    )
    made = record(parity, subject)
    assert (made.status, made.op, made.lane, made.emulated) == (status, "gsm8k_parity", "parity", True)
    assert made.case == f"parity-tiny-glm-n1319-margin{100 * margin:g}-s0"
    assert {c.kind for c in made.checks} == {"statistical"}
    assert bool(made.reasons) == (status is not Status.PASSED)
    assert parity.sentence in (*made.reasons, *(e.text for e in made.explanations))
    assert from_json(to_json(made)) == made


def test_a_passed_parity_is_consistent_for_the_sign_off() -> None:
    """A gate that is only reported must not look like a check that failed, nor a pass hold nothing judged."""
    from validators.signoff.judged import inconsistency

    parity = decide(*two_arms(1319, 1250, 5, 5))
    made = record(parity, Subject(kernel="k", model="m"))
    assert inconsistency(made) is None
    assert case_name("a b/c d@main", parity, 3) == "parity-c-d-main-n1319-margin1.5-s3"


def test_headers_and_samples_are_all_that_is_needed() -> None:
    """Runs of other harnesses name neither kernels nor a server: nothing shows that the arms differ, and it says so."""
    bare: Header = replace(BASELINE, kernels={}, questions=20)
    a: list[Sample] = answered([True] * 20)
    parity = decide(a, a, headers=(bare, bare))
    assert gate(parity, "arms")[1].startswith("nothing recorded shows that the arms differ")
