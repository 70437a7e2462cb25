"""The commands of all groups, with arguments that work and values that cannot: what the tests of bad input walk.

Commands and options are read from the parsers, so a new one is walked as soon as it is there: without a line in
``VALID`` (a command) or ``BAD`` (an option) the walk fails and says which line to write.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import evals.__main__ as evals_main
import evals.gsm8k.store as evals_store
import golden.__main__ as golden_main
import validators.__main__ as validators_main
from tests.support.eval_arms import BASELINE, CANDIDATE, two_arms
from tests.support.harness_files import lm_eval_row, write
from tests.support.made import lanes_passed
from tests.support.traces import FUSED, write_trace
from tests.support.traces import GEMM as TRACED_GEMM
from validators.commands import cli
from validators.records.store import Sink

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


def all_commands() -> Iterator[Command]:
    for group, module in (("validators", validators_main), ("golden", golden_main), ("evals", evals_main)):
        for name in module.COMMANDS:
            parser = cli.parser_of(group, name, module.COMMANDS)
            yield Command(group, tuple(name.split()), parser, module.main)


COMMANDS = list(all_commands())


# Arguments with which each command does something; {name} is what the fixture ``place`` makes.
VALID = {
    "validators list": "kernels",
    "validators run": f"--kernel add_rmsnorm_quant={NORM} --case {CASE} --device cpu --records {{new}}",
    "validators search": f"--kernel {GEMM} --device cpu --minutes 0.01 --records {{new}}",
    "validators identify": f"--kernel add_rmsnorm_quant={NORM} --device cpu --rows 2",
    "validators probe": f"--kernel {GEMM} --device cpu",
    "validators explain": f"{CASE} --kernel {NORM} --row 0 --col 0 --device cpu",
    "validators trace": "{trace}",
    "validators layers": f"--model glm-tiny --kernel {NORM} --kernel {GEMM} --layers 1 --tokens 4",
    "validators report": "{records}",
    "validators signoff": "{records}",
    "validators machine": "--policy smoke --device cpu --out {new}",
    "golden check": "--id {golden} --device cpu",
    "golden propose": "--out {new}",
    "golden accept": "{new} --why because --store {store}",
    "golden list": "",
    "golden verify": "",
    "evals gsm8k run": "--server 127.0.0.1:9 --name a --out {new} --data {questions} --any-data --profile plain",
    "evals gsm8k compare": "{a} {b}",
    "evals import": "lm-eval {samples} --out {new}",
    "evals parity": "--questions 2 --token-questions 2",
    "evals tokens": "--questions 2",
    "validators amdgcn inspect": str(Path(__file__).parents[1] / "fixtures/amdgcn/add_rmsnorm_quant.any.gfx942.s"),
    "validators wheel show": "{binary}",
    "validators wheel slim": "{binary} --arch sm_90 --zip {new}",
}
# A value of each option that cannot be right; options that take a number need none here. "" where any text will do:
# names that are only written down, and what belongs to another option.
BAD = {
    "what": "bits",
    "op": "softmax",
    "lane": "fast",
    "dtype": "bf15",
    "fp8": "e5m2",
    "depth": "abyss",
    "kernel": "nobody/nothing",
    "contract": "law",
    "case": "nonsense",
    "device": "tpu",
    "time_limit": "soon",
    "minutes": "soon",
    "claim": "absent.toml",
    "policy": "absent.toml",
    "criterion": "nobody",
    "arch": "",
    "version": "torch",
    "source": "",
    "why": "",
    "symbol": "nobody",
    "only": "nobody",
    "id": "nobody",
    "records": BELOW_A_FILE,
    "out": BELOW_A_FILE,
    "markdown": BELOW_A_FILE,
    "history": BELOW_A_FILE,
    "json": BELOW_A_FILE,
    "picture": BELOW_A_FILE,
    "runs": BELOW_A_FILE,
    "store": "absent",
    "proposal": "absent",
    "file": "absent",
    "expect": "nonsense",
    "forbid": "",
    "role": "nonsense",
    "model": "absent",
    "output": "nonsense",
    "server": "127.0.0.1:9",
    "arm": "nobody",
    "name": "",
    "profile": "nobody",
    "data": "absent",
    "api_key_variable": "FP8_SIGNOFF_NO_SUCH_VARIABLE",
    "totals": "nonsense",
    "rerun": "absent",
    "yardstick": "absent",
    "yardstick_arm": "absent",
    "extractor": "nobody",
    "harness": "nobody",
    "baseline": "nobody",
    "candidate": "nobody",
    "wheel": "absent",
    "zip": BELOW_A_FILE,
    "library_op": "nonsense",
}
# Where one name means two things.
BAD_OF = {
    ("validators report", "records"): "absent",
    ("validators signoff", "records"): "absent",
    ("validators trace", "kernel"): "",
    ("validators trace", "contract"): "",
    ("evals gsm8k compare", "kernel"): "",
    ("evals gsm8k compare", "runs"): "absent",
    ("evals import", "model"): "",
    ("evals gsm8k run", "model"): "",
    ("evals gsm8k run", "kernel"): "",
    ("evals import", "kernel"): "",
    ("validators wheel slim", "arch"): "nonsense",
    ("golden propose", "store"): "",  # a proposal does not look at the store
}


def make_place(root: Path) -> dict[str, str]:
    """Things to work on, made once: each name of ``VALID`` and where it is."""
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
        "root": str(root),
        "records": str(root / "records"),
        "broken": str(root / "broken"),
        "store": str(root / "store"),
        "trace": str(root / "trace.json"),
        "questions": str(root / "q.jsonl"),
        "samples": str(root / "samples_gsm8k_x.jsonl"),
        "a": str(root / "a"),
        "b": str(root / "b"),
        "golden": GOLDEN,
        "new": str(root / "new"),
        "binary": str(root / "binary"),
    }


def words_of(of: Command, place: dict[str, str]) -> list[str]:
    assert of.id in VALID, f"write into VALID with which arguments {of.id!r} does something"
    return VALID[of.id].format(**place).split()


def with_option(words: list[str], action: argparse.Action, value: str) -> list[str]:
    """``words`` with ``value`` for the option: in place of the one that is there, or at the end."""
    if not action.option_strings:
        return [value, *words[1:]] if action.nargs != "*" else [value] * max(1, len(words))
    values = [value] * (action.nargs if isinstance(action.nargs, int) else 1)
    for name in action.option_strings:
        if name in words:
            at = words.index(name)
            return [*words[: at + 1], *values, *words[at + 2 :]]
    return [*words, action.option_strings[-1], *values]


def one_sentence(of: Command, words: list[str], capfd: pytest.CaptureFixture[str], code: int = 2) -> str:
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


def the_command(name: str) -> Command:
    """The command of that id, ``validators run``."""
    [found] = [command for command in COMMANDS if command.id == name]
    return found
