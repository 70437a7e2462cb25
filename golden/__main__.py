"""The command line: ``python -m golden check | propose | accept | list | verify``.

Exit codes: 0 everything checked is UNCHANGED, and something was (or: done, all intact, all accepted); 1 a golden
DRIFTED or FAILED, or accept refused one; 2 a damaged store, bad usage, or nothing could be checked; 130 interrupted.
Bad input is one sentence on stderr, never a traceback.
"""

from __future__ import annotations

if __name__ == "__main__":
    from validators.process.interrupt import quiet

    quiet("golden")

import argparse
import contextlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from golden.store import GoldenError
from validators.process.guard import guarded, say
from validators.process.supervise import supervised
from validators.records.files import append_whole, check_file
from validators.records.provenance import provenance
from validators.records.store import Sink

_STORE = Path(__file__).resolve().parent / "data"
IN_PROCESS = ("check", "propose")
"""Commands that call kernels in their own process; they run in a child that is watched."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise GoldenError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    return guarded(
        "golden",
        lambda: _command(argv),
        interrupted="the store is as it was",
        lacking="torch is not installed here; only list does without it.",
    )


def _command(argv: Sequence[str] | None) -> int:
    parsed = _parser().parse_args(argv)
    code: int = parsed.command(parsed)
    return code


def _say(sentence: str) -> None:
    say("golden", sentence)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m golden", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    add = commands.add_parser("check", help="compute goldens again: is every bit as accepted?")
    add.add_argument("--kernel", action="append", default=[], help="only goldens of this kernel (may be repeated)")
    add.add_argument("--id", action="append", default=[], help="only this golden (may be repeated)")
    add.add_argument("--device", help="cpu, cuda or cuda:N: only goldens of its architecture (default: all)")
    add.add_argument("--records", metavar="DIR", help="write the kernels' verdicts as records into this directory")
    add.add_argument("--markdown", metavar="FILE", help="append the table to this file")
    add.add_argument("--history", metavar="FILE", help="append one JSON line to this file")
    add.set_defaults(command=_check)

    add = commands.add_parser("propose", help="run the golden cases and write a proposal; changes nothing")
    add.add_argument("--out", required=True, metavar="DIR", help="a new folder for the proposal")
    add.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    add.add_argument("--kernel", action="append", default=[], help="only this kernel (may be repeated)")
    add.set_defaults(command=_propose)

    add = commands.add_parser("accept", help="judge a proposal and move it in")
    add.add_argument("proposal", metavar="DIR")
    add.add_argument("--why", required=True, help="the reason, kept with every golden")
    add.add_argument("--only", action="append", default=[], help="only this golden or kernel (may be repeated)")
    add.set_defaults(command=_accept)

    add = commands.add_parser("list", help="every golden with contract, date and reason")
    add.set_defaults(command=_list)

    add = commands.add_parser("verify", help="is the store whole? runs no kernel")
    add.set_defaults(command=_verify)

    for command in commands.choices.values():
        command.add_argument("--store", default=str(_STORE), help="the store's folder (default: golden/data)")
    return parser


def _check(parsed: argparse.Namespace) -> int:
    from golden import check, report
    from golden.outcome import Outcome, State, exit_code

    store = check.load(parsed.store)
    store.require_intact()
    rows = check.select(store, device=parsed.device, kernels=parsed.kernel, ids=parsed.id)
    # A check takes minutes, so a place that cannot be written is found before it.
    for file in filter(None, (parsed.markdown, parsed.history)):
        check_file(file)
    outcomes: list[Outcome] = []
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(Sink(parsed.records)) if parsed.records else None
        for outcome in check.check(store, rows, parsed.device):
            outcomes.append(outcome)
            if sink is not None and outcome.record is not None:
                sink.write(outcome.record)
            if outcome.state in (State.FAILED, State.DRIFTED):
                print(f"{outcome.state.value} {outcome.id}", flush=True)
    print(report.text(report.table(outcomes)))
    for line in report.details(outcomes):
        print(line)
    print(report.headline(outcomes))
    if parsed.markdown:
        append_whole(parsed.markdown, report.markdown(outcomes))
    if parsed.history:
        report.append_history(parsed.history, outcomes, provenance(parsed.device))
    return exit_code(outcomes)


def _propose(parsed: argparse.Namespace) -> int:
    from golden.propose import propose

    ids = propose(parsed.out, device=parsed.device, kernels=parsed.kernel, say=_say)
    print(f"{len(ids):,} goldens are proposed in {parsed.out}; the store is as it was. To move them in:")
    print(f"python -m golden accept {shlex.quote(parsed.out)} --why '...'")
    return 0


def _accept(parsed: argparse.Namespace) -> int:
    from golden.propose import accept

    result = accept(parsed.store, parsed.proposal, why=parsed.why, only=parsed.only)
    for sentence in result.refused:
        _say(sentence)
    print(
        f"{len(result.changed):,} goldens accepted, {len(result.unchanged):,} were there with the same bits, "
        f"{len(result.refused):,} refused."
    )
    return 1 if result.refused else 0


def _list(parsed: argparse.Namespace) -> int:
    from golden import report
    from golden.store import read

    store = read(parsed.store)
    store.require_intact()
    print(report.text(report.listing([store.rows[name] for name in sorted(store.rows)])))
    return 0


def _verify(parsed: argparse.Namespace) -> int:
    from golden import check

    store = check.load(parsed.store)
    found = check.problems(store)
    for sentence in found:
        _say(sentence)
    if found:
        return 2
    size = sum(p.stat().st_size for p in store.root.rglob("*") if p.is_file())
    print(f"{len(store.rows):,} goldens are whole; {size / 2**20:.1f} MiB.")
    return 0


if __name__ == "__main__":
    sys.exit(supervised("golden", main) if set(sys.argv[1:2]) & set(IN_PROCESS) else main())
