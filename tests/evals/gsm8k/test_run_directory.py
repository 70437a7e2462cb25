"""Run directories: nothing lost, nothing twice, nothing taken that cannot be read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.errors import EvalError
from evals.gsm8k import store
from evals.gsm8k.samples import Header, Sample, TokenScore

ROOT = Path(__file__).resolve().parents[3]
HEADER = Header("unfused", "tiny", "openai", "plain/1", "gsm8k-test", "ab" * 32, 3, settings={"stop": ["Question"]})


def sample(i: int, text: str | None = "#### 1", error: str | None = None, repeat: int = 0) -> Sample:
    return Sample(f"q{i}", i, "1", None if error else text, error=error, repeat=repeat, tokens=(1, 2))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    score = TokenScore("q0", (5, 6), (-0.5, -1.0), (5, 7), ({5: -0.5, 9: -2.0}, {7: -0.1}))
    with store.Writer(tmp_path / "run", HEADER) as writer:
        writer.add(sample(0, "Ünïcode \u2028 #### 1"))
        writer.add(sample(1, error="HTTP 500"))
        writer.add(sample(0, repeat=1))
        writer.add_tokens(score)
    run = store.read(tmp_path / "run")
    assert run.header == HEADER
    assert run.samples == (sample(0, "Ünïcode \u2028 #### 1"), sample(0, repeat=1))
    assert run.errors == (sample(1, error="HTTP 500"),)
    assert run.tokens == (score,)
    assert [s.question for s in run.everything] == ["q0", "q1", "q0"]


def test_an_answer_settles_an_error_and_nothing_is_answered_twice(tmp_path: Path) -> None:
    with store.Writer(tmp_path, HEADER) as writer:
        writer.add(sample(0, error="timeout"))
        writer.add(sample(0))
        with pytest.raises(EvalError, match=r"question q0 .*is answered twice"):
            writer.add(sample(0))
    with store.Writer(tmp_path, HEADER) as writer:
        assert writer.done == {("q0", 0)}
        with pytest.raises(EvalError, match="answered twice"):
            writer.add(sample(0))
    assert store.read(tmp_path).errors == ()
    line = (tmp_path / store.SAMPLES).read_text()
    (tmp_path / store.SAMPLES).write_text(line * 2)
    with pytest.raises(EvalError, match=r"question q0 .*is answered twice"):
        store.read(tmp_path)


def test_scores_settle_the_errors_of_scores_and_answers_those_of_answers(tmp_path: Path) -> None:
    lost = replace(sample(0, error="HTTP 400"), what="score")
    with store.Writer(tmp_path, HEADER) as writer:
        writer.add(sample(0, error="timeout"))
        writer.add(lost)
        with pytest.raises(EvalError, match="neither text nor error"):
            writer.add(replace(sample(0), what="score"))
        writer.add(sample(0))
    run = store.read(tmp_path)
    assert (run.errors, run.unscored, run.everything) == ((), (lost,), run.samples)
    with store.Writer(tmp_path, HEADER) as writer:
        assert not writer.scored
        writer.add_tokens(TokenScore("q0", (5,), (-0.5,), (5,)))
    assert store.read(tmp_path).unscored == ()
    with (tmp_path / store.ERRORS).open("a") as file:
        file.write((tmp_path / store.SAMPLES).read_text().replace('"answer"', '"guess"'))
    with pytest.raises(EvalError, match=r"errors.jsonl:3: what is 'guess'"):
        store.read(tmp_path)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 400))
def test_a_file_cut_anywhere_resumes_with_nothing_twice(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("cut")
    store.write(path, HEADER, [sample(0), sample(1), sample(2)])
    file = path / store.SAMPLES
    whole = file.read_bytes()
    keep = min(cut, len(whole))
    file.write_bytes(whole[:keep])
    # A cut may fall between the last brace and its newline: the answer is whole then.
    answered = sum(1 for line in whole[:keep].split(b"\n") if line.endswith(b"}"))
    assert len(store.read(path).samples) == answered
    with store.Writer(path, HEADER) as writer:
        assert len(writer.done) == answered
        for i in range(3):
            if (f"q{i}", 0) not in writer.done:
                writer.add(sample(i))
    assert file.read_bytes() == whole


def test_a_broken_line_in_the_middle_is_named_with_its_number(tmp_path: Path) -> None:
    store.write(tmp_path, HEADER, [sample(0), sample(1)])
    file = tmp_path / store.SAMPLES
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b'{"question": \n' + lines[1])
    with pytest.raises(EvalError, match=r"samples.jsonl:1 is not JSON"):
        store.read(tmp_path)
    file.write_bytes(lines[0] + b"[1]\n")
    with pytest.raises(EvalError, match=r"samples.jsonl:2: sample is .*, which is not an object"):
        store.read(tmp_path)
    file.write_bytes(lines[0].replace(b'"gold"', b'"golden"'))
    with pytest.raises(EvalError, match="has a field 'golden' that this schema does not know"):
        store.read(tmp_path)
    file.write_bytes(json.dumps({"question": "q0", "order": 0, "text": "x"}).encode() + b"\n")
    with pytest.raises(EvalError, match="lacks the field 'gold'"):
        store.read(tmp_path)


@pytest.mark.parametrize(
    ("file", "field", "value"),
    [
        (store.SAMPLES, "gold", 1),
        (store.SAMPLES, "order", "first"),
        (store.SAMPLES, "order", True),
        (store.SAMPLES, "text", ["x"]),
        (store.SAMPLES, "tokens", 5),
        (store.SAMPLES, "tokens", [1, "x"]),
        (store.SAMPLES, "length", 10**400),
        (store.SAMPLES, "seconds", "long"),
        (store.SAMPLES, "repeat", None),
        (store.TOKENS, "logprob", [None]),
        (store.TOKENS, "logprob", [10**400]),
        (store.TOKENS, "question", {}),
        (store.TOKENS, "top", [[]]),
        (store.TOKENS, "top", [{"x": -1.0}]),
        (store.TOKENS, "top", [{"1": "x"}]),
        (store.HEADER, "questions", 1.5),
        (store.HEADER, "settings", []),
        (store.HEADER, "kernels", {"op": 1}),
    ],
)
def test_a_value_of_another_type_is_named_with_its_field(tmp_path: Path, file: str, field: str, value: object) -> None:
    store.write(tmp_path, HEADER, [sample(0)], [TokenScore("q0", (5,), (-0.5,), (5,), ({5: -0.5},))])
    whole = json.loads((tmp_path / file).read_text())
    (tmp_path / file).write_text(json.dumps({**whole, field: value}) + "\n")
    with pytest.raises(EvalError, match=rf"{file}(:1)?: \w+\.{field}\b.* not of type ") as raised:
        store.read(tmp_path)
    assert "\n" not in str(raised.value)


def test_another_run_is_refused_and_a_restarted_server_is_not(tmp_path: Path) -> None:
    store.write(tmp_path, HEADER, [sample(0)])
    with pytest.raises(EvalError, match="holds another run: its seed is 0 and not 1"):
        store.Writer(tmp_path, replace(HEADER, seed=1))
    with store.Writer(tmp_path, replace(HEADER, fingerprint={"started": 2}, provenance={"date": "now"})) as writer:
        assert writer.header == HEADER


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with store.Writer(tmp_path, HEADER), pytest.raises(EvalError, match="another process is writing"):
        store.Writer(tmp_path, HEADER)
    store.Writer(tmp_path, HEADER).close()


def test_no_run_directory(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="is no run directory"):
        store.read(tmp_path / "nothing")
    (tmp_path / store.HEADER).write_text("{")
    with pytest.raises(EvalError, match="is not JSON"):
        store.read(tmp_path)
    (tmp_path / store.HEADER).write_text('{"schema": 99}')
    with pytest.raises(EvalError, match="has schema 99"):
        store.read(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / store.SAMPLES).write_text("")
    with pytest.raises(EvalError, match="nobody knows what ran"):
        store.Writer(tmp_path / "other", HEADER)


CHILD = """
import sys
from evals.gsm8k import store
from tests.evals.gsm8k.test_run_directory import HEADER, sample
with store.Writer(sys.argv[1], HEADER) as writer:
    for i in range(10**6):
        if (f"q{i}", 0) not in writer.done:
            writer.add(sample(i))
            if i >= 20:
                print(i, flush=True)
"""


def test_a_killed_writer_loses_nothing_that_it_had_written(tmp_path: Path) -> None:
    last = -1
    for _ in range(2):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(0.05)
        os.kill(child.pid, signal.SIGKILL)
        out = child.stdout.read().split()
        child.wait()
        child.stdout.close()
        last = max([last, *map(int, out)])
        found = [s.order for s in store.read(tmp_path).samples]
        assert found == list(range(len(found)))
        assert len(found) > last >= 20
