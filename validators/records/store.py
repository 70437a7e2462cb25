"""Records on disk: one JSON line each, readable years later and on another machine.

Nothing recorded is lost when a run is killed: every line is flushed and synced before the next case
starts. Reading is strict, because a sign-off rests on it: only the one line that a kill can cut, the
last of a file, may be unreadable. Needs neither torch nor a kernel (``provenance`` names torch where
it is installed).
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import math
import numbers
import os
import platform
import re
import socket
import subprocess
import sys
import types
import typing
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from validators.records.files import FileError, Lines, check_folder, reason
from validators.records.record import SCHEMA_VERSION, Record, Status

VARIABLES = ("AITER_", "HIPBLASLT_", "PYTORCH_TUNABLEOP_", "TORCH_BLAS_", "TRITON_", "VLLM_ROCM_", "SGLANG_USE_AITER")
"""Beginnings of the environment variables that choose a kernel, a table or a compiler's options; records keep them."""
_SET_BY_AITER = ("AITER_ASM_DIR",)  # a path, which its import sets itself

_NONFINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class StoreError(ValueError):
    """A record or record file that cannot be written or read; its message is one sentence."""


class StoreWarning(UserWarning):
    """Something about a record file that a reader should know; its message is one sentence."""


def to_json(record: Record) -> str:
    """``record`` as one line of strict JSON, without the newline.

    Floats that are not finite become the strings "nan", "inf" and "-inf". Raises StoreError for a
    value that has no JSON form, and for a float in ``provenance`` that is not finite: provenance is
    untyped, so such a float could not be told from text when it is read back.
    """
    return json.dumps(_encode(record, "record"), allow_nan=False, ensure_ascii=True)


def from_json(text: str | bytes) -> Record:
    """The record in one line of JSON; raises StoreError with one sentence if it holds none."""
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except ValueError as error:
        raise StoreError(f"not JSON ({error})") from None
    if not isinstance(value, dict):
        raise StoreError("JSON, but not an object")
    if value.get("schema") != SCHEMA_VERSION:
        raise StoreError(f"record schema {value.get('schema')!r}, and this suite reads schema {SCHEMA_VERSION}")
    decoded: Record = _decode(value, Record, "record")
    return decoded


def _no_constant(name: str) -> None:
    raise ValueError(f"bare {name}")


def _encode(value: object, where: str) -> Any:
    if isinstance(value, Status):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _encode(getattr(value, f.name), f"{where}.{f.name}") for f in dataclasses.fields(value)}
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        number = float(value)
        if math.isfinite(number):
            return number
        if where.startswith("record.provenance"):
            raise StoreError(f"{where} is {number}, and provenance holds finite numbers only")
        return "nan" if math.isnan(number) else ("inf" if number > 0 else "-inf")
    if isinstance(value, dict):
        return {str(k): _encode(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_encode(v, f"{where}[{i}]") for i, v in enumerate(value)]
    raise StoreError(f"{where} is a {type(value).__name__}, which has no JSON form")


def _decode(value: Any, kind: Any, where: str) -> Any:
    """``value`` as the annotated type ``kind``; the annotation says which strings are floats."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _decode(value, next(a for a in arguments if a is not type(None)), where)
    if kind is Status:
        if value not in [s.value for s in Status]:
            raise StoreError(f"{where} is {value!r}, which is no status")
        return Status(value)
    if dataclasses.is_dataclass(kind):
        return _decode_fields(value, kind, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_decode(v, arguments[0], f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {k: _decode(v, arguments[1], f"{where}.{k}") for k, v in value.items()}
    if kind is float:
        if isinstance(value, str) and value in _NONFINITE:
            return _NONFINITE[value]
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif kind in (int, bool, str) and type(value) is kind:
        return value
    raise StoreError(f"{where} is {value!r}, which is not of type {getattr(kind, '__name__', kind)}")


def _decode_fields(value: Any, kind: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise StoreError(f"{where} is {value!r}, which is not an object")
    hints = _hints(kind)
    unknown = sorted(set(value) - set(hints))
    if unknown:
        raise StoreError(f"{where} has a field {unknown[0]!r} that this schema does not know")
    try:
        return kind(**{k: _decode(v, hints[k], f"{where}.{k}") for k, v in value.items()})
    except TypeError as error:
        raise StoreError(f"{where} lacks a field ({error})") from None


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


class Sink:
    """Appends records to ``directory/records-<host>-<pid>.jsonl``, synced to disk line by line.

    The file is made with the first record, never over an existing one, and again in a forked process,
    so that no two processes ever write to the same file. The directory is made and tried at once: a
    run must not find out after its work that its records go nowhere. Raises StoreError.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self._lines: Lines | None = None
        self._pid = 0
        self._written = 0
        self._path: Path | None = None
        try:
            check_folder(self.directory, "records")
        except FileError as error:
            raise StoreError(str(error)) from None

    @property
    def path(self) -> Path | None:
        """The file that this process writes, or None before the first record."""
        return self._path if self._pid == os.getpid() else None

    def write(self, record: Record) -> None:
        """Append one record; on return it is on disk. Raises StoreError, and what was written before stays whole."""
        line = to_json(record).encode() + b"\n"
        try:
            if self._lines is None or self._pid != os.getpid():
                self._lines, self._written = self._open(), 0
            self._lines.append(line)
        except OSError as error:
            kept = f"; {self._written:,} records written before are in {self._path}" if self._written else ""
            raise StoreError(f"cannot write records to {self.directory}: {reason(error)}{kept}") from None
        self._written += 1

    def _open(self) -> Lines:
        self._pid = os.getpid()
        host = re.sub(r"[^A-Za-z0-9.]+", "_", socket.gethostname()) or "host"
        stem = f"records-{host}-{self._pid}"
        # Process ids return: in a container every run may be number 7.
        for attempt in range(1, 10_000):
            path = self.directory / (f"{stem}.jsonl" if attempt == 1 else f"{stem}-{attempt}.jsonl")
            try:
                lines = Lines(path)
            except FileExistsError:
                continue
            self._path = path
            return lines
        raise StoreError(f"{self.directory} already holds thousands of files named {stem}*.jsonl")

    def close(self) -> None:
        """Close the file; further records start a new one."""
        if self._lines is not None and self._pid == os.getpid():
            self._lines.close()
        self._lines = None

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def record_files(directory: str | Path) -> list[Path]:
    """Every ``*.jsonl`` under ``directory``, sorted; raises StoreError if there is no such directory."""
    root = Path(directory)
    if not root.is_dir():
        raise StoreError(f"{root} is not a directory of records")
    return sorted(p for p in root.rglob("*.jsonl") if p.is_file())


def load(directory: str | Path, *, warn: Callable[[str], None] | None = None) -> list[Record]:
    """Every record under ``directory``, file by file in the order written.

    A last line that was cut when its writer was killed is skipped, and said so through ``warn`` (by
    default a StoreWarning). Anything else that is no record raises StoreError with file and line.
    """
    if warn is None:

        def warn(sentence: str) -> None:
            warnings.warn(sentence, StoreWarning, stacklevel=3)

    records: list[Record] = []
    for path in record_files(directory):
        try:
            lines = path.read_bytes().split(b"\n")
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror or error}") from None
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                records.append(from_json(line))
            except StoreError as error:
                # Only a line without its newline can have been cut; one that parses was complete.
                if number == len(lines) and str(error).startswith("not JSON"):
                    warn(f"{path}:{number} was cut while it was written, so one record is lost; it is skipped.")
                    continue
                raise StoreError(f"{path}:{number}: {error}") from None
    return records


def provenance(device: str | None = None) -> dict[str, Any]:
    """Where a record comes from: commit, dirty, python, torch, platform, host, cpu, gpu, environment, arguments, date.

    ``commit`` is None where git or a checkout is absent, ``dirty`` then too; ``dirty`` means that a Python
    or TOML file differs from the commit or is not in it. ``gpu`` is None on device
    "cpu", and where CUDA was not in use yet: asking for its name would create a context. Everything
    except the gpu is looked up once a process; ``date`` is the UTC time of that look-up.
    """
    return {**_machine(), "gpu": _gpu(device), "environment": _environment(), "arguments": sys.argv[1:]}


def _environment() -> dict[str, str]:
    """The variables of ``VARIABLES`` that are set, in the order of their names."""
    named = sorted(name for name in os.environ if name.startswith(VARIABLES) and name not in _SET_BY_AITER)
    return {name: os.environ[name] for name in named}


@functools.cache
def _machine() -> dict[str, Any]:
    commit, dirty = _git()
    return {
        "commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        "torch": _torch_version(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "cpu": _cpu(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


_SOURCES = ("reference", "validators", "golden", "evals", "tests")


def _git() -> tuple[str | None, bool | None]:
    root = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(root)]
    try:
        head = subprocess.run([*command, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        # Sources of the suite only: records, reports and kernels of one's own may lie in the checkout. A kernel's own
        # source is told by its digest.
        status = [*command, "status", "--porcelain", "--", *(f"{folder}/*.py" for folder in _SOURCES)]
        status += [f"{folder}/*.toml" for folder in _SOURCES]
        state = subprocess.run(status, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None, None
    return head.stdout.strip(), bool(state.stdout.strip())


def _torch_version() -> str | None:
    try:
        import torch
    except ImportError:
        return None
    return str(torch.__version__)


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def _gpu(device: str | None) -> str | None:
    torch = sys.modules.get("torch")
    if torch is None or device == "cpu":
        return None
    if not torch.cuda.is_available() or (device is None and not torch.cuda.is_initialized()):
        return None
    return str(torch.cuda.get_device_name(device if device and ":" in device else None))
