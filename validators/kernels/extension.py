"""Extensions of other projects: found by path, loaded without importing the engine, and named in the records.

A wheel of vLLM or of sglang-kernel holds its kernels in shared objects that register ops with torch when they are
loaded. ``torch.ops.load_library`` is all that they need: the engine's Python code, and what it imports, stays out.

Where a library is looked for, in this order:

1. the environment variable (``VLLM_PATH``, ``SGL_KERNEL_PATH``): a folder of an unpacked wheel, the package's folder
   inside it, or the shared object itself;
2. the installed package, found by its name and not imported.

Ops that are registered already (the engine was imported first, or a test double) are used as they are.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import mmap
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from validators import arch
from validators.kernels.kernel import Kernel, KernelError

_SHARED_OBJECT = b"\x7fELF"


@dataclass(frozen=True)
class Library:
    """A wheel's compiled ops.

    package: import name, ``vllm``. variable: environment variable that names its place. namespace: of
    ``torch.ops``. distributions: names of the wheel on the package index, the newest first. patterns():
    groups of file patterns below the package's folder; the files of the first group that matches are loaded.
    """

    package: str
    variable: str
    namespace: str
    distributions: tuple[str, ...]
    patterns: Callable[[], tuple[tuple[str, ...], ...]]


def op(library: Library, name: str) -> Any:
    """``torch.ops.<namespace>.<name>``; raises KernelError where it cannot be called here."""
    if reason := missing(library, name):
        raise KernelError(reason)
    return getattr(getattr(torch.ops, library.namespace), name)


def missing(library: Library, op: str) -> str | None:
    """One sentence why ``torch.ops.<namespace>.<op>`` cannot be called here, or None. Loads the library if needed."""
    if _registered(library, op):
        return None
    files = find(library)
    if isinstance(files, str):
        return files
    failures = []
    for path in files:
        if reason := _load(str(path)):
            failures.append(reason)
        elif _registered(library, op):
            return None
    if failures:
        return "; ".join(failures)
    return (
        f"{', '.join(map(str, files))} ({library.package} {_version(library, files[0]) or 'of unknown version'}) "
        f"registers no torch.ops.{library.namespace}.{op}"
    )


def unavailable(library: Library, op: str, device: str) -> str | None:
    """One sentence why the op cannot run on ``device``, or None; a test double runs anywhere."""
    return (None if is_fake(library) else arch.no_gpu(device)) or missing(library, op)


def kernel(library: Library, name: str, **fields: Any) -> Kernel:
    """The adapter of ``torch.ops.<namespace>.<name>``; ``fields`` of ``Kernel`` beyond those that follow from both."""
    follows: dict[str, Any] = {
        "unavailable": functools.partial(unavailable, library, name),
        "versions": functools.partial(versions, library),
        "fake": is_fake(library),
    }
    return Kernel(name=f"{library.package}/{name}", **{**follows, **fields})


def find(library: Library) -> tuple[Path, ...] | str:
    """The shared objects to load, or one sentence why there are none."""
    given = os.environ.get(library.variable, "")
    if given:
        return _given(library, Path(given).expanduser())
    folder = _installed(library.package)
    if folder is None:
        return f"{library.package} is not installed, and {library.variable} is not set"
    return _matching(library, folder) or (
        f"the installed {library.package} at {folder} has no extension {_named(library)}; "
        f"{library.variable} can name another"
    )


def is_fake(library: Library) -> bool:
    """Whether the library is a test double: a module marked ``__fake__``, or a file that no loader would take."""
    if getattr(sys.modules.get(library.package), "__fake__", False):
        return True
    files = find(library)
    return not isinstance(files, str) and any(_head(path) != _SHARED_OBJECT for path in files)


def versions(library: Library) -> Mapping[str, str]:
    """Versions of torch and CUDA, of the wheel, and which file was loaded: its name, digest and CUDA of its build."""
    found = dict(arch.versions())
    files = find(library)
    if isinstance(files, str):
        version = arch.distribution_version(*library.distributions)
        return found if version is None else {**found, library.distributions[0]: version}
    found[library.distributions[0]] = _version(library, files[0]) or "unknown"
    for path in files:
        status = path.stat()
        found[path.name] = _description(str(path), status.st_size, status.st_mtime_ns)
    return found


def holds(library: Library, text: bytes) -> bool:
    """Whether a file of the library holds ``text``, for instance the message of a check; False if there is no file."""
    files = find(library)
    if isinstance(files, str):
        return False
    return any(_search(str(path), path.stat().st_mtime_ns, re.escape(text)) is not None for path in files)


def _registered(library: Library, op: str) -> bool:
    return hasattr(getattr(torch.ops, library.namespace), op)


def _given(library: Library, place: Path) -> tuple[Path, ...] | str:
    """What the environment variable names."""
    if not place.exists():
        return f"{library.variable} names {place}, which does not exist"
    if place.is_file():
        if place.suffix in (".whl", ".zip"):
            return f"{library.variable} names {place}; unpack it first: python -m zipfile -e {place} FOLDER"
        return (place,)
    for folder in (place / library.package, place):
        if files := _matching(library, folder):
            return files
    return f"{library.variable} names {place}, which holds no {_named(library)}"


def _named(library: Library) -> str:
    return " or ".join(pattern for group in library.patterns() for pattern in group)


def _matching(library: Library, folder: Path) -> tuple[Path, ...]:
    for group in library.patterns():
        if files := [path for pattern in group for path in sorted(folder.glob(pattern))]:
            return tuple(files)
    return ()


def _installed(package: str) -> Path | None:
    """Folder of the installed package; it is not imported."""
    module = sys.modules.get(package)
    if module is not None:
        places = list(getattr(module, "__path__", None) or [])
    else:
        try:
            spec = importlib.util.find_spec(package)
        except (ImportError, ValueError):
            spec = None
        places = list((spec.submodule_search_locations if spec is not None else None) or [])
    return Path(places[0]) if places else None


@functools.cache
def _load(path: str) -> str | None:
    """Loads ``path`` once a process; one sentence if that fails, else None."""
    try:
        torch.ops.load_library(path)
    except (OSError, RuntimeError, ImportError) as error:
        # Since torch 2.10 the loader's own words are the cause of an error that names the path only.
        lines = str(error.__cause__ or error).strip().splitlines() or [repr(error)]
        said = lines[0].removeprefix(f"{path}: ")
        hint = ""
        if "undefined symbol" in said:
            hint = "; it was built for another torch"
        elif "libcuda.so" in said and "cannot open shared object file" in said:
            hint = "; that file belongs to the driver of the GPU, which is not installed here"
        elif "cannot open shared object file" in said:
            hint = "; the CUDA that it was built with is not here"
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        return f"{path} cannot be loaded into torch {torch.__version__} with {build}: {said}{hint}"
    return None


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4)
    except OSError:
        return b""


def _version(library: Library, path: Path) -> str | None:
    """Version in the wheel's own metadata next to the file, else that of the installed distribution."""
    for folder in list(path.resolve().parents)[:3]:
        for name in library.distributions:
            for metadata in sorted(folder.glob(f"{name.replace('-', '_')}-*.dist-info/METADATA")):
                for line in metadata.read_text(encoding="utf-8", errors="replace").splitlines():
                    if line.startswith("Version:"):
                        return line.partition(":")[2].strip()
    if os.environ.get(library.variable):
        return None
    return arch.distribution_version(*library.distributions)


@functools.cache
def _search(path: str, changed: int, pattern: bytes) -> bytes | None:
    """First match of ``pattern`` in a file, mapped and not read into memory; ``changed`` is part of the key only."""
    if os.path.getsize(path) == 0:
        return None
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        match = re.search(pattern, data)
        return None if match is None else bytes(match[0])


@functools.cache
def _description(path: str, size: int, changed: int) -> str:
    """``sha256 0123456789abcdef, built with CUDA 13``, and what it was slimmed from (``wheel slim``)."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    parts = [f"sha256 {digest.hexdigest()[:16]}"]
    runtime = _search(path, changed, rb"libcudart\.so\.\d+")
    if runtime is not None:
        parts.append(f"built with CUDA {runtime.rpartition(b'.')[2].decode()}")
    note = Path(path + ".slim.json")
    if note.is_file():
        try:
            known = json.loads(note.read_text(encoding="utf-8"))
            parts.append(f"slimmed for {known['arch']} from sha256 {str(known['sha256'])[:16]}")
        except (ValueError, KeyError, TypeError):
            parts.append("slimmed, from what cannot be read")
    return ", ".join(parts)
