"""Every command on every kind of bad input: one sentence, the right exit status, nothing recorded is lost.

The commands and their options are read from the parsers, so a new command or option is walked as soon as it is there:
without a line in ``VALID`` (a command) or ``BAD`` (an option) this file fails and says which one to write.
Everything runs in this process except what needs a process of its own: signals, and kernels that end it.
"""

from __future__ import annotations

import argparse
import errno
import faulthandler
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import evals.__main__ as evals_main
import evals.store as evals_store
import golden.__main__ as golden_main
import validators.__main__ as validators_main
from tests.evals.arms import BASELINE, CANDIDATE, two_arms
from tests.evals.test_importers import lm_eval_row, write
from tests.suite.made import lanes_passed, record
from tests.suite.test_trace import FUSED, write_trace
from tests.suite.test_trace import GEMM as TRACED_GEMM
from validators import command, files, layers, supervise, wheel
from validators.store import Sink, load

ROOT = Path(__file__).resolve().parents[2]
CASE = "add_rmsnorm_quant-m3-n64-bf16-e4m3fn-gaussian-s0"
NORM, GEMM = "emulated/aiter-hip-gfx950", "emulated/fp32"
GOLDEN = "add_rmsnorm_quant-m16-n72-bf16-e4m3fn-midpoints-s0@reference"
BELOW_A_FILE = "/dev/null/x"
"""A place that not even root can write."""


@dataclass(frozen=True)
class Command:
    """One command of one group. start: the words before its own arguments."""

    group: str
    start: tuple[str, ...]
    parser: argparse.ArgumentParser
    main: Callable[[list[str]], int]

    @property
    def id(self) -> str:
        return " ".join((self.group, *self.start))


def _of_parser(group: str, parser: argparse.ArgumentParser, main: Callable[..., int]) -> Iterator[Command]:
    [commands] = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    for name, own in commands.choices.items():
        if not own._actions:  # layers reads its arguments itself
            layers.add_options(own)
        yield Command(group, (name,), own, main)


def _commands() -> Iterator[Command]:
    yield from _of_parser("validators", validators_main._parser(), validators_main.main)
    yield from _of_parser("golden", golden_main._parser(), golden_main.main)
    yield from _of_parser("wheel", wheel._parser(), wheel.main)
    for name, (module, _) in evals_main.COMMANDS.items():
        parser = argparse.ArgumentParser()
        importlib.import_module(module).add_options(parser)
        yield Command("evals", tuple(name.split()), parser, evals_main.main)


COMMANDS = list(_commands())


# Arguments with which each command does something; {name} is what the fixture ``place`` makes.
VALID = {
    "validators list": "kernels",
    "validators run": f"--op add_rmsnorm_quant --kernel {NORM} --case {CASE} --device cpu --records {{new}}",
    "validators identify": f"--op add_rmsnorm_quant --kernel {NORM} --device cpu --rows 2",
    "validators probe": f"--kernel {GEMM} --device cpu",
    "validators explain": f"{CASE} --kernel {NORM} --row 0 --col 0 --device cpu",
    "validators trace": "{trace}",
    "validators layers": f"--model glm-tiny --kernel-norm {NORM} --kernel-gemm {GEMM} --layers 0-0 --tokens 4",
    "validators report": "{records}",
    "validators signoff": "{records}",
    "validators machine": "--policy smoke --device cpu --out {new}",
    "golden check": "--id {golden} --device cpu",
    "golden propose": "--out {new}",
    "golden accept": "{new} --why because --store {store}",
    "golden list": "",
    "golden verify": "",
    "evals gsm8k run": "--server 127.0.0.1:9 --arm a --out {new} --data {questions} --any-data --profile plain",
    "evals gsm8k compare": "{a} {b}",
    "evals import": "lm-eval {samples} --out {new}",
    "evals parity": "--questions 2 --token-questions 2",
    "evals tokens": "--questions 2",
    "wheel show": "{binary}",
    "wheel slim": "{binary} --arch sm_90 --out {new}",
}
# A value of each option that cannot be right; options that take a number need none here. "" where any text will do:
# names that are only written down, and what belongs to another option.
BAD = {
    "what": "bits", "op": "softmax", "lane": "fast", "dtype": "bf15", "fp8": "e5m2", "depth": "abyss",
    "kernel": "nobody/nothing", "kernel_norm": "nobody/nothing", "kernel_quant": "nobody/nothing",
    "kernel_gemm": "nobody/nothing", "contract": "law", "case": "nonsense", "device": "tpu", "claim": "absent.toml",
    "policy": "absent.toml", "arch": "", "version": "torch", "source": "", "why": "", "only": "nobody", "id": "nobody",
    "records": BELOW_A_FILE, "out": BELOW_A_FILE, "markdown": BELOW_A_FILE, "history": BELOW_A_FILE,
    "json": BELOW_A_FILE, "picture": BELOW_A_FILE, "runs": BELOW_A_FILE, "store": "absent", "proposal": "absent",
    "file": "absent", "expect": "nonsense", "forbid": "", "role": "nonsense", "model": "absent", "layers": "9-3",
    "output": "nonsense", "server": "127.0.0.1:9", "arm": "", "profile": "nobody", "data": "absent",
    "norm_kernel": "", "api_key_variable": "FP8_SIGNOFF_NO_SUCH_VARIABLE", "totals": "nonsense", "again": "absent",
    "yardstick": "absent", "extractor": "nobody", "harness": "nobody", "baseline": "nobody", "candidate": "nobody",
    "wheel": "absent",
}  # fmt: skip
# Where one name means two things.
BAD_OF = {
    ("validators report", "records"): "absent", ("validators signoff", "records"): "absent",
    ("validators trace", "kernel"): "", ("validators trace", "contract"): "", ("evals gsm8k compare", "kernel"): "",
    ("evals gsm8k compare", "runs"): "absent", ("evals tokens", "arm"): "nobody", ("evals import", "model"): "",
    ("evals gsm8k run", "model"): "", ("evals gsm8k run", "arm"): "",
    ("wheel slim", "arch"): "nonsense", ("wheel slim", "op"): "nonsense",
    ("golden propose", "store"): "",  # a proposal does not look at the store
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Things to work on, made once: each name of ``VALID`` and where it is."""
    root = tmp_path_factory.mktemp("walk")
    with Sink(root / "records") as sink:
        for made in lanes_passed():
            sink.write(made)
    (root / "broken").mkdir()
    (root / "broken" / "records-x-1.jsonl").write_text("garbage\n")
    (root / "store").mkdir()
    (root / "store" / "manifest.jsonl").write_text("garbage\n")
    write_trace(root / "trace.json", [FUSED, TRACED_GEMM], layers=2)
    (root / "q.jsonl").write_text(json.dumps({"question": "1+1?", "answer": "it is 2\n#### 2"}) + "\n")
    write(root / "samples_gsm8k_x.jsonl", [lm_eval_row(i, f"#### {i}", "strict-match") for i in range(3)])
    for name, header, samples in zip("ab", (BASELINE, CANDIDATE), two_arms(1319, 1250, 3, 3), strict=True):
        evals_store.write(root / name, header, samples)
    (root / "binary").write_bytes(bytes(range(256)) * 16)
    return {
        "root": str(root), "records": str(root / "records"), "broken": str(root / "broken"),
        "store": str(root / "store"), "trace": str(root / "trace.json"), "questions": str(root / "q.jsonl"),
        "samples": str(root / "samples_gsm8k_x.jsonl"), "a": str(root / "a"), "b": str(root / "b"),
        "golden": GOLDEN, "new": str(root / "new"), "binary": str(root / "binary"),
    }  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command writes by default lands here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(command.VARIABLE, raising=False)
    monkeypatch.delenv("GSM8K_PATH", raising=False)


def _words(of: Command, place: dict[str, str]) -> list[str]:
    assert of.id in VALID, f"write into VALID with which arguments {of.id!r} does something"
    return VALID[of.id].format(**place).split()


def _with(words: list[str], action: argparse.Action, value: str) -> list[str]:
    """``words`` with ``value`` for the option: in place of the one that is there, or at the end."""
    if not action.option_strings:
        return [value, *words[1:]] if action.nargs != "*" else [value] * max(1, len(words))
    values = [value] * (action.nargs if isinstance(action.nargs, int) else 1)
    for name in action.option_strings:
        if name in words:
            at = words.index(name)
            return [*words[: at + 1], *values, *words[at + 2 :]]
    return [*words, action.option_strings[-1], *values]


def _one_sentence(of: Command, words: list[str], capfd: pytest.CaptureFixture[str], code: int = 2) -> str:
    """Run it; exactly one sentence on stderr, the exit code; returns the sentence."""
    capfd.readouterr()
    got = of.main([*of.start, *words])
    out, err = capfd.readouterr()
    shown = f"{of.id} {' '.join(words)}\ncode {got}\n{out}\n{err}"
    assert "Traceback" not in out + err, shown
    assert "fault of fp8-signoff" not in err, shown
    assert got == code, shown
    lines = err.splitlines()
    assert len(lines) == 1, shown
    assert lines[0].startswith(f"{of.group}: "), shown
    assert len(lines[0].split()) > 3, shown
    return lines[0]


every_command = pytest.mark.parametrize("of", COMMANDS, ids=lambda of: of.id)


@every_command
def test_an_unknown_option(of: Command, place: dict[str, str], capfd: pytest.CaptureFixture[str]) -> None:
    said = _one_sentence(of, [*_words(of, place), "--no-such-option"], capfd)
    assert "--no-such-option" in said
    assert "--help" in said


@every_command
def test_what_is_required_is_missing(of: Command, capfd: pytest.CaptureFixture[str]) -> None:
    if any(action.required for action in of.parser._actions):
        _one_sentence(of, [], capfd)


OPTIONS = [(of, action) for of in COMMANDS for action in of.parser._actions if action.dest != "help"]


@pytest.mark.parametrize(("of", "action"), OPTIONS, ids=[f"{of.id} {action.dest}" for of, action in OPTIONS])
def test_a_value_that_cannot_be_right(
    of: Command, action: argparse.Action, place: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    if action.nargs == 0:
        return
    if action.type in (int, float):
        assert "soon" in _one_sentence(of, _with(_words(of, place), action, "soon"), capfd)
        return
    bad = BAD_OF.get((of.id, action.dest), BAD.get(action.dest))
    assert bad is not None, f"write into BAD what cannot be a value of {action.dest!r} (of {of.id})"
    if bad:
        _one_sentence(of, _with(_words(of, place), action, bad), capfd)


READ = [
    ("validators report", "{broken}", "records-x-1.jsonl:1: not JSON"),
    ("validators signoff", "{broken}", "records-x-1.jsonl:1: not JSON"),
    ("validators report", "{root}/a", "schema"),
    ("validators trace", "{binary}", "binary"),
    ("validators signoff", "{records} --claim {binary}", "binary"),
    ("validators signoff", "{records} --policy {binary}", "binary"),
    ("validators machine", "--claim {binary} --out {new}", "binary"),
    ("validators layers", f"--model {{root}} --kernel-norm {NORM} --kernel-gemm {GEMM}", "config.json"),
    ("validators explain", f"{CASE} --kernel {{binary}}:f --row 0 --col 0", "binary"),
    ("golden list", "--store {store}", "manifest"),
    ("golden verify", "--store {store}", "manifest"),
    ("golden check", "--store {store}", "manifest"),
    ("golden accept", "{store} --why because", "manifest"),
    ("evals gsm8k compare", "{a} {root}", "header.json"),
    ("evals gsm8k compare", "{a} {binary}", "header.json"),
    ("evals import", "lm-eval {binary} --out {new}", "binary"),
    ("evals import", "sgl-eval {binary} --out {new}", "binary"),
    ("evals gsm8k run", "--server 127.0.0.1:9 --arm a --out {new} --data {binary} --any-data", "binary"),
    ("evals tokens", "--model {binary} --questions 2", "binary"),
    ("evals parity", "--model {root}", "config.json"),
]


@pytest.mark.parametrize(("name", "words", "names"), READ, ids=[f"{n} {w}" for n, w, _ in READ])
def test_what_is_read_is_damaged(
    name: str, words: str, names: str, place: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    [of] = [c for c in COMMANDS if c.id == name]
    assert names in _one_sentence(of, words.format(**place).split(), capfd)
    assert not Path(place["new"]).exists() or not list(Path(place["new"]).rglob("*.json*"))


@every_command
def test_an_interrupt(
    of: Command, place: dict[str, str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", interrupted)
    assert "interrupted; " in _one_sentence(of, _words(of, place), capfd, code=command.INTERRUPTED)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@every_command
def test_a_fault_of_the_suite_is_no_verdict(
    of: Command, place: dict[str, str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*_: object, **__: object) -> None:
        raise AssertionError("two\nlines")

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", wrong)
    assert of.main([*of.start, *_words(of, place)]) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "unexpected AssertionError: two lines (" in said
    assert command.VARIABLE in said
    monkeypatch.setenv(command.VARIABLE, "1")
    assert of.main([*of.start, *_words(of, place)]) == 2
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
    assert of.main([*of.start, *_words(of, place)]) == 2
    said = capfd.readouterr().err
    assert said == (f"{of.group}: reading or writing failed: No space left on device\n" if kind == "full" else "")
    stream.close()  # what is left in it goes nowhere, and quietly


def test_a_command_whose_reader_goes_away() -> None:
    line = f'"{sys.executable}" -m validators list cases | head -1; exit ${{PIPESTATUS[1]}}'
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)


class _Disk:
    """A disk with room for so many bytes; the write that does not fit is done in part, as the system does it."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.write = os.write

    def __call__(self, handle: int, data: bytes | memoryview) -> None:
        taken = bytes(data)[: self.room]
        self.room -= len(taken)
        left = memoryview(taken)
        while left:
            left = left[self.write(handle, left) :]
        if len(taken) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """disk(room): from here on files of results take so many bytes more. Trying a folder takes nothing."""

    def limit(room: int) -> None:
        full = _Disk(room)
        monkeypatch.setattr(files, "_PROBE_BYTES", 0)
        monkeypatch.setattr(files, "_write_all", full)
        monkeypatch.setattr(evals_store, "_write_all", full)

    return limit


WRITES = {
    "validators run": "", "validators probe": " --out {file}", "validators signoff": " --out {new}",
    "validators trace": f" --layers 2 --kernel {NORM} --contract {NORM[9:]} --arch gfx950 --records {{new}}",
    "validators layers": " --records {new}", "golden check": " --markdown {file}", "golden propose": "",
    "evals gsm8k compare": " --json {file}", "evals import": "",
}  # fmt: skip
"""Commands that write results, with the option that says where; the rest of their arguments is in ``VALID``."""
DEAR = {"golden propose", "validators layers", "validators probe"}
"""Commands that work for seconds before they write; a place that is full from the start is found before that."""


@pytest.mark.parametrize("name", WRITES)
def test_a_disk_that_is_full_from_the_start(
    name: str, place: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    [of] = [c for c in COMMANDS if c.id == name]
    own = {**place, "new": str(tmp_path / "new"), "file": str(tmp_path / "file")}
    full = _Disk(0)
    monkeypatch.setattr(files, "_write_all", full)
    monkeypatch.setattr(evals_store, "_write_all", full)
    started = []
    if name in DEAR:
        monkeypatch.setattr("validators.layers.walk", lambda *_, **__: started.append(1))
        monkeypatch.setattr("validators.probe.probe", lambda *_, **__: started.append(1))
        monkeypatch.setattr("golden.propose._entries", lambda *_, **__: started.append(1))
    said = _one_sentence(of, [*_words(of, own), *WRITES[name].format(**own).split()], capfd)
    assert "No space left on device" in said
    assert not started
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.name != ".lock"]


def test_a_disk_that_fills_up_keeps_the_records_before(
    disk: Callable[[int], None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """``run`` of three cases, room for one record and a half."""
    [of] = [c for c in COMMANDS if c.id == "validators run"]
    words = f"--op add_rmsnorm_quant --kernel {NORM} --device cpu --records {tmp_path / 'r'}".split()
    for seed in range(3):
        words += ["--case", CASE.replace("-s0", f"-s{seed}")]
    disk(6000)
    said = _one_sentence(of, words, capfd)
    kept = load(tmp_path / "r")
    assert 1 <= len(kept) <= 2
    assert f"No space left on device; {len(kept)} record" in said
    [file] = (tmp_path / "r").iterdir()
    assert file.read_bytes().endswith(b"}\n")


def test_half_a_line_does_not_stand_before_the_next_one(disk: Callable[[int], None], tmp_path: Path) -> None:
    size = len(json.dumps(json.loads((lambda p: p)(_line())))) + 1
    with Sink(tmp_path) as sink:
        disk(size + 50)
        sink.write(record())
        with pytest.raises(ValueError, match="No space left on device; 1 record"):
            sink.write(record())
        disk(10**6)
        sink.write(record(kernel="later"))
    assert [r.kernel for r in load(tmp_path)] == ["demo/fused", "later"]


def _line() -> str:
    from validators.store import to_json

    return to_json(record())


def test_an_import_is_whole_or_not_there(
    disk: Callable[[int], None], place: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    [of] = [c for c in COMMANDS if c.id == "evals import"]
    words = ["lm-eval", place["samples"], "--out", str(tmp_path / "run")]
    disk(900)
    assert "No space left on device" in _one_sentence(of, words, capfd)
    assert [p.name for p in (tmp_path / "run").iterdir()] == [".lock"]
    disk(10**6)
    assert of.main([*of.start, *words]) == 0


@pytest.mark.parametrize("room", [0, 300, 12_000])
def test_a_sign_off_is_whole_or_not_there(
    disk: Callable[[int], None], room: int, place: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    [of] = [c for c in COMMANDS if c.id == "validators signoff"]
    words = [place["records"], "--out", str(tmp_path / "out")]
    assert of.main([*of.start, *words]) == 0
    whole = {p.name: p.stat().st_size for p in (tmp_path / "out").iterdir()}
    assert set(whole) >= {"signoff.json", "signoff.md"}
    disk(room)
    capfd.readouterr()
    assert of.main([*of.start, *words]) == 2
    out, err = capfd.readouterr()
    assert out.startswith("SIGNED")  # the decision is told all the same
    assert "cannot write" in err
    assert err.count("\n") == 1
    left = {p.name: p.stat().st_size for p in (tmp_path / "out").iterdir()}
    assert left.items() <= whole.items()  # whole files only, and none under a temporary name


def test_history_gets_a_whole_line_or_none(disk: Callable[[int], None], tmp_path: Path) -> None:
    files.append_whole(tmp_path / "h", "first\n")
    disk(3)
    with pytest.raises(files.FileError, match="No space left on device"):
        files.append_whole(tmp_path / "h", "second\n")
    assert (tmp_path / "h").read_text() == "first\n"


def test_a_device_is_written_and_never_replaced(tmp_path: Path) -> None:
    with pytest.raises(files.FileError, match="No space left on device"):
        files.write_whole("/dev/full", "text")
    assert not Path("/dev/full").is_file()
    files.write_whole(os.devnull, "text")
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    files.write_whole(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_runs_that_start_in_one_second_get_folders_of_their_own(tmp_path: Path) -> None:
    made = [files.new_folder(tmp_path / "records") for _ in range(3)]
    assert len(set(made)) == 3
    assert all(folder.is_dir() for folder in made)


def test_machine_says_before_its_stages_that_its_folder_cannot_be_written(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    [of] = [c for c in COMMANDS if c.id == "validators machine"]
    monkeypatch.setattr("validators.machine._run", lambda *_: pytest.fail("a stage ran"))
    for folder in (BELOW_A_FILE, "/proc/x"):
        said = _one_sentence(of, ["--policy", "smoke", "--device", "cpu", "--out", folder], capfd)
        assert f"cannot write to {folder}" in said


# ---- kernels that end the process they run in, and signals

KERNELS = """
import ctypes, os, signal, time
def crashes(x, residual, weight, eps, fp8_dtype):
    ctypes.string_at(0)
def hangs(x, residual, weight, eps, fp8_dtype):
    open(os.environ["REACHED"], "w").close()
    while True:
        time.sleep(0.1)
def is_killed(x, residual, weight, eps, fp8_dtype):
    os.kill(os.getpid(), signal.SIGKILL)
def raises(x, residual, weight, eps, fp8_dtype):
    raise ValueError("the tile size does not\\n divide the row")
def rubbish(x, residual, weight, eps, fp8_dtype):
    return "rubbish"
"""
# Commands that call a kernel in their own process: how one that misbehaves is named. {f} is the file's path.
CALLING = {
    "validators explain": f"{CASE} --kernel {{f}}:{{k}} --row 0 --col 0 --device cpu",
    "validators layers": f"--model glm-tiny --kernel-norm {{f}}:{{k}} --kernel-gemm {GEMM} --layers 0-0 --tokens 4",
    "validators identify": "--kernel {f}:{k} --device cpu --rows 2",
    "evals parity": "--candidate fused,norm={f}:{k} --questions 2 --token-questions 2",
    "evals tokens": "--arm fused,norm={f}:{k} --questions 2",
}


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("kernels") / "bad.py"
    file.write_text(KERNELS)
    return file


@pytest.mark.parametrize("kernel", ["raises", "rubbish"])
@pytest.mark.parametrize("name", CALLING)
def test_a_kernel_that_raises_or_returns_rubbish(
    name: str, kernel: str, kernels: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    [of] = [c for c in COMMANDS if c.id == name]
    said = _one_sentence(of, CALLING[name].format(f=kernels, k=kernel).split(), capfd)
    wanted = {"raises": "ValueError: the tile size does not divide the row", "rubbish": "returned a str"}
    assert wanted[kernel] in said


def _forked(words: list[str], folder: Path, limit_s: float) -> int:
    """Process id of ``python -m validators`` in a process that has imported torch already; it is watched as usual."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        for name, descriptor in (("out", 1), ("err", 2)):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), descriptor)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        signal.signal(signal.SIGINT, signal.default_int_handler)
        faulthandler.disable()  # pytest's, whose reports go to the screen
        os.environ["REACHED"] = str(folder / "reached")
        torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
        supervise.CALL_LIMIT_S = limit_s
        code = supervise.supervised("validators", lambda: validators_main.main(words))
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _ended(child: int, folder: Path) -> tuple[int, str, str]:
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), (folder / "out").read_text(), (folder / "err").read_text()


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        ("crashes", "died with signal 11 (SIGSEGV)"),
        ("is_killed", "died with signal 9 (SIGKILL)"),
        ("hangs", "did not return within 1 s"),
    ],
)
def test_a_kernel_that_ends_the_process_is_named(kernel: str, words: str, kernels: Path, tmp_path: Path) -> None:
    own = CALLING["validators explain"].format(f=kernels, k=kernel).split()
    code, out, err = _ended(_forked(["explain", *own], tmp_path, limit_s=1.0), tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith(f"validators: kernel {kernels}:{kernel} (add_rmsnorm_quant) {words}")
    assert ("system short of memory" in err) == (kernel == "is_killed")
    assert err.count("\n") == 1


def test_commands_that_call_kernels_are_the_ones_that_are_watched() -> None:
    watched = {f"validators {name}" for name in validators_main.IN_PROCESS}
    watched |= {f"evals {name}" for name in evals_main.IN_PROCESS}
    assert set(CALLING) | {"validators probe"} == watched
    assert set(golden_main.IN_PROCESS) == {"check", "propose"}


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM], ids=lambda s: s.name)
def test_a_signal_while_a_kernel_hangs(signum: signal.Signals, kernels: Path, tmp_path: Path) -> None:
    own = CALLING["validators explain"].format(f=kernels, k="hangs").split()
    child = _forked(["explain", *own], tmp_path, limit_s=600.0)
    while not (tmp_path / "reached").exists():
        time.sleep(0.02)
    os.kill(child, signum)
    code, _, err = _ended(child, tmp_path)
    if signum is signal.SIGINT:
        assert code == 130
        assert err.startswith("validators: interrupted; ")
        assert err.count("\n") == 1
    else:
        assert (code, err) == (-signum, "")
