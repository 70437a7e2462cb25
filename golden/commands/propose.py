"""Run the golden cases and write a proposal; changes nothing."""

from __future__ import annotations

import argparse
import functools
import shlex

from golden.commands.options import add_store
from golden.propose import propose
from validators.commands import cli
from validators.process.guard import Exit

INTERRUPTED = "the store is as it was"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--out", required=True, metavar="DIR", help="a new folder for the proposal")
    cli.add_device(parser, "cpu")
    cli.add_kernel(parser, several=True)
    add_store(parser)


def command(parsed: argparse.Namespace) -> Exit:
    """Propose and say what comes next."""
    say = functools.partial(cli.warn, who="golden")
    ids = propose(parsed.out, device=parsed.device, kernels=parsed.kernel, say=say)
    print(f"{len(ids):,} goldens are proposed in {parsed.out}; the store is as it was. To move them in:")
    print(f"python -m golden accept {shlex.quote(parsed.out)} --why '...'")
    return Exit.YES
