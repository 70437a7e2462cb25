"""Reading a wheel of another project, for ``wheel show`` and ``wheel slim``. Standard library only."""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from validators.errors import UserError


class WheelError(UserError):
    """A file that cannot be used; its message is one sentence."""


def add_wheel(parser: argparse.ArgumentParser) -> None:
    """The file to read."""
    parser.add_argument("wheel", type=Path, help="a wheel, the folder of an unpacked one, or a shared object")


def members(wheel: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """(name, how to read it) of every file of a wheel, a folder, or a single file."""
    if wheel.is_dir():
        for path in sorted(wheel.rglob("*")):
            if path.is_file():
                yield path.relative_to(wheel).as_posix(), path.read_bytes
    elif zipfile.is_zipfile(wheel):
        with zipfile.ZipFile(wheel) as archive:
            for entry in archive.infolist():
                yield entry.filename, lambda entry=entry: archive.read(entry)  # type: ignore[misc]
    elif wheel.exists():
        yield wheel.name, wheel.read_bytes
    else:
        raise WheelError(f"{wheel} does not exist")


def shared_objects(wheel: Path) -> Iterator[tuple[str, bytes]]:
    found = False
    for name, read in members(wheel):
        if ".so" in Path(name).suffixes or (wheel.is_file() and not zipfile.is_zipfile(wheel)):
            found = True
            yield name, read()
    if not found:
        raise WheelError(f"{wheel} holds no shared object (*.so)")


def unreadable(wheel: Path, error: zipfile.BadZipFile) -> WheelError:
    """The sentence for a file that is no archive."""
    return WheelError(f"{wheel} is no wheel that can be read: {error}")
