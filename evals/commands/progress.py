"""How far a long run is: one line on a terminal, rewritten; elsewhere a line every half minute."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

EVERY = 30.0


class Progress:
    """``what`` and how many of ``total`` are done, on stderr. A context manager; ``tick`` takes the number done."""

    def __init__(self, what: str, total: int, stream: TextIO | None = None):
        self.what, self.total = what, total
        self.stream = stream or sys.stderr
        self.terminal = self.stream.isatty()
        self.began = self.shown = time.monotonic()

    def tick(self, done: int) -> None:
        now = time.monotonic()
        if now - self.shown < (0.2 if self.terminal else EVERY):
            return
        self.shown = now
        self._write(done, now, "\r" if self.terminal else "\n")

    def _write(self, done: int, now: float, end: str) -> None:
        spent = now - self.began
        rest = f", about {spent / done * (self.total - done):.0f} s left" if 0 < done < self.total else ""
        self.stream.write(f"{self.what}: {done:,} of {self.total:,} in {spent:.0f} s{rest}    {end}")
        self.stream.flush()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self._write(self.total, time.monotonic(), "\n")
        elif self.terminal:
            self.stream.write("\n")
