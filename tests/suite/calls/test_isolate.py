"""Isolation: kernels that crash, hang or lie give one honest record each, and nothing is left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import hostile
from validators import isolate
from validators.cases.case import Case
from validators.isolate import Worker, run_isolated
from validators.kernels.kernel import KernelError
from validators.records.record import Record, Status

ROOT = Path(__file__).resolve().parents[3]
HOSTILE = ROOT / "tests" / "support" / "hostile.py"
OP = "add_rmsnorm_quant"
# To wait for a hang: long enough to have reached the kernel on a busy machine, where that takes tens of milliseconds.
HANG_S = 1.5


def _case(m: int = 3, seed: int = 0) -> Case:
    return Case(OP, m=m, n=64, recipe="gaussian", seed=seed)


def _spec(function: str) -> str:
    return f"{HOSTILE}:{function}"


def _record(function: str, limit_s: float = 60.0) -> Record:
    [record] = run_isolated(_spec(function), OP, [_case()], time_limit_s=limit_s)
    return record


def _gone(pid: int) -> bool:
    """True once the process has ended (a zombie that nobody has reaped counts as ended), within a minute."""
    for _ in range(1200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    """One worker for the kernels that return or raise, whatever they return."""
    with Worker(_spec("in_turn"), OP, time_limit_s=60.0) as made:
        yield made


def _served(worker: Worker, function: str) -> Record:
    """The record of one function of ``hostile.IN_TURN``, which does not cost the worker."""
    before = worker.pid
    record = worker.validate(_case(2 + [f.__name__ for f in hostile.IN_TURN].index(function)))
    assert worker.pid is not None
    assert before in (None, worker.pid)
    return record


def test_an_honest_kernel_passes() -> None:
    record = _record("honest")
    assert record.status is Status.PASSED, record.reasons
    assert record.case == _case().id


@pytest.mark.parametrize(
    ("function", "status", "words"),
    [
        ("wrong_shape", Status.ERROR, "scale has shape [4], expected [4, 1]"),
        ("wrong_dtype", Status.ERROR, "scale has dtype bfloat16, expected float32"),
        ("returns_none", Status.ERROR, ""),
        ("raises", Status.ERROR, "the tile size does not divide the row"),
        ("nan_everywhere", Status.FAILED, ""),
        ("views_of_inputs", Status.ERROR, "shares memory with the input"),
        ("mutates_input", Status.FAILED, "elements of x changed"),
    ],
)
def test_wrong_outputs_are_never_passed(worker: Worker, function: str, status: Status, words: str) -> None:
    record = _served(worker, function)
    assert record.status is status, record.reasons
    assert record.reasons
    said = "\n".join([*record.reasons, *(check.detail for check in record.checks)])
    assert words in said


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("segfaults", "worker died with signal 11 (SIGSEGV)"),
        ("exits_at_once", "worker died with exit code 7"),
        ("calls_sys_exit", "worker died with exit code 3"),
        ("killed", "worker died with signal 9 (SIGKILL), which is also how a system short of memory ends it"),
        ("never_returns", "kernel did not return within 1.5 s"),
    ],
)
def test_a_lost_worker_gives_an_error_record(function: str, reason: str) -> None:
    record = _record(function, HANG_S if function == "never_returns" else 60.0)
    assert record.status is Status.ERROR
    assert record.reasons == (reason,)
    assert (record.op, record.case, record.lane) == (OP, _case().id, "random")
    assert (record.contract, record.contract_from, record.device, record.arch) == ("eager", "declared", "cpu", "cpu")
    assert function in record.kernel
    assert f"--case {_case().id}" in record.reproduce
    assert function in record.reproduce
    if function in ("never_returns", "segfaults"):  # where it hung or crashed is kept
        assert f"in {function}" in record.provenance.worker_output


def test_the_next_case_gets_a_fresh_worker() -> None:
    with Worker(_spec("hangs_on_five_rows"), OP) as worker:
        statuses, pids = [], []
        for case, limit_s in ((_case(2), 60.0), (_case(5), HANG_S), (_case(2, seed=1), 60.0)):
            worker.time_limit_s = limit_s
            statuses.append(worker.validate(case).status)
            pids.append(worker.pid)
    assert statuses[1] is Status.ERROR
    assert statuses[0] is statuses[2]
    assert statuses[0] is not Status.ERROR
    assert pids[0] is not None
    assert pids[1] is None
    assert pids[2] not in (None, pids[0])
    assert _gone(pids[0])
    assert _gone(pids[2])


def test_a_first_call_that_compiles_is_made_outside_the_time_limit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMPILES_FOR_S", str(2 * HANG_S))
    cases = [_case(2), _case(3), _case(4)]  # the kernel does not take the first
    found = list(run_isolated(_spec("compiles_for_long"), OP, cases, time_limit_s=HANG_S))
    assert [r.status for r in found] == [Status.UNSUPPORTED, Status.PASSED, Status.PASSED], [r.reasons for r in found]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("validators: warming ")
    assert said[0].endswith("compiles_for_long up; the first call may compile for minutes")


def test_a_first_call_that_never_returns_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPILES_FOR_S", "3600")
    monkeypatch.setattr(isolate, "WARM_LIMIT_S", HANG_S)
    found = list(run_isolated(_spec("compiles_for_long"), OP, [_case(3), _case(4)], time_limit_s=HANG_S + 1))
    assert [r.status for r in found] == [Status.ERROR, Status.ERROR]
    assert found[0].reasons[0].startswith("the first call did not return within 1.5 s")
    assert found[1].reasons == ("kernel did not return within 2.5 s",)


def test_noise_on_the_streams_breaks_nothing(worker: Worker, capfd: pytest.CaptureFixture[str]) -> None:
    assert _served(worker, "noisy").status is Status.PASSED
    assert "noise" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (_spec("no_such_function"), "no_such_function"),
        ("no/such/file.py:f", "no/such/file.py"),
        ("emulated/nonsense", "unknown kernel"),
    ],
)
def test_a_kernel_that_cannot_be_loaded_is_one_sentence(name: str, words: str) -> None:
    with pytest.raises(KernelError) as caught:
        list(run_isolated(name, OP, [_case()]))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_kills_the_worker_while_loading_is_a_kernel_error(tmp_path: Path) -> None:
    file = tmp_path / "crash.py"
    file.write_text("import os\nprint('loading the library', flush=True)\nos._exit(9)\n")
    with pytest.raises(KernelError, match="worker died with exit code 9 after printing 'loading the library'"):
        list(run_isolated(f"{file}:f", OP, [_case()]))


def test_closing_the_generator_kills_the_worker() -> None:
    with Worker(_spec("honest"), OP) as worker:
        worker.validate(_case())
        pid = worker.pid
        assert pid is not None
    assert _gone(pid)
    assert worker.pid is None


# A background job of a shell starts with SIGINT ignored, and would hand that on.
SCRIPT = """
import signal
import sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from tests.support import hostile
from validators.cases.case import Case
from validators.isolate import Worker
with Worker(sys.argv[1], "add_rmsnorm_quant", time_limit_s=60) as worker:
    worker.validate(Case("add_rmsnorm_quant", m=2, n=64, recipe="gaussian"))
    print(worker.pid, flush=True)
    worker.validate(Case("add_rmsnorm_quant", m=5, n=64, recipe="gaussian"))
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda s: s.name)
def test_no_orphan_is_left_however_the_parent_ends(signum: signal.Signals) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, _spec("hangs_on_five_rows")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)
        time.sleep(0.5)
        parent.send_signal(signum)
        assert parent.wait(timeout=300) != 0
        assert _gone(pid)
    finally:
        parent.kill()
        parent.wait()
        if parent.stdout:
            parent.stdout.close()
