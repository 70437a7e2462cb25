"""The options that more than one command has: one notation, one meaning each, for all groups and for pytest.

A command takes an option from ``SHARED`` with ``add``; what it says of its own, such as the default, follows the
meaning in brackets. docs/command-line.md shows the table, and a test walks all parsers.
"""

from __future__ import annotations

import argparse
import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from validators.words import DEPTHS, DTYPES, FP8_FORMATS, LANES, OPS


@functools.cache
def one_of(what: str, known: tuple[str, ...]) -> Callable[[str], str]:
    """A ``type`` for argparse: one of ``known``, or a sentence that lists them."""

    def check(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(f"unknown {what} {text!r}; known: {', '.join(known)}")
        return text

    return check


def closed(what: str, known: tuple[str, ...], **more: Any) -> dict[str, Any]:
    """Keywords of an option whose values are a closed list; ``--help`` shows the list."""
    return {"type": one_of(what, known), "metavar": "|".join(known), **more}


def seconds(text: str) -> float:
    """A ``type`` for argparse: a positive number of seconds."""
    try:
        found = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds") from None
    if not found > 0:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of seconds")
    return found


def minutes(text: str) -> float:
    """A ``type`` for argparse: a positive number of minutes."""
    try:
        found = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of minutes") from None
    if not 0 < found < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of minutes")
    return found


def device(text: str) -> str:
    """A ``type`` for argparse: cpu, cuda, cuda:N or amdgcn:TARGET. Whether this machine has it is asked later."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?|amdgcn:gfx9(42|50)", text):
        raise argparse.ArgumentTypeError(
            f"unknown device {text!r}; known: cpu, cuda, cuda:N, amdgcn:gfx942, amdgcn:gfx950"
        )
    return text


@dataclass(frozen=True)
class Option:
    """One option. type: for argparse, which calls it with the text."""

    metavar: str
    meaning: str
    type: Callable[[str], Any] | None = None


def _closed(what: str, known: tuple[str, ...], meaning: str) -> Option:
    return Option("|".join(known), meaning, one_of(what, known))


SHARED = {
    "--kernel": Option("[OP=]NAME", "a kernel of 'list kernels', or your own: file.py:function, module:function"),
    "--contract": Option("[OP=]NAME", "hold the kernel to this contract"),
    "--op": _closed("op", OPS, "only this op"),
    "--lane": _closed("lane", LANES, "only this lane"),
    "--depth": _closed("depth", DEPTHS, "how many cases"),
    "--dtype": _closed("dtype", DTYPES, "storage type"),
    "--fp8": _closed("FP8 format", FP8_FORMATS, "FP8 format"),
    "--device": Option("cpu|cuda|cuda:N|amdgcn:TARGET", "where to compute", device),
    "--time-limit": Option("SECONDS", "for one case of a kernel in a process of its own", seconds),
    "--records": Option("DIR", "write the verdicts as records into this directory"),
    "--out": Option("DIR", "directory to write"),
    "--json": Option("FILE", "write the result as JSON; - writes it to standard output, and nothing else there"),
    "--policy": Option("NAME|FILE", "what a sign-off needs: smoke, merge, nightly, machine or a file"),
    "--claim": Option("CLAIM", "what is to be signed: a claim's file"),
    "--arch": Option("ARCH", "architecture, such as gfx950 or sm_90"),
    "--model": Option("MODEL", "which model"),
    "--layers": Option("N", "how many decoder layers, from the first", int),
    "--seed": Option("N", "of everything random", int),
    "--store": Option("DIR", "the store's folder"),
    "--baseline": Option("ARM", "the arm to compare with: PRESET[,[OP=]KERNEL...]"),
    "--questions": Option("N", "how many questions", int),
    "--data": Option("PATH", "GSM8K's JSONL file or its folder"),
    "--any-data": Option("", "take questions that are not GSM8K's"),
    "--name": Option("TEXT", "what this arm is called"),
    "--margin": Option("POINTS", "loss of accuracy that would be accepted", float),
    "--quiet": Option("", "print the decision only"),
    "--verbose": Option("", "print more: each case or item that was looked at, and how the command ended"),
}
"""Every option that more than one command has, by name."""

SEVERAL = "may be repeated"
TIME_LIMIT_S = 120.0
NEW_RECORDS = "records/<UTC time>"


def settings(name: str, *notes: str, several: bool = False, **more: Any) -> dict[str, Any]:
    """Keywords of ``add_argument`` for an option of ``SHARED``. notes: follow its meaning in brackets.

    A default that is a text or a number is one of the notes.
    """
    option = SHARED[name]
    default = more.get("default")
    said = [*notes, *([SEVERAL] if several else [])]
    if default is not None and not any(note.startswith("default") for note in notes):
        said.append(f"default: {default:g}" if isinstance(default, float) else f"default: {default}")
    if several:
        more = {"action": "append", "default": [], **more}
    found: dict[str, Any] = {"help": option.meaning + (f" ({'; '.join(said)})" if said else ""), **more}
    if not option.metavar:
        return {"action": "store_true", **found}
    return {"metavar": option.metavar, **({"type": option.type} if option.type else {}), **found}


def add(parser: Any, name: str, *notes: str, several: bool = False, **more: Any) -> None:
    """Add an option of ``SHARED`` to ``parser``."""
    parser.add_argument(name, **settings(name, *notes, several=several, **more))


def add_device(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """``--device``; without a default it is a GPU where the kernel can use one."""
    add(parser, "--device", *([] if default else ["default: a GPU if the kernel can use one"]), default=default)


def add_types(parser: argparse.ArgumentParser) -> None:
    """``--dtype`` and ``--fp8``."""
    add(parser, "--dtype", "default: bf16")
    add(parser, "--fp8", "default: the device's")


def add_cases(parser: argparse.ArgumentParser) -> None:
    """``--lane``, ``--dtype``, ``--fp8`` and ``--depth``: which cases."""
    add(parser, "--lane", several=True)
    add_types(parser)
    add(parser, "--depth", "default: default")


def add_records(parser: argparse.ArgumentParser, *, default: str = "") -> None:
    """``--records``: where records are written."""
    add(parser, "--records", f"default: {default}" if default else "default: no records")


def add_verbosity(parser: argparse.ArgumentParser) -> None:
    """``--quiet`` and ``--verbose``, which every command has."""
    group = parser.add_mutually_exclusive_group()
    add(group, "--quiet")
    add(group, "--verbose")
