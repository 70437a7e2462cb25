"""Kernels that crash, hang, raise or return rubbish inside a command, and signals meanwhile: the kernel is named."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

import evals.__main__ as evals_main
import golden.__main__ as golden_main
import validators.__main__ as validators_main
from tests.support.walk import CASE, GEMM, one_sentence, the_command
from validators.process import supervise
from validators.process.guard import Exit


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command writes by default lands here."""
    monkeypatch.chdir(tmp_path)


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
    "validators layers": f"--model glm-tiny --kernel {{f}}:{{k}} --kernel {GEMM} --layers 1 --tokens 4",
    "validators identify": "--kernel {f}:{k} --device cpu --rows 2",
    "evals parity": "--candidate fused,add_rmsnorm_quant={f}:{k} --questions 2 --token-questions 2",
    "evals tokens": "--arm fused,add_rmsnorm_quant={f}:{k} --questions 2",
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
    of = the_command(name)
    status = Exit.USAGE if name == "validators layers" else Exit.ERROR
    said = one_sentence(of, CALLING[name].format(f=kernels, k=kernel).split(), capfd, code=status)
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
    assert (code, out) == (4, "")
    assert err.startswith(f"validators: kernel {kernels}:{kernel} (add_rmsnorm_quant) {words}")
    assert ("system short of memory" in err) == (kernel == "is_killed")
    assert err.count("\n") == 1


def test_commands_that_call_kernels_are_the_ones_that_are_watched() -> None:
    groups = {"validators": validators_main, "evals": evals_main, "golden": golden_main}
    watched = {f"{who} {name}" for who, module in groups.items() for name, of in module.COMMANDS.items() if of.watched}
    assert set(CALLING) | {"validators probe", "golden check", "golden propose"} == watched


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
