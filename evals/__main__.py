"""End-to-end parity: run, compare and judge evaluations: ``python -m evals COMMAND``.

0 for PARITY, 1 for REGRESSION, 3 for INCONCLUSIVE and for runs that are not finished.
"""

from __future__ import annotations

if __name__ == "__main__":
    from validators.process.interrupt import quiet

    quiet("evals")

import sys
from collections.abc import Sequence

from validators.commands.cli import Command, main_of, run_group

COMMANDS = {
    "gsm8k run": Command("evals.commands.run", "ask an OpenAI-compatible server the questions, resumably"),
    "gsm8k compare": Command("evals.commands.compare", "the verdict on two runs, or on two totals"),
    "import": Command("evals.commands.importing", "another harness's samples as a run"),
    "parity": Command("evals.commands.parity", "the embedded model on two kernels: run both arms and judge", True),
    "tokens": Command("evals.commands.tokens", "gold solutions through a model on several kernels", True),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    return run_group("evals", COMMANDS, sys.argv[1:] if argv is None else argv, about=str(__doc__))


if __name__ == "__main__":
    main_of("evals", COMMANDS, main)
