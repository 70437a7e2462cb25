"""Which contract do a kernel's outputs follow: a preset, or a preset but for one or two fields?"""

from __future__ import annotations

import argparse

from validators.commands import options
from validators.commands.plan import native_fp8, one_kernel
from validators.errors import UsageError
from validators.explain.identify import identify
from validators.process.guard import Exit

INTERRUPTED = "nothing was identified"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    options.add(parser, "--kernel", several=True, required=True)
    options.add_device(parser)
    options.add_types(parser)
    parser.add_argument("--rows", type=int, default=64, help="rows of outputs to judge (default: 64)")
    options.add(parser, "--seed", "the inputs", default=0)


def command(parsed: argparse.Namespace) -> Exit:
    """Print every preset with what it admits; YES if one fits and two runs agree."""
    if parsed.rows < 1 or parsed.seed < 0:
        raise UsageError("--rows must be at least 1 and --seed at least 0.")
    kernel, device = one_kernel(parsed)
    dtype, fp8 = parsed.dtype or "bf16", parsed.fp8 or native_fp8(device)
    result = identify(kernel, device=device, rows=parsed.rows, seed=parsed.seed, dtype=dtype, fp8=fp8)
    lines = result.lines()
    for line in lines[:1] if parsed.quiet else lines:
        print(line)
    return Exit.YES if result.admitted and not result.unstable else Exit.NO
