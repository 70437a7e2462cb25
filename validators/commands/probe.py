"""Directed GEMMs that reveal a matrix unit: kept bits, groups, rounding."""

from __future__ import annotations

import argparse
import json

from validators.commands import cli
from validators.commands.plan import native_fp8, one_kernel
from validators.explain import probe
from validators.process.guard import Exit
from validators.records.codec import encode
from validators.records.files import check_file, write_whole
from validators.records.provenance import provenance
from validators.words import FP8_FORMATS

INTERRUPTED = "nothing was written"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    cli.add_kernel(parser, required=True)
    cli.add_device(parser)
    words = "FP8 format (default: the device's)"
    parser.add_argument("--fp8", **cli.closed("FP8 format", FP8_FORMATS, help=words))
    parser.add_argument("--out", metavar="FILE", help="write the record as JSON, to send to whoever models the unit")
    parser.set_defaults(op="ptpc_gemm")


def command(parsed: argparse.Namespace) -> Exit:
    """Probe, print and write what was seen."""
    _, kernel, device = one_kernel(parsed)
    if parsed.out:
        check_file(parsed.out)
    fp8 = parsed.fp8 or native_fp8(device)
    record = probe.probe(probe.kernel_call(kernel, device=device, fp8=fp8), fp8=fp8)
    record |= {"kernel": kernel.name, "device": device, "provenance": encode(provenance(device))}
    for line in probe.lines(record):
        print(line)
    if parsed.out:
        write_whole(parsed.out, json.dumps(record, indent=1))
        print(f"written: {parsed.out}")
    return Exit.YES
