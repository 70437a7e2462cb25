"""What there is: kernels, cases or contracts, one line each."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from reference.contract import presets
from validators.cases.recipes import lane_of
from validators.commands import contracts, options
from validators.commands.plan import cases_of, devices
from validators.errors import NoDecision
from validators.kernels.registry import all_kernels
from validators.process.guard import Exit
from validators.records.command_line import of_op
from validators.words import OPS

KINDS = ("kernels", "cases", "contracts")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("what", nargs="?", default="kernels", **options.closed("list", KINDS))
    options.add(parser, "--op")
    options.add_cases(parser)


def command(parsed: argparse.Namespace) -> Exit:
    """Print the list; nothing to show is no decision."""
    shown = {"kernels": _kernels, "cases": _cases, "contracts": _contracts}
    rows = list(shown[parsed.what](parsed))
    if not rows:
        raise NoDecision(f"there are no {parsed.what} for these options.")
    for name, row in rows:
        if name or not parsed.quiet:
            print(name if parsed.quiet else row)
    if parsed.verbose:
        print(f"{sum(bool(name) for name, _ in rows):,} {parsed.what}")
    return Exit.YES


def _kernels(parsed: argparse.Namespace) -> Iterator[tuple[str, str]]:
    for kernel in all_kernels():
        if parsed.op in (None, kernel.op):
            found = [d for d in devices() if kernel.unavailable(d) is None]
            state = f"available on {' and '.join(found)}" if found else kernel.unavailable(devices()[0])
            marks = (" (emulated)" if kernel.emulated else "") + (" (fake)" if kernel.fake else "")
            row = f"{kernel.name}  {kernel.op}  contract {kernel.contract or 'to be identified'}{marks}: {state}"
            yield of_op(kernel.op, kernel.name), row


def _cases(parsed: argparse.Namespace) -> Iterator[tuple[str, str]]:
    for op in [parsed.op] if parsed.op else OPS:
        for case in cases_of(parsed, op, parsed.fp8 or "e4m3fn"):
            yield case.id, f"{lane_of(case)}  {case.id}"


def _contracts(parsed: argparse.Namespace) -> Iterator[tuple[str, str]]:
    for op in [parsed.op] if parsed.op else OPS:
        names = list(presets(op))
        for row in contracts.brief(op):
            yield "" if row.startswith(" ") else of_op(op, names.pop(0)), row
