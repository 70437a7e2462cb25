"""Other harnesses' files, made with the fields that their sources write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evals import importers, store
from evals.errors import EvalError
from evals.parity import Verdict, decide

QUESTIONS = ["How many?", "How many more?", "And now?"]


def lm_eval_row(index: int, text: str | None, filter_name: str, gold: int | None = None) -> dict[str, Any]:
    """One line of ``samples_gsm8k_*.jsonl`` as lm-eval's evaluator builds it (``log_samples``)."""
    target = f"it is\n#### {gold if gold is not None else index}"
    return {
        "doc_id": index, "doc": {"question": QUESTIONS[index % 3], "answer": target}, "target": target,
        "arguments": {"gen_args_0": {"arg_0": "Question: ...", "arg_1": {"until": ["Question:"]}}},
        "resps": [[text]], "filtered_resps": ["[invalid]"], "filter": filter_name, "metrics": ["exact_match"],
        "doc_hash": "d" * 64, "prompt_hash": f"{index}" * 64, "target_hash": "t" * 64, "exact_match": 0.0,
    }  # fmt: skip


def sgl_eval_row(name: str, text: str | None, answer: str, tokens: int = 12) -> dict[str, Any]:
    """One line of ``output-rs0.jsonl`` as sgl-eval's PredictionsWriter builds it."""
    return {
        "generation": text, "id": name, "expected_answer": answer, "num_generated_tokens": tokens,
        "num_reasoning_tokens": 0, "num_answer_tokens": tokens, "problem": f"problem {name}",
        "generation_start_time": 1.0, "generation_end_time": 2.0, "predicted_answer": "1", "symbolic_correct": True,
    }  # fmt: skip


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_lm_eval_writes_each_document_once_a_filter(tmp_path: Path) -> None:
    rows = [lm_eval_row(i, f"#### {i}", f) for f in ("strict-match", "flexible-extract") for i in (2, 0, 1)]
    write(tmp_path / "samples_gsm8k_2026-01-01.jsonl", rows)
    found = importers.lm_eval(tmp_path, arm="before", model="m")
    assert [(s.question, s.gold, s.text) for s in found.samples] == [
        ("gsm8k-0", "0", "#### 0"), ("gsm8k-1", "1", "#### 1"), ("gsm8k-2", "2", "#### 2")
    ]  # fmt: skip
    assert (found.header.questions, found.header.backend, found.samples[1].prompt_sha256) == (3, "lm-eval", "1" * 64)
    store.write(tmp_path / "run", found.header, found.samples)
    assert store.read(tmp_path / "run").samples == found.samples


def test_repeats_of_lm_eval(tmp_path: Path) -> None:
    row = lm_eval_row(0, "", "strict-match")
    row["resps"] = [["#### 0", "#### 1"]]
    found = importers.lm_eval(write(tmp_path / "samples_x.jsonl", [row]), arm="a")
    assert [(s.repeat, s.text) for s in found.samples] == [(0, "#### 0"), (1, "#### 1")]


def test_an_empty_completion_is_an_error_and_blocks_the_verdict(tmp_path: Path) -> None:
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
    """Its newer files hold finish_reason: cut answers are counted, and "error" is no answer whatever stands in it."""
    ended = [("stop", "\\boxed{0}"), ("length", "so it"), ("error", "half an answer"), ("error", "")]
    rows = [{**sgl_eval_row(f"gsm8k-{i}", text, "0"), "finish_reason": f} for i, (f, text) in enumerate(ended)]
    found = importers.sgl_eval(write(tmp_path / "output-rs0.jsonl", rows), arm="a")
    assert [s.finish for s in found.samples] == ["stop", "length", None, None]
    assert [s.error for s in found.samples] == [None, None, importers.FAILED, importers.FAILED]
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
        ([{**lm_eval_row(0, "x", "s"), "resps": []}], "is no sample of lm-eval's gsm8k"),
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
    with pytest.raises(EvalError, match="stands twice in this repeat"):
        importers.sgl_eval(write(tmp_path / "f.jsonl", twice), arm="a")
    (tmp_path / "f.jsonl").write_text("{\n")
    with pytest.raises(EvalError, match=r"f.jsonl:1 is not JSON"):
        importers.sgl_eval(tmp_path / "f.jsonl", arm="a")
    with pytest.raises(EvalError, match="cannot read"):
        importers.lm_eval(tmp_path / "nothing.jsonl", arm="a")
    with pytest.raises(EvalError, match="holds 0 files"):
        importers.lm_eval(tmp_path, arm="a")
