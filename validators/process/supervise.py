"""A kernel that crashes or hangs inside a command is one sentence: a child runs the command, and the parent watches.

``run`` gives each kernel a worker process and records what happens to it. Commands that need a kernel's outputs in
their own process (``explain``, ``probe``, ``layers``, the goldens, the evaluations) cannot say anything once that
process is gone. So they are forked before torch is imported, and the parent says which kernel was being called.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import mmap
import os
import select
import signal
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

from validators.process import doing, guard
from validators.process.guard import Exit, say

CALL_LIMIT_S = 600.0
"""A call of a kernel takes milliseconds; a wide GEMM that is interpreted on a CPU may take a minute."""
FIRST_CALL_LIMIT_S = 1800.0
"""The first call of a kernel that says ``compiles`` builds a library of machine code."""
GRACE_S = 5.0
"""A command that is interrupted while a kernel holds the interpreter does not answer, and is ended."""

_HEAD = struct.Struct("ddH")
_SIZE = 4096
_shared: mmap.mmap | None = None


def supervised(who: str, body: Callable[[], int]) -> int:
    """The exit code of ``body``, run in a child process that is watched. Never call it with threads running."""
    if not hasattr(os, "fork"):
        return body()
    shared = mmap.mmap(-1, _SIZE)
    words = tempfile.TemporaryFile()  # noqa: SIM115 (open until both processes end)
    ours, theirs = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        global _shared
        _shared = shared
        doing.report_to(words.fileno())
        os.close(ours)  # ``theirs`` stays open until this process ends, which is how the parent learns of it
        threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
        guard.last_command = True
        return body()
    os.close(theirs)
    return _Watch(who, child, shared, ours, words.fileno()).wait()


def watched(kernel: Any) -> Any:
    """``kernel`` (a dataclass with ``name``, ``op`` and ``call``), its calls seen by the parent if there is one."""
    if _shared is None:
        return kernel
    # An emulated kernel is plain torch of this suite: it cannot hang, and may be slow.
    usual = math.inf if kernel.emulated else CALL_LIMIT_S
    shared, call, state = _shared, kernel.call, {"limit": FIRST_CALL_LIMIT_S if kernel.compiles else usual}
    text = f"{kernel.name} ({kernel.op})".encode()[: _SIZE - _HEAD.size]

    def seen(*arguments: Any, **named: Any) -> Any:
        if state["limit"] == FIRST_CALL_LIMIT_S != usual:
            say("validators", f"warming {kernel.name} up; the first call may compile for minutes")
        shared[_HEAD.size : _HEAD.size + len(text)] = text
        _HEAD.pack_into(shared, 0, time.monotonic(), state["limit"], len(text))
        try:
            return call(*arguments, **named)
        finally:
            state["limit"] = usual
            _HEAD.pack_into(shared, 0, 0.0, 0.0, 0)

    return dataclasses.replace(kernel, call=seen)


def _die_with(parent: int) -> None:
    """End this process once its parent is gone, however that ended."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)


class _Watch:
    """The parent's part: wait, pass signals on, and speak for a child that cannot."""

    def __init__(self, who: str, child: int, shared: mmap.mmap, pipe: int, words: int) -> None:
        self.who, self.child, self.shared, self.pipe, self.words = who, child, shared, pipe, words
        self.interrupts = 0
        self.interrupted_at = 0.0
        self.told = False

    def wait(self) -> int:
        """The exit code for the caller."""
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda got, _: self._pass_on(got))
        signal.signal(signal.SIGINT, lambda *_: self._interrupt())
        while True:
            ended, status = os.waitpid(self.child, os.WNOHANG)
            if ended:
                return self._ended(os.waitstatus_to_exitcode(status))
            self._check()
            self._sleep()

    def _sleep(self) -> None:
        """Until the child closes its end of the pipe, or a quarter of a second."""
        with contextlib.suppress(OSError):
            ready, _, _ = select.select([self.pipe], [], [], 0.25)
            if ready:
                time.sleep(0.001)

    def _pass_on(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.child, number)

    def _interrupt(self) -> None:
        """A terminal interrupts both; the child answers. It is told again only where it was not reached."""
        self.interrupts += 1
        self.interrupted_at = self.interrupted_at or time.monotonic()

    def _check(self) -> None:
        now = time.monotonic()
        if self.interrupts:
            waited = now - self.interrupted_at
            if self.interrupts > 1 or waited > GRACE_S:
                self._pass_on(signal.SIGKILL)
            elif waited > 0.5 and not self.told:
                self.told = True
                self._pass_on(signal.SIGINT)
            return
        start, limit, _ = _HEAD.unpack_from(self.shared, 0)
        if start and now - start > limit:
            # The child's last words would come from inside the kernel; the parent has the kernel's name.
            self._pass_on(signal.SIGKILL)
            os.waitpid(self.child, 0)
            say(
                self.who,
                f"kernel {self._kernel()} did not return within {limit:g} s{doing.last(self.words)}.{self._hint()}",
            )
            raise SystemExit(Exit.ERROR)

    def _kernel(self) -> str:
        length = _HEAD.unpack_from(self.shared, 0)[2]
        return self.shared[_HEAD.size : _HEAD.size + length].decode(errors="replace")

    def _hint(self) -> str:
        return " 'python -m validators run' gives every case a process of its own and records what happens there."

    def _ended(self, code: int) -> int:
        if code >= 0:
            return code
        number = -code
        if self.interrupts:
            say(self.who, "interrupted; what was recorded until then is on disk.")
            return Exit.INTERRUPTED
        if number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        name = f" ({signal.Signals(number).name})" if number in list(signal.Signals) else ""
        memory = ", which is also how a system short of memory ends a process" if number == signal.SIGKILL else ""
        if kernel := self._kernel():
            say(
                self.who,
                f"kernel {kernel} died with signal {number}{name}{doing.last(self.words)}{memory}.{self._hint()}",
            )
        else:
            say(self.who, f"the command died with signal {number}{name}{memory}.")
        return Exit.ERROR
