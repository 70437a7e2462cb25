"""Is the fusion really on? Launch counts of every forward pass in a profiler trace.

``python -m validators trace FILE --layers 92``. A pass must launch one fused norm and quantization kernel for each
decoder layer, and no per-token quantization kernel between it and the GEMM that consumes it. Standard library only.
"""

from __future__ import annotations

import argparse
import hashlib
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from validators.records import Check, Record, Status
from validators.store import Sink, provenance
from validators.trace_file import Launch, Trace, TraceError, load, matches

LANE = "trace"
MET, NOT_MET = "ok", "NOT MET"
MOST_NAMES = 12
MOST_PLACES = 3


@dataclass
class Finding:
    """Lines for the user, and whether every expectation is met."""

    lines: list[str] = field(default_factory=list)
    ok: bool = True

    def hold(self, met: bool, sentence: str) -> None:
        """One expectation and its outcome."""
        self.ok = self.ok and met
        self.lines.append(f"{MET if met else NOT_MET}: {sentence}")


def passes(trace: Trace) -> dict[str, list[Launch]]:
    """Launches by forward pass: ``step 5``, with the device where there are several; ``the whole trace`` without steps.

    Where steps are labelled, launches outside of every step (warm-up, graph capture) belong to none, and a step in
    which nothing ran is there, empty.
    """
    devices = sorted({launch.device for launch in trace.launches})
    found: dict[str, list[Launch]] = {}
    for device in devices:
        suffix = f" of device {device}" if len(devices) > 1 else ""
        own = [launch for launch in trace.launches if launch.device == device]
        for step in trace.steps:
            found[f"step {step}{suffix}"] = [launch for launch in own if launch.step == step]
        if not trace.steps:
            found[f"the whole trace{suffix}"] = own
    return found


def quantized_again(launches: Sequence[Launch]) -> tuple[list[Launch], int]:
    """(quantization kernels between a fused norm and the next GEMM of its stream, fused norms without a GEMM after).

    The fused norm has quantized already: whatever quantizes before the GEMM does so a second time.
    """
    twice: list[Launch] = []
    alone = 0
    waiting: dict[tuple[int, str], bool] = {}
    for launch in launches:
        place = launch.device, launch.stream
        if launch.role == "fused":
            alone += waiting.get(place, False)
            waiting[place] = True
        elif launch.role == "gemm":
            waiting[place] = False
        elif launch.role == "quant" and waiting.get(place):
            twice.append(launch)
    return twice, alone + sum(waiting.values())


def judge(
    trace: Trace, expect: Sequence[tuple[str, int]] = (), forbid: Sequence[str] = (), layers: int | None = None
) -> Finding:
    """Whether every forward pass launches what is expected.

    expect: (name, launches in each pass). forbid: names that no pass may launch. layers: decoder layers, each with one
    fused norm at its entry (a second one after attention is allowed: N or 2N launches). Without any of the three the
    question is only whether something fused runs and nothing is quantized twice. Raises TraceError without GPU kernels.
    """
    if not trace.launches:
        what = f"{trace.cpu_ops} CPU operators and " if trace.cpu_ops else ""
        raise TraceError(f"the trace holds {what}no GPU kernel; was the profiler started with ProfilerActivity.CUDA?")
    finding = Finding()
    grouped = passes(trace)
    left_out = len(trace.launches) - sum(map(len, grouped.values()))
    places = ", ".join(list(grouped)[:MOST_PLACES]) + (", ..." if len(grouped) > MOST_PLACES else "")
    outside = f"; {left_out} launches outside of every step" if left_out else ""
    finding.lines.append(f"{len(trace.launches)} kernel launches; forward passes: {len(grouped)} ({places}){outside}")
    if not trace.steps:
        finding.lines.append("no ProfilerStep labels: everything counts as one forward pass")
    finding.lines += _table(grouped)
    for name, count in expect:
        _each(finding, grouped, name, count, f"{count} launches of {name} in every pass")
    for name in forbid:
        _each(finding, grouped, name, 0, f"no launch of {name}")
    _fusion(finding, grouped, layers, asked=bool(expect or forbid))
    return finding


def _table(grouped: Mapping[str, Sequence[Launch]]) -> list[str]:
    counted = [Counter((launch.role, launch.name) for launch in launches) for launches in grouped.values()]
    total: Counter[tuple[str, str]] = sum(counted, Counter())
    shown = [(key, n) for key, n in total.most_common() if key[0] != "other"][:MOST_NAMES]
    lines = []
    for (role, name), _ in shown:
        each = [c[role, name] for c in counted]
        times = f"{each[0]}" if len(set(each)) == 1 else f"{min(each)} to {max(each)}"
        lines.append(f"  {role:<8}{times:>10} a pass  {name if len(name) <= 100 else name[:99] + '…'}")
    others = sum(n for (role, _), n in total.items() if role == "other")
    return [*lines, f"  other   {others:>10} in all"] if others else lines


def _each(finding: Finding, grouped: Mapping[str, Sequence[Launch]], name: str, count: int, sentence: str) -> None:
    seen = {place: sum(matches(name, launch.name) for launch in launches) for place, launches in grouped.items()}
    wrong = [f"{place}: {number}" for place, number in seen.items() if number != count]
    more = f" and {len(wrong) - MOST_PLACES} more" if len(wrong) > MOST_PLACES else ""
    finding.hold(not wrong, sentence + (f"; seen in {', '.join(wrong[:MOST_PLACES])}{more}" if wrong else ""))


def _fusion(finding: Finding, grouped: Mapping[str, Sequence[Launch]], layers: int | None, *, asked: bool) -> None:
    unclear = sum(launch.role == "unclear" for launches in grouped.values() for launch in launches)
    if unclear:
        finding.hold(False, f"{unclear} launches of add_rmsnorm_quant_kernel do not name their types, and the same "
                     "kernel serves the plain norm; export the trace with demangled names")  # fmt: skip
    counts = {place: sum(launch.role == "fused" for launch in launches) for place, launches in grouped.items()}
    if layers is not None:
        wrong = [f"{place}: {n}" for place, n in counts.items() if n not in (layers, 2 * layers)]
        finding.hold(not wrong, f"{layers} or {2 * layers} fused norm + quantization launches in every pass"
                     + (f"; seen in {', '.join(wrong[:MOST_PLACES])}" if wrong else ""))  # fmt: skip
        for place, launches in grouped.items():
            _by_layer(finding, place, launches, layers)
    elif not asked:
        finding.hold(all(counts.values()), "every pass launches a fused norm + quantization kernel")
    if any(counts.values()):
        found = [quantized_again(launches) for launches in grouped.values()]
        twice = [launch for again, _ in found for launch in again]
        words = f"; {len(twice)} do, the first is {twice[0].name}" if twice else ""
        finding.hold(not twice, f"no per-token quantization kernel between a fused norm and the GEMM after it{words}")
        alone = sum(count for _, count in found)
        if alone:
            finding.lines.append(f"note: {alone} fused norms have no GEMM after them on their stream")


def _by_layer(finding: Finding, place: str, launches: Sequence[Launch], layers: int) -> None:
    """Where layers are labelled, each must have its fused launch; elsewhere the order alone says which is whose."""
    labels = {launch.layer for launch in launches} - {None}
    if not labels:
        return
    fused = Counter(launch.layer for launch in launches if launch.role == "fused")
    without = sorted(layer for layer in labels if layer is not None and not fused[layer])
    words = f"; none in {', '.join(map(str, without[:MOST_NAMES]))}" if without else ""
    finding.hold(not without and len(labels) == layers, f"{place}: {len(labels)} labelled layers of {layers}, "
                 f"each with a fused launch{words}")  # fmt: skip


# ---- the command


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m validators trace``."""
    parser.add_argument("file", metavar="FILE", help="Chrome trace of torch.profiler, .json or .json.gz")
    parser.add_argument("--expect", action="append", default=[], metavar="NAME=COUNT",
                        help="launches a step of kernels whose name contains NAME (re:PATTERN: a regex)")  # fmt: skip
    parser.add_argument("--forbid", action="append", default=[], metavar="NAME", help="no launch of such a kernel")
    parser.add_argument("--layers", type=int, help="decoder layers, each with a fused norm (92 for GLM-4.7)")
    parser.add_argument("--records", metavar="DIR", help="write a record of the outcome into this directory")
    parser.add_argument("--kernel", help="the fused kernel that the traced engine ran; needed with --records")
    parser.add_argument("--contract", help="contract of that kernel, for the record")
    parser.add_argument("--arch", help="architecture that the trace was recorded on (gfx950, sm_90); with --records")


def command(parsed: argparse.Namespace) -> int:
    """Prints the counts: 0 if every expectation is met, else 1. Raises TraceError with one sentence."""
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
    if parsed.records and not (parsed.kernel and parsed.arch):
        raise TraceError("a record names a kernel and an architecture, so --records needs --kernel and --arch.")
    finding = judge(load(parsed.file), expect, parsed.forbid, parsed.layers)
    print("\n".join(finding.lines))
    if parsed.records:
        with Sink(parsed.records) as sink:
            sink.write(record_of(finding, parsed))
        print(f"record in {parsed.records}")
    return 0 if finding.ok else 1


def record_of(finding: Finding, parsed: argparse.Namespace) -> Record:
    """The outcome as a record: op and lane ``trace``, one check for each expectation."""
    file = Path(parsed.file)
    checks = []
    for line in finding.lines:
        word, colon, sentence = line.partition(": ")
        if colon and word in (MET, NOT_MET):
            checks.append(Check("launches", word == MET, sentence, "integrity"))
    reasons = tuple(f"launches: {c.detail}" for c in checks if not c.ok)
    layers = f"-layers{parsed.layers}" if parsed.layers else ""
    command_line = shlex.join(["python", "-m", "validators", "trace", *parsed.argv[1:]])
    return Record(
        status=Status.PASSED if finding.ok else Status.FAILED, reasons=reasons, kernel=parsed.kernel, op=LANE,
        case=f"trace-{file.name}{layers}", lane=LANE, contract=parsed.contract, contract_from="given",
        device="cuda" if parsed.arch != "cpu" else "cpu", arch=parsed.arch, checks=tuple(checks),
        reproduce=command_line,
        provenance={**provenance("cpu"), "trace_sha256": hashlib.sha256(file.read_bytes()).hexdigest()},
    )  # fmt: skip
