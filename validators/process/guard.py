"""How every command ends: an exit code and at most one sentence on stderr, never a traceback.

Shared by ``validators``, ``golden`` and ``evals``. A sentence is what the exceptions of the suite carry; the system's
errors (full disk, no permission) get one here. Anything else is a fault of the suite: it ends with exit code 2, since
exit code 1 is a verdict, and names its place. ``FP8_SIGNOFF_TRACEBACK=1`` shows the traceback to whoever mends it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from validators.records.files import FileError, reason

NO_RESULT = 2
"""Bad usage, an input that cannot be read, an output that cannot be written, a kernel that raised: no verdict."""
INTERRUPTED = 130
"""What a shell shows of a command that Ctrl-C ended: 128 and the number of SIGINT."""
VARIABLE = "FP8_SIGNOFF_TRACEBACK"

_ROOT = Path(__file__).resolve().parents[2]


def say(who: str, sentence: str) -> None:
    """``who: sentence`` on stderr, in one line. Where stderr cannot be written there is nobody to tell."""
    with contextlib.suppress(OSError, ValueError):
        print(f"{who}: {' '.join(sentence.split())}", file=sys.stderr, flush=True)


def guarded(
    who: str, body: Callable[[], int], *, speaks: Callable[[Exception], bool], interrupted: str, lacking: str = ""
) -> int:
    """The exit code of ``body``, whatever ends it.

    who: stands before every sentence. speaks(error): whether its message is a sentence for the user. interrupted: what
    is left after Ctrl-C. lacking: sentence for a machine without torch.
    """
    try:
        code = _exit_code_of(body)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        with _deaf():
            say(who, f"interrupted; {interrupted}.")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader went away (| head); there is nobody left to tell.
        return NO_RESULT
    except Exception as error:
        if os.environ.get(VARIABLE):
            traceback.print_exc()
        say(who, sentence_of(error, speaks, lacking))
        return NO_RESULT
    finally:
        _settle(sys.stdout)
        _settle(sys.stderr)


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
        return end.code if isinstance(end.code, int) else 0 if end.code is None else NO_RESULT


def _settle(stream: object) -> None:
    """Python flushes once more at exit and complains where that fails; then the rest goes nowhere instead."""
    try:
        stream.flush()  # type: ignore[attr-defined]
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())  # type: ignore[attr-defined]
            os.close(nowhere)


def sentence_of(error: Exception, speaks: Callable[[Exception], bool], lacking: str = "") -> str:
    """One sentence for ``error``."""
    if isinstance(error, FileError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and error.name and not _ours(error.name):
        if lacking and error.name == "torch":
            return lacking
        return f"this needs the module {error.name}, which is not installed here."
    if isinstance(error, OSError):
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return f"{' -> '.join(names) or 'reading or writing failed'}: {reason(error)}"
    if speaks(error):
        return str(error)
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
