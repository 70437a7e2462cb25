"""``python -m evals``: run, compare and judge end-to-end parity.

Exit status 0 for PARITY, 1 for REGRESSION, 3 for INCONCLUSIVE and for runs that are not finished, 2 for bad usage, 4
for a kernel or a server that broke, 130 for an interrupt; one sentence wherever there is no verdict.
"""

from __future__ import annotations

if __name__ == "__main__":
    from validators.process.interrupt import quiet

    quiet("evals")

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from evals.errors import EvalError, NotDecided
from validators.process.guard import Exit, guarded
from validators.process.supervise import supervised

COMMANDS = {
    "gsm8k run": ("evals.commands.run", "ask an OpenAI-compatible server the questions, resumably"),
    "gsm8k compare": ("evals.commands.compare", "the verdict on two runs, or on two totals"),
    "import": ("evals.commands.importing", "another harness's samples as a run"),
    "parity": ("evals.commands.parity", "the embedded model on two kernels: run both arms and judge"),
    "tokens": ("evals.commands.tokens", "gold solutions through a model on several kernels, token by token"),
}
IN_PROCESS = ("parity", "tokens")
"""Commands that call kernels in their own process; they run in a child that is watched."""


class _Parser(argparse.ArgumentParser):
    """One sentence and status 2 on bad options."""

    def error(self, message: str) -> NoReturn:
        raise EvalError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    return guarded("evals", lambda: _dispatch(words), interrupted="what was recorded stays")


def _dispatch(words: list[str]) -> int:
    name = next((n for n in COMMANDS if words[: len(n.split())] == n.split()), None)
    if name is None:
        if words in ([], ["-h"], ["--help"], ["gsm8k"], ["gsm8k", "-h"], ["gsm8k", "--help"]):
            print(_usage())
            return Exit.YES if words else Exit.USAGE
        raise EvalError(f"unknown command {' '.join(words[:2])!r}; known: {', '.join(COMMANDS)}")
    module_name, about = COMMANDS[name]
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name == module_name:
            raise EvalError(f"{name} is not part of this checkout") from None
        raise NotDecided(f"{name} needs the module {error.name}, which is not installed here") from None
    parser = _Parser(prog=f"python -m evals {name}", description=f"{name}: {about}.")
    module.add_options(parser)
    code: int = module.command(parser.parse_args(words[len(name.split()) :]))
    return code


def _usage() -> str:
    lines = ["usage: python -m evals COMMAND ...", "", *(f"  {n:15} {about}" for n, (_, about) in COMMANDS.items())]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(supervised("evals", main) if set(sys.argv[1:2]) & set(IN_PROCESS) else main())
