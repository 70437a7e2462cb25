"""Completions that run on behind the right answer, and rules that read different answers in the same texts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from evals.__main__ import main
from evals.gsm8k import importers
from evals.gsm8k.answers import EXTRACTORS
from evals.gsm8k.samples import Sample
from evals.stats.criterion import CRITERIA, Verdict
from evals.stats.parity import Parity, decide
from tests.support.eval_arms import BASELINE, CANDIDATE, two_arms
from tests.support.harness_files import lm_eval_row, write

DEFAULT = CRITERIA["non-inferiority"]
GOES_ON = "\n\nQuestion: A train leaves at {n}. When does it arrive?\nAnswer: It takes 3 hours.\n#### {n}"


def run_on(samples: list[Sample], every: int, *, but: int = 0) -> list[Sample]:
    """Further questions behind the answers of all but each ``every``-th sample, from the ``but``-th on."""
    return [
        replace(s, text=f"{s.text}{GOES_ON.format(n=7000 + i)}") if i % every and i >= but else s
        for i, s in enumerate(samples)
    ]


def found(parity: Parity) -> tuple[bool | None, str]:
    [gate] = [g for g in parity.gates if g.name == "answers found"]
    assert gate.decides
    return gate.ok, gate.sentence


def judged(a: list[Sample], b: list[Sample], extractor: str, margin: float = DEFAULT.margin) -> Parity:
    return decide(a, b, criterion=replace(DEFAULT, extractor=extractor, margin=margin), headers=(BASELINE, CANDIDATE))


def test_run_on_answers_in_both_arms_leave_the_verdict_open() -> None:
    """sglang#29933: two thirds run on, the last number rises from 437 to 466 right, and strict reads 1,230 -> 1,236."""
    a, b = two_arms(1319, 1230, 0, 6)
    a, b = run_on(a, 3), run_on(b, 3, but=40)
    parity = judged(a, b, "flexible")
    assert parity.table.candidate > parity.table.baseline
    assert parity.verdict is Verdict.INCONCLUSIVE
    ok, words = found(parity)
    assert ok is None
    assert "in the baseline strict finds 1,230 right answers of 1,319 and flexible 4" in words
    assert "points within one arm, more than the margin" in words
    assert "--extractor strict judges by the other rule" in words
    assert "answers found: in the baseline strict finds" in parity.sentence
    # By the rule that reads them the claim is decided, and the difference is said.
    by_strict = judged(a, b, "strict")
    assert (by_strict.verdict, found(by_strict)[0]) == (Verdict.PARITY, True)
    assert "points fewer than strict" in found(by_strict)[1]


def test_one_arm_that_runs_on_is_enough() -> None:
    a, b = two_arms(1319, 1230, 3, 3)
    for arms in ((run_on(a, 2), b), (a, run_on(b, 2))):
        ok, words = found(judged(*arms, "last-number"))
        assert ok is None
        assert words.startswith(f"in the {'baseline' if arms[1] is b else 'candidate'} strict finds")


@pytest.mark.parametrize(("running", "ok"), [(19, True), (20, None)])
def test_it_is_said_where_the_difference_exceeds_the_margin(running: int, ok: bool | None) -> None:
    """1.5 points of 1,319 are 19.8 questions. All are right in both arms, so nothing else speaks against parity."""
    a, b = two_arms(1319, 1319, 0, 0)
    cut = [replace(s, text=f"{s.text}{GOES_ON.format(n=99999)}") if i < running else s for i, s in enumerate(a)]
    parity = judged(cut, b, "flexible")
    assert found(parity)[0] is ok
    assert parity.verdict is (Verdict.PARITY if ok else Verdict.INCONCLUSIVE)


def test_rules_that_these_texts_are_not_written_for_say_nothing() -> None:
    """A chat model that never writes ####: strict finds nothing, which is no fault of the last number."""
    a, b = (
        [replace(s, text=(s.text or "").replace("#### ", "The answer is ")) for s in arm]
        for arm in two_arms(1319, 1230, 3, 3)
    )
    parity = judged(a, b, "last-number")
    assert parity.verdict is Verdict.PARITY
    assert found(parity) == (True, "no other rule finds more right answers in one arm by more than 1.5 points")
    # The other way around strict is the wrong rule, and says so.
    assert found(judged(a[:1200] + two_arms(1319, 1230, 3, 3)[0][1200:], b, "strict"))[0] is None


def test_a_rule_that_grades_by_another_key_finds_nothing_more() -> None:
    """SGLang's rule loses the sign of both numbers: a sign error is right by it, and no answer that others missed."""
    assert EXTRACTORS["sglang"].find_gold
    a, b = ([replace(s, gold="-5", text="#### 5") for s in arm[:300]] + arm[300:] for arm in two_arms(1319, 1319, 0, 0))
    assert found(judged(a, b, "strict"))[0] is True


def test_imports_that_run_on_end_open_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole way: lm-eval's files, whose usual rule is flexible."""
    for name, lost in (("before", 3), ("after", 1)):
        rows = []
        for i in range(400):
            text = f"so\n#### {i if i >= lost else 77777}" + (GOES_ON.format(n=9000 + i) if i % 3 else "")
            rows.append(lm_eval_row(i, text, "flexible-extract"))
        file = write(tmp_path / f"samples_gsm8k_{name}.jsonl", rows)
        kernel = ["--kernel", f"x/{name}"]
        assert main(["import", "lm-eval", str(file), "--out", str(tmp_path / name), *kernel]) == 0
    assert importers.lm_eval(file, arm="a").header.settings["extractor"] == "flexible"
    capsys.readouterr()
    runs = [str(tmp_path / "before"), str(tmp_path / "after")]
    assert main(["gsm8k", "compare", *runs, "--json", str(tmp_path / "v.json")]) == 3
    out = capsys.readouterr().out
    assert out.startswith("INCONCLUSIVE")
    assert "in the candidate strict finds 399 right answers of 400 and flexible 13" in out
    gates = {g["name"]: g for g in json.loads((tmp_path / "v.json").read_text())["gates"]}
    assert gates["answers found"]["ok"] is None
    assert main(["gsm8k", "compare", *runs, "--extractor", "strict", "--margin", "5"]) == 0
