"""Goldens onto disk: all of them or none, whatever happens meanwhile.

A tensor file's name holds a digest of its bytes, so a new golden never overwrites an old one's file. Files are
written first, each under a temporary name, synced and renamed; the manifest follows the same way and is the one step
that makes them count; what it no longer names is removed last. An exclusive lock keeps two writers apart, and the
manifest is read again under it. Killed anywhere, the store is the old one or the new one; at most a file is left over
that no row names, which ``verify`` lists and the next commit uses or removes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from golden.store import MANIFEST, TEMPORARY, GoldenError, Row, Tensor, encode_file, encode_manifest, locked, read_held


class Entry(NamedTuple):
    """A row to commit and the tensors that its file shall hold; the row's ``file`` is set by the commit."""

    row: Row
    tensors: dict[str, Tensor]


def commit(root: str | Path, entries: Sequence[Entry]) -> list[str]:
    """Put ``entries`` into the store at ``root`` (made if absent); ids of those that changed it.

    A row with the bits of the present one changes nothing; any other takes its place and keeps it in its history.
    Raises GoldenError and changes nothing if the store is damaged, read-only, locked for long, or the disk is full.
    """
    folder = Path(root)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GoldenError(f"cannot write to {folder}: {error.strerror or error}") from None
    with locked(folder, exclusive=True):
        rows = _present(folder)
        written: list[Path] = []
        changed = []
        try:
            for entry in entries:
                old = rows.get(entry.row.id)
                if old is not None and old.same_golden(entry.row):
                    continue
                rows[entry.row.id] = _with_history(_place(folder, entry, written), old)
                changed.append(entry.row.id)
            if changed:
                write_atomically(folder / MANIFEST, encode_manifest(rows))
        except OSError as error:
            # The manifest still names the old files only; the new ones go, where the system lets them.
            for path in written:
                with contextlib.suppress(OSError):
                    path.unlink()
            raise GoldenError(f"cannot write to {folder}: {error.strerror or error}; nothing was accepted") from None
        _remove_leftovers(folder, rows)
    return changed


def _present(folder: Path) -> dict[str, Row]:
    if not (folder / MANIFEST).exists():
        others = [p for p in folder.rglob("*.safetensors") if p.is_file()]
        if others:
            raise GoldenError(f"{folder} holds tensors but no {MANIFEST}; restore it from version control")
        return {}
    store = read_held(folder)
    if store.problems:
        raise GoldenError(f"the store is damaged, so nothing was accepted: {store.problems[0]}")
    return dict(store.rows)


def _place(folder: Path, entry: Entry, written: list[Path]) -> Row:
    """Write the entry's file; the row with its name."""
    if not entry.tensors:
        return dataclasses.replace(entry.row, file=None)
    data = encode_file(entry.row.id, entry.tensors)
    name = file_name(entry.row, data)
    path = folder / name
    if not path.exists() or path.read_bytes() != data:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
        written.append(path)
    return dataclasses.replace(entry.row, file=name)


def file_name(row: Row, data: bytes) -> str:
    """``cpu/inductor.per_token_quant/<case>.<12 hex digits>.safetensors``; the digits are of the file's bytes."""
    folder = f"{row.arch}/{row.kernel}" if row.kind == "kernel" else row.kind
    parts = [re.sub(r"[^A-Za-z0-9_.-]", ".", part) for part in folder.split("/", 1)]
    case = re.sub(r"[^A-Za-z0-9_.-]", ".", row.case)
    return "/".join([*parts, f"{case}.{hashlib.sha256(data).hexdigest()[:12]}.safetensors"])


def _with_history(row: Row, old: Row | None) -> Row:
    if old is None:
        return dataclasses.replace(row, history=())
    previous = {k: v for k, v in old.to_json().items() if k != "history"}
    return dataclasses.replace(row, history=(previous, *old.history))


def write_atomically(path: Path, data: bytes) -> None:
    """``data`` under ``path``, whole or not at all, and on disk on return; raises OSError, leaving nothing."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    # The rename shall survive a power cut too. Where that cannot be had it has still happened, so it is no failure.
    with contextlib.suppress(OSError):
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _remove_leftovers(folder: Path, rows: dict[str, Row]) -> None:
    """Files of superseded rows and what killed writers left half-written; ``verify`` names any other stray file."""
    named = {row.file for row in rows.values()}
    superseded = {str(old["file"]) for row in rows.values() for old in row.history if old.get("file")} - named
    with contextlib.suppress(OSError):
        for name in superseded:
            (folder / name).unlink(missing_ok=True)
        for path in folder.rglob(f"*{TEMPORARY}"):
            path.unlink(missing_ok=True)
