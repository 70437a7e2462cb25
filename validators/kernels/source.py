"""Which source a kernel is: a digest of the user's file and of what it takes from its folder, found without running it.

Records of two versions of one file are records of two kernels, whatever their common name says. What counts is read
from the text: the file, the modules of its folder that it imports (anywhere in it, and so on from those), and the
files of its folder that it names in a string, as ``load(sources=["kernel.cu"])`` does. An extension module that is
imported by name is hashed too where it is one file. Libraries that are installed are named by their versions elsewhere.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

from validators.records.provenance import Source

SUFFIXES = (
    ".cu",
    ".cuh",
    ".cpp",
    ".cc",
    ".c",
    ".h",
    ".hpp",
    ".hip",
    ".s",
    ".ll",
    ".mlir",
    ".ttir",
    ".ptx",
    ".py",
    ".co",
    ".hsaco",
    ".cubin",
    ".so",
    ".pyd",
)
"""Files that count when a string of the source names them: sources, and machine code that was built from some."""
EXTENSIONS = (".so", ".pyd")
LIBRARIES = ("torch", "triton", "numpy")
"""Their versions are in every record."""
MOST_FILES = 1000
CHUNK = 1 << 20


def of_file(path: Path, root: Path | None = None, within: Path | None = None) -> Source | None:
    """The digests of a Python file and what it takes from ``within`` (its folder).

    root: where absolute imports start, by default the file's folder. The order of files and the place of the folder do
    not matter. None where the file cannot be read.
    """
    own = path.resolve()
    base = (root or own.parent).resolve()
    inside = (within or base).resolve()
    found: dict[str, str] = {}
    waiting = [own]
    while waiting and len(found) < MOST_FILES:
        file = waiting.pop()
        name = _name(file, base)
        digest = file_digest(file)
        if name in found or not digest:
            continue
        found[name] = digest
        if file.suffix == ".py":
            waiting += [f for f in _taken(file, base) if f.is_relative_to(inside) or f.suffix in EXTENSIONS]
    if not found:
        return None
    text = "\n".join(f"{name} {digest}" for name, digest in sorted(found.items()))
    return Source(hashlib.sha256(text.encode()).hexdigest(), dict(sorted(found.items())))


def of_module(name: str) -> Source | None:
    """The same of an imported module, whose surroundings are its outermost package."""
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if not file:
        return None
    path = Path(file).resolve()
    depth = name.count(".") + (path.name == "__init__.py")
    if depth == 0 or depth >= len(path.parents):
        return of_file(path)
    # The folder of an installed package holds all the others.
    return of_file(path, path.parents[depth], path.parents[depth - 1])


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, "" if it cannot be read; kept as long as the file is not written again."""
    try:
        stat = path.stat()
    except OSError:
        return ""
    return _digest(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=4096)
def _digest(path: Path, modified_ns: int, size: int) -> str:
    found = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                found.update(chunk)
    except OSError:
        return ""
    return found.hexdigest()


def _name(file: Path, base: Path) -> str:
    return file.relative_to(base).as_posix() if file.is_relative_to(base) else file.name


def _taken(file: Path, base: Path) -> Iterator[Path]:
    """Files that ``file`` imports from ``base``, names in a string, or loads as an extension."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _module(alias.name, base, base)
        elif isinstance(node, ast.ImportFrom):
            start = base
            if node.level:
                # "from . import x" in base/a/b.py starts at base/a.
                start = file.parents[node.level - 1] if node.level <= len(file.parents) else base
            stem = node.module or ""
            yield from _module(stem, start, base)
            for alias in node.names:
                yield from _module(f"{stem}.{alias.name}" if stem else alias.name, start, base)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from _named(node.value, file.parent, base)


def _module(dotted: str, start: Path, base: Path) -> Iterator[Path]:
    """The file or package ``dotted`` under ``start`` or next to it; else an extension of that name that is one file."""
    if not dotted or dotted == "*":
        return
    parts = dotted.split(".")
    for folder in dict.fromkeys((start, base)):
        beside = folder.joinpath(*parts)
        if not beside.resolve().is_relative_to(base):
            continue
        for candidate in (beside.with_suffix(".py") if parts[-1] else beside, beside / "__init__.py"):
            if candidate.is_file():
                yield from _packages(candidate, folder)
                yield candidate.resolve()
                return
        extensions = sorted(beside.parent.glob(f"{parts[-1]}.*.so")) + sorted(beside.parent.glob(f"{parts[-1]}.so"))
        if extensions:
            yield from (x.resolve() for x in extensions)
            return
    if len(parts) == 1 and parts[0] not in sys.stdlib_module_names and parts[0] not in LIBRARIES:
        yield from _extension(parts[0])


def _packages(module: Path, folder: Path) -> Iterator[Path]:
    """``__init__.py`` of the packages between ``folder`` and ``module``: they run first."""
    for parent in module.parents:
        if parent == folder or not parent.is_relative_to(folder):
            return
        if (init := parent / "__init__.py").is_file() and init != module:
            yield init.resolve()


def _extension(name: str) -> Iterator[Path]:
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return
    if found is not None and found.origin and found.origin.endswith(EXTENSIONS):
        yield Path(found.origin).resolve()


def _named(text: str, folder: Path, base: Path) -> Iterator[Path]:
    if len(text) > 200 or "\n" in text or "\0" in text or not text.endswith(SUFFIXES):
        return
    for start in dict.fromkeys((folder, base)):
        try:
            file = (start / text).resolve()
            if file.is_file() and file.is_relative_to(base):
                yield file
                return
        except OSError:
            continue
