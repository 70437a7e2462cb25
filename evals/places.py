"""Where results go, looked at before the work: minutes of it must not be lost to a wrong path."""

from __future__ import annotations

import os
from pathlib import Path

from evals.errors import EvalError


def check_file(file: str) -> None:
    """EvalError if ``file`` cannot be written later. It is not touched."""
    path = Path(file)
    if path.is_dir():
        raise EvalError(f"cannot write {file} (it is a folder)")
    if not path.parent.is_dir():
        raise EvalError(f"cannot write {file} (there is no folder {path.parent})")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise EvalError(f"cannot write {file} (no permission)")


def check_folder(folder: str) -> None:
    """Makes ``folder``; EvalError if that is not possible."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EvalError(f"cannot write to {folder} ({error.strerror or error})") from None
