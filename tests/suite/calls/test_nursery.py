"""Forked processes: they are what a process of their own would be, and nothing waits for one that cannot be made."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.child import ROOT, python
from validators.cases.case import Case
from validators.isolate import Worker
from validators.kernels.kernel import KernelError
from validators.process import nursery as module
from validators.process.nursery import Nursery, nursery
from validators.records.record import Status

TASK = "validators.isolate:serve"


@pytest.mark.parametrize(
    "words",
    [
        ("-m", "validators", "list", "kernels", "--op", "nonsense"),
        ("-m", "evals", "gsm8k", "nonsense"),
        ("-m", "golden", "list", "--lane", "nonsense"),
        ("-c", "import os, sys; print(os.getcwd(), sys.argv); sys.exit('one sentence')", "word"),
        ("-c", "import os; print('not flushed', end=''); os.kill(os.getpid(), 9)"),
    ],
)
def test_a_forked_command_is_the_command(words: tuple[str, ...], tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    forked = python(*words, cwd=tmp_path, environment=environment)
    done = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (forked.returncode, forked.stderr) == (done.returncode, done.stderr)
    assert forked.stdout.strip("not flushed") == done.stdout.strip("not flushed")
    assert forked.returncode != 0


def test_what_cannot_be_imported_is_said_at_each_request() -> None:
    made = Nursery("validators.no_such_module:serve", dict(os.environ))
    with tempfile.TemporaryFile() as output:
        for _ in range(2):
            with pytest.raises(ChildProcessError, match=r"no_such_module cannot be imported: ModuleNotFound"):
                made.start(output.fileno(), ())


def test_one_is_kept_until_the_environment_changes_or_it_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_NURSERIES", {})
    first = nursery(TASK)
    monkeypatch.setenv("PYTEST_CURRENT_TEST", "another test")
    assert nursery(TASK) is first
    monkeypatch.setenv("SOME_LIBRARYS_PATH", "/somewhere")
    second = nursery(TASK)
    assert second is not first
    assert first.alive
    os.kill(second.pid, signal.SIGKILL)
    second.wait()
    assert nursery(TASK) not in (first, second)


def test_a_case_whose_starter_dies_is_an_error_and_the_next_one_runs() -> None:
    case = Case("add_rmsnorm_quant", m=2, n=64, recipe="gaussian")
    with Worker("emulated/vllm", case.op) as worker:
        assert worker.validate(case).status is Status.PASSED
        os.kill(nursery(TASK).pid, signal.SIGKILL)
        statuses = [worker.validate(case).status for _ in range(3)]
    assert statuses[-1] is Status.PASSED
    assert set(statuses) <= {Status.PASSED, Status.ERROR}


def test_a_worker_that_cannot_be_forked_is_a_kernel_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> None:
        raise ChildProcessError("no process can be made: Resource temporarily unavailable")

    monkeypatch.setattr(Nursery, "start", none_left)
    with Worker("emulated/vllm", "add_rmsnorm_quant") as worker, pytest.raises(KernelError) as caught:
        worker.validate(None)  # type: ignore[arg-type]
    assert str(caught.value) == (
        "kernel 'emulated/vllm' could not be loaded: no process can be made: Resource temporarily unavailable"
    )
