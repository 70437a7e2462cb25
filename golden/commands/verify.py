"""Is the store whole? Runs no kernel."""

from __future__ import annotations

import argparse

from golden import check
from golden.commands.options import add_store
from validators.commands import cli
from validators.process.guard import Exit


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_store(parser)


def command(parsed: argparse.Namespace) -> Exit:
    """Print each problem; NO if there is one."""
    store = check.load(parsed.store)
    for name in sorted(store.rows) if parsed.verbose else []:
        print(name)
    found = check.problems(store)
    for sentence in found:
        cli.warn(sentence, "golden")
    if found:
        return Exit.NO
    size = sum(p.stat().st_size for p in store.root.rglob("*") if p.is_file())
    print(f"{len(store.rows):,} goldens are whole; {size / 2**20:.1f} MiB.")
    return Exit.YES
