"""Kernel launches per step in a profiler trace: is the fusion on?

``python -m validators trace FILE --layers 92``: a fused norm in each of 92 layers, and no second quantization.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from validators.commands import options
from validators.process.guard import Exit
from validators.records.command_line import name_of
from validators.records.store import Sink
from validators.trace.file import load
from validators.trace.judge import judge, record_of
from validators.trace.names import KNOWN_ROLES, TraceError, matches
from validators.words import FUSED


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("file", metavar="FILE", help="Chrome trace of torch.profiler, .json or .json.gz")
    parser.add_argument(
        "--expect",
        action="append",
        default=[],
        metavar="NAME=COUNT",
        help="launches per step of kernels whose name contains NAME (re:PATTERN: a regex)",
    )
    parser.add_argument("--forbid", action="append", default=[], metavar="NAME", help="no launch of such a kernel")
    options.add(parser, "--layers", "each with a fused norm; 92 for GLM-4.7")
    parser.add_argument(
        "--role",
        action="append",
        default=[],
        metavar="ROLE=NAME",
        help=f"what kernels are whose name contains NAME: {', '.join(KNOWN_ROLES)}",
    )
    options.add_records(parser)
    options.add(parser, "--kernel", "the fused one that the engine ran; needed with --records", several=True)
    options.add(parser, "--contract", "for the record")
    options.add(parser, "--arch", "that the trace was recorded on; needed with --records")


def command(parsed: argparse.Namespace) -> Exit:
    """Print the counts; an expectation that could not be decided is no decision."""
    expect = []
    for text in parsed.expect:
        name, equals, count = text.rpartition("=")
        if not (name and equals and count.isdigit()):
            raise TraceError(f"--expect {text!r} is not NAME=COUNT.")
        matches(name, "")
        expect.append((name, int(count)))
    for name in parsed.forbid:
        if not name:
            raise TraceError("--forbid needs a name.")
        matches(name, "")
    if parsed.layers is not None and parsed.layers < 1:
        raise TraceError(f"--layers {parsed.layers} is not a positive number.")
    if len(parsed.kernel) > 1:
        raise TraceError(f"a record is about one kernel, and --kernel names {' and '.join(parsed.kernel)}.")
    kernel = name_of("".join(parsed.kernel), FUSED)
    contract = name_of(parsed.contract, FUSED, "contract")
    if parsed.records and not (kernel and parsed.arch):
        raise TraceError("a record names a kernel and an architecture, so --records needs --kernel and --arch.")
    taught = _taught(parsed.role)
    finding = judge(load(parsed.file, taught), expect, parsed.forbid, parsed.layers)
    for role, wanted in taught:
        finding.note(f"given by --role, not found here: {wanted} is {role}", "roles")
    print("\n".join(finding.lines[-1:] if parsed.quiet else finding.lines))
    if kernel and parsed.records:
        with Sink(parsed.records) as sink:
            sink.write(record_of(finding, parsed, kernel, contract))
        print(f"record in {parsed.records}")
    return {True: Exit.YES, False: Exit.NO, None: Exit.NO_DECISION}[finding.ok]


def _taught(options: Sequence[str]) -> list[tuple[str, str]]:
    found = []
    for text in options:
        role, equals, wanted = text.partition("=")
        if not (equals and wanted and role in KNOWN_ROLES):
            raise TraceError(f"--role {text!r} is not ROLE=NAME with one of the roles {', '.join(KNOWN_ROLES)}.")
        matches(wanted, "")
        found.append((role, wanted))
    return found
