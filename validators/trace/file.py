"""Profiler traces: kernel launches, and the forward pass and the layer that launched them.

Reads a Chrome trace as ``torch.profiler`` writes it (``export_chrome_trace``), of CUDA or of ROCm, plain or gzipped.
A kernel belongs to the pass and layer (a ``record_function`` label such as ``layers.7``) that launched it: the label
around the runtime call with the same correlation id, because the GPU runs behind the CPU; where there is no such call,
the GPU's own copy of the label, and then the kernel's own time. Standard library only.

A pass is labelled by the first of these that the trace holds: what a serving engine calls it (vLLM:
``execute_context_0(0)_generation_64(64)``), ``ProfilerStep#k`` of the profiler's schedule, a Python call of SGLang's
``ModelRunner.forward`` (its profiler records the stack). Where there is none, the launches of captured graphs
(``hipGraphLaunch``) are kept, from which passes may be told.
"""

from __future__ import annotations

import bisect
import gzip
import json
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from validators.trace.names import Taught, TraceError, readable, role_of

_STEP = re.compile(r"ProfilerStep\s?#(\d+)")
_ENGINE = re.compile(r"^execute_(?:context|new)_\d.*")
_FORWARD = re.compile(r"model_runner\.py\(\d+\): forward$")
_GRAPH_LAUNCH = re.compile(r"GraphLaunch")
_LAYER = re.compile(r"\blayers?[._ ]?(\d+)\b", re.IGNORECASE)
_LAUNCH_CATEGORIES = ("cuda_runtime", "cuda_driver", "hip_runtime", "runtime")
_LABEL_CATEGORIES = ("user_annotation", "gpu_user_annotation")
_PYTHON = "python_function"


@dataclass(frozen=True)
class Launch:
    """One kernel launch. raw: its name in the trace, name: readable. start_us: begin on the GPU. step: key of the pass
    in ``Trace.steps``; layer: of a label; graph: the how-manieth launch of a graph it belongs to; None: to none."""

    name: str
    role: str
    start_us: float
    device: int
    stream: str
    step: int | None
    layer: int | None
    graph: int | None = None
    raw: str = ""


@dataclass(frozen=True)
class Trace:
    """Launches in order of time. steps: every labelled pass, in which something may run or nothing: key -> what it is
    called in a report. cpu_ops: CPU operators seen, to tell a trace without a GPU from an empty one."""

    launches: tuple[Launch, ...]
    steps: Mapping[int, str]
    cpu_ops: int


# ---- reading


def load(path: str | Path, taught: Taught = ()) -> Trace:
    """The launches of a trace file (.json or .json.gz); raises TraceError with one sentence. taught: roles of names."""
    data = _json(Path(path))
    events = data.get("traceEvents") if isinstance(data, Mapping) else data
    if not isinstance(events, list) or not all(isinstance(event, Mapping) for event in events):
        raise TraceError(f"{path} is JSON and no Chrome trace: it has no list of traceEvents.")
    spans = [e for e in events if e.get("ph") == "X" and "ts" in e and "name" in e]
    if not any("cat" in e for e in spans):
        raise TraceError(f"{path} is a trace of another tool: no event has a category and a time.")
    try:
        return _launches(spans, taught)
    except (TypeError, ValueError, KeyError) as error:
        raise TraceError(f"{path} has an event that torch.profiler does not write ({error}).") from None


def _json(path: Path) -> Any:
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
        if not raw.strip():
            raise TraceError(f"{path} is empty.")
        return json.loads(raw)
    except IsADirectoryError:
        raise TraceError(f"{path} is a folder, not a trace file.") from None
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise TraceError(f"{path} is a damaged gzip file; it may have been cut while it was written.") from None
    except OSError as error:
        raise TraceError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise TraceError(f"{path} is not a JSON file.") from None
    except RecursionError:
        raise TraceError(f"{path} is JSON of another kind: it is nested too deeply for a trace.") from None
    except json.JSONDecodeError as error:
        cut = error.pos >= len(error.doc.rstrip()) - 1 or "Unterminated" in error.msg
        kind = "is cut: its JSON stops in the middle" if cut and error.pos else "is not a JSON file"
        raise TraceError(f"{path} {kind} (character {error.pos}).") from None


class _Labels:
    """Labelled intervals; ``at`` finds the innermost one that holds a time. They nest, so the latest start wins."""

    def __init__(self, found: Iterable[tuple[float, float, int]]) -> None:
        self._found = sorted(found)
        self._starts = [start for start, _, _ in self._found]
        self._longest = max((end - start for start, end, _ in self._found), default=0.0)

    def __bool__(self) -> bool:
        return bool(self._found)

    def values(self) -> set[int]:
        return {value for _, _, value in self._found}

    def at(self, time: float) -> int | None:
        index = bisect.bisect_right(self._starts, time) - 1
        while index >= 0 and self._starts[index] >= time - self._longest:
            start, end, value = self._found[index]
            if start <= time <= end:
                return value
            index -= 1
        return None


_Events = Sequence[Mapping[str, Any]]
_ByCategory = dict[str, _Labels]


def _span(event: Mapping[str, Any], value: int) -> tuple[float, float, int]:
    start = float(event["ts"])
    return start, start + float(event.get("dur", 0.0)), value


def _numbered(spans: _Events, pattern: re.Pattern[str]) -> _ByCategory:
    """Labels that carry their number: ``layers.7``, ``ProfilerStep#3``."""
    found: dict[str, list[tuple[float, float, int]]] = {category: [] for category in _LABEL_CATEGORIES}
    for event in spans:
        label = pattern.search(str(event["name"])) if event.get("cat") in found else None
        if label:
            found[event["cat"]].append(_span(event, int(label[1])))
    return {category: _Labels(labels) for category, labels in found.items()}


def _counted(spans: _Events, categories: Sequence[str], pattern: re.Pattern[str]) -> list[list[Mapping[str, Any]]]:
    """Labels that are numbered by their order: the events of each category, by time."""
    own = [e for e in spans if e.get("cat") in categories and pattern.search(str(e["name"]))]
    return [sorted((e for e in own if e["cat"] == category), key=lambda e: float(e["ts"])) for category in categories]


def _passes(spans: _Events) -> tuple[_ByCategory, dict[int, str]]:
    """(labels of the passes, key -> name); both empty where nothing labels them."""
    on_cpu, on_gpu = _counted(spans, _LABEL_CATEGORIES, _ENGINE)
    if on_cpu or on_gpu:
        named = on_cpu or on_gpu
        # The GPU's copies are numbered by their order too, which is the same where none is missing.
        copies = on_gpu if len(on_gpu) == len(named) else []
        labels = {
            category: _Labels(_span(e, k) for k, e in enumerate(events))
            for category, events in zip(_LABEL_CATEGORIES, (on_cpu, copies), strict=True)
        }
        return labels, {k: f"pass {k} ({e['name']})" for k, e in enumerate(named)}
    steps = _numbered(spans, _STEP)
    if any(steps.values()):
        keys = sorted({key for labels in steps.values() for key in labels.values()})
        return steps, {key: f"step {key}" for key in keys}
    (calls,) = _counted(spans, (_PYTHON,), _FORWARD)
    labels = {"user_annotation": _Labels(_span(e, k) for k, e in enumerate(calls)), "gpu_user_annotation": _Labels(())}
    return labels, {k: f"pass {k} (ModelRunner.forward)" for k in range(len(calls))}


def _launches(spans: _Events, taught: Taught) -> Trace:
    labels, named = _passes(spans)
    layers = _numbered(spans, _LAYER)
    called: dict[object, float] = {}
    graphs: dict[object, int] = {}
    for event in spans:
        number = _argument(event, "correlation")
        if event.get("cat") in _LAUNCH_CATEGORIES and number is not None:
            called[number] = float(event["ts"])
            if _GRAPH_LAUNCH.search(str(event["name"])):
                graphs[number] = 0
    graphs = {number: k for k, number in enumerate(sorted(graphs, key=lambda n: called[n]))}
    roles: dict[str, tuple[str, str]] = {}
    found = []
    for event in spans:
        if event.get("cat") != "kernel":
            continue
        start, number, raw = float(event["ts"]), _argument(event, "correlation"), str(event["name"])
        launched = called.get(number)
        step, layer = (_owner(own, start, launched) for own in (labels, layers))
        if raw not in roles:
            shown = readable(raw)
            roles[raw] = shown, role_of(shown, taught)
        name, role = roles[raw]
        found.append(
            Launch(
                name,
                role,
                start,
                int(_argument(event, "device", event.get("pid", 0))),
                str(_argument(event, "stream", event.get("tid", 0))),
                step,
                layer,
                graphs.get(number),
                raw,
            )
        )
    found.sort(key=lambda launch: launch.start_us)
    return Trace(tuple(found), named, sum(e.get("cat") in ("cpu_op", "operator") for e in spans))


def _owner(labels: _ByCategory, start: float, launched: float | None) -> int | None:
    """The label around the launch; without a launch or labels of the CPU, the one around the kernel."""
    if launched is not None and labels["user_annotation"]:
        return labels["user_annotation"].at(launched)
    found = labels["gpu_user_annotation"].at(start)
    return labels["user_annotation"].at(start) if found is None else found


def _argument(event: Mapping[str, Any], name: str, default: Any = None) -> Any:
    arguments = event.get("args")
    value = arguments.get(name) if isinstance(arguments, Mapping) else None
    return default if value is None else value
