"""Other harnesses' files, made with the fields that their sources write."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evals.errors import EvalError
from evals.gsm8k import importers, store
from evals.gsm8k.samples import EMPTY, FAILED, Header, Sample
from evals.stats.criterion import Verdict
from evals.stats.parity import Parity, decide
from tests.support.harness_files import lm_eval_row, sgl_eval_row, write


def test_lm_eval_writes_each_document_once_a_filter(tmp_path: Path) -> None:
    rows = [lm_eval_row(i, f"#### {i}", f) for f in ("strict-match", "flexible-extract") for i in (2, 0, 1)]
    write(tmp_path / "samples_gsm8k_2026-01-01.jsonl", rows)
    found = importers.lm_eval(tmp_path, arm="before", model="m")
    assert [(s.question, s.gold, s.text) for s in found.samples] == [
        ("gsm8k-0", "0", "#### 0"),
        ("gsm8k-1", "1", "#### 1"),
        ("gsm8k-2", "2", "#### 2"),
    ]
    assert (found.header.questions, found.header.backend, found.samples[1].prompt_sha256) == (3, "lm-eval", "1" * 64)
    store.write(tmp_path / "run", found.header, found.samples)
    assert store.read(tmp_path / "run").samples == found.samples


@pytest.mark.parametrize(
    ("resps", "texts"),
    [
        ([["a"]], ["a"]),
        ([["a", "b"]], ["a", "b"]),
        ([["a"], ["b"]], ["a", "b"]),
        ([[["a", "b"]]], ["a", "b"]),
        ([[["a"], ["b"]]], ["a", "b"]),
        (["a"], ["a"]),
        ("a", ["a"]),
        ([["", "b"]], [None, "b"]),
        ([[]], [None]),
        ([], [None]),
        ([[None]], [None]),
    ],
)
def test_no_form_of_the_responses_loses_a_document(tmp_path: Path, resps: Any, texts: list[str | None]) -> None:
    """None: an empty completion, which is an error and not nothing."""
    rows = [{**lm_eval_row(0, "", "s"), "resps": resps}, lm_eval_row(1, "#### 1", "s")]
    found = importers.lm_eval(write(tmp_path / "samples_x.jsonl", rows), arm="a")
    assert found.header.questions == 2
    own = [s for s in found.samples if s.question == "gsm8k-0"]
    assert [(s.repeat, s.text) for s in own] == list(enumerate(texts))
    assert [s.error for s in own] == [EMPTY if text is None else None for text in texts]


def test_a_summary_of_lm_eval_is_named_as_such(tmp_path: Path) -> None:
    """As lm-eval's evaluation tracker writes results_*.json: one object over many lines."""
    summary = {
        "results": {"gsm8k": {"alias": "gsm8k", "exact_match,strict-match": 0.93}},
        "model_name": "m",
        "group_subtasks": {"gsm8k": []},
        "configs": {"gsm8k": {"task": "gsm8k", "num_fewshot": 5}},
        "versions": {"gsm8k": 3.0},
        "n-shot": {"gsm8k": 5},
        "config": {"model": "local-completions", "limit": None},
        "n-samples": {"gsm8k": {"original": 1319, "effective": 1319}},
    }
    words = r"is lm-eval's summary, without answers; import samples_gsm8k_\*.jsonl \(--log_samples\)$"
    for indent in (2, None):
        file = tmp_path / "results_2026-01-01T00-00-00.json"
        file.write_text(json.dumps(summary, indent=indent))
        for place in (file, tmp_path):
            with pytest.raises(EvalError, match=words):
                importers.lm_eval(place, arm="a")
    # Where the answers are next to it, the folder is no question.
    write(tmp_path / "samples_gsm8k_2026.jsonl", [lm_eval_row(0, "#### 0", "s")])
    assert importers.lm_eval(tmp_path, arm="a").header.questions == 1


def test_one_document_is_a_file_too(tmp_path: Path) -> None:
    file = tmp_path / "samples_one.jsonl"
    for indent in (None, 2):
        file.write_text(json.dumps(lm_eval_row(0, "#### 0", "s"), indent=indent))
        assert importers.lm_eval(file, arm="a").header.questions == 1


def test_arms_of_different_lengths_are_named_by_their_lengths(tmp_path: Path) -> None:
    """Their digests differ too, which says nothing to a reader."""
    arms = []
    for name, count in (("whole", 1319), ("limited", 200)):
        rows = [lm_eval_row(i, f"#### {i}", "s") for i in range(count)]
        arms.append(importers.lm_eval(write(tmp_path / f"samples_{name}.jsonl", rows), arm=name))
    for a, b in (arms, arms[::-1]):
        numbers = f"{a.header.questions:,} questions in one arm, {b.header.questions:,} in the other"
        with pytest.raises(EvalError, match=numbers):
            decide(a.samples, b.samples, headers=(a.header, b.header))


def empties(tmp_path: Path, lost: int, *, baseline: int = 0, candidate: int = 0) -> Parity:
    """600 documents, all right in the baseline, ``lost`` of them lost; the last ones empty in the arm that is named."""
    arms = []
    for name, wrong, empty in (("before", 0, baseline), ("after", lost, candidate)):
        answers = [f"#### {i if i >= wrong else 9999}" if i < 600 - empty else "" for i in range(600)]
        rows = [lm_eval_row(i, text, "s") for i, text in enumerate(answers)]
        arms.append(importers.lm_eval(write(tmp_path / f"samples_{name}.jsonl", rows), arm=name))
    a, b = arms
    return decide(a.samples, b.samples, headers=(a.header, b.header))


def test_an_empty_completion_of_an_import_is_counted_both_ways(tmp_path: Path) -> None:
    one = empties(tmp_path, 1, candidate=1)
    assert (one.verdict, one.table.lost, one.questions) == (Verdict.PARITY, 2, 600)
    assert one.sentence.endswith(
        "Empty: 1 completion is empty (1 in after), an answer of nothing or a failed request; counted for the "
        "candidate or against it, the verdict is the same."
    )
    # In the baseline it is counted as right: a failed request there must not excuse the candidate.
    [gate] = [g for g in empties(tmp_path, 1, baseline=2, candidate=1).gates if g.name == "empty completions"]
    assert gate.sentence.startswith("3 completions are empty (2 in before, 1 in after)")
    assert empties(tmp_path, 0, baseline=2).table.lost == 0
    # So many that they decide it: open, with both verdicts, and nothing is said of running this suite again.
    many = empties(tmp_path, 1, candidate=30)
    assert many.verdict is Verdict.INCONCLUSIVE
    assert (
        "against the candidate the verdict would be REGRESSION, for it PARITY: ask that harness again" in many.sentence
    )
    assert "run it again to finish" not in many.sentence
    # Empty in the baseline and wrong in the candidate: had the baseline been right there, they would all be lost.
    before = [lm_eval_row(i, "" if i < 30 else f"#### {i}", "s") for i in range(600)]
    after = [lm_eval_row(i, f"#### {9999 if i < 30 else i}", "s") for i in range(600)]
    made = [
        importers.lm_eval(write(tmp_path / f"samples_{n}.jsonl", r), arm=n) for n, r in (("a", before), ("b", after))
    ]
    parity = decide(made[0].samples, made[1].samples, headers=(made[0].header, made[1].header))
    assert parity.verdict is Verdict.INCONCLUSIVE
    assert "against the candidate the verdict would be REGRESSION, for it PARITY" in parity.sentence
    # A loss that is shown without them is a regression.
    assert empties(tmp_path, 60, candidate=2).verdict is Verdict.REGRESSION
    # All of them empty: nothing at all is shown.
    assert empties(tmp_path, 0, candidate=600).verdict is Verdict.INCONCLUSIVE


def test_errors_of_the_suites_own_runs_still_block(tmp_path: Path) -> None:
    own = Header("a", "m", "openai", "plain/1", "d", "ab" * 32, 2)
    other = replace(own, arm="b", kernels={"add_rmsnorm_quant": "x/y"})
    good = [Sample(f"q{i}", i, "1", "#### 1") for i in range(2)]
    bad = [good[0], replace(good[1], text=None, error="timeout after 600 s")]
    with pytest.raises(EvalError, match="run it again to finish them"):
        decide(good, bad, headers=(own, other))


def test_repeats_of_lm_eval(tmp_path: Path) -> None:
    row = lm_eval_row(0, "", "strict-match")
    row["resps"] = [["#### 0", "#### 1"]]
    found = importers.lm_eval(write(tmp_path / "samples_x.jsonl", [row]), arm="a")
    assert [(s.repeat, s.text) for s in found.samples] == [(0, "#### 0"), (1, "#### 1")]


def test_an_empty_completion_is_an_error_and_blocks_a_verdict_without_headers(tmp_path: Path) -> None:
    """Both harnesses record a failed request as an empty text, and score it as a wrong answer."""
    good = importers.lm_eval(write(tmp_path / "a.jsonl", [lm_eval_row(i, f"#### {i}", "s") for i in (0, 1)]), arm="a")
    for empty in ("", "  \n", None):
        rows = [lm_eval_row(0, "#### 0", "s"), lm_eval_row(1, empty, "s")]
        bad = importers.lm_eval(write(tmp_path / "b.jsonl", rows), arm="b")
        assert [s.error is not None for s in bad.samples] == [False, True]
        with pytest.raises(EvalError, match="1 of 2 questions of candidate ended in an error"):
            decide(good.samples, bad.samples)


def test_sgl_eval_in_order_of_completion_and_by_repeat(tmp_path: Path) -> None:
    for repeat in (0, 1):
        rows = [sgl_eval_row(f"gsm8k-{i}", f"\\boxed{{{i}}}", f"{i}") for i in (3, 1, 2)]
        write(tmp_path / f"output-rs{repeat}.jsonl", rows)
    found = importers.sgl_eval(tmp_path, arm="fused")
    assert [(s.question, s.repeat) for s in found.samples] == [(f"gsm8k-{i}", r) for r in (0, 1) for i in (1, 2, 3)]
    assert (found.header.questions, found.samples[0].length) == (3, 12)
    assert decide(found.samples, found.samples, headers=(found.header, found.header)).extractor == "boxed/1"
    single = importers.sgl_eval(tmp_path / "output-rs1.jsonl", arm="x")
    assert {s.repeat for s in single.samples} == {0}


def test_the_list_that_some_versions_of_lm_eval_wrote(tmp_path: Path) -> None:
    rows = [lm_eval_row(i, f"#### {i}", "s") for i in (0, 1)]
    lines = importers.lm_eval(write(tmp_path / "lines.jsonl", rows), arm="a")
    (tmp_path / "list.jsonl").write_text(json.dumps(rows, indent=2))
    assert importers.lm_eval(tmp_path / "list.jsonl", arm="a").samples == lines.samples
    (tmp_path / "list.jsonl").write_text(json.dumps([*rows, {"doc_id": 2}]))
    with pytest.raises(EvalError, match=r"list.jsonl, entry 3 is no sample"):
        importers.lm_eval(tmp_path / "list.jsonl", arm="a")
    (tmp_path / "list.jsonl").write_text("[{")
    with pytest.raises(EvalError, match=r"list.jsonl is not JSON"):
        importers.lm_eval(tmp_path / "list.jsonl", arm="a")


def test_sgl_eval_says_how_a_completion_ended(tmp_path: Path) -> None:
    """Its newer files hold finish_reason: cut answers are counted, and "error" is no answer whatever it holds."""
    ended = [("stop", "\\boxed{0}"), ("length", "so it"), ("error", "half an answer"), ("error", "")]
    rows = [{**sgl_eval_row(f"gsm8k-{i}", text, "0"), "finish_reason": f} for i, (f, text) in enumerate(ended)]
    found = importers.sgl_eval(write(tmp_path / "output-rs0.jsonl", rows), arm="a")
    assert [s.finish for s in found.samples] == ["stop", "length", None, None]
    assert [s.error for s in found.samples] == [None, None, FAILED, FAILED]
    assert [s.text for s in found.samples] == ["\\boxed{0}", "so it", None, None]


def test_lm_eval_arms_that_were_asked_otherwise_are_not_compared(tmp_path: Path) -> None:
    """Both forms of its arguments hold the settings of the request; another length limit is another question."""
    short = {"until": ["Question:"], "do_sample": False, "max_gen_toks": 64}
    made = []
    for name, arguments in (
        ("new", {"gen_args_0": {"arg_0": "Question: ...", "arg_1": short}}),
        ("old", [["Question: ...", short]]),
        ("other", {"gen_args_0": {"arg_0": "Question: ...", "arg_1": {**short, "max_gen_toks": 256}}}),
        ("none", []),
    ):
        rows = [{**lm_eval_row(i, f"#### {i}", "s"), "arguments": arguments} for i in (0, 1)]
        made.append(importers.lm_eval(write(tmp_path / f"samples_{name}.jsonl", rows), arm=name))
    new, old, other, none = made
    assert new.header.settings == old.header.settings
    assert new.header.settings["generation"] == short
    assert "generation" not in none.header.settings
    decide(new.samples, old.samples, headers=(new.header, old.header))
    with pytest.raises(EvalError, match="setting generation is"):
        decide(new.samples, other.samples, headers=(new.header, other.header))


def test_imported_arms_are_compared_with_the_same_statistics(tmp_path: Path) -> None:
    """600 documents, of which 2 are lost: the import changes nothing in the numbers."""
    arms = []
    for name, lost in (("a", 0), ("b", 2)):
        rows = [lm_eval_row(i, f"#### {i if i >= lost else 9999}", "flexible-extract") for i in range(600)]
        arms.append(importers.lm_eval(write(tmp_path / f"samples_{name}.jsonl", rows), arm=name))
    a, b = arms
    parity = decide(a.samples, b.samples, headers=(a.header, b.header))
    assert (parity.verdict, parity.table.lost, parity.table.gained) == (Verdict.PARITY, 2, 0)
    other = [dict(lm_eval_row(i, "#### 1", "s"), doc={"question": f"other {i}", "answer": ""}) for i in range(600)]
    foreign = importers.lm_eval(write(tmp_path / "samples_c.jsonl", other), arm="c")
    with pytest.raises(EvalError, match="data_sha256 is"):
        decide(a.samples, foreign.samples, headers=(a.header, foreign.header))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "holds no sample"),
        ([{"doc_id": 0}], r"f.jsonl:1 is no sample of lm-eval's gsm8k"),
        ([{**lm_eval_row(0, "x", "s"), "doc_id": "0"}], "doc_id is no number"),
        ([{**lm_eval_row(0, "x", "s"), "resps": None}], "is no sample of lm-eval's gsm8k"),
        ([{**lm_eval_row(0, "x", "s"), "resps": [[[-1.5, False]]]}], "question gsm8k-0: the completion is no text"),
        ([{**lm_eval_row(0, "x", "s"), "target": "many"}], "the target 'many' is no number"),
        ([lm_eval_row(0, "x", "s"), lm_eval_row(0, "y", "t")], r"f.jsonl:2: document 0 .* two different completions"),
    ],
)
def test_files_that_are_none_of_lm_evals(tmp_path: Path, rows: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(EvalError, match=words):
        importers.lm_eval(write(tmp_path / "f.jsonl", rows), arm="a")


def test_files_that_are_none_of_sgl_evals(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match=r"holds no output-rs\*.jsonl"):
        importers.sgl_eval(tmp_path, arm="a")
    with pytest.raises(EvalError, match=r"f.jsonl:1 is no sample of sgl-eval"):
        importers.sgl_eval(write(tmp_path / "f.jsonl", [{"id": "x"}]), arm="a")
    twice = [sgl_eval_row("gsm8k-1", "1", "1")] * 2
    with pytest.raises(EvalError, match="occurs twice in this repeat"):
        importers.sgl_eval(write(tmp_path / "f.jsonl", twice), arm="a")
    (tmp_path / "f.jsonl").write_text("{\n")
    with pytest.raises(EvalError, match=r"f.jsonl:1 is not JSON"):
        importers.sgl_eval(tmp_path / "f.jsonl", arm="a")
    with pytest.raises(EvalError, match="cannot read"):
        importers.lm_eval(tmp_path / "nothing.jsonl", arm="a")
    with pytest.raises(EvalError, match="holds 0 files"):
        importers.lm_eval(tmp_path, arm="a")
