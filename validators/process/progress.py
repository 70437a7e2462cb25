"""How far a long run is: a bar where rich and a terminal are there, else a line per half minute; on stderr."""

from __future__ import annotations

import importlib
import sys
import time
from typing import Any, TextIO

EVERY_S = 30.0


class Progress:
    """``what`` and how many of ``total`` are done. A context manager; ``tick`` takes the number done.

    done: what earlier processes did. show: False writes nothing (``--quiet``).
    """

    def __init__(self, what: str, total: int, *, done: int = 0, show: bool = True, stream: TextIO | None = None):
        self.what, self.total, self.first, self.done, self.show = what, total, done, done, show
        self.stream = stream or sys.stderr
        self.began = self.shown = time.monotonic()
        self._bar = _bar(what, total, done, self.stream) if show and self.stream.isatty() else None

    def tick(self, done: int) -> None:
        """``done`` in all are done."""
        self.done, now = done, time.monotonic()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done)
        elif now - self.shown >= EVERY_S:
            self._write(now)

    def step(self, line: str = "") -> None:
        """One more is done; ``line`` is printed to stdout, above the bar."""
        if line:
            print(line, flush=True)
        self.tick(self.done + 1)

    def _write(self, now: float) -> None:
        if not self.show:
            return
        self.shown = now
        spent, here = now - self.began, self.done - self.first
        left = self.total - self.done
        rest = f", about {spent / here * left:.0f} s left" if here > 0 and left > 0 else ""
        self.stream.write(f"{self.what}: {self.done:,} of {self.total:,} in {spent:.0f} s{rest}\n")
        self.stream.flush()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None and self.shown > self.began:
            # The last line of those that were written; a short run has none.
            self._write(time.monotonic())


def _bar(what: str, total: int, done: int, stream: TextIO) -> Any:
    """A bar that has begun; None where rich is not installed."""
    try:
        bars = importlib.import_module("rich.progress")
        console = importlib.import_module("rich.console").Console(file=stream)
    except ImportError:
        return None
    # What is printed while a bar is on the terminal goes above it; a stdout that is a file stays one.
    bar = bars.Progress(console=console, transient=True, redirect_stdout=sys.stdout.isatty())
    bar.add_task(what, total=total, completed=done)
    bar.start()
    return bar
