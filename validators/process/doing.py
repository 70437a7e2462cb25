"""What this process is doing, in words, so that its parent can say it if this process dies.

A kernel that crashes takes its process with it, so the words have to be on record before. They are one small write to
a file that the watching parent holds open; in a process that nobody watches nothing is written.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

LENGTH = 400
_file: int | None = None


def report_to(descriptor: int) -> None:
    """Write to this open file from now on."""
    global _file
    _file = descriptor


@contextlib.contextmanager
def during(sentence: str) -> Iterator[None]:
    """``row 0 was run alone (batch invariance)``: completes "while ...", and holds for the block."""
    _say(sentence)
    try:
        yield
    finally:
        _say("")


def _say(sentence: str) -> None:
    if _file is not None:
        os.pwrite(_file, sentence.encode()[:LENGTH].ljust(LENGTH), 0)


def last(descriptor: int) -> str:
    """`` while row 0 was run alone (batch invariance)`` if the process that writes to this file says so, or ""."""
    sentence = os.pread(descriptor, LENGTH, 0).decode(errors="replace").strip()
    return f" while {sentence}" if sentence else ""
