"""The command line: ``python -m validators list|run|identify|probe|explain|trace|layers|report|signoff|machine``.

Exit codes: 0 everything PASSED (UNSUPPORTED only with a reason, and at least one PASSED); 1 anything
FAILED, NONDETERMINISTIC or MISTRUSTED, or a claim is NOT SIGNED; 2 bad usage, nothing ran, or an ERROR
where nothing failed; 130 interrupted. Bad input is one sentence on stderr, never a traceback.
"""

from __future__ import annotations

if __name__ == "__main__":
    from validators.process.interrupt import quiet

    quiet("validators")

import argparse
import dataclasses
import json
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import NoReturn

from validators.commands import machine
from validators.commands import signoff as signoff_command
from validators.commands.plan import (
    Planned,
    UsageError,
    cases_of,
    check_options,
    devices,
    make_plan,
    native_fp8,
    one_kernel,
    ops,
)
from validators.errors import UserError
from validators.process.guard import guarded, say
from validators.process.supervise import supervised
from validators.records import store
from validators.records import text as report
from validators.records.codec import encode
from validators.records.files import check_file, new_folder, write_whole
from validators.records.provenance import provenance
from validators.records.record import Record, Status
from validators.signoff import judged, limits
from validators.trace import judge as trace

MOST_REPORTS = 20
IN_PROCESS = ("identify", "probe", "explain", "layers")
"""Commands that call kernels in their own process; ``run`` has workers for that."""
_FAILING = (Status.FAILED, Status.NONDETERMINISTIC, Status.MISTRUSTED)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    return guarded(
        "validators",
        lambda: _command(arguments),
        interrupted="what was recorded until then is on disk",
        lacking="torch is not installed here; only report, signoff and trace do without it.",
    )


def _command(arguments: list[str]) -> int:
    if arguments[:1] == ["layers"]:
        # Imports torch, which report and signoff do without.
        from validators.layers import build as layers

        return layers.main(arguments[1:])
    parsed = _parser().parse_args(arguments)
    parsed.argv = arguments
    code: int = parsed.command(parsed)
    return code


def _say(sentence: str) -> None:
    say("validators", sentence)


def exit_code(records: Iterable[Record]) -> int:
    """The exit code that ``records`` amount to; see the module's docstring."""
    seen = list(records)
    statuses = {r.status for r in seen}
    if statuses.intersection(_FAILING):
        return 1
    silent = any(r.status is Status.UNSUPPORTED and not any(map(str.strip, r.reasons)) for r in seen)
    if silent or statuses.intersection((Status.ERROR, Status.UNTESTED)) or Status.PASSED not in statuses:
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m validators", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    add = commands.add_parser("list", help="what there is: kernels, cases or contracts")
    add.add_argument("what", nargs="?", default="kernels", help="kernels (default), cases or contracts")
    add.add_argument("--op", help="only this op")
    _add_case_options(add)
    add.set_defaults(command=_list)

    add = commands.add_parser("run", help="validate kernels and record the verdicts")
    add.add_argument("--op", help="needed for a kernel of your own; otherwise the kernel's")
    add.add_argument("--kernel", help="a name from 'list kernels', or your own: file.py:function, module:function")
    add.add_argument("--all-available", action="store_true", help="every kernel that this machine can run")
    add.add_argument("--contract", help="hold the kernel to this contract, or: identify")
    add.add_argument("--case", action="append", default=[], help="only this case id (may be repeated)")
    add.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU if the kernel can use one)")
    add.add_argument("--records", help="directory for the records (default: records/<UTC time>)")
    add.add_argument("--time-limit", type=float, default=120.0, help="seconds for one case (default: 120)")
    _add_case_options(add)
    add.set_defaults(command=_run)

    add = commands.add_parser("identify", help="which contract do a kernel's outputs follow?")
    add.add_argument("--op")
    add.add_argument("--kernel", required=True)
    add.add_argument("--device")
    add.add_argument("--rows", type=int, default=64)
    add.add_argument("--seed", type=int, default=0)
    add.add_argument("--dtype", help="bf16 (default) or fp16")
    add.add_argument("--fp8", help="e4m3fn or e4m3fnuz (default: the device's)")
    add.set_defaults(command=_identify)

    add = commands.add_parser("probe", help="directed GEMMs that reveal a matrix unit: kept bits, groups, rounding")
    add.add_argument("--kernel", required=True, help="a ptpc_gemm kernel, or your own: file.py:function")
    add.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU if the kernel can use one)")
    add.add_argument("--fp8", help="e4m3fn or e4m3fnuz (default: what the device uses)")
    add.add_argument("--out", help="file for the record, JSON, to send to whoever models the unit")
    add.set_defaults(command=_probe, op="ptpc_gemm")

    add = commands.add_parser("explain", help="the whole arithmetic of one output element")
    _add_explain_options(add)
    add.set_defaults(command=_explain)

    add = commands.add_parser("trace", help="kernel launches a step in a profiler trace: is the fusion on?")
    trace.add_options(add)
    add.set_defaults(command=trace.command)

    commands.add_parser("layers", help="a model layer by layer, fused against unfused against float64", add_help=False)

    add = commands.add_parser("report", help="summary and failure reports of recorded verdicts")
    add.add_argument("records", metavar="DIR")
    add.add_argument("--all", action="store_true", help=f"every failure report, not only the first {MOST_REPORTS}")
    add.set_defaults(command=_report)

    add = commands.add_parser("signoff", help="SIGNED, NOT SIGNED or UNTESTED, from records alone")
    signoff_command.add_options(add)
    add.set_defaults(command=signoff_command.command)

    add = commands.add_parser("machine", help="run every stage that this machine can run, then sign off")
    machine.add_options(add)
    add.set_defaults(command=machine.command)
    return parser


def _add_case_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lane", action="append", default=[], help="only this lane (may be repeated)")
    parser.add_argument("--dtype", help="bf16 (default) or fp16")
    parser.add_argument("--fp8", help="e4m3fn or e4m3fnuz (default: the device's)")
    parser.add_argument("--depth", help="smoke, default or deep")


# ---- list


def _list(parsed: argparse.Namespace) -> int:
    check_options(parsed)
    shown = {"kernels": _list_kernels, "cases": _list_cases, "contracts": _list_contracts}
    if parsed.what not in shown:
        raise UsageError(f"cannot list {parsed.what!r}; known: {', '.join(shown)}")
    rows = list(shown[parsed.what](parsed))
    if not rows:
        raise UsageError(f"there are no {parsed.what} for these options.")
    for row in rows:
        print(row)
    return 0


def _list_kernels(parsed: argparse.Namespace) -> Iterator[str]:
    from validators.kernels.registry import all_kernels

    for kernel in all_kernels():
        if parsed.op in (None, kernel.op):
            found = [d for d in devices() if kernel.unavailable(d) is None]
            state = f"available on {' and '.join(found)}" if found else kernel.unavailable(devices()[0])
            marks = (" (emulated)" if kernel.emulated else "") + (" (fake)" if kernel.fake else "")
            yield f"{kernel.name}  {kernel.op}  contract {kernel.contract or 'to be identified'}{marks}: {state}"


def _list_cases(parsed: argparse.Namespace) -> Iterator[str]:
    from validators.cases.recipes import lane_of

    for op in [parsed.op] if parsed.op else ops():
        for case in cases_of(parsed, op, parsed.fp8 or "e4m3fn"):
            yield f"{lane_of(case)}  {case.id}"


def _list_contracts(parsed: argparse.Namespace) -> Iterator[str]:
    from validators.commands.contracts import brief

    for op in [parsed.op] if parsed.op else ops():
        yield from brief(op)


# ---- run


def _run(parsed: argparse.Namespace) -> int:
    if not parsed.time_limit > 0:
        raise UsageError(f"--time-limit {parsed.time_limit:g} is not a positive number of seconds.")
    plan = make_plan(parsed)
    directory = parsed.records or str(new_folder("records"))
    records: list[Record] = []
    broken = False
    with store.Sink(directory) as sink, _Progress(sum(len(p.cases) for p in plan)) as progress:
        for planned in plan:
            try:
                for record in _validate(parsed, planned):
                    sink.write(record)
                    records.append(record)
                    progress.step(record)
            except Exception as error:
                # With one kernel the sentence is the result; among many the others still run.
                if len(plan) == 1 or not isinstance(error, UserError):
                    raise
                _say(str(error))
                broken = True
    if not records:
        raise UsageError("no case ran.")
    print(report.summary_table(records))
    print(report.strength_sentence(records))
    for sentence in judged.identified_sentences(records):
        print(sentence)
    unjudged = judged.never_judged_sentences(records)
    for sentence in (*_defects_covered(records), *unjudged, *limits.sentences(records), *limits.hints(records)):
        print(sentence)
    print(f"records in {directory}; next: python -m validators signoff {shlex.quote(directory)}")
    code = exit_code(records)
    return 2 if broken and code == 0 else code


def _defects_covered(records: Sequence[Record]) -> list[str]:
    from validators.signoff import strength

    try:
        return strength.sentences(records)
    except strength.StrengthError as error:
        # The verdicts stand without it.
        return [f"known defects: {error}"]


def _validate(parsed: argparse.Namespace, planned: Planned) -> Iterator[Record]:
    from validators.isolate import run_isolated

    name, op, device, cases = planned
    found = run_isolated(name, op, cases, contract=parsed.contract, device=device, time_limit_s=parsed.time_limit)
    for record in found:
        come_from = dataclasses.replace(record.provenance, arguments=tuple(parsed.argv))
        yield dataclasses.replace(record, provenance=come_from)


class _Progress:
    """A bar on a terminal; in a log one line per record that did not pass."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self._bar: object | None = None
        self._counter = False

    def __enter__(self) -> _Progress:
        if not sys.stderr.isatty():
            return self
        try:
            from rich.console import Console
            from rich.progress import Progress
        except ImportError:
            self._counter = True
            return self
        bar = Progress(console=Console(stderr=True), transient=True)
        bar.start()
        self._task = bar.add_task("cases", total=self.total)
        self._bar = bar
        return self

    def step(self, record: Record) -> None:
        self.done += 1
        if record.status not in (Status.PASSED, Status.UNSUPPORTED):
            print(("\r\x1b[K" if self._counter else "") + report.one_line(record), flush=True)
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done)  # type: ignore[attr-defined]
        elif self._counter:
            print(f"\r{self.done}/{self.total} cases", end="", file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()  # type: ignore[attr-defined]
        elif self._counter:
            print(file=sys.stderr)


# ---- identify, explain, report, signoff


def _identify(parsed: argparse.Namespace) -> int:
    from validators.calls.call import KernelFault
    from validators.explain.identify import identify

    check_options(parsed)
    if parsed.rows < 1 or parsed.seed < 0:
        raise UsageError("--rows must be at least 1 and --seed at least 0.")
    parsed.case = []
    _, kernel, device = one_kernel(parsed)
    dtype, fp8 = parsed.dtype or "bf16", parsed.fp8 or native_fp8(device)
    try:
        result = identify(kernel, device=device, rows=parsed.rows, seed=parsed.seed, dtype=dtype, fp8=fp8)
    except KernelFault as fault:
        raise UsageError(str(fault)) from None
    for line in result.lines():
        print(line)
    return 0 if result.admitted and not result.unstable else 1


def _probe(parsed: argparse.Namespace) -> int:
    from validators.explain import probe

    parsed.dtype, parsed.case = None, []
    check_options(parsed)
    _, kernel, device = one_kernel(parsed)
    if parsed.out:
        check_file(parsed.out)
    fp8 = parsed.fp8 or native_fp8(device)
    try:
        record = probe.probe(probe.kernel_call(kernel, device=device, fp8=fp8), fp8=fp8)
    except probe.ProbeError as error:
        raise UsageError(str(error)) from None
    record |= {"kernel": kernel.name, "device": device, "provenance": encode(provenance(device))}
    for line in probe.lines(record):
        print(line)
    if parsed.out:
        write_whole(parsed.out, json.dumps(record, indent=1))
        print(f"written: {parsed.out}")
    return 0


def _add_explain_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("case", metavar="CASE", help="a case id, as in a failure report")
    parser.add_argument("--kernel", required=True, help="a name from 'list kernels', or your own: file.py:function")
    parser.add_argument("--row", type=int, required=True, help="row of the output as a matrix, from 0")
    parser.add_argument("--col", type=int, required=True, help="column, from 0")
    parser.add_argument("--contract", help="judge under this contract (default: the kernel's)")
    parser.add_argument("--output", help="codes (default), scale or residual_out; out for ptpc_gemm")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU if the kernel can use one)")


def _explain(parsed: argparse.Namespace) -> int:
    from validators.explain.element import command

    return command(parsed)


def _report(parsed: argparse.Namespace) -> int:
    records = store.load(parsed.records, warn=_say)
    if not records:
        raise UsageError(f"{parsed.records} holds no records.")
    bad = [r for r in records if r.status not in (Status.PASSED, Status.UNSUPPORTED)]
    shown = bad if parsed.all else bad[:MOST_REPORTS]
    for record in shown:
        print(report.failure_report(record) + "\n")
    if len(shown) < len(bad):
        print(f"{len(bad) - len(shown)} more failure reports; --all shows them.\n")
    print(report.summary_table(records))
    print(report.strength_sentence(records))
    return exit_code(records)


if __name__ == "__main__":
    sys.exit(supervised("validators", main) if set(sys.argv[1:2]) & set(IN_PROCESS) else main())
