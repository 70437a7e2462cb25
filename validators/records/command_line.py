"""Command lines as text: the one place that builds a line to run again, and that reads ``[OP=]NAME``.

``OP=NAME`` is how every option says which kernel or which contract; ``NAME`` alone means every op that it can mean.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from validators.errors import UsageError
from validators.words import FUSED, OPS

"""The op of the fused kernel, whose claim a record of an evaluation or of a trace is."""

Value = str | int | float | bool | Sequence[str] | None


def command_line(program: str, command: str, *arguments: str, **options: Value) -> str:
    """``python -m PROGRAM COMMAND ARGUMENTS --option VALUE``, quoted for a shell.

    options: by name, ``_`` for ``-``. None, "", () and False leave the option out, True writes it alone, and a
    sequence repeats it.
    """
    words = ["python", "-m", program, *command.split(), *arguments]
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if value is None or value is False or value == "" or value == ():
            continue
        if value is True:
            words.append(option)
            continue
        each = [value] if isinstance(value, str | int | float) else value
        words += [word for one in each for word in (option, f"{one:g}" if isinstance(one, float) else str(one))]
    return shlex.join(words)


def of_op(op: str, name: str) -> str:
    """``OP=NAME``."""
    return f"{op}={name}"


def of_ops(names: Mapping[str, str]) -> tuple[str, ...]:
    """``OP=NAME`` of each op."""
    return tuple(of_op(op, name) for op, name in names.items())


def split_op(text: str, what: str = "kernel") -> tuple[str | None, str]:
    """(op, name) of ``OP=NAME``, (None, name) of ``NAME``; UsageError for an unknown op or no name.

    what: is named, for the sentence.
    """
    op, equals, name = text.partition("=")
    if not equals or re.search(r"[/:.]", op):  # a path may hold "="
        op, name = "", text
    elif op not in OPS:
        raise UsageError(f"{text!r} is not [OP=]NAME: unknown op {op!r}; known: {', '.join(OPS)}")
    if not name:
        raise UsageError(f"{text!r} names no {what}; write OP=NAME or NAME.")
    return op or None, name


def name_of(text: str | None, op: str, what: str = "kernel") -> str | None:
    """The name in ``[OP=]NAME`` where only ``op`` is possible; UsageError for another op."""
    if not text:
        return None
    said, name = split_op(text, what)
    if said not in (None, op):
        raise UsageError(f"{text!r} is a {what} of {said}, and one of {op} is meant.")
    return name


def names_by_op(texts: Sequence[str], what: str = "kernel") -> dict[str, str]:
    """op -> name of several ``[OP=]NAME``; NAME alone is of the fused op. UsageError where an op has two."""
    found: dict[str, str] = {}
    for text in texts:
        op, name = split_op(text, what)
        if found.setdefault(op or FUSED, name) != name:
            raise UsageError(f"two {what}s of {op or FUSED}: {found[op or FUSED]} and {name}.")
    return found
