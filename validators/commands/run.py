"""Validate kernels and record the verdicts: each case in a worker process, one JSON line per verdict."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence

from validators.commands import cli, options
from validators.commands.plan import Planned, make_plan
from validators.errors import NoDecision, RunFault, UserError
from validators.isolate import run_isolated
from validators.process.guard import Exit, status_of
from validators.process.progress import Progress
from validators.records import store, text
from validators.records.command_line import command_line, name_of
from validators.records.files import new_folder
from validators.records.record import Record, Status
from validators.signoff import judged, limits, mutation, reach, strength


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    options.add(parser, "--kernel", several=True)
    parser.add_argument("--all-available", action="store_true", help="every kernel that this machine can run")
    options.add(parser, "--op")
    options.add(parser, "--contract", "or: identify", "default: what it declares")
    parser.add_argument("--case", action="append", default=[], help="only this case id (may be repeated)")
    options.add_device(parser)
    options.add_records(parser, default=options.NEW_RECORDS)
    options.add(parser, "--time-limit", default=options.TIME_LIMIT_S)
    options.add_cases(parser)


def command(parsed: argparse.Namespace) -> Exit:
    """Run what was asked for; the exit status is that of the records."""
    plan = make_plan(parsed)
    directory = parsed.records or str(new_folder("records"))
    records, broken = _run(parsed, plan, directory)
    if not records:
        raise NoDecision("no case ran.")
    _print_end(records, directory, parsed.quiet)
    code = cli.exit_of(records)
    return broken if code is Exit.YES and broken is not None else code


def _run(parsed: argparse.Namespace, plan: Sequence[Planned], directory: str) -> tuple[list[Record], Exit | None]:
    """The records, written as they come, and the status of a kernel that could not be run at all."""
    records: list[Record] = []
    broken: Exit | None = None
    total = sum(len(p.cases) for p in plan)
    with store.Sink(directory) as sink, Progress("cases", total, show=not parsed.quiet) as progress:
        for planned in plan:
            try:
                for record in _validate(parsed, planned):
                    sink.write(record)
                    records.append(record)
                    progress.step(_line(record, parsed))
            except UserError as error:
                # With one kernel the sentence is the result; among many the others still run.
                if len(plan) == 1:
                    raise
                cli.warn(str(error))
                broken = status_of(error)
    return records, broken


def _line(record: Record, parsed: argparse.Namespace) -> str:
    in_order = record.status in (Status.PASSED, Status.UNSUPPORTED)
    return "" if parsed.quiet or (in_order and not parsed.verbose) else text.one_line(record)


def _print_end(records: Sequence[Record], directory: str, quiet: bool) -> None:
    print(text.summary_table(records))
    if quiet:
        return
    print(text.strength_sentence(records))
    sentences = [*judged.identified_sentences(records), *_worth(records)]
    sentences += judged.never_judged_sentences(records)
    for sentence in (*sentences, *limits.sentences(records), *limits.hints(records)):
        print(sentence)
    print(f"records in {directory}; next: {command_line('validators', 'signoff', directory)}")


def _worth(records: Sequence[Record]) -> list[str]:
    """What was run and passed, and which defects that would have shown. The verdicts hold without it."""
    found = []
    asked = {"what was run": reach, "mutation score": mutation, "known defects": strength}
    for name, about in asked.items():
        try:
            found += about.sentences(records)
        except RunFault as error:
            found.append(f"{name}: {error}")
    return found


def _validate(parsed: argparse.Namespace, planned: Planned) -> Iterator[Record]:
    name, op, device, cases = planned
    contract = name_of(parsed.contract, op, "contract")
    found = run_isolated(name, op, cases, contract=contract, device=device, time_limit_s=parsed.time_limit)
    for record in found:
        yield dataclasses.replace(
            record, provenance=dataclasses.replace(record.provenance, arguments=tuple(parsed.argv))
        )
