"""Compute goldens again: is every bit as accepted?"""

from __future__ import annotations

import argparse
import contextlib

from golden import check, report
from golden.commands.options import add_store
from golden.outcome import Outcome, State, exit_code
from validators.commands import options
from validators.commands.plan import devices
from validators.process.guard import Exit
from validators.records.files import append_whole, check_file
from validators.records.provenance import provenance
from validators.records.store import Sink
from validators.records.text import plain_table

INTERRUPTED = "the store is as it was"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    options.add(parser, "--kernel", "only its goldens", several=True)
    parser.add_argument("--id", action="append", default=[], help="only this golden (may be repeated)")
    options.add(parser, "--device", "only goldens of its architecture", "default: all")
    options.add_records(parser)
    parser.add_argument("--markdown", metavar="FILE", help="append the table to this file")
    parser.add_argument("--history", metavar="FILE", help="append one JSON line to this file")
    add_store(parser)


def command(parsed: argparse.Namespace) -> Exit:
    """Check, print and write: YES if everything checked is UNCHANGED, and something was."""
    if parsed.device:
        devices(parsed.device)
    store = check.load(parsed.store)
    store.require_intact()
    rows = check.select(store, device=parsed.device, kernels=parsed.kernel, ids=parsed.id)
    # A check takes minutes, so a place that cannot be written is found before it.
    for file in filter(None, (parsed.markdown, parsed.history)):
        check_file(file)
    outcomes: list[Outcome] = []
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(Sink(parsed.records)) if parsed.records else None
        for outcome in check.check(store, rows, parsed.device):
            outcomes.append(outcome)
            if sink is not None and outcome.record is not None:
                sink.write(outcome.record)
            if parsed.verbose or outcome.state in (State.FAILED, State.DRIFTED):
                print(f"{outcome.state.value} {outcome.id}", flush=True)
    if not parsed.quiet:
        print(plain_table(*report.table(outcomes)))
        for line in report.details(outcomes):
            print(line)
    print(report.headline(outcomes))
    if parsed.markdown:
        append_whole(parsed.markdown, report.markdown(outcomes))
    if parsed.history:
        report.append_history(parsed.history, outcomes, provenance(parsed.device))
    return exit_code(outcomes)
