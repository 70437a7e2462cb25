"""How every command ends: an exit status of ``Exit`` and at most one sentence on stderr, never a traceback.

Shared by ``validators``, ``golden`` and ``evals``. A sentence is what the exceptions of the suite carry; the system's
errors (full disk, no permission) get one here. Anything else is a fault of the suite: it ends with status 4, since
1 is a verdict, and names its place. ``FP8_SIGNOFF_TRACEBACK=1`` shows the traceback for debugging.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from pathlib import Path

from validators.errors import NoDecision, RunFault, UserError
from validators.records.files import reason

VARIABLE = "FP8_SIGNOFF_TRACEBACK"

_ROOT = Path(__file__).resolve().parents[2]


class Exit(IntEnum):
    """The exit statuses of every command. Where several hold, NO comes before ERROR, and ERROR before NO_DECISION."""

    YES = 0
    """PASSED, SIGNED, UNCHANGED, PARITY; done."""
    NO = 1
    """A kernel is wrong, or the case could not have shown it (MISTRUSTED): NOT SIGNED, DRIFTED, REGRESSION."""
    USAGE = 2
    """Bad options, or input that cannot be read."""
    NO_DECISION = 3
    """UNTESTED, INCONCLUSIVE, or nothing ran, as on a machine without the device that was asked for."""
    ERROR = 4
    """A kernel or this suite broke, or what it says could not be written: a full disk, or a reader that went away (a
    closed pipe), so that a cut report is never taken for a verdict."""
    INTERRUPTED = 130
    """Ctrl-C. What a shell shows of a command that a signal ended: 128 and the number of SIGINT."""


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
"""The system's errors that no other option would avoid."""


def say(who: str, sentence: str) -> None:
    """``who: sentence`` on stderr, in one line. Where stderr cannot be written there is nobody to tell."""
    with contextlib.suppress(OSError, ValueError):
        print(f"{who}: {' '.join(sentence.split())}", file=sys.stderr, flush=True)


def guarded(who: str, body: Callable[[], int], *, interrupted: str | Sequence[str], lacking: str = "") -> int:
    """The exit status of ``body``, whatever ends it.

    who: begins every sentence. interrupted: what is left after Ctrl-C; a
    list of one sentence may be changed while ``body`` runs. lacking: sentence for a machine without
    torch.
    """
    try:
        code = _exit_code_of(body)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        with _deaf():
            say(who, f"interrupted; {interrupted if isinstance(interrupted, str) else interrupted[0]}.")
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # The reader went away (| head); there is nobody left to tell.
        return Exit.ERROR
    except Exception as error:
        if os.environ.get(VARIABLE):
            traceback.print_exc()
        say(who, sentence_of(error, lacking))
        return status_of(error)
    finally:
        _settle(sys.stdout)
        _settle(sys.stderr)


def status_of(error: BaseException) -> Exit:
    """The exit status of a command that ``error`` ended."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _FULL:
            return Exit.ERROR
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, NoDecision | ModuleNotFoundError):
        return Exit.NO_DECISION
    if isinstance(error, OSError) or (isinstance(error, UserError) and not isinstance(error, RunFault)):
        return Exit.USAGE
    return Exit.ERROR


last_command = False
"""Set in a process that ends with this command: an interrupt that was answered is not answered again."""


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """A second Ctrl-C while the first one is answered would be a traceback after all."""
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # not in the main thread
        yield
        return
    yield
    if not last_command:
        signal.signal(signal.SIGINT, before)


def _exit_code_of(body: Callable[[], int]) -> int:
    try:
        return int(body())
    except SystemExit as end:  # argparse after --help
        return end.code if isinstance(end.code, int) else 0 if end.code is None else Exit.USAGE


def _settle(stream: object) -> None:
    """Python flushes once more at exit and complains where that fails; then the rest goes nowhere instead."""
    try:
        stream.flush()  # type: ignore[attr-defined]
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())  # type: ignore[attr-defined]
            os.close(nowhere)


def sentence_of(error: Exception, lacking: str = "") -> str:
    """One sentence for ``error``."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and error.name and not _ours(error.name):
        if lacking and error.name == "torch":
            return lacking
        return f"this needs the module {error.name}, which is not installed here."
    if isinstance(error, OSError):
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return f"{' -> '.join(names) or 'reading or writing failed'}: {reason(error)}"
    text = " ".join(str(error).split())[:300]
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"out of memory{f' ({text})' if text else ''}."
    place = _place(error)
    return (
        f"unexpected {type(error).__name__}{f': {text}' if text else ''}{f' ({place})' if place else ''}; this is a "
        f"fault of fp8-signoff and no verdict. {VARIABLE}=1 shows the traceback, for a report."
    )


def _ours(module: str) -> bool:
    return module.split(".")[0] in ("reference", "validators", "golden", "evals")


def _place(error: BaseException) -> str:
    """The last line of ours that the error passed: ``validators/layers/walk.py:212``."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _inside(frame.filename)]
    return f"{Path(frames[-1].filename).resolve().relative_to(_ROOT)}:{frames[-1].lineno}" if frames else ""


def _inside(filename: str) -> bool:
    path = Path(filename).resolve()
    return path.is_relative_to(_ROOT) and _ours(path.relative_to(_ROOT).parts[0])
