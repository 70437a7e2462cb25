"""Every command on every kind of bad input: one sentence, the right exit status, never a traceback.

Full disks are in ``test_full_disk``, kernels that end the process in ``test_kernels_that_end_it``.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.walk import (
    BAD,
    BAD_OF,
    CASE,
    COMMANDS,
    GEMM,
    NORM,
    ROOT,
    Command,
    one_sentence,
    the_command,
    with_option,
    words_of,
)
from validators.process import guard, interrupt
from validators.process.guard import Exit

pytest_plugins = ("tests.support.place",)


@pytest.fixture(autouse=True)
def no_settings(elsewhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(guard.VARIABLE, raising=False)
    monkeypatch.delenv("GSM8K_PATH", raising=False)


every_command = pytest.mark.parametrize("of", COMMANDS, ids=lambda of: of.id)


@every_command
def test_an_unknown_option(of: Command, place: dict[str, str], capfd: pytest.CaptureFixture[str]) -> None:
    said = one_sentence(of, [*words_of(of, place), "--no-such-option"], capfd)
    assert "--no-such-option" in said
    assert "--help" in said


@every_command
def test_what_is_required_is_missing(of: Command, capfd: pytest.CaptureFixture[str]) -> None:
    if any(action.required for action in of.parser._actions):
        one_sentence(of, [], capfd)


OPTIONS = [(of, action) for of in COMMANDS for action in of.parser._actions if action.dest != "help"]


@pytest.mark.parametrize(("of", "action"), OPTIONS, ids=[f"{of.id} {action.dest}" for of, action in OPTIONS])
def test_a_value_that_cannot_be_right(
    of: Command, action: argparse.Action, place: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    if action.nargs == 0:
        return
    if action.type in (int, float):
        assert "soon" in one_sentence(of, with_option(words_of(of, place), action, "soon"), capfd)
        return
    bad = BAD_OF.get((of.id, action.dest), BAD.get(action.dest))
    assert bad is not None, f"write into BAD what cannot be a value of {action.dest!r} (of {of.id})"
    if bad:
        one_sentence(of, with_option(words_of(of, place), action, bad), capfd)


READ = [
    ("validators report", "{broken}", "records-x-1.jsonl:1: not JSON"),
    ("validators signoff", "{broken}", "records-x-1.jsonl:1: not JSON"),
    ("validators report", "{root}/a", "schema"),
    ("validators trace", "{binary}", "binary"),
    ("validators signoff", "{records} --claim {binary}", "binary"),
    ("validators signoff", "{records} --policy {binary}", "binary"),
    ("validators machine", "--claim {binary} --out {new}", "binary"),
    (
        "validators layers",
        f"--model {{root}} --kernel {NORM} --kernel {GEMM}",
        "config.json",
    ),
    ("validators explain", f"{CASE} --kernel {{binary}}:f --row 0 --col 0", "binary"),
    ("golden list", "--store {store}", "manifest"),
    ("golden verify", "--store {store}", "manifest"),
    ("golden check", "--store {store}", "manifest"),
    ("golden accept", "{store} --why because", "manifest"),
    ("evals gsm8k compare", "{a} {root}", "header.json"),
    ("evals gsm8k compare", "{a} {binary}", "header.json"),
    ("evals import", "lm-eval {binary} --out {new}", "binary"),
    ("evals import", "sgl-eval {binary} --out {new}", "binary"),
    ("evals gsm8k run", "--server 127.0.0.1:9 --name a --out {new} --data {binary} --any-data", "binary"),
    ("evals tokens", "--model {binary} --questions 2", "binary"),
    ("evals parity", "--model {root}", "config.json"),
]


@pytest.mark.parametrize(("name", "words", "names"), READ, ids=[f"{n} {w}" for n, w, _ in READ])
def test_what_is_read_is_damaged(
    name: str, words: str, names: str, place: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    of = the_command(name)
    assert names in one_sentence(of, words.format(**place).split(), capfd)
    assert not Path(place["new"]).exists() or not list(Path(place["new"]).rglob("*.json*"))


@every_command
def test_an_interrupt(
    of: Command, place: dict[str, str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", interrupted)
    # A shell's background job starts with the signal ignored.
    before = signal.getsignal(signal.SIGINT)
    assert "interrupted; " in one_sentence(of, words_of(of, place), capfd, code=Exit.INTERRUPTED)
    assert signal.getsignal(signal.SIGINT) is before


@every_command
def test_a_fault_of_the_suite_is_no_verdict(
    of: Command, place: dict[str, str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*_: object, **__: object) -> None:
        raise AssertionError("two\nlines")

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", wrong)
    assert of.main([*of.start, *words_of(of, place)]) == Exit.ERROR
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "unexpected AssertionError: two lines (" in said
    assert guard.VARIABLE in said
    monkeypatch.setenv(guard.VARIABLE, "1")
    assert of.main([*of.start, *words_of(of, place)]) == Exit.ERROR
    assert "Traceback" in capfd.readouterr().err


# ---- where the output goes


def _stdout(kind: str) -> io.TextIOWrapper:
    """A standard output that cannot be written: a full disk, or a pipe that nobody reads."""
    if kind == "full":
        return open("/dev/full", "w")
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w")


@pytest.mark.parametrize("kind", ["full", "closed"])
@every_command
def test_standard_output_that_cannot_be_written(
    of: Command, kind: str, place: dict[str, str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def prints(*_: object, **__: object) -> int:
        print("a line\n" * 10_000)
        return 0

    stream = _stdout(kind)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", prints)
    monkeypatch.setattr(sys, "stdout", stream)
    assert of.main([*of.start, *words_of(of, place)]) == Exit.ERROR
    said = capfd.readouterr().err
    assert said == (f"{of.group}: reading or writing failed: No space left on device\n" if kind == "full" else "")
    stream.close()  # what is left in it goes nowhere, and quietly


def test_a_command_whose_reader_goes_away() -> None:
    line = f'"{sys.executable}" -m validators list cases | head -1; exit ${{PIPESTATUS[1]}}'
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)


def test_an_interrupt_before_the_command_begins(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Importing takes tenths of a second, and Ctrl-C comes then too."""
    others: list[type[BaseException]] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, *_: others.append(kind))
    interrupt.quiet("golden")
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert capsys.readouterr().err == "golden: interrupted before it began.\n"
    sys.excepthook(ValueError, ValueError(), None)
    assert others == [ValueError]
    for group in ("validators", "golden", "evals"):
        after = (ROOT / group / "__main__.py").read_text().split("from __future__ import annotations\n\n")[1]
        first = (
            f'if __name__ == "__main__":\n    from validators.process.interrupt import quiet\n\n    quiet("{group}")'
        )
        assert after.startswith(first)
