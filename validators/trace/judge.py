"""Is the fusion really on? Launch counts of every forward pass in a profiler trace.

A pass must launch one fused norm and quantization kernel for each decoder layer, and no per-token quantization kernel
between it and the GEMM that consumes it. Standard library only.
"""

from __future__ import annotations

import argparse
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from validators.records.command_line import command_line
from validators.records.evidence import Launches
from validators.records.provenance import provenance
from validators.records.record import Check, Record, Status
from validators.trace.file import Launch, Trace
from validators.trace.names import OTHER_QUANTIZATION, TraceError, matches

LANE = "trace"
MET, NOT_MET, UNDECIDED = "ok", "NOT MET", "undecided"
MOST_NAMES = 12
MOST_PLACES = 3
MOST_OTHERS = 6
LABEL_THEM = (
    "record one pass, or passes that are labelled (a schedule of torch.profiler and its step(), or SGLang's profiler "
    "with the Python stack)"
)


@dataclass
class Finding:
    """Lines for the user, and whether every expectation is met; None: none is missed, and not all could be decided."""

    lines: list[str] = field(default_factory=list)
    ok: bool | None = True
    checks: list[Check] = field(default_factory=list)

    def hold(self, met: bool | None, sentence: str) -> None:
        """One expectation and its outcome."""
        self.ok = False if met is False or self.ok is False else None if met is None else self.ok
        self.lines.append(f"{UNDECIDED if met is None else MET if met else NOT_MET}: {sentence}")
        self.checks.append(Check("launches", met, sentence, "integrity"))

    def note(self, sentence: str, check: str) -> None:
        """Something that is reported and not judged, by a check of its own."""
        self.lines.append(f"note: {sentence}")
        self.checks.append(Check(check, None, sentence, "integrity"))


@dataclass(frozen=True)
class Passes:
    """Launches by forward pass. apart: whether these are single passes, or the whole trace with an unknown number."""

    by_name: dict[str, list[Launch]]
    apart: bool


def passes(trace: Trace, layers: int | None = None) -> Passes:
    """Launches by forward pass: ``step 5``, with the device where there are several; ``the whole trace`` without any.

    Where passes are labelled, launches outside of every pass (warm-up, graph capture) belong to none, and a pass in
    which nothing ran is there, empty. Without labels a launch of a graph is a pass if it holds all layers: at least
    ``layers`` norms (fused or not) and as many GEMMs. A graph of a part of the model, as engines capture them that
    leave attention outside, holds a layer or two, and the passes of such a trace are not separated.
    """
    devices = sorted({launch.device for launch in trace.launches})
    found: dict[str, list[Launch]] = {}
    apart = bool(trace.steps)
    for device in devices:
        suffix = f" of device {device}" if len(devices) > 1 else ""
        own = [launch for launch in trace.launches if launch.device == device]
        for step, called in trace.steps.items():
            found[f"{called}{suffix}"] = [launch for launch in own if launch.step == step]
        if not trace.steps:
            graphs = _whole_graphs(own, layers) if layers else {}
            apart = bool(graphs)
            found |= {f"graph launch {k}{suffix}": inside for k, inside in graphs.items()}
            if not graphs:
                found[f"the whole trace{suffix}"] = own
    return Passes(found, apart)


def _whole_graphs(launches: Sequence[Launch], layers: int) -> dict[int, list[Launch]]:
    graphs: dict[int, list[Launch]] = {}
    for launch in launches:
        if launch.graph is not None:
            graphs.setdefault(launch.graph, []).append(launch)
    whole = {}
    for key, inside in sorted(graphs.items()):
        roles = Counter(launch.role for launch in inside)
        if roles["fused"] + roles["norm"] + roles["unclear"] >= layers and roles["gemm"] >= layers:
            whole[key] = inside
    return whole


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
    found = passes(trace, layers)
    grouped = found.by_name
    left_out = len(trace.launches) - sum(map(len, grouped.values()))
    places = ", ".join(list(grouped)[:MOST_PLACES]) + (", ..." if len(grouped) > MOST_PLACES else "")
    outside = f"; {left_out} launches outside of every pass" if left_out else ""
    finding.lines.append(f"{len(trace.launches)} kernel launches; forward passes: {len(grouped)} ({places}){outside}")
    if not found.apart:
        finding.lines.append("no labels of passes: everything counts as one forward pass")
    finding.lines += _table(grouped)
    for name, count in expect:
        _each(finding, found, name, count, f"{count} launches of {name} in every pass")
    for name in forbid:
        _each(finding, found, name, 0, f"no launch of {name}")
    _fusion(finding, found, layers, asked=bool(expect or forbid))
    return finding


def _table(grouped: Mapping[str, Sequence[Launch]]) -> list[str]:
    counted = [Counter((launch.role, launch.name) for launch in launches) for launches in grouped.values()]
    total: Counter[tuple[str, str]] = sum(counted, Counter())
    shown = [(key, n) for key, n in total.most_common() if key[0] != "other"][:MOST_NAMES]
    lines = []
    for (role, name), _ in shown:
        each = [c[role, name] for c in counted]
        times = f"{each[0]}" if len(set(each)) == 1 else f"{min(each)} to {max(each)}"
        lines.append(f"  {role:<8}{times:>10} per pass  {_short(name)}")
    others = Counter({name: n for (role, name), n in total.items() if role == "other"})
    if others:
        lines.append(f"  other   {sum(others.values()):>10} in all")
    if others and not any(role in ("fused", "unclear") for role, _ in total):
        lines.append("  nothing is known as fused; the most frequent others (--role fused=NAME says what one is):")
        lines += [f"  {n:>18} in all  {_short(name)}" for name, n in others.most_common(MOST_OTHERS)]
    return lines


def _short(name: str) -> str:
    return name if len(name) <= 100 else name[:99] + "…"


def _wrong(places: Sequence[str]) -> str:
    return f"{', '.join(places[:MOST_PLACES])}" + (
        f" and {len(places) - MOST_PLACES} more" if len(places) > MOST_PLACES else ""
    )


def _each(finding: Finding, found: Passes, name: str, count: int, sentence: str) -> None:
    seen = {
        place: sum(matches(name, launch.name) or matches(name, launch.raw) for launch in launches)
        for place, launches in found.by_name.items()
    }
    _counted(finding, found, seen, (count,), sentence)


def _counted(finding: Finding, found: Passes, seen: Mapping[str, int], wanted: Sequence[int], sentence: str) -> None:
    """Hold that every pass has one of the ``wanted`` numbers. Several times as many in passes that are not separated
    decide nothing: each pass may have its share, or not."""
    wrong = [place for place, number in seen.items() if number not in wanted]
    words = [f"{place}: {seen[place]}" for place in wrong]
    if not wrong:
        finding.hold(True, sentence)
    elif found.apart or not all(_times(seen[place], wanted) for place in wrong):
        some = max(wanted) and not found.apart and any(seen[place] > max(wanted) for place in wrong)
        why = ", which is no multiple: a layer fell back, or the trace begins or ends inside a pass" if some else ""
        finding.hold(False, f"{sentence}; seen in {_wrong(words)}{why}")
    else:
        several = ", ".join(f"{place}: {_times(seen[place], wanted)}" for place in wrong)
        finding.hold(None, f"{sentence}; seen in {several}: several passes without labels; {LABEL_THEM}")


def _times(number: int, wanted: Sequence[int]) -> str:
    """``920 = 5 x 184`` where the number is a multiple of a wanted one, else nothing."""
    for one in sorted(wanted, reverse=True):
        if one and number and number % one == 0:
            return f"{number} = {number // one} x {one}"
    return ""


def _fusion(finding: Finding, found: Passes, layers: int | None, *, asked: bool) -> None:
    grouped = found.by_name
    every = [launch for launches in grouped.values() for launch in launches]
    if unclear := sum(launch.role == "unclear" for launch in every):
        name = next(launch.name for launch in every if launch.role == "unclear")
        finding.hold(
            False,
            f"{unclear} launches of {_short(name)} do not name their types, and the same kernel serves "
            "the plain norm; --role fused=NAME or norm=NAME says which it is",
        )
    counts = {place: sum(launch.role == "fused" for launch in launches) for place, launches in grouped.items()}
    if layers is not None:
        sentence = f"{layers} or {2 * layers} fused norm + quantization launches in every pass"
        _counted(finding, found, counts, (layers, 2 * layers), sentence)
        for place, launches in grouped.items():
            _by_layer(finding, place, launches, layers)
    elif not asked:
        finding.hold(all(counts.values()), "every pass launches a fused norm + quantization kernel")
    if any(counts.values()):
        again = [quantized_again(launches) for launches in grouped.values()]
        twice = [launch for own, _ in again for launch in own]
        words = f"; {len(twice)} do, the first is {_short(twice[0].name)}" if twice else ""
        finding.hold(not twice, f"no per-token quantization kernel between a fused norm and the GEMM after it{words}")
        if alone := sum(count for _, count in again):
            finding.lines.append(f"note: {alone} fused norms have no GEMM after them on their stream")
    if other := sum(launch.role == "fused" and bool(OTHER_QUANTIZATION.search(launch.name)) for launch in every):
        finding.lines.append(f"note: {other} fused norms quantize in groups or to MXFP4, not a row by one scale")


def _by_layer(finding: Finding, place: str, launches: Sequence[Launch], layers: int) -> None:
    """Where layers are labelled, each must have its fused launch; elsewhere the order alone says which is whose."""
    labels = {launch.layer for launch in launches} - {None}
    if not labels:
        return
    fused = Counter(launch.layer for launch in launches if launch.role == "fused")
    without = sorted(layer for layer in labels if layer is not None and not fused[layer])
    words = f"; none in {', '.join(map(str, without[:MOST_NAMES]))}" if without else ""
    finding.hold(
        not without and len(labels) == layers,
        f"{place}: {len(labels)} labelled layers of {layers}, each with a fused launch{words}",
    )


# ---- the command


def record_of(finding: Finding, parsed: argparse.Namespace, kernel: str, contract: str | None) -> Record:
    """The outcome as a record of the fused ``kernel``: op and lane ``trace``, one check for each expectation."""
    file = Path(parsed.file)
    checks = finding.checks
    reasons = tuple(f"launches: {c.detail}" for c in checks if c.name == "launches" and c.ok is False)
    reasons = reasons or tuple(
        f"launches undecided: {c.detail}" for c in checks if c.name == "launches" and c.ok is None
    )
    status = {True: Status.PASSED, False: Status.FAILED, None: Status.MISTRUSTED}[finding.ok]
    layers = f"-layers{parsed.layers}" if parsed.layers else ""
    return Record(
        status=status,
        reasons=reasons,
        kernel=kernel,
        op=LANE,
        case=f"trace-{file.name}{layers}",
        lane=LANE,
        contract=contract,
        contract_from="given",
        device="cuda" if parsed.arch != "cpu" else "cpu",
        arch=parsed.arch,
        checks=tuple(checks),
        reproduce=command_line("validators", *parsed.argv),
        stage="trace",
        subject="path",
        launches=Launches(parsed.layers, hashlib.sha256(file.read_bytes()).hexdigest()),
        provenance=provenance("cpu"),
    )
