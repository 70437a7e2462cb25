"""Where results go, looked at before the work: minutes of it must not be lost to a wrong path or a full disk."""

from __future__ import annotations

from evals.errors import EvalError
from validators.records import files


def check_file(file: str) -> None:
    """EvalError if ``file`` cannot be written later. It is not touched."""
    try:
        files.check_file(file)
    except files.FileError as error:
        raise EvalError(str(error)) from None


def check_folder(folder: str) -> None:
    """Makes ``folder``; EvalError if that is not possible, or if nothing can be written there."""
    try:
        files.check_folder(folder)
    except files.FileError as error:
        raise EvalError(str(error)) from None


def write_file(file: str, text: str) -> None:
    """``file`` holds all of ``text`` afterwards, or what it held before and EvalError is raised."""
    try:
        files.write_whole(file, text)
    except files.FileError as error:
        raise EvalError(str(error)) from None
