"""Summary and failure reports of recorded verdicts."""

from __future__ import annotations

import argparse

from validators.commands import cli
from validators.errors import NoDecision
from validators.process.guard import Exit
from validators.records import store, text
from validators.records.record import Status

MOST_REPORTS = 20
INTERRUPTED = "the records are as they were"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("records", metavar="DIR", help="a directory of records")
    parser.add_argument("--all", action="store_true", help=f"every failure report, not only the first {MOST_REPORTS}")


def command(parsed: argparse.Namespace) -> Exit:
    """Print the reports; the exit status is that of the records."""
    records = store.load(parsed.records, warn=cli.warn)
    if not records:
        raise NoDecision(f"{parsed.records} holds no records.")
    bad = [r for r in records if r.status not in (Status.PASSED, Status.UNSUPPORTED)]
    shown = bad if parsed.all else bad[:MOST_REPORTS]
    for record in [] if parsed.quiet else shown:
        print(text.failure_report(record) + "\n")
    if len(shown) < len(bad) and not parsed.quiet:
        print(f"{len(bad) - len(shown)} more failure reports; --all shows them.\n")
    if parsed.verbose:
        for record in records:
            print(text.one_line(record))
    print(text.summary_table(records))
    if not parsed.quiet:
        print(text.strength_sentence(records))
    return cli.exit_of(records)
