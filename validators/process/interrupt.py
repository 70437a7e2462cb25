"""Ctrl-C while a command is still importing its modules: one sentence too. Imported before everything else."""

from __future__ import annotations

import sys
from types import TracebackType


def quiet(who: str) -> None:
    """From here on an interrupt that nothing answers is one sentence; the process ends by SIGINT, a shell's 130."""
    usual = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print(f"{who}: interrupted before it began.", file=sys.stderr)
        else:
            usual(kind, error, trace)

    sys.excepthook = hook
