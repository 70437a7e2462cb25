"""Numerical sign-off of fused FP8 kernels: ``python -m validators COMMAND``."""

from __future__ import annotations

if __name__ == "__main__":
    from validators.process.interrupt import quiet

    quiet("validators")

import sys
from collections.abc import Sequence

from validators.commands.cli import Command, main_of, run_group

COMMANDS = {
    "list": Command("validators.commands.list", "what there is: kernels, cases or contracts"),
    "run": Command("validators.commands.run", "validate kernels and record the verdicts"),
    "search": Command("validators.commands.search", "draw cases at random for as long as you say, and reduce failures"),
    "identify": Command("validators.commands.identify", "which contract do a kernel's outputs follow?", True),
    "probe": Command("validators.commands.probe", "directed GEMMs that reveal a matrix unit", True),
    "explain": Command("validators.commands.explain", "the whole arithmetic of one output element", True),
    "layers": Command("validators.commands.layers", "a model layer by layer: fused, unfused, float64", True),
    "trace": Command("validators.commands.trace", "kernel launches per step in a profiler trace: is the fusion on?"),
    "report": Command("validators.commands.report", "summary and failure reports of recorded verdicts"),
    "signoff": Command("validators.commands.signoff", "SIGNED, NOT SIGNED or UNTESTED, from records alone"),
    "machine": Command("validators.commands.machine", "run every stage that this machine can run, then sign off"),
    "amdgcn inspect": Command("validators.commands.amdgcn_inspect", "what AMD machine code says of its arithmetic"),
    "wheel show": Command("validators.commands.wheel_show", "the GPU code in another project's wheel"),
    "wheel slim": Command("validators.commands.wheel_slim", "what of that wheel one GPU needs"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    lacking = "torch is not installed here; only report, signoff, trace and wheel work without it."
    return run_group(
        "validators", COMMANDS, sys.argv[1:] if argv is None else argv, about=str(__doc__), lacking=lacking
    )


if __name__ == "__main__":
    main_of("validators", COMMANDS, main)
