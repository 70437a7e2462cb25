"""Run the golden cases and write a proposal; changes nothing."""

from __future__ import annotations

import argparse
import functools

from golden.commands.options import add_store
from golden.propose import propose
from validators.commands import cli, options
from validators.commands.plan import devices
from validators.process.guard import Exit
from validators.records.command_line import command_line

INTERRUPTED = "the store is as it was"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    options.add(parser, "--out", "a new folder for the proposal", required=True)
    options.add_device(parser, "cpu")
    options.add(parser, "--kernel", "only its goldens", several=True)
    add_store(parser)


def command(parsed: argparse.Namespace) -> Exit:
    """Propose and say what comes next."""
    devices(parsed.device)
    say = _silent if parsed.quiet else functools.partial(cli.warn, who="golden")
    ids = propose(parsed.out, device=parsed.device, kernels=parsed.kernel, say=say)
    for name in ids if parsed.verbose else []:
        print(name)
    print(f"{len(ids):,} goldens are proposed in {parsed.out}; the store is as it was. To move them in:")
    print(command_line("golden", "accept", parsed.out, why="REASON"))
    return Exit.YES


def _silent(_: str) -> None:
    return None
