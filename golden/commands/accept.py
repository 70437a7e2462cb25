"""Judge a proposal and move it in: the only way into the store."""

from __future__ import annotations

import argparse

from golden.commands.options import add_store
from golden.propose import accept
from validators.commands import cli
from validators.process.guard import Exit

INTERRUPTED = "the store is as it was"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("proposal", metavar="DIR", help="what propose wrote")
    parser.add_argument("--why", required=True, help="the reason, kept with every golden")
    what = "only this golden, this kernel, or the kind inputs or reference (may be repeated)"
    parser.add_argument("--only", action="append", default=[], help=what)
    add_store(parser)


def command(parsed: argparse.Namespace) -> Exit:
    """Accept; NO if one was refused."""
    result = accept(parsed.store, parsed.proposal, why=parsed.why, only=parsed.only)
    for name in [*result.changed, *result.unchanged] if parsed.verbose else []:
        print(name)
    for sentence in result.refused:
        cli.warn(sentence, "golden")
    print(
        f"{len(result.changed):,} goldens accepted, {len(result.unchanged):,} were there with the same bits, "
        f"{len(result.refused):,} refused."
    )
    return Exit.NO if result.refused else Exit.YES
