"""Profiler traces: kernel launches, the step and the layer that launched them, and the role of a kernel by its name.

Reads a Chrome trace as ``torch.profiler`` writes it (``export_chrome_trace``), of CUDA or of ROCm, plain or gzipped.
A kernel belongs to the step (``ProfilerStep#k``) and layer (a ``record_function`` label such as ``layers.7``) that
launched it: the label around the runtime call with the same correlation id, because the GPU runs behind the CPU; where
there is no such call, the GPU's own copy of the label, and then the kernel's own time. Standard library only.

The name of aiter's fused kernel is no evidence by itself: one template, ``add_rmsnorm_quant_kernel<In, Out, ...>``,
also serves the plain ``add_rmsnorm``. It quantizes only where its output type is another than its input type.
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

_STEP = re.compile(r"ProfilerStep\s?#(\d+)")
_LAYER = re.compile(r"\blayers?[._ ]?(\d+)\b", re.IGNORECASE)
_LAUNCH_CATEGORIES = ("cuda_runtime", "cuda_driver", "hip_runtime", "runtime")
_LABEL_CATEGORIES = ("user_annotation", "gpu_user_annotation")

ROLES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (role, re.compile(pattern, re.IGNORECASE))
    for role, pattern in (
        (
            "fused",
            r"rms_?norm_dynamic_per_token_quant|quant_fused_(add_)?rmsnorm|rmsnorm2d_fwd_with_(add_)?(dynamic|smooth)quant"
            r"|(add_)?rms_?norm_quant|rms_?norm_(fp8_)?(per_token_)?quant|fused_rms_fp8",
        ),
        ("norm", r"rms_?norm|layer_?norm"),
        ("quant", r"per_token_\w*quant|scaled_(fp8_)?quant|data_to_per_row_scale|per_token_group_quant|dynamic_quant"),
        ("gemm", r"gemm|^Cijk_|nvjet|cutlass|xmma|wgmma|flatmm|a8w8|_scaled_mm|ck_tile.*Gemm"),
    )
)
"""Role of a kernel by its name, the first that fits."""


class TraceError(ValueError):
    """A file that is no profiler trace, or options that cannot be; the message is one sentence."""


@dataclass(frozen=True)
class Launch:
    """One kernel launch. start_us: begin on the GPU. step: k of ProfilerStep#k; layer: of a label; None: no label."""

    name: str
    role: str
    start_us: float
    device: int
    stream: str
    step: int | None
    layer: int | None


@dataclass(frozen=True)
class Trace:
    """Launches in order of time. steps: every labelled step, in which something may run or nothing. cpu_ops: CPU
    operators seen, to tell a trace without a GPU from an empty one."""

    launches: tuple[Launch, ...]
    steps: tuple[int, ...]
    cpu_ops: int


def readable(name: str) -> str:
    """A kernel's name; of a mangled one (``_ZN5aiter..``) its identifiers, which are what matters for a match."""
    if not name.startswith("_Z"):
        return name
    found: list[str] = []
    at = 2
    while at < len(name):
        digits = re.match(r"\d+", name[at:])
        if digits is None:
            at += 1
            continue
        at += digits.end()
        found.append(name[at : at + int(digits[0])])
        at += int(digits[0])
    return "::".join(part for part in found if part) or name


def template_arguments(name: str) -> list[str]:
    """The outermost template arguments of a demangled name, in order; empty where there are none."""
    start = name.find("<")
    found: list[str] = []
    depth, current = 0, ""
    for character in name[start + 1 :] if start >= 0 else "":
        depth += {"<": 1, "(": 1, ">": -1, ")": -1}.get(character, 0)
        if depth < 0:
            return [*found, current.strip()]
        if character == "," and depth == 0:
            found.append(current.strip())
            current = ""
        else:
            current += character
    return []


def role_of(name: str) -> str:
    """fused, norm, quant, gemm or other; ``unclear`` for aiter's norm template where its types are not in the name."""
    if "add_rmsnorm_quant_kernel" in name:
        arguments = template_arguments(name)
        if len(arguments) < 2:
            return "unclear"
        return "fused" if arguments[0] != arguments[1] else "norm"
    return next((role for role, pattern in ROLES if pattern.search(name)), "other")


def matches(wanted: str, name: str) -> bool:
    """Whether ``name`` contains ``wanted``; ``re:PATTERN`` is a regular expression. Raises TraceError for a bad one."""
    if not wanted.startswith("re:"):
        return wanted in name
    try:
        return re.search(wanted[3:], name) is not None
    except re.error as error:
        raise TraceError(f"{wanted!r} is not a regular expression: {error}.") from None


# ---- reading


def load(path: str | Path) -> Trace:
    """The launches of a trace file (.json or .json.gz); raises TraceError with one sentence."""
    data = _json(Path(path))
    events = data.get("traceEvents") if isinstance(data, Mapping) else data
    if not isinstance(events, list) or not all(isinstance(event, Mapping) for event in events):
        raise TraceError(f"{path} is JSON and no Chrome trace: it has no list of traceEvents.")
    spans = [e for e in events if e.get("ph") == "X" and "ts" in e and "name" in e]
    if not any("cat" in e for e in spans):
        raise TraceError(f"{path} is a trace of another tool: no event has a category and a time.")
    try:
        return _launches(spans)
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

    def at(self, time: float) -> int | None:
        index = bisect.bisect_right(self._starts, time) - 1
        while index >= 0 and self._starts[index] >= time - self._longest:
            start, end, value = self._found[index]
            if start <= time <= end:
                return value
            index -= 1
        return None


def _labels(spans: Sequence[Mapping[str, Any]], category: str, pattern: re.Pattern[str]) -> _Labels:
    found = []
    for event in spans:
        label = pattern.search(str(event["name"])) if event.get("cat") == category else None
        if label:
            start = float(event["ts"])
            found.append((start, start + float(event.get("dur", 0.0)), int(label[1])))
    return _Labels(found)


def _launches(spans: Sequence[Mapping[str, Any]]) -> Trace:
    steps, layers = ({cat: _labels(spans, cat, p) for cat in _LABEL_CATEGORIES} for p in (_STEP, _LAYER))
    called: dict[object, float] = {}
    for event in spans:
        number = _argument(event, "correlation")
        if event.get("cat") in _LAUNCH_CATEGORIES and number is not None:
            called[number] = float(event["ts"])
    found = []
    for event in spans:
        if event.get("cat") != "kernel":
            continue
        start = float(event["ts"])
        launched = called.get(_argument(event, "correlation"))

        step, layer = (_owner(labels, start, launched) for labels in (steps, layers))
        name = readable(str(event["name"]))
        found.append(
            Launch(
                name, role_of(name), start, int(_argument(event, "device", event.get("pid", 0))),
                str(_argument(event, "stream", event.get("tid", 0))), step, layer,
            )
        )  # fmt: skip
    found.sort(key=lambda launch: launch.start_us)
    labelled = sorted({k for e in spans if e.get("cat") in _LABEL_CATEGORIES for k in _step_of(str(e["name"]))})
    return Trace(tuple(found), tuple(labelled), sum(e.get("cat") in ("cpu_op", "operator") for e in spans))


def _step_of(name: str) -> list[int]:
    found = _STEP.search(name)
    return [int(found[1])] if found else []


def _owner(labels: Mapping[str, _Labels], start: float, launched: float | None) -> int | None:
    """The label around the launch; without a launch or labels of the CPU, the one around the kernel."""
    if launched is not None and labels["user_annotation"]:
        return labels["user_annotation"].at(launched)
    found = labels["gpu_user_annotation"].at(start)
    return labels["user_annotation"].at(start) if found is None else found


def _argument(event: Mapping[str, Any], name: str, default: Any = None) -> Any:
    arguments = event.get("args")
    value = arguments.get(name) if isinstance(arguments, Mapping) else None
    return default if value is None else value
