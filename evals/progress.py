"""How far a long run is: a bar where rich and a terminal are there, else a line per half minute; on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

EVERY_S = 30.0


class Progress:
    """``what`` and how many of ``total`` are done. A context manager; ``tick`` takes the number done.

    done: what earlier processes did. show: False writes nothing (``--quiet``).
    """

    def __init__(self, what: str, total: int, *, done: int = 0, show: bool = True, stream: TextIO | None = None):
        self.what, self.total, self.first, self.show = what, total, done, show
        self.stream = stream or sys.stderr
        self.began = self.shown = time.monotonic()
        self._bar = _bar(what, total, done, self.stream) if show and self.stream.isatty() else None

    def tick(self, done: int) -> None:
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done)
        elif now - self.shown >= EVERY_S:
            self.shown = now
            self._write(done, now)

    def _write(self, done: int, now: float) -> None:
        if not self.show:
            return
        spent, here = now - self.began, done - self.first
        rest = f", about {spent / here * (self.total - done):.0f} s left" if here > 0 and done < self.total else ""
        self.stream.write(f"{self.what}: {done:,} of {self.total:,} in {spent:.0f} s{rest}\n")
        self.stream.flush()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None:
            self._write(self.total, time.monotonic())


def _bar(what: str, total: int, done: int, stream: TextIO) -> Bar | None:
    """A bar that has begun; None where rich is not installed."""
    try:
        from rich.console import Console
        from rich.progress import Progress as Bars
    except ImportError:
        return None
    bar = Bars(console=Console(file=stream), transient=True)
    bar.add_task(what, total=total, completed=done)
    bar.start()
    return bar
