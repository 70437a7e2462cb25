"""Isolation: each case runs in a worker process, so that a kernel that crashes or hangs costs one case and not the run.

The worker loads the kernel once, then serves cases; it is forked from a process that has imported torch
(``validators.process.nursery``). It is replaced after a crash, after a case that
ran past the time limit, and after an error on a GPU, whose context may be lost with it. Messages travel over a socket
of their own; what kernels print goes to a file, whose end is quoted when the worker dies. A kernel that compiles at its
first call is called once before the cases, outside their time limit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import importlib
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import IO, Any

from validators.arch import architecture
from validators.calls.call import warm_up
from validators.cases.case import Case
from validators.cases.recipes import lane_of
from validators.kernels.kernel import KernelError
from validators.kernels.registry import find_kernel
from validators.process import doing
from validators.process.guard import say
from validators.process.nursery import Child, nursery
from validators.records.command_line import command_line, of_op
from validators.records.record import Record, Status
from validators.run import validate, with_stricter

LOAD_LIMIT_S = 1800.0
"""Time for a worker to import torch and load its kernel; a library may compile when it is imported."""
LOAD_SLOW_S = 30.0
"""A kernel that has not been loaded by then is waited for with a line on the screen."""
WARM_LIMIT_S = 1800.0
"""Time for the first call of a kernel that compiles then, as aiter does where no module is prebuilt."""

KILL_LIMIT_S = 60.0
"""A killed process that has not ended by then hangs in a driver; it is left to the system."""

TIME_LIMIT_S = 120.0
"""Seconds for one case: a case of the deepest depth takes some seconds on a CPU."""
_QUOTED_BYTES = 2000


def run_isolated(
    kernel_name: str,
    op: str | None,
    cases: Iterable[Case],
    *,
    contract: str | None = None,
    device: str = "cpu",
    time_limit_s: float = TIME_LIMIT_S,
) -> Iterator[Record]:
    """One record per case, in the cases' order, from ``validators.validate`` in a worker process.

    kernel_name, op: as for ``validators.kernels.registry.find_kernel``. A case that takes longer than ``time_limit_s``
    seconds, or that kills the worker, gives a record with status ERROR and the next case starts in a new worker.
    Raises KernelError if the kernel cannot be loaded. The worker is killed when the generator is closed.
    """
    with Worker(kernel_name, op, contract=contract, device=device, time_limit_s=time_limit_s) as worker:
        for case in cases:
            yield worker.validate(case)


class Worker:
    """A worker process that serves the cases of one kernel; a context manager, killed on exit.

    Started by the first ``validate``. Not for use from two threads at once.
    """

    def __init__(
        self,
        kernel_name: str,
        op: str | None,
        *,
        contract: str | None = None,
        device: str = "cpu",
        time_limit_s: float = TIME_LIMIT_S,
    ) -> None:
        self.kernel_name, self.op, self.contract, self.device = kernel_name, op, contract, device
        self.time_limit_s = time_limit_s
        self._process: Child | None = None
        self._pipe: Connection | None = None
        self._output: IO[bytes] | None = None
        self._doing: Any = None
        self._about: dict[str, Any] = {}
        self._warm = False

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Process id of the live worker, or None."""
        return self._process.pid if self._process else None

    def validate(self, case: Case, *, explain: bool = True) -> Record:
        """The record of ``case``; raises KernelError if the kernel cannot be loaded. explain: as for ``validate``."""
        if self._process is None:
            self._start()
        if self._about["compiles"] and not self._warm and (record := self._warm_up(case)):
            return record
        assert self._pipe is not None
        started = time.monotonic()
        try:
            self._pipe.send(("validate" if explain else "judge", case))
            if not self._pipe.poll(self.time_limit_s):
                reason = f"kernel did not return within {self.time_limit_s:g} s{self._while()}"
                return self._lost(case, reason, time.monotonic() - started, dump=True)
            kind, payload = self._pipe.recv()
        except (EOFError, OSError):
            return self._lost(case, self._death(), time.monotonic() - started)
        except BaseException:
            self.close()
            raise
        if kind == "raised":
            return self._lost(case, payload, time.monotonic() - started)
        answer: Record = payload
        if answer.status is Status.ERROR and self.device != "cpu":
            self.close()
        return answer

    def _warm_up(self, case: Case) -> Record | None:
        """The first call, which may compile for minutes; a record only where it hangs. Tried once, whatever comes."""
        assert self._pipe is not None
        started = time.monotonic()
        try:
            self._pipe.send(("warm", case))
            if self._pipe.recv()[0] != "warming":
                return None
            self._warm = True
            say("validators", f"warming {self._about['name']} up; the first call may compile for minutes")
            if not self._pipe.poll(WARM_LIMIT_S):
                reason = f"the first call did not return within {WARM_LIMIT_S:g} s, and nothing is compiled for so long"
                return self._lost(case, reason, time.monotonic() - started, dump=True)
            self._pipe.recv()
        except (EOFError, OSError):
            return self._lost(case, self._death(), time.monotonic() - started)
        except BaseException:
            self.close()
            raise
        return None

    def kill(self) -> None:
        """End the worker process from another thread; a ``validate`` that waits for it returns a record of ERROR."""
        process = self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        """Kill the worker and everything it started."""
        process, self._process = self._process, None
        if process is not None:
            # The worker leads a session of its own, so compilers that it started go with it.
            process.kill()
            with contextlib.suppress(TimeoutError):
                process.wait(KILL_LIMIT_S)
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        for file in (self._output, self._doing):
            if file is not None:
                file.close()
        self._output = self._doing = None

    def _start(self) -> None:
        ours, theirs = Pipe()
        self._pipe = ours
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the worker, in close)
        self._doing = tempfile.TemporaryFile()  # noqa: SIM115 (likewise)
        try:
            passed = (theirs.fileno(), self._doing.fileno())
            self._process = nursery("validators.isolate:serve").start(self._output.fileno(), passed)
        except ChildProcessError as error:
            self.close()
            raise KernelError(f"kernel {self.kernel_name!r} could not be loaded: {error}") from None
        finally:
            theirs.close()
        try:
            settings = (self.kernel_name, self.op, self.contract, self.device, _gpu_index(self.device))
            ours.send((os.getcwd(), sys.argv, settings))
            if not ours.poll(LOAD_SLOW_S):
                say("validators", f"loading {self.kernel_name} takes long; its library may compile for minutes")
            if not ours.poll(LOAD_LIMIT_S):
                raise KernelError(f"kernel {self.kernel_name!r} could not be loaded within {LOAD_LIMIT_S:g} s")
            kind, payload = ours.recv()
        except (EOFError, OSError):
            reason, printed = self._death(), self._printed().splitlines()
            self.close()
            last = f" after printing {printed[-1]!r}" if printed else ""
            raise KernelError(f"kernel {self.kernel_name!r} could not be loaded: {reason}{last}") from None
        except BaseException:
            self.close()
            raise
        if kind != "ready":
            self.close()
            raise KernelError(payload)
        self._about = payload

    def _death(self) -> str:
        assert self._process is not None
        try:
            code = self._process.wait(10)
        except TimeoutError:
            return "worker closed its connection"
        if code >= 0:
            return f"worker died with exit code {code}{self._while()}"
        try:
            name = f" ({signal.Signals(-code).name})"
        except ValueError:
            name = ""
        hint = ", which is also how a system short of memory ends it" if -code == signal.SIGKILL else ""
        return f"worker died with signal {-code}{name}{self._while()}{hint}"

    def _while(self) -> str:
        return "" if self._doing is None else doing.last(self._doing.fileno())

    def _lost(self, case: Case, reason: str, seconds: float, *, dump: bool = False) -> Record:
        if dump and self._process is not None:
            # The worker's fault handler answers SIGUSR1 with its Python stack, from inside native code as well.
            self._process.signal(signal.SIGUSR1)
            time.sleep(0.2)
        printed = self._printed()
        self.close()
        declared = self._about["contract"]
        given = None if self.contract == "identify" else self.contract
        return Record(
            status=Status.ERROR,
            reasons=(reason,),
            kernel=self._about["name"],
            op=case.op,
            case=case.id,
            lane=lane_of(case),
            contract=given or (None if self.contract else declared),
            contract_from="given" if given else "declared" if declared and not self.contract else "identified",
            device=self.device,
            arch=self._about["arch"],
            emulated=self._about["emulated"],
            fake=self._about["fake"],
            seconds=seconds,
            reproduce=self._reproduce(case),
            provenance=dataclasses.replace(self._about["provenance"], worker_output=printed),
        )

    def _printed(self) -> str:
        if self._output is None:
            return ""
        end = self._output.seek(0, os.SEEK_END)
        self._output.seek(max(0, end - _QUOTED_BYTES))
        return self._output.read().decode(errors="replace").strip()

    def _reproduce(self, case: Case) -> str:
        kernel = of_op(case.op, self.kernel_name)
        return command_line(
            "validators", "run", kernel=kernel, case=case.id, device=self.device, contract=self.contract
        )


def _gpu_index(device: str) -> int | None:
    """The parent's current GPU where it has chosen one (a test worker takes its own), without starting CUDA here."""
    torch = sys.modules.get("torch")
    if device != "cuda" or torch is None or not torch.cuda.is_initialized():
        return None
    return int(torch.cuda.current_device())


# ---- inside the worker


def serve(starter: int, descriptor: int, words: int) -> None:
    """The worker's main: load the kernel, then answer each case with a record until the connection closes.

    starter: process id of its parent. descriptor: the connection. words: where it says what it is doing.
    """
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    for passed in (descriptor, words):
        os.set_inheritable(passed, False)
    doing.report_to(words)
    pipe = Connection(descriptor)
    threading.Thread(target=_die_with, args=(starter,), daemon=True).start()
    # Records name the command that a person gave, which is that of the process that asked.
    folder, sys.argv, (name, op, contract, device, gpu) = pipe.recv()
    os.chdir(folder)
    try:
        if gpu is not None:
            importlib.import_module("torch").cuda.set_device(gpu)
        kernel = find_kernel(name, op)
        about = {
            "name": kernel.name,
            "contract": kernel.contract,
            "emulated": kernel.emulated,
            "fake": kernel.fake,
            "compiles": kernel.compiles,
            "arch": architecture(device),
            "provenance": kernel.provenance(device),
        }
    except KernelError as error:
        pipe.send(("unloadable", str(error)))
        return
    pipe.send(("ready", about))
    while True:
        try:
            wanted, case = pipe.recv()
        except EOFError:
            return
        try:
            if wanted == "warm":
                called = warm_up(kernel, case, device, lambda: pipe.send(("warming", None)))
                answer: tuple[str, Any] = ("warm" if called else "cold", None)
            else:
                explain = wanted != "judge"
                record = validate(kernel, case, contract=contract, device=device, explain=explain)
                answer = ("record", with_stricter(kernel, case, record) if explain else record)
        except Exception as error:
            # Whatever it is, the case gets its record of status ERROR, and the worker takes the next one.
            answer = ("raised", f"validation raised {type(error).__name__}: {error}")
        pipe.send(answer)


def _die_with(parent: int) -> None:
    """Kill the worker's session once its parent is gone, however that ended."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(0, signal.SIGKILL)
