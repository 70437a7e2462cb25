"""A process that has imported what workers need and forks one at each request, so that a worker starts in milliseconds.

A worker process of a kernel needs torch, whose import takes 1.0 s of one core (torch 2.13 on a CPU); a forked process
has it at once. A worker that is replaced after a crash, a hang or an error of a GPU costs nothing then.

The forking process runs no kernel, starts no thread and never asks for a GPU, for a CUDA or HIP context does not
survive a fork; each worker makes its own. ``multiprocessing``'s fork server is not used: it runs the caller's main
module a second time in each child, and a script of a user that validates a kernel at its top level would do so there.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parent.parent.parent
_MESSAGE_BYTES = 4096
_DESCRIPTORS = 8
_POLL_S = 0.005


class Child:
    """A forked process; the nursery, its parent, keeps its exit status until it has been asked for."""

    def __init__(self, pid: int, nursery: Nursery) -> None:
        self.pid, self._nursery = pid, nursery
        self._code: int | None = None

    def wait(self, timeout_s: float) -> int:
        """The exit code, -N after signal N; raises TimeoutError after ``timeout_s`` seconds."""
        end = time.monotonic() + timeout_s
        while self._code is None:
            self._code = self._nursery.exit_code(self.pid)
            if self._code is None:
                if time.monotonic() > end:
                    raise TimeoutError(f"process {self.pid} still runs")
                time.sleep(_POLL_S)
        return self._code

    def signal(self, number: int) -> None:
        """Send a signal to the process; nothing where it has ended."""
        if self._code is None:  # else the number may belong to another process by now
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End the process and what it has started, also what it has left behind."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self.signal(signal.SIGKILL)


class Nursery:
    """The forking process. ``task`` is "module:function" and is called in each child with its passed descriptors."""

    def __init__(self, task: str, environment: dict[str, str]) -> None:
        self.task, self.environment = task, environment
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        paths = [str(_ROOT), environment.get("PYTHONPATH", "")]
        code = "import sys; from validators.process.nursery import serve; serve(int(sys.argv[1]), sys.argv[2])"
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", "-c", code, str(theirs.fileno()), task],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**environment, "PYTHONPATH": os.pathsep.join(path for path in paths if path)},
                start_new_session=True,
            )
        weakref.finalize(self, _end, self._socket, self._process, os.getpid())

    def start(self, output: int, passed: Sequence[int]) -> Child:
        """A child whose standard output and error are ``output``; raises ChildProcessError where none can be made."""
        answer = self._ask(b"fork", (output, *passed))
        return Child(int(answer), self)

    def exit_code(self, pid: int) -> int | None:
        """The exit code of a child, or None while it runs; -SIGKILL where the nursery is gone and all with it."""
        try:
            answer = self._ask(f"wait {pid}".encode())
        except ChildProcessError:
            return -signal.SIGKILL
        return None if answer == b"runs" else int(answer)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def wait(self) -> None:
        """Until it has ended, which it does by itself when nobody refers to it."""
        self._process.wait()

    def _ask(self, words: bytes, descriptors: Sequence[int] = ()) -> bytes:
        with self._lock:
            try:
                socket.send_fds(self._socket, [words], list(descriptors))
                answer = self._socket.recv(_MESSAGE_BYTES)
            except OSError as error:
                raise ChildProcessError(f"the process that starts workers is gone: {error}") from None
        if not answer or answer.startswith(b"error"):
            raise ChildProcessError(answer.decode() or "the process that starts workers has ended")
        return answer


def _end(control: socket.socket, process: subprocess.Popen[bytes], owner: int) -> None:
    """End a nursery that nobody refers to, and with it each child that still lives; its owner alone may do so."""
    control.close()
    if os.getpid() == owner:
        process.kill()
        process.wait()


_NURSERIES: dict[tuple[int, str], Nursery] = {}


def nursery(task: str) -> Nursery:
    """The one of this process for ``task``; a new one where the environment has changed, or the old one has died.

    The old one lives as long as a child of it is referred to. Variables of pytest change with every test and say
    nothing to a worker.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    kept = _NURSERIES.get((os.getpid(), task))
    if kept is None or not kept.alive or kept.environment != environment:
        kept = _NURSERIES[os.getpid(), task] = Nursery(task, environment)
    return kept


# ---- inside the forking process and its children


def serve(descriptor: int, task: str) -> None:
    """The forking process: import the task's module, then fork at each request until the requester is gone."""
    control = socket.socket(fileno=descriptor)
    control.set_inheritable(False)
    module, name = task.split(":")
    unusable, function = "", None
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever an import may raise, the requester says it
        unusable = f"error: {module} cannot be imported: {type(error).__name__}: {error}"
    while True:
        words, descriptors, _, _ = socket.recv_fds(control, _MESSAGE_BYTES, _DESCRIPTORS)
        if not words:
            return
        command, *rest = words.decode().split()
        if function is None:
            control.send(unusable.encode()[:_MESSAGE_BYTES])
            continue
        if command == "wait":
            control.send(_ended(int(rest[0])))
            continue
        control.send(_forked(control, function, descriptors))
        for each in descriptors:
            os.close(each)


def _forked(control: socket.socket, function: Callable[..., Any], descriptors: list[int]) -> bytes:
    parent = os.getpid()
    try:
        child = os.fork()
    except OSError as error:
        return f"error: no process can be made: {error}".encode()
    if child == 0:
        control.close()
        _run(function, parent, descriptors)
    return str(child).encode()


def _ended(pid: int) -> bytes:
    done, status = os.waitpid(pid, os.WNOHANG)
    return str(os.waitstatus_to_exitcode(status)).encode() if done else b"runs"


def _run(function: Callable[..., Any], parent: int, descriptors: list[int]) -> None:
    """A child: a session of its own, its output in the given file, and the exit code that an interpreter would give."""
    code = 1
    try:
        os.setsid()
        output, *passed = descriptors
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        function(parent, *passed)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code & 0xFF)
