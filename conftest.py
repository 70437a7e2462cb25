"""pytest wiring: options, a GPU for each xdist worker, the record sink, and "no kernel case ran" as a failure.

Nothing is judged here; ``validators.run.validate`` does that, and ``tests/kernels`` turns its records into outcomes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # One thread a worker: otherwise every worker starts as many threads as there are cores. Before torch is imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from validators.cases.case import Case
from validators.cases.suite import cases_for
from validators.commands.options import TIME_LIMIT_S, settings
from validators.commands.plan import contract_for, devices, native_fp8
from validators.errors import UserError
from validators.isolate import Worker
from validators.kernels.kernel import Kernel, KernelError
from validators.kernels.registry import all_kernels, find_kernels
from validators.process.guard import Exit
from validators.records.record import Record
from validators.records.store import Sink, StoreError
from validators.run import validate

KERNEL_TESTS = "tests/kernels/"
AS_PYTEST = {
    Exit.YES: pytest.ExitCode.OK,
    Exit.NO: pytest.ExitCode.TESTS_FAILED,
    Exit.USAGE: pytest.ExitCode.USAGE_ERROR,
    Exit.NO_DECISION: pytest.ExitCode.TESTS_FAILED,
    Exit.ERROR: pytest.ExitCode.TESTS_FAILED,
    Exit.INTERRUPTED: pytest.ExitCode.INTERRUPTED,
}
"""How pytest says what the commands say; its own statuses are what other tools read."""


@dataclass(frozen=True)
class KernelCase:
    """One test of tests/kernels: a case for a kernel, or the sentence why the kernel cannot run here.

    own: True for the user's kernel from a file or module, which runs in a worker process of its own.
    """

    kernel: Kernel
    case: Case | None
    unavailable: str | None
    own: bool = False
    spec: str = ""

    @property
    def id(self) -> str:
        last = self.case.id if self.case else f"{self.kernel.op}-unavailable"
        return f"{self.spec or self.kernel.name}::{last}"


Judge = Callable[[KernelCase], "Record"]

_CASES: pytest.StashKey[list[KernelCase]] = pytest.StashKey()
_SINK: pytest.StashKey[Sink] = pytest.StashKey()
_RAN: pytest.StashKey[dict[str, int]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fp8-signoff", "numerical sign-off of FP8 kernels")
    own: dict[str, dict[str, Any]] = {
        "--kernel": settings("--kernel", several=True),
        "--contract": settings("--contract", "or: identify", "default: what it declares"),
        "--lane": settings("--lane", several=True),
        "--depth": settings("--depth", default="default"),
        "--dtype": settings("--dtype", default="bf16"),
        "--fp8": settings("--fp8", "default: the device's"),
        "--records": settings("--records", "default: no records"),
        "--device": settings("--device", "default: a GPU if there is one"),
        "--time-limit": settings("--time-limit", default=TIME_LIMIT_S),
    }
    for name, keywords in own.items():
        group.addoption(name, **keywords)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_RAN] = {"seen": 0, "ran": 0}
    option = config.option
    if not option.log_level and not config.getini("log_level"):
        # torch.compile logs hundreds of empty debug lines, which pytest would print under every failure.
        option.log_level = "WARNING"
    if option.device:
        try:
            devices(option.device)
        except UserError as error:
            raise pytest.UsageError(str(error)) from None
    if option.kernel or option.contract:
        config.stash[_CASES] = _kernel_cases(config)
    if option.records:
        try:
            config.stash[_SINK] = Sink(option.records)
        except StoreError as error:
            raise pytest.UsageError(str(error)) from None
    _take_gpu(config)


def _take_gpu(config: pytest.Config) -> None:
    """Under xdist worker gw<i> uses GPU i modulo their number; tests go on saying "cuda", so ids are the same."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if not worker.startswith("gw") or config.option.device == "cpu":
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(worker.removeprefix("gw")) % torch.cuda.device_count())


def _device(config: pytest.Config) -> str:
    if config.option.device:
        return str(config.option.device)
    return "cuda" if torch.cuda.is_available() else "cpu"


def _kernels(config: pytest.Config) -> list[tuple[str, Kernel]]:
    """(spec as given, kernel); the same name may serve several ops."""
    if not config.option.kernel:
        return [("", kernel) for kernel in all_kernels()]
    found: list[tuple[str, Kernel]] = []
    for text in config.option.kernel:
        try:
            named = find_kernels(text)
        except UserError as error:
            raise pytest.UsageError(str(error)) from None
        found.extend((kernel.name if ":" in kernel.name else "", kernel) for kernel in named)
    return found


def _kernel_cases(config: pytest.Config) -> list[KernelCase]:
    """What tests/kernels runs, in a fixed order that every xdist worker finds alike."""
    option, device = config.option, _device(config)
    fp8 = option.fp8 or native_fp8(device)
    chosen: list[KernelCase] = []
    for spec, kernel in _kernels(config):
        try:
            contract_for(kernel.op, option.contract)
        except UserError as error:
            raise pytest.UsageError(f"{error} (asked of kernel {kernel.name})") from None
        reason = kernel.unavailable(device)
        if reason:
            chosen.append(KernelCase(kernel, None, reason, bool(spec), spec))
            continue
        cases = cases_for(kernel.op, depth=option.depth, lanes=option.lane or None, dtype=option.dtype, fp8=fp8)
        chosen.extend(KernelCase(kernel, case, None, bool(spec), spec) for case in cases)
    return chosen


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kernel_case" in metafunc.fixturenames:
        if _CASES not in metafunc.config.stash:
            metafunc.config.stash[_CASES] = _kernel_cases(metafunc.config)
        chosen = metafunc.config.stash[_CASES]
        metafunc.parametrize("kernel_case", chosen, ids=[kernel_case.id for kernel_case in chosen])


@pytest.fixture(scope="session")
def judge(pytestconfig: pytest.Config) -> Iterator[Judge]:
    """judge(kernel_case) -> Record, written to --records; a user's own kernel runs in a worker process."""
    workers: dict[tuple[str, str], Worker] = {}
    option, device = pytestconfig.option, _device(pytestconfig)

    def run(chosen: KernelCase) -> Record:
        assert chosen.case is not None
        contract = contract_for(chosen.kernel.op, option.contract)
        if chosen.own:
            key = (chosen.spec, chosen.kernel.op)
            if key not in workers:
                workers[key] = Worker(*key, contract=contract, device=device, time_limit_s=option.time_limit)
            try:
                record = workers[key].validate(chosen.case)
            except KernelError as error:
                pytest.fail(str(error), pytrace=False)
        else:
            record = validate(chosen.kernel, chosen.case, contract=contract, device=device)
        if sink := pytestconfig.stash.get(_SINK, None):
            try:
                sink.write(record)
            except StoreError as error:
                # Without its record a verdict is lost for the sign-off, so the test does not pass.
                pytest.fail(str(error), pytrace=False)
        return record

    yield run
    for worker in workers.values():
        worker.close()


# ---- nothing passes by not running


class _Counter:
    """Counts kernel cases; registered where reports of all xdist workers arrive."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if KERNEL_TESTS in report.nodeid and "kernel_cases" in report.keywords:
            counts = self.config.stash[_RAN]
            counts["seen"] += report.when == "setup"
            counts["ran"] += report.when == "call" and report.outcome != "skipped"


def pytest_sessionstart(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):
        session.config.pluginmanager.register(_Counter(session.config), "fp8-signoff-counter")


def _nothing_ran(config: pytest.Config) -> bool:
    counts = config.stash[_RAN]
    return counts["ran"] == 0 and bool(counts["seen"] or config.option.kernel) and not config.option.collectonly


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    quiet = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    if not hasattr(session.config, "workerinput") and exitstatus in quiet and _nothing_ran(session.config):
        session.exitstatus = AS_PYTEST[Exit.NO_DECISION]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if _nothing_ran(config):
        terminalreporter.write_line(
            "ERROR: no kernel case ran: every selected kernel is unavailable here or supports none of the cases.",
            red=True,
        )
