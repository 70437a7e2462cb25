"""The files of a sign-off: ``signoff.json``, ``signoff.md`` and ``signoff.html``, each whole or absent."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from validators.records.files import FileError, check_folder, reason, write_whole
from validators.signoff.decision import Signoff, SignoffError
from validators.signoff.html import TemplateError, page
from validators.signoff.json import to_dict
from validators.signoff.text import markdown


def write(signoff: Signoff, out: str | Path, *, warn: Callable[[str], None] | None = None) -> list[Path]:
    """Write ``signoff.json``, ``signoff.md`` and ``signoff.html`` into ``out``; returns their paths.

    Without jinja2 the page is left out, a sentence to ``warn`` says how to install it, and without
    ``warn`` TemplateError is raised. Raises SignoffError if a file cannot be written; files of an earlier
    decision are then removed, and none is left half-written.
    """
    directory = Path(out)
    texts: list[tuple[str, Callable[[], str]]] = [
        ("signoff.json", lambda: json.dumps(to_dict(signoff), indent=2) + "\n"),
        ("signoff.md", lambda: markdown(signoff)),
        ("signoff.html", lambda: page(signoff)),
    ]
    paths = []
    try:
        check_folder(directory)
        for name, _ in texts:
            (directory / name).unlink(missing_ok=True)  # an old page must not be left with a new decision
        for name, text in texts:
            try:
                write_whole(directory / name, text())
            except TemplateError as error:
                if warn is None:
                    raise
                warn(str(error))
                continue
            paths.append(directory / name)
    except FileError as error:
        raise SignoffError(f"{error}.") from None
    except OSError as error:
        raise SignoffError(f"cannot write to {directory}: {reason(error)}.") from None
    return paths
