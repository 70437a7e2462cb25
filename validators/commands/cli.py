"""What the commands of ``validators``, ``golden`` and ``evals`` share: dispatch, exit statuses, progress.

A group is a table name -> ``Command``; the module of a command is imported when it is asked for, so that ``report``
and ``signoff`` run where torch is not installed. A module of a command has ``add_options(parser)`` and
``command(parsed) -> Exit``; it may have ``INTERRUPTED``, the sentence of what is left after Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import NoReturn

from validators.commands import options
from validators.errors import UsageError
from validators.process.guard import Exit, guarded, say
from validators.process.supervise import supervised
from validators.records.record import Record, Status

FAILING = (Status.FAILED, Status.NONDETERMINISTIC, Status.MISTRUSTED)


@dataclass(frozen=True)
class Command:
    """One command of a group. watched: it calls kernels in its own process, so a parent process watches it."""

    module: str
    help: str
    watched: bool = False


Table = Mapping[str, Command]


class Parser(argparse.ArgumentParser):
    """A parser whose complaint is one sentence, raised as ``UsageError``."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def run_group(who: str, table: Table, words: Sequence[str], *, about: str, lacking: str = "") -> int:
    """Run the command of ``table`` that ``words`` name; returns its exit status, whatever ends it."""
    given = list(words)
    interrupted = ["nothing was recorded"]
    return guarded(
        who, lambda: _dispatch(who, table, given, about, interrupted), interrupted=interrupted, lacking=lacking
    )


def main_of(who: str, table: Table, main: Callable[[], int]) -> NoReturn:
    """End the process with ``main``'s status; a watched command runs in a child that this process watches."""
    named = _name(table, sys.argv[1:])
    watched = named is not None and table[named].watched
    sys.exit(supervised(who, main) if watched else main())


def _name(table: Table, words: Sequence[str]) -> str | None:
    """The command that ``words`` begin with; a name may be of two words ("gsm8k run")."""
    return next((name for name in table if list(words[: len(name.split())]) == name.split()), None)


def _dispatch(who: str, table: Table, words: list[str], about: str, interrupted: list[str]) -> int:
    name = _name(table, words)
    if name is None:
        return _help(who, table, words, about)
    module = _module(name, table[name].module)
    interrupted[0] = getattr(module, "INTERRUPTED", "what was recorded until then is on disk")
    parsed = parser_of(who, name, table).parse_args(words[len(name.split()) :])
    parsed.argv = words
    began = time.monotonic()
    code: int = module.command(parsed)
    if parsed.verbose:
        say(who, f"{name}: exit status {code} ({Exit(code).name}) after {time.monotonic() - began:.1f} s")
    return code


def parser_of(who: str, name: str, table: Table) -> Parser:
    """The parser of one command, with its module's options and those that every command has."""
    module = _module(name, table[name].module)
    described = (module.__doc__ or "").strip()
    form = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog=f"python -m {who} {name}", description=described, formatter_class=form)
    module.add_options(parser)
    options.add_verbosity(parser)
    return parser


def _module(name: str, path: str) -> ModuleType:
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name == path:
            raise UsageError(f"{name} is not part of this checkout.") from None
        raise


def _help(who: str, table: Table, words: list[str], about: str) -> int:
    prefixes = {tuple(name.split()[:1]) for name in table if " " in name}
    asked = [word for word in words if word not in ("-h", "--help")]
    if asked and tuple(asked) not in prefixes:
        raise UsageError(
            f"unknown command {' '.join(asked[:2])!r}; known: {', '.join(table)}; see python -m {who} --help"
        )
    width = max(map(len, table)) + 2
    lines = [f"usage: python -m {who} COMMAND ...", "", about, ""]
    lines += [f"  {name:{width}}{command.help}" for name, command in table.items()]
    lines += ["", f"python -m {who} COMMAND --help shows the options. {EXIT_WORDS}"]
    print("\n".join(lines))
    return Exit.YES if {"-h", "--help"}.intersection(words) else Exit.USAGE


EXIT_WORDS = (
    "Exit statuses: 0 yes, 1 no, 2 usage, 3 no decision (UNTESTED, INCONCLUSIVE, nothing ran), "
    "4 error of a kernel or the tool, 130 interrupted."
)


# ---- results


def exit_of(records: Iterable[Record]) -> Exit:
    """The exit status that ``records`` amount to."""
    seen = list(records)
    statuses = {r.status for r in seen}
    if statuses.intersection(FAILING):
        return Exit.NO
    silent = any(r.status is Status.UNSUPPORTED and not any(map(str.strip, r.reasons)) for r in seen)
    if silent or Status.ERROR in statuses:
        return Exit.ERROR
    return Exit.NO_DECISION if Status.UNTESTED in statuses or Status.PASSED not in statuses else Exit.YES


def warn(sentence: str, who: str = "validators") -> None:
    """One sentence on stderr."""
    say(who, sentence)
