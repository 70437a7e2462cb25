"""Files that are whole or not there: on a full disk, in a folder that cannot be written, and when a process is killed.

Every command writes its results through these. What cannot be written is a FileError with one sentence, before the work
wherever that can be known then, and nothing that was written earlier is lost by it. Needs nothing else of ours.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import stat
import sys
from pathlib import Path

from validators.errors import UserError

_PROBE_BYTES = 4096
"""A full disk may still take an empty file or a few bytes that fit next to its name; it does not take a page."""


class FileError(UserError):
    """A file or folder that cannot be written; its message is one sentence."""


def reason(error: OSError) -> str:
    """What the system says, without number and path: ``No space left on device``."""
    return error.strerror or str(error) or type(error).__name__


class Lines:
    """Appends lines to the new file ``path``, each on disk when ``append`` returns, or not in the file at all.

    After a write that failed the file ends where the last whole line ends; without a line it is removed. Raises
    FileExistsError where the file is there already, otherwise OSError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
        self._size = 0

    def append(self, line: bytes) -> None:
        """``line`` ends with a newline."""
        try:
            write_all(self._file, line)
            os.fsync(self._file)
        except OSError:
            # Half a line in the middle of the file would make the lines after it unreadable.
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._size)
                os.lseek(self._file, self._size, os.SEEK_SET)
            raise
        self._size += len(line)

    def close(self) -> None:
        """Close the file; nothing waits in a buffer, so nothing can be lost here."""
        with contextlib.suppress(OSError):
            os.close(self._file)
        if not self._size:
            with contextlib.suppress(OSError):
                self.path.unlink()


def write_whole(path: str | Path, text: str | bytes) -> None:
    """``path`` holds ``text`` when this returns, or what it held before; raises FileError.

    Written under another name, synced, and renamed. What is no regular file (/dev/stdout, a pipe) is written directly.
    """
    data = text.encode() if isinstance(text, str) else text
    try:
        target = Path(os.path.realpath(path))
        if target.exists() and not target.is_file():
            with target.open("wb", buffering=0) as stream:
                write_all(stream.fileno(), data)
            return
        _replace(target, data)
    except OSError as error:
        raise FileError(f"cannot write {path}: {reason(error)}") from None


def _replace(target: Path, data: bytes) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.fchmod(handle, stat.S_IMODE(target.stat().st_mode))
            write_all(handle, data)
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_all(handle: int, data: bytes) -> None:
    """Write all of ``data``: one write may take a part only, and does where the disk is nearly full."""
    left = memoryview(data)
    while left:
        left = left[os.write(handle, left) :]


def append_whole(path: str | Path, text: str) -> None:
    """``text`` at the end of the file ``path``, all of it or nothing; raises FileError."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            size = os.fstat(handle).st_size
            try:
                write_all(handle, text.encode())
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(handle, size)
                raise
        finally:
            os.close(handle)
    except OSError as error:
        raise FileError(f"cannot write {path}: {reason(error)}") from None


def check_file(path: str | Path) -> None:
    """Raises FileError if ``path`` cannot be written later; asked before minutes of work. It is not changed."""
    target = Path(path)
    try:
        if target.is_dir():
            raise FileError(f"cannot write {path}: it is a folder")
        if not target.parent.is_dir():
            raise FileError(f"cannot write {path}: there is no folder {target.parent}")
        if target.exists() and not target.is_file():
            os.close(os.open(target, os.O_WRONLY | os.O_NONBLOCK))
            return
        _probe(Path(os.path.realpath(target)).parent)
        if target.exists():
            os.close(os.open(target, os.O_WRONLY | os.O_APPEND))
    except OSError as error:
        raise FileError(f"cannot write {path}: {reason(error)}") from None


STDOUT = "-"
"""As the file of ``--json``: standard output, and nothing else goes there."""


def check_json(path: str) -> None:
    """``check_file``, unless ``path`` is ``-``."""
    if path != STDOUT:
        check_file(path)


def write_json(path: str, text: str) -> None:
    """``text`` to the file, or to standard output for ``-``."""
    if path == STDOUT:
        sys.stdout.write(text.rstrip("\n") + "\n")
    else:
        write_whole(path, text)


def check_folder(path: str | Path, what: str = "") -> None:
    """Makes the folder ``path``; raises FileError unless a file can be written into it. what: that goes there."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _probe(folder)
    except OSError as error:
        raise FileError(f"cannot write {f'{what} ' if what else ''}to {path}: {reason(error)}") from None


def _probe(folder: Path) -> None:
    """Raises OSError unless a page can be written into ``folder``; leaves nothing."""
    probe = folder / f".writable.{os.getpid()}.part"
    try:
        handle = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            write_all(handle, bytes(_PROBE_BYTES))
        finally:
            os.close(handle)
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


def new_folder(parent: str | Path) -> Path:
    """A new folder in ``parent``, named by the time in UTC; two that are made in one second get two names.

    Raises FileError if it cannot be made or written to.
    """
    stem = f"{datetime.datetime.now(datetime.timezone.utc):%Y%m%dT%H%M%SZ}"
    for attempt in range(1, 10_000):
        folder = Path(parent) / (stem if attempt == 1 else f"{stem}-{attempt}")
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
            _probe(folder)
        except FileExistsError:
            if folder.parent.is_dir():
                continue
            raise FileError(f"cannot write to {folder}: {folder.parent} is no folder") from None
        except OSError as error:
            raise FileError(f"cannot write to {folder}: {reason(error)}") from None
        return folder
    raise FileError(f"{parent} holds thousands of folders named {stem}")
