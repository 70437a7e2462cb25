"""The whole arithmetic of one output element, from the bits of the inputs to the verdict."""

from __future__ import annotations

import argparse

from validators.calls.call import run_kernel
from validators.cases.suite import find
from validators.commands import options
from validators.commands.plan import contract_for, one_kernel
from validators.errors import NoDecision
from validators.explain.element import element_text
from validators.explain.identify import choose_contract
from validators.process.guard import Exit

INTERRUPTED = "nothing was recorded"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("case", metavar="CASE", help="a case id, as in a failure report")
    options.add(parser, "--kernel", several=True, required=True)
    parser.add_argument("--row", type=int, required=True, help="row of the output as a matrix, from 0")
    parser.add_argument("--col", type=int, required=True, help="column, from 0")
    options.add(parser, "--contract", "default: the kernel's")
    parser.add_argument("--output", help="codes (default), scale or residual_out; out for ptpc_gemm")
    options.add_device(parser)


def command(parsed: argparse.Namespace) -> Exit:
    """Run the kernel on the case and print the report of one element: NO if it is not admissible."""
    case = find([parsed.case])[0]
    kernel, device = one_kernel(parsed, [case.op])
    if reason := kernel.unsupported(case):
        raise NoDecision(f"kernel {kernel.name} does not offer this case: {reason}")
    contract, origin, _ = choose_contract(kernel, case, contract_for(case.op, parsed.contract), device)
    if contract is None:
        raise NoDecision(f"the outputs of {kernel.name} fit no contract; name one with --contract")
    claim = run_kernel(kernel, case, device)
    text = element_text(claim.inputs, claim.outputs, contract, parsed.row, parsed.col, parsed.output)
    print(f"{kernel.name} on {case.id}, contract {origin}")
    print(text.lines[-1] if parsed.quiet else "\n".join(text.lines))
    return Exit.NO if text.ok is False else Exit.YES
