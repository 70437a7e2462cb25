"""Records on disk: one JSON line each, readable years later and on another machine.

Nothing recorded is lost when a run is killed: every line is flushed and synced before the next case
starts. Reading is strict, because a sign-off rests on it: only the one line that a kill can cut, the
last of a file, may be unreadable. Needs neither torch nor a kernel.
"""

from __future__ import annotations

import json
import os
import re
import socket
import warnings
from collections.abc import Callable
from pathlib import Path

from validators.errors import UserError
from validators.records import version1
from validators.records.codec import CodecError, decode, encode
from validators.records.files import FileError, Lines, check_folder, reason
from validators.records.record import SCHEMA_VERSION, Record


class StoreError(UserError):
    """A record or record file that cannot be written or read; its message is one sentence."""


class NotJson(StoreError):
    """A line that is no JSON: the last of a file, where a kill has cut it."""


class StoreWarning(UserWarning):
    """Something about a record file that a reader should know; its message is one sentence."""


def to_json(record: Record) -> str:
    """``record`` as one line of strict JSON, without the newline; StoreError for a value that has no JSON form."""
    try:
        return json.dumps(encode(record, "record"), allow_nan=False, ensure_ascii=True)
    except CodecError as error:
        raise StoreError(str(error)) from None


def from_json(text: str | bytes) -> Record:
    """The record in one line of JSON, of this schema or an earlier one; raises StoreError if it holds none."""
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except ValueError as error:
        raise NotJson(f"not JSON ({error})") from None
    if not isinstance(value, dict):
        raise StoreError("JSON, but not an object")
    try:
        if value.get("schema") == version1.SCHEMA:
            value = version1.upgrade(value)
        elif value.get("schema") != SCHEMA_VERSION:
            known = f"schemas {version1.SCHEMA} and {SCHEMA_VERSION}"
            raise StoreError(f"record schema {value.get('schema')!r}, and this suite reads {known}")
        return decode(value, Record, "record")
    except CodecError as error:
        raise StoreError(str(error)) from None


def _no_constant(name: str) -> None:
    raise ValueError(f"bare {name}")


class Sink:
    """Appends records to ``directory/records-<host>-<pid>.jsonl``, synced to disk line by line.

    The file is made with the first record, never over an existing one, and again in a forked process,
    so that no two processes ever write to the same file. The directory is made and tried at once: a
    run must not find out after its work that its records go nowhere. Raises StoreError.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self._lines: Lines | None = None
        self._pid = 0
        self._written = 0
        self._path: Path | None = None
        try:
            check_folder(self.directory, "records")
        except FileError as error:
            raise StoreError(str(error)) from None

    @property
    def path(self) -> Path | None:
        """The file that this process writes, or None before the first record."""
        return self._path if self._pid == os.getpid() else None

    def write(self, record: Record) -> None:
        """Append one record; on return it is on disk. Raises StoreError, and what was written before stays whole."""
        line = to_json(record).encode() + b"\n"
        try:
            if self._lines is None or self._pid != os.getpid():
                self._lines, self._written = self._open(), 0
            self._lines.append(line)
        except OSError as error:
            kept = f"; {self._written:,} records written before are in {self._path}" if self._written else ""
            raise StoreError(f"cannot write records to {self.directory}: {reason(error)}{kept}") from None
        self._written += 1

    def _open(self) -> Lines:
        self._pid = os.getpid()
        host = re.sub(r"[^A-Za-z0-9.]+", "_", socket.gethostname()) or "host"
        stem = f"records-{host}-{self._pid}"
        # Process ids return: in a container every run may be number 7.
        for attempt in range(1, 10_000):
            path = self.directory / (f"{stem}.jsonl" if attempt == 1 else f"{stem}-{attempt}.jsonl")
            try:
                lines = Lines(path)
            except FileExistsError:
                continue
            self._path = path
            return lines
        raise StoreError(f"{self.directory} already holds thousands of files named {stem}*.jsonl")

    def close(self) -> None:
        """Close the file; further records start a new one."""
        if self._lines is not None and self._pid == os.getpid():
            self._lines.close()
        self._lines = None

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def record_files(directory: str | Path) -> list[Path]:
    """Every ``*.jsonl`` under ``directory``, sorted; raises StoreError if there is no such directory."""
    root = Path(directory)
    if not root.is_dir():
        raise StoreError(f"{root} is not a directory of records")
    return sorted(p for p in root.rglob("*.jsonl") if p.is_file())


def load(directory: str | Path, *, warn: Callable[[str], None] | None = None) -> list[Record]:
    """Every record under ``directory``, file by file in the order written.

    A last line that was cut when its writer was killed is skipped, and said so through ``warn`` (by
    default a StoreWarning). Anything else that is no record raises StoreError with file and line.
    """
    if warn is None:

        def warn(sentence: str) -> None:
            warnings.warn(sentence, StoreWarning, stacklevel=3)

    records: list[Record] = []
    for path in record_files(directory):
        try:
            lines = path.read_bytes().split(b"\n")
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror or error}") from None
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                records.append(from_json(line))
            except StoreError as error:
                # Only a line without its newline can have been cut; one that parses was complete.
                if number == len(lines) and isinstance(error, NotJson):
                    warn(f"{path}:{number} was cut while it was written, so one record is lost; it is skipped.")
                    continue
                raise StoreError(f"{path}:{number}: {error}") from None
    return records
