"""``python -m validators signoff``: read records, decide, write the pages, print the decision."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from validators.commands import cli, options
from validators.process.guard import Exit
from validators.records.record import Record
from validators.signoff import claims, decision, policy
from validators.signoff.claims import ClaimError, Target
from validators.signoff.ruling import Ruling
from validators.signoff.write import write

DEFAULT_POLICY = "merge"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("records", metavar="DIR", nargs="*", help="directories of records, one or several machines'")
    options.add(parser, "--claim", "or a kernel's name")
    options.add(parser, "--policy", f"default for a claim: {DEFAULT_POLICY}")
    options.add(parser, "--arch", "of a claim that is a kernel's name", "default: the records'")
    options.add(parser, "--contract", "of a claim that is a kernel's name", "default: any")
    parser.add_argument("--source", metavar="DIGEST", help="only records of this version of a claimed kernel's source")
    parser.add_argument(
        "--version",
        action="append",
        default=[],
        metavar="LIBRARY=PATTERN",
        help="only records made with this version count, e.g. torch=2.13.* (may be repeated)",
    )
    options.add(parser, "--out", "signoff.json, .md and .html", "default: the first DIR")


def command(parsed: argparse.Namespace) -> Exit:
    """Decide, write and print; the exit status is the decision's."""
    _check(parsed)
    chosen = policy.load(parsed.policy or DEFAULT_POLICY) if parsed.policy or parsed.claim else None
    decided = decision.signoff_directory(
        parsed.records, warn=cli.warn, policy=chosen, target=lambda records: _targets(parsed, records)
    )
    out = parsed.out or (parsed.records[0] if parsed.records else None)
    # The decision first: a page that cannot be written must not cost it.
    every = lines(decided)
    for line in every[:1] if parsed.quiet else every:
        print(line)
    for cell in [cell for ruling in decided.rulings for cell in ruling.cells] if parsed.verbose else []:
        print("  " + " ".join(filter(None, (cell.state, cell.stage, cell.op, cell.kernel, cell.lane))))
    paths = write(decided, out, warn=cli.warn) if out else []
    if paths and not parsed.quiet:
        print(f"written: {', '.join(map(str, paths))}")
    return decided.exit_code


def _check(parsed: argparse.Namespace) -> None:
    if not parsed.records and not parsed.claim:
        raise ClaimError("name a directory of records, or a claim with --claim to see what it needs.")
    is_file = parsed.claim and Path(parsed.claim).is_file()
    if (parsed.arch or parsed.contract or parsed.source) and (is_file or not parsed.claim):
        raise ClaimError(
            "--arch and --contract belong to a claim that is a kernel's name, and so does --source; a file says them."
        )
    if parsed.version and (is_file or not (parsed.claim or parsed.policy)):
        raise ClaimError("--version belongs to a claim or a policy, and a claim's file says it itself.")


def _targets(parsed: argparse.Namespace, records: Sequence[Record]) -> list[Target]:
    versions = {}
    for text in parsed.version:
        library, equals, pattern = text.partition("=")
        if not (library and equals and pattern):
            raise ClaimError(f"--version {text!r} is not LIBRARY=PATTERN.")
        versions[library] = pattern
    if parsed.claim is None:
        return claims.of_machines(records, versions)
    looks_like_a_file = parsed.claim.endswith(".toml")
    if Path(parsed.claim).is_file() or looks_like_a_file:
        return [claims.from_file(parsed.claim)]
    return [
        claims.of_kernel(
            parsed.claim, records, arch=parsed.arch, contract=parsed.contract, versions=versions, source=parsed.source
        )
    ]


def lines(decided: decision.Signoff) -> list[str]:
    """What is printed: the decision, then each claim with reasons and commands."""
    found = [decided.decision]
    for ruling in decided.rulings:
        # Of a single claim the first line has said all that it is signed under.
        found += _ruling_lines(ruling, ruling.decision if len(decided.rulings) > 1 else ruling.outcome)
    if not decided.rulings:
        for c in decided.claims:
            said = c.decision if len(decided.claims) > 1 else c.outcome
            found.append(f"  {said}: {c.kernel}, contract {c.contract}, {c.arch}")
            found += [f"    {text}" for text in (*c.reasons, *c.caveats)]
            found += [f"      {text}" for step in c.untested for text in step.commands]
    return [*found, *decided.ignored]


def _ruling_lines(ruling: Ruling, said: str) -> list[str]:
    target = ruling.target
    found = [f"  {said}: {target.name} ({target.arch}), policy {ruling.policy.words}"]
    found += [f"    {text}" for text in (*ruling.reasons, *ruling.waived, *ruling.facts.caveats)]
    for step in ruling.steps:
        found.append(f"    to test {step.covers}, on {step.machine}:" + (f" {step.note}" if step.note else ""))
        found += [f"      {text}" for text in step.commands]
    return found
