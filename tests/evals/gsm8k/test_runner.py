"""The runner: killed, cut off or lied to at any moment, it records every question exactly once, or no verdict."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from evals.__main__ import main
from evals.commands import run as run_command
from evals.gsm8k import runner, store
from evals.gsm8k.client import Limits
from evals.gsm8k.runner import WHOLE_RUN
from tests.benchmarks.eval_client import GROWTH_MIB, measure
from tests.support.eval_server import canned, run_words
from validators.process.guard import Exit

pytest.importorskip("httpx", reason="the client asks by httpx, which is not installed")

ROOT = Path(__file__).resolve().parents[3]
COUNT = 60
PATIENCE_S = 300.0  # ends a test that would hang; nothing is measured by it


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the runs in this process; those in processes of their own pause as in earnest."""
    monkeypatch.setattr(run_command, "Limits", functools.partial(Limits, pause=0.02))


class Process:
    """The test server in a process of its own, so that it can be killed."""

    def __init__(self, *options: str, port: int = 0) -> None:
        words = [sys.executable, "-m", "tests.support.eval_server", "--port", str(port), *options]
        self.child = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.child.stdout is not None
        self.port = int(self.child.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}"

    def kill(self) -> None:
        self.child.kill()
        self.child.wait()
        if self.child.stdout:
            self.child.stdout.close()


@pytest.fixture
def servers() -> Iterator[list[Process]]:
    made: list[Process] = []
    yield made
    for server in made:
        server.kill()


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    file = tmp_path / "test.jsonl"
    rows = ({"question": f"How much is {i}?", "answer": f"It is {i}.\n#### {i}"} for i in range(COUNT))
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return file


def options(url: str, data: Path, out: Path, *more: str) -> list[str]:
    return [*run_words(url, data, out, 4), "--timeout", "5", *more]


def killed_in_the_middle(server: Process, words: list[str], out: Path) -> subprocess.Popen[str]:
    """The client on ``words``, whose server is killed after ten answers."""
    command = [sys.executable, "-m", "evals", *words]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    samples = out / "samples.jsonl"
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end and (not samples.exists() or samples.read_bytes().count(b"\n") < 10):
        time.sleep(0.01)
    server.kill()
    return child


def whole(out: Path, repeats: int = 1) -> None:
    """Every question once, with the text that belongs to it, and no error left."""
    run = store.read(out)
    assert Counter((s.question, s.repeat) for s in run.samples).most_common(1)[0][1] == 1
    assert len(run.samples) == COUNT * repeats
    assert not run.errors
    for s in run.samples:
        asked = f"Question: How much is {s.gold}?\nAnswer:"
        assert s.text == canned(asked)


@pytest.mark.parametrize("flavour", ["vllm", "sglang", "echo"])
def test_a_run_with_tokens_and_repeats(servers: list[Process], questions: Path, tmp_path: Path, flavour: str) -> None:
    servers.append(Process("--flavour", flavour))
    words = options(servers[0].url, questions, tmp_path / "r", "--score-solutions", "--repeat", "2")
    assert main(words) == 0
    whole(tmp_path / "r", 2)
    assert len(store.read(tmp_path / "r").tokens) == COUNT
    assert main(words) == 0  # nothing is left to ask
    whole(tmp_path / "r", 2)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow each other at once: the test is of what is recorded, not of how long a client waits."""
    monkeypatch.setattr("evals.commands.run.Limits", functools.partial(Limits, pause=0.01))


@pytest.mark.usefixtures("impatient")
def test_passing_faults_of_every_kind(servers: list[Process], questions: Path, tmp_path: Path) -> None:
    # Each kind at least once in the 60 requests; one request in seven fails. That one question meets eight in a row has
    # a chance of about 1e-5, if faults fell at random.
    faults = ["503:31", "cut:37", "drop:29", "500:41", "429:43", "delay:23"]
    servers.append(Process(*(word for f in faults for word in ("--fault", f))))
    assert main(options(servers[0].url, questions, tmp_path / "r", "--attempts", "8")) == 0
    whole(tmp_path / "r")
    assert max(s.attempts for s in store.read(tmp_path / "r").samples) > 1


def test_a_lasting_error_is_no_answer_and_is_settled_later(
    servers: list[Process], questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    servers.append(Process("--fault", "null:7"))
    out = tmp_path / "r"
    assert main(options(servers[0].url, questions, out)) == Exit.ERROR
    run = store.read(out)
    assert run.errors
    assert len(run.samples) + len(run.errors) == COUNT
    assert all(e.text is None and "null" in (e.error or "") for e in run.errors)
    assert "ended in an error, so there is no verdict yet" in capsys.readouterr().err
    assert main(["gsm8k", "compare", str(out), str(out), "--aa"]) == Exit.NO_DECISION
    servers[0].kill()
    servers.append(Process(port=servers[0].port))
    assert main(options(servers[1].url, questions, out)) == 0
    whole(out)


def test_a_gold_solution_that_could_not_be_scored_is_an_error_until_it_is(
    servers: list[Process], questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Scores are asked for first, two requests each, so every fault falls on them: all answers are there.
    servers.append(Process("--fault", "400:7", "--first", "60"))
    out = tmp_path / "r"
    words = options(servers[0].url, questions, out, "--score-solutions")
    assert main(words) == Exit.ERROR
    assert "ended in an error, so there is no verdict yet" in capsys.readouterr().err
    whole(out)
    run = store.read(out)
    failed = {e.question for e in run.unscored}
    assert 5 <= len(failed) <= 9  # every seventh of 60 requests; those before the scores look at the server
    assert failed | {t.question for t in run.tokens} == {s.question for s in run.samples}
    assert len(failed) + len(run.tokens) == COUNT
    assert all(
        e.what == "score" and e.text is None and "made to fail with 400" in (e.error or "") for e in run.unscored
    )
    assert main(["gsm8k", "compare", str(out), str(out), "--aa"]) == Exit.NO_DECISION
    assert f"{len(failed)} gold solutions of {out} could not be scored" in capsys.readouterr().err
    assert main(words) == 0
    whole(out)
    run = store.read(out)
    assert len(run.tokens) == COUNT
    assert not run.unscored
    capsys.readouterr()
    assert main(["gsm8k", "compare", str(out), str(out), "--aa"]) == Exit.NO_DECISION
    assert capsys.readouterr().out.startswith("INCONCLUSIVE")
    # And a hole of another cause, the same in both arms, is no smaller set of questions.
    lines = (out / store.TOKENS).read_text().splitlines(keepends=True)
    (out / store.TOKENS).write_text("".join(lines[1:]))
    assert main(["gsm8k", "compare", str(out), str(out), "--aa"]) == Exit.NO_DECISION
    assert "has the scores of 59 of 60 gold solutions" in capsys.readouterr().err


def test_the_client_is_killed_again_and_again(servers: list[Process], questions: Path, tmp_path: Path) -> None:
    servers.append(Process("--delay", "0.05"))
    out = tmp_path / "r"
    words = [sys.executable, "-m", "evals", *options(servers[0].url, questions, out)]
    for kill_at in (5, 25):
        child = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        samples = out / "samples.jsonl"
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end and (not samples.exists() or samples.read_bytes().count(b"\n") < kill_at):
            time.sleep(0.01)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        lines = samples.read_bytes().count(b"\n")
        assert kill_at <= lines < COUNT  # it was really killed in the middle
        with samples.open("ab") as file:
            file.write(b'{"question": "other-')  # what a kill inside a write leaves
    assert main(options(servers[0].url, questions, out)) == 0
    whole(out)


@pytest.mark.parametrize(
    ("again", "code"),
    [((), 0), (("--model", "another"), 2), (("--version", "2.0"), 4)],
    ids=["same", "another-model", "another-version"],
)
def test_the_server_is_killed_and_started_again_in_the_middle(
    servers: list[Process], questions: Path, tmp_path: Path, again: tuple[str, ...], code: int
) -> None:
    servers.append(Process("--delay", "0.05"))
    out = tmp_path / "r"
    child = killed_in_the_middle(servers[0], options(servers[0].url, questions, out), out)
    servers.append(Process(*again, port=servers[0].port))
    _, err = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == code, err
    if code == 0:
        whole(out)
        return
    assert err.count("\n") == 1
    assert "Traceback" not in err
    run = store.read(out)
    assert len(run.samples) < COUNT  # no verdict can be made of it
    assert main(["gsm8k", "compare", str(out), str(out), "--aa"]) == Exit.NO_DECISION
    if "--version" in again:
        assert [e.question for e in run.errors if e.order == -1] == [WHOLE_RUN]
    # And it cannot be finished by the other server.
    assert main(options(servers[1].url, questions, out)) == 2
    assert len(store.read(out).samples) == len(run.samples)


def test_a_dead_server_stops_the_run_and_the_run_goes_on_later(
    servers: list[Process], questions: Path, tmp_path: Path
) -> None:
    servers.append(Process("--delay", "0.05"))
    out = tmp_path / "r"
    child = killed_in_the_middle(servers[0], options(servers[0].url, questions, out, "--attempts", "1"), out)
    _, err = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == Exit.ERROR
    assert "failed one after another" in err
    assert err.count("\n") == 1
    servers.append(Process(port=servers[0].port))
    assert main(options(servers[1].url, questions, out)) == 0
    whole(out)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--seed", "1"), "holds another run: its seed"),
        (("--max-tokens", "9"), "holds another run: its settings"),
        (("--questions", "99"), "more than the 60"),
        (("--concurrency", "0"), "must be positive"),
        (("--timeout", "nan"), "must be positive"),
        (("--model", "large"), "serves 'tiny' and not 'large'"),
        (("--profile", "what"), "unknown prompt profile"),
        (("--profile", "boxed-chat", "--score-solutions"), "sends chat messages"),
        (("--server", "http://127.0.0.1:9"), "no server answers"),
        (("--server", "nowhere"), "is no server address"),
    ],
)
def test_one_sentence_for_what_cannot_be_run(
    servers: list[Process],
    questions: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    words: str,
) -> None:
    servers.append(Process())
    out = tmp_path / "r"
    if "another run" in words:
        assert main(options(servers[0].url, questions, out)) == 0
    capsys.readouterr()
    assert main(options(servers[0].url, questions, out, *more)) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.usefixtures("impatient")
def test_a_server_without_prompt_scores_says_so(
    servers: list[Process], questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    servers.append(Process("--flavour", "mute"))
    assert main(options(servers[0].url, questions, tmp_path / "r", "--model", "tiny", "--score-solutions")) == 2
    assert "gives no log-probabilities of a prompt" in capsys.readouterr().err
    assert main(options(servers[0].url, questions, tmp_path / "r", "--model", "tiny")) == 0
    whole(tmp_path / "r")


def test_a_request_costs_the_same_however_many_there_are_and_memory_is_flat(tmp_path: Path) -> None:
    """Two runs of tests/benchmarks/eval_client.py against each other; how fast a machine is belongs to the benchmark.

    CPU time and not the clock, which other tests share. A client that works through all answers at each one would take
    16 times as long for 4 times the questions; starting makes the ratio smaller than 4, and noise is allowed a quarter.
    """
    few, many = (tmp_path / name for name in ("few", "many"))
    few.mkdir()
    many.mkdir()
    once = measure(200, 32, few)[3]
    _, early, most, cpu = measure(800, 32, many)
    assert cpu <= 4 * 1.25 * once
    assert most - early <= GROWTH_MIB


def test_the_last_answer_waits_for_the_last_look_at_the_server(
    servers: list[Process], questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers.append(Process())

    async def killed(self: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runner._Run, "_check", killed)
        assert main(options(servers[0].url, questions, tmp_path / "r")) == 130
    assert len(store.read(tmp_path / "r").samples) == COUNT - 1
    assert main(options(servers[0].url, questions, tmp_path / "r")) == 0
    whole(tmp_path / "r")
