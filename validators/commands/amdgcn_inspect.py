"""What can be read from AMD machine code without running it: mode, rounding, conversions, divisions, open points.

python -m validators amdgcn inspect my_kernel.s
"""

from __future__ import annotations

import argparse

from validators.amdgcn.inspect import facts
from validators.amdgcn.text import kernel_names, read_program
from validators.process.guard import Exit

INTERRUPTED = "nothing was written"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("file", metavar="FILE", help="assembly text of gfx942 or gfx950: .s or .amdgcn")
    parser.add_argument("--symbol", metavar="NAME", help="only this kernel of the text (default: every one)")


def command(parsed: argparse.Namespace) -> Exit:
    """Print the facts of each kernel; --quiet: the first line of each."""
    names = [parsed.symbol] if parsed.symbol else kernel_names(parsed.file)
    for name in names:
        lines = list(facts(read_program(parsed.file, name)))
        print("\n  ".join(lines[:1] if parsed.quiet else lines))
    return Exit.YES
