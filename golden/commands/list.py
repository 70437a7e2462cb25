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
    print(plain_table(*report.listing([store.rows[name] for name in sorted(store.rows)])))
    return Exit.YES
