"""Every golden with contract, date and reason."""

from __future__ import annotations

import argparse

from golden import report
from golden.commands.options import add_store
from golden.store import read
from validators.process.guard import Exit
from validators.records.text import plain_table


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_store(parser)


def command(parsed: argparse.Namespace) -> Exit:
    """Print the table."""
    store = read(parsed.store)
    store.require_intact()
    rows = [store.rows[name] for name in sorted(store.rows)]
    print("\n".join(row.id for row in rows) if parsed.quiet else plain_table(*report.listing(rows)))
    if parsed.verbose:
        print(f"{len(rows):,} goldens in {parsed.store}")
    return Exit.YES
