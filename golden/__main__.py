"""Golden tensors: is every bit as accepted? ``python -m golden COMMAND``."""

from __future__ import annotations

if __name__ == "__main__":
    from validators.process.interrupt import quiet

    quiet("golden")

import sys
from collections.abc import Sequence

from validators.commands.cli import Command, main_of, run_group

COMMANDS = {
    "check": Command("golden.commands.check", "compute goldens again: is every bit as accepted?", True),
    "propose": Command("golden.commands.propose", "run the golden cases and write a proposal; changes nothing", True),
    "accept": Command("golden.commands.accept", "judge a proposal and move it in"),
    "list": Command("golden.commands.list", "every golden with contract, date and reason"),
    "verify": Command("golden.commands.verify", "is the store whole? runs no kernel"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    lacking = "torch is not installed here; only list works without it."
    return run_group("golden", COMMANDS, sys.argv[1:] if argv is None else argv, about=str(__doc__), lacking=lacking)


if __name__ == "__main__":
    main_of("golden", COMMANDS, main)
