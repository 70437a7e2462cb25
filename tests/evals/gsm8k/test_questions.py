"""Questions and prompts: digests, gold answers, orders, and the bytes that each harness sends."""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from evals.errors import EvalError
from evals.gsm8k import data
from evals.gsm8k.data import Problem
from evals.gsm8k.prompts import PROFILES, asked, find_profile, prompt, prompts

ROOT = Path(__file__).resolve().parents[3]
REAL = Path(os.environ.get("GSM8K_PATH") or ROOT.parent / "shared" / "gsm8k")

LINES = [
    ("Two?", "1+1=<<1+1=2>>2\n#### 2"),
    ("Thousand?", "#### 1,080"),
    ("Below?", "#### -10"),
    ("Four?", "#### 4"),
    ("Five?", "#### 5"),
    ("Six?", "#### 6"),
    ("Seven?", "#### 7"),
]


def raw(lines: list[tuple[str, str]] = LINES) -> bytes:
    return "".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in lines).encode()


def own(lines: list[tuple[str, str]] = LINES) -> tuple[Problem, ...]:
    return data.parse(raw(lines), split="test", source="own.jsonl", any_data=True).problems


@pytest.fixture
def real() -> Path:
    if not (REAL / "test.jsonl").is_file():
        pytest.skip("GSM8K's files are not here; GSM8K_PATH names their folder")
    return REAL


def test_other_data_is_refused_unless_asked_for_and_then_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_bytes(raw())
    with pytest.raises(EvalError, match=r"mine.jsonl is not GSM8K's test file: it has sha256 .* and not 3730d312f6e3"):
        data.load(file)
    found = data.load(file, any_data=True)
    assert found.name == "other:mine.jsonl"
    assert [p.answer for p in found.problems] == ["2", "1080", "-10", "4", "5", "6", "7"]
    assert found.problems[0].solution == "1+1=<<1+1=2>>2\n#### 2"
    assert found.problems[3].id.startswith("other-")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds no question"),
        (b"{", r"own.jsonl:1 is no JSON object"),
        (raw() + b"[1]\n", r"own.jsonl:8 is no JSON object"),
        (b'{"question": "a", "answer": 3}\n', "must be text"),
        (b'{"question": "a", "answer": "three"}\n', "does not end with '#### number'"),
        (b'{"question": "a", "answer": "#### NaN"}\n', "does not end with '#### number'"),
    ],
)
def test_bad_files_are_one_sentence_with_their_line(content: bytes, words: str) -> None:
    with pytest.raises(EvalError, match=words):
        data.parse(content, split="test", source="own.jsonl", any_data=True)


def test_a_missing_file_and_an_unknown_split() -> None:
    with pytest.raises(EvalError, match="cannot read the questions"):
        data.load("/nonexistent/gsm8k")
    with pytest.raises(EvalError, match="unknown split 'dev'"):
        data.load("x", split="dev")


def test_the_real_files_have_the_published_digests(real: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSM8K_PATH", str(real))
    test, train = data.load(), data.load(split="train")
    assert (test.name, len(test.problems), len(train.problems)) == ("gsm8k-test", 1319, 7473)
    assert sorted(p.answer for p in test.problems if p.answer.startswith("-")) == ["-10", "-3"]
    assert "<<16-3-4=9>>" in test.problems[0].solution
    with pytest.raises(EvalError, match="it is GSM8K's train file"):
        data.load(real / "train.jsonl")


def test_rows_of_the_hub_give_the_bytes_of_the_file(real: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub holds a table; the digest is taken over its rows written as the published file is."""
    rows = [json.loads(line) for line in (real / "test.jsonl").read_text().splitlines()]
    asked_for: dict[str, Any] = {}

    def load_dataset(name: str, config: str, *, split: str, revision: str | None) -> list[dict[str, str]]:
        asked_for.update(name=name, config=config, split=split, revision=revision)
        return rows

    fake = ModuleType("datasets")
    fake.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", fake)
    monkeypatch.delenv("GSM8K_PATH", raising=False)
    found = data.load(revision="abc")
    assert found.sha256 == data.SHA256["test"]
    assert found.source == "openai/gsm8k@abc"
    assert asked_for == {"name": "openai/gsm8k", "config": "main", "split": "test", "revision": "abc"}
    rows[5]["question"] += " "
    with pytest.raises(EvalError, match="is not GSM8K's test file"):
        data.load()


def test_a_hub_that_cannot_be_reached_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: object, **__: object) -> None:
        raise ConnectionError("offline\nmore lines")

    fake = ModuleType("datasets")
    fake.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", fake)
    monkeypatch.delenv("GSM8K_PATH", raising=False)
    with pytest.raises(EvalError, match=r"cannot load openai/gsm8k \(ConnectionError: offline\)"):
        data.load()
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(EvalError, match="set GSM8K_PATH, or install the datasets library"):
        data.load()


def test_the_permutation_is_fixed_and_is_one() -> None:
    assert data.permutation(8, 0) == [7, 4, 3, 2, 6, 0, 5, 1]  # by sha256sum of "0:0" to "0:7"
    assert sorted(data.permutation(1319, 3)) == list(range(1319))
    assert data.permutation(50, 1) != data.permutation(50, 2)
    assert data.ordered("abcdefgh", 0) == [*"hedcgafb"]


def test_a_classic_sglang_prompt_byte_by_byte() -> None:
    """The shots are the first lines of the test file, the first question is in its own prompt, and 5 leak."""
    problems = own()
    made = prompts(find_profile("sglang-5shot/1"), problems)
    shots = "".join(f"Question: {q}\nAnswer: {a}\n\n" for q, a in LINES[:5])
    assert made[problems[0].id] == f"{shots}Question: Two?\nAnswer:"
    assert made[problems[6].id] == f"{shots}Question: Seven?\nAnswer:"
    assert len(made) == 7
    clean = prompts(find_profile("sglang-5shot-clean"), problems)
    assert list(clean) == [p.id for p in problems[5:]]
    assert clean[problems[6].id] == made[problems[6].id]


def test_shots_from_train() -> None:
    problems, train = own(), own([(f"T{i}?", f"#### {i}") for i in range(40)])
    vllm = prompts(find_profile("vllm-ci"), problems, train)
    assert vllm[problems[0].id].startswith("Question: T0?\nAnswer: #### 0\n\nQuestion: T1?")
    made = list(prompts(find_profile("lm-eval-gsm8k"), problems, train).values())
    # As its sampler draws: one generator with seed 1234, five of the train set for each question in turn.
    generator = random.Random(1234)
    for text, question in zip(made, problems, strict=True):
        drawn = generator.sample(range(40), 5)
        assert text == "".join(f"Question: T{i}?\nAnswer: #### {i}\n\n" for i in drawn) + (
            f"Question: {question.question}\nAnswer:"
        )
    with pytest.raises(EvalError, match="takes 5 shots from the train file, which has 0 questions here"):
        prompts(find_profile("vllm-ci"), problems)


def test_the_boxed_chat_message() -> None:
    text = prompt(find_profile("boxed-chat"), own()[0])
    assert text.endswith("inside \\boxed{}.\n\nTwo?")
    assert find_profile("boxed-chat").kind == "chat"


def test_unknown_profiles_and_versions_are_one_sentence() -> None:
    with pytest.raises(EvalError, match="unknown prompt profile 'sglang'; known: sglang-5shot"):
        find_profile("sglang")
    with pytest.raises(EvalError, match="at version 1 here, not 9"):
        find_profile("vllm-ci/9")
    with pytest.raises(EvalError, match="takes 5 questions as shots, and there are 5"):
        asked(find_profile("sglang-5shot-clean"), own()[:5])


def test_every_profile_names_an_extractor_and_states_its_settings() -> None:
    from evals.gsm8k.answers import find_extractor

    for profile in PROFILES.values():
        find_extractor(profile.extractor)
        assert profile.settings()["max_tokens"] == profile.max_tokens
        assert profile.kind in ("completion", "chat")
        json.dumps(profile.settings())
