"""Draw cases at random for as long as you say; each failure is reduced to the smallest case that still fails.

The suite of 'run' is a list that ends; a search goes on. It draws shapes at the sides of what kernels switch at,
options in pairs, and every recipe. Of a failure it says in one sentence what is needed, with a case id that
reproduces it; then it looks for other failures until the time is up. A search that finds nothing proves nothing:
the sign-off takes its evidence from 'run'.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from validators.commands import cli, options
from validators.commands.plan import native_fp8, one_kernel
from validators.errors import NoDecision, UsageError
from validators.isolate import Worker
from validators.kernels.kernel import Kernel
from validators.process.guard import Exit
from validators.process.progress import EVERY_S
from validators.records import store, text
from validators.records.command_line import command_line, name_of
from validators.records.files import new_folder, write_whole
from validators.records.record import Record
from validators.search.draw import Space
from validators.search.hunt import Hunt, Judged
from validators.search.reduce import FAILURES, Finding
from validators.search.tally import Tally
from validators.words import DTYPES, FP8_FORMATS

INTERRUPTED = "what failed until then is recorded"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    options.add(parser, "--kernel", several=True, required=True)
    options.add(parser, "--contract", "or: identify", "default: what it declares")
    parser.add_argument(
        "--minutes", type=options.minutes, metavar="MINUTES", required=True, help="how long; fractions too"
    )
    options.add(parser, "--seed", "which cases are drawn", default=0)
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="streams of cases, each with a process (default: 1)"
    )
    parser.add_argument("--first", action="store_true", help="end at the first failure, once it is reduced")
    options.add_device(parser)
    options.add(parser, "--dtype", "default: both")
    options.add(parser, "--fp8", "default: mostly the device's")
    options.add(parser, "--time-limit", default=options.TIME_LIMIT_S)
    options.add_records(parser, default=options.NEW_RECORDS)


def command(parsed: argparse.Namespace) -> Exit:
    """Search; the exit status is that of the failures, YES where there are none."""
    if parsed.workers < 1 or parsed.seed < 0:
        raise UsageError("--workers must be at least 1 and --seed at least 0.")
    kernel, device = one_kernel(parsed)
    directory = parsed.records or str(new_folder("records"))
    search = _Search(parsed, kernel, device, directory)
    with _one_core_each(parsed.workers):
        search.run()
    if not search.tally.largest and not search.failed:
        raise NoDecision(f"no case was judged: {search.tally.words()[0]}.")
    return cli.exit_of(search.failed) if search.failed else Exit.YES


@contextlib.contextmanager
def _one_core_each(workers: int) -> Iterator[None]:
    """Several worker processes share the cores, where nobody has said otherwise."""
    name = "OMP_NUM_THREADS"
    if workers == 1 or name in os.environ:
        yield
        return
    os.environ[name] = str(max(1, (os.cpu_count() or 1) // workers))
    try:
        yield
    finally:
        del os.environ[name]


class _Search:
    """One search: what it prints, records and counts."""

    def __init__(self, parsed: argparse.Namespace, kernel: Kernel, device: str, directory: str) -> None:
        self.parsed, self.kernel, self.device, self.directory = parsed, kernel, device, directory
        self.space = _space(parsed, kernel.op, device)
        self.tally = Tally(self.space)
        self.failed: list[Record] = []
        self.findings: list[Finding] = []
        self.waiting: dict[str, Record] = {}
        self.seen: dict[str, float] = {}
        self.reduced: dict[str, float] = {}
        self.began = self.shown = time.monotonic()

    def run(self) -> None:
        """Until the time is up; what was found is printed and written whatever ends it."""
        parsed = self.parsed
        hunt = Hunt(self.space, self._worker, parsed.minutes * 60, parsed.seed, parsed.workers, parsed.first)
        with store.Sink(self.directory) as sink, contextlib.closing(hunt.run()) as events:
            path = _free(self.directory)
            try:
                for event in events:
                    self._take(event, sink)
                    self._show_progress()
                    if isinstance(event, Finding):
                        self._write(path)
            finally:
                if self.tally.cases or hunt.unfinished:
                    self._write(path)
                    self._print_end([case.id for case in hunt.unfinished])

    def _worker(self) -> Worker:
        parsed, kernel = self.parsed, self.kernel
        contract = name_of(parsed.contract, kernel.op, "contract")
        return Worker(kernel.name, kernel.op, contract=contract, device=self.device, time_limit_s=parsed.time_limit)

    def _take(self, event: Judged | Finding, sink: store.Sink) -> None:
        if isinstance(event, Judged):
            if not self.tally.cases:
                self.began = time.monotonic() - event.record.seconds  # what came before was loading
            self.tally.add(event.case, event.record)
            if event.record.status in FAILURES:
                self._record(event.record, sink)
                if not event.explained:
                    self.waiting[event.case.id] = event.record
                    self.seen.setdefault(event.case.id, self._seconds())
            if self.parsed.verbose:
                print(text.one_line(event.record), flush=True)
            return
        self.waiting.pop(event.first, None)
        if any(event.key == other.key for other in self.findings):
            return
        self.findings.append(event)
        self.reduced[event.first] = self._seconds()
        if event.case != event.first:
            self._record(event.record, sink)
        if not self.parsed.quiet:
            print(self._found(event), flush=True)

    def _seconds(self) -> float:
        """Since the first case began."""
        return round(time.monotonic() - self.began, 2)

    def _record(self, record: Record, sink: store.Sink) -> None:
        provenance = dataclasses.replace(record.provenance, arguments=tuple(self.parsed.argv))
        sink.write(dataclasses.replace(record, provenance=provenance))
        self.failed.append(record)

    def _found(self, finding: Finding) -> str:
        record = finding.record
        first = f"\n  first seen in {finding.first}; reduced with {finding.calls} cases" if finding.calls else ""
        return f"{text.headline(record)}\n  {finding.sentence}{first}\n  reproduce: {record.reproduce}"

    def _show_progress(self) -> None:
        now = time.monotonic()
        if self.parsed.quiet or now - self.shown < EVERY_S:
            return
        self.shown = now
        total = self.parsed.minutes * 60
        failures = f"{len(self.findings)} failure{'s' * (len(self.findings) != 1)}"
        print(
            f"search: {self.tally.cases:,} cases in {now - self.began:.0f} s of {total:.0f} s, {failures}",
            file=sys.stderr,
            flush=True,
        )

    def _print_end(self, unfinished: list[str]) -> None:
        lines = self.tally.words()
        count = len(self.findings) + len(self.waiting)
        found = f"{count} different failure{'s' * (count != 1)}" if count else "no failure was found"
        if not self.parsed.quiet:
            for record in self.waiting.values():
                print(f"{text.headline(record)}\n  not reduced: the search ended\n  reproduce: {record.reproduce}")
        print(f"{lines[0]}; {found}")
        for case in unfinished:
            print(f"still running when the time was up, so not judged: {case}")
        if self.parsed.quiet:
            return
        for line in lines[1:]:
            print(line)
        print(f"seed {self.parsed.seed}, {self._seconds():.0f} s; another seed draws other cases")
        if self.failed:
            print(f"records in {self.directory}; next: {command_line('validators', 'report', self.directory)}")

    def _write(self, path: Path) -> None:
        """What was looked at and found, next to the records."""
        parsed = self.parsed
        summary = {
            "kernel": self.kernel.name,
            "op": self.kernel.op,
            "device": self.device,
            "contract": parsed.contract,
            "seed": parsed.seed,
            "workers": parsed.workers,
            "minutes": parsed.minutes,
            "seconds": self._seconds(),
            **self.tally.asdict(),
            "findings": [
                {**each.asdict(), "seen_seconds": self.seen[each.first], "reduced_seconds": self.reduced[each.first]}
                for each in self.findings
            ],
            "not_reduced": sorted(self.waiting),
        }
        write_whole(path, json.dumps(summary, indent=1) + "\n")


def _space(parsed: argparse.Namespace, op: str, device: str) -> Space:
    """What is drawn from; the device's own FP8 format is the usual one."""
    native = native_fp8(device)
    fp8s = (parsed.fp8,) if parsed.fp8 else (native, *(name for name in FP8_FORMATS if name != native))
    return Space(op, (parsed.dtype,) if parsed.dtype else DTYPES, fp8s, gpu=device != "cpu")


def _free(directory: str) -> Path:
    """``search.json`` in the folder, or the first ``search-N.json`` that is not there."""
    names = itertools.chain(["search.json"], (f"search-{number}.json" for number in itertools.count(2)))
    return next(path for name in names if not (path := Path(directory) / name).exists())
