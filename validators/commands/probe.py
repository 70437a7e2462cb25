"""Directed GEMMs that reveal a matrix unit: kept bits, groups, rounding."""

from __future__ import annotations

import argparse
import json

from validators.commands import options
from validators.commands.plan import devices, native_fp8, one_kernel
from validators.explain import probe
from validators.process.guard import Exit
from validators.records.codec import encode
from validators.records.files import STDOUT, check_json, write_json
from validators.records.provenance import provenance

INTERRUPTED = "nothing was written"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    options.add(parser, "--kernel", several=True, required=True)
    options.add_device(parser)
    options.add(parser, "--fp8", "default: the device's")
    options.add(parser, "--json", "to send to the people who model the unit")


def command(parsed: argparse.Namespace) -> Exit:
    """Probe, print and write what was seen."""
    devices(parsed.device)
    kernel, device = one_kernel(parsed, ["ptpc_gemm"])
    if parsed.json:
        check_json(parsed.json)
    fp8 = parsed.fp8 or native_fp8(device)
    record = probe.probe(probe.kernel_call(kernel, device=device, fp8=fp8), fp8=fp8)
    record |= {"kernel": kernel.name, "device": device, "provenance": encode(provenance(device))}
    lines = [] if parsed.json == STDOUT else probe.lines(record)
    for line in lines[-1:] if parsed.quiet else lines:
        print(line)
    if parsed.json:
        write_json(parsed.json, json.dumps(record, indent=1))
    return Exit.YES
