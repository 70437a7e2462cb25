"""Goldens on disk: a manifest with one row per golden, and one safetensors file per golden. Reading and integrity.

Needs neither torch nor anything else of this repository, so ``list`` and the check of every file's integrity
work anywhere. Every byte is covered: a row carries a digest of itself, of every output whole, and of what is stored of
it; a file must be exactly the encoding of the tensors that its row names.

Only what the manifest names counts. It is replaced last and in one step (``golden.commit``), so a file that no row
names was left by an interrupted accept and is never a golden.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from validators.errors import UserError

SCHEMA = 1
MANIFEST = "manifest.json"
LOCK = ".lock"
TEMPORARY = ".partial"
"""Suffix of a file that is still being written; never read."""
LOCK_SECONDS = 60.0
KINDS = ("kernel", "reference", "inputs")
ITEM_BYTES = {"U8": 1, "I8": 1, "I16": 2, "BF16": 2, "F16": 2, "F32": 4, "F64": 8}
"""safetensors types in use. FP8 codes are stored as U8: bytes are what is compared, and not every reader of the format
knows e4m3fnuz; the row keeps the output's own type."""
_FILE_NAME = re.compile(r"[A-Za-z0-9_.]+(?:/[A-Za-z0-9_.-]+)+\.safetensors")
_OWN_FILES = (MANIFEST, LOCK, ".gitignore", ".gitattributes")


class GoldenError(UserError):
    """A golden, manifest or request that cannot be used; its message is one sentence."""


@dataclass(frozen=True)
class Tensor:
    """Bytes of a tensor in logical order. dtype: a key of ``ITEM_BYTES``."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def digest(self) -> str:
        """sha256 (hex) over dtype, shape and bytes."""
        head = f"{self.dtype}:{','.join(map(str, self.shape))}\n".encode()
        return hashlib.sha256(head + self.data).hexdigest()


@dataclass(frozen=True)
class Output:
    """What a row says of one output. dtype: the kernel's ("float8_e4m3fn"). shape: of the whole output.

    sha256: digest of the whole output. rows: which rows of the output (as a matrix) are stored, None if all.
    stored_sha256: digest of the stored part.
    """

    dtype: str
    shape: tuple[int, ...]
    sha256: str
    stored_sha256: str
    rows: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Row:
    """One golden.

    kind: "kernel" (outputs of a kernel), "reference" (float64 truth of a case, under every contract of its op) or
    "inputs" (digest of a case's inputs only). arch: "cpu", "sm_90", "gfx942", or None where it does not matter.
    inputs: digest of the case's inputs. isa: vector ISA of the CPU where the bits depend on it, else None. library: the
    libraries that they depend on then, and the CPU's maker.
    file: path of the tensors relative to the store, None if there are none. history: earlier rows, newest first.
    unwritten: fields that the row's JSON lacks, because they are younger than the row.
    """

    id: str
    kind: str
    case: str
    op: str
    inputs: str
    kernel: str | None = None
    arch: str | None = None
    contract: str | None = None
    outputs: dict[str, Output] = field(default_factory=dict)
    file: str | None = None
    isa: str | None = None
    library: str | None = None
    emulated: bool = False
    fake: bool = False
    versions: dict[str, str] = field(default_factory=dict)
    commit: str | None = None
    date: str = ""
    reason: str = ""
    history: tuple[dict[str, Any], ...] = ()
    unwritten: frozenset[str] = field(default=frozenset(), compare=False)

    def to_json(self) -> dict[str, Any]:
        """Fields as JSON values, with the row's own digest; those of a row that was read are the ones it was read from.

        A field that nobody accepted with the row would give it another digest.
        """
        names = [
            f.name for f in _fields_of_rows() if f.name not in self.unwritten or getattr(self, f.name) != f.default
        ]
        value: dict[str, Any] = json.loads(
            json.dumps({k: v for k, v in dataclasses.asdict(self).items() if k in names})
        )
        return {**value, "row_sha256": row_digest(value)}

    def same_golden(self, other: Row) -> bool:
        """Whether both represent the same bits under the same contract; dates, versions and reasons may differ."""
        return (self.inputs, self.contract, self.isa, self.library, self.bits()) == (
            other.inputs,
            other.contract,
            other.isa,
            other.library,
            other.bits(),
        )

    def bits(self) -> dict[str, tuple[str, str, tuple[int, ...]]]:
        """Digest, type and shape of every whole output."""
        return {name: (o.sha256, o.dtype, o.shape) for name, o in self.outputs.items()}


@dataclass(frozen=True)
class Store:
    """All rows and tensors of a folder as they were at one moment, and everything wrong with them.

    problems: sentences that name what is damaged; a store with problems proves nothing. strays: files that no row
    names. tensors: by golden id, only of intact files.
    """

    root: Path
    rows: dict[str, Row]
    tensors: dict[str, dict[str, Tensor]]
    problems: tuple[str, ...]
    strays: tuple[str, ...]

    def require_intact(self) -> None:
        """Raises GoldenError with the first problem and the number of the others."""
        if self.problems:
            more = f" (and {len(self.problems) - 1} more; see verify)" if len(self.problems) > 1 else ""
            raise GoldenError(self.problems[0] + more)


def _fields_of_rows() -> list[dataclasses.Field[Any]]:
    """The fields that a row is written with."""
    return [f for f in dataclasses.fields(Row) if f.name != "unwritten"]


def row_digest(value: dict[str, Any]) -> str:
    """sha256 (hex) of a row's JSON value without its own digest, keys sorted."""
    rest = {k: v for k, v in value.items() if k != "row_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


# ---- safetensors


def encode_file(golden: str, tensors: dict[str, Tensor]) -> bytes:
    """The one safetensors encoding of these tensors that counts: names sorted, no gaps, padded to 8 bytes."""
    header: dict[str, Any] = {"__metadata__": {"golden": golden}}
    offset = 0
    for name in sorted(tensors):
        t = tensors[name]
        if math.prod(t.shape) * ITEM_BYTES[t.dtype] != len(t.data):
            raise GoldenError(f"tensor {name} of {golden} has {len(t.data)} bytes, which is not {t.dtype} {t.shape}")
        header[name] = {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": [offset, offset + len(t.data)]}
        offset += len(t.data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(tensors[name].data for name in sorted(tensors))


def decode_file(data: bytes) -> dict[str, Tensor]:
    """Tensors of a safetensors file; raises GoldenError, in words that continue "FILE ...", if it is none."""
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or 8 + size > len(data):
        raise GoldenError(f"is cut: {len(data)} bytes do not hold its header")
    try:
        header = json.loads(data[8 : 8 + size])
        entries = {k: v for k, v in header.items() if k != "__metadata__"}
        body, found = data[8 + size :], {}
        for name, entry in entries.items():
            start, stop = entry["data_offsets"]
            if stop > len(body):
                raise GoldenError(f"is cut: tensor {name} ends at byte {stop} of {len(body)}")
            found[name] = Tensor(entry["dtype"], tuple(entry["shape"]), body[start:stop])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise GoldenError(f"has a damaged header ({error})") from None
    return found


# ---- manifest


def encode_manifest(rows: dict[str, Row]) -> bytes:
    """The manifest: rows sorted by id, one field a line, so that a diff shows what changed."""
    value = {"schema": SCHEMA, "goldens": [rows[name].to_json() for name in sorted(rows)]}
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=True) + "\n").encode()


def decode_manifest(data: bytes) -> tuple[dict[str, Row], list[str]]:
    """(intact rows by id, problems); raises GoldenError if the text is no manifest at all."""
    try:
        value = json.loads(data, object_pairs_hook=_unique)
        if not isinstance(value, dict) or set(value) != {"schema", "goldens"} or not isinstance(value["goldens"], list):
            raise GoldenError(f"{MANIFEST} does not consist of schema and goldens")
    except ValueError as error:
        raise GoldenError(f"{MANIFEST} is cut or damaged: {error}") from None
    if value["schema"] != SCHEMA:
        raise GoldenError(f"{MANIFEST} has schema {value['schema']!r}, and this suite reads schema {SCHEMA}")
    rows: dict[str, Row] = {}
    problems = []
    for number, item in enumerate(value["goldens"], start=1):
        name = item.get("id", "") if isinstance(item, dict) else ""
        where = f"{MANIFEST}: row {number} ({name})"
        try:
            row = _row(item)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            problems.append(f"{where} is damaged: {error}")
            continue
        if row.id in rows:
            problems.append(f"{where} is there twice")
        rows[row.id] = row
    return rows, problems


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a field occurs twice in one object")
    return found


def _row(item: dict[str, Any]) -> Row:
    if item.get("row_sha256") != row_digest(item):
        raise ValueError("its digest does not fit its fields")
    fields = {k: v for k, v in item.items() if k != "row_sha256"}
    outputs = {
        name: Output(**{**o, "shape": tuple(o["shape"]), "rows": None if o["rows"] is None else tuple(o["rows"])})
        for name, o in fields["outputs"].items()
    }
    names = frozenset(f.name for f in _fields_of_rows())
    if unknown := sorted(set(fields) - names):
        raise ValueError(f"it has a field {unknown[0]!r} that this schema does not know")
    row = Row(**{**fields, "outputs": outputs, "history": tuple(fields["history"])}, unwritten=names - set(fields))
    if row.kind not in KINDS:
        raise ValueError(f"kind {row.kind!r} is none of {', '.join(KINDS)}")
    if row.file is not None and (not _FILE_NAME.fullmatch(row.file) or ".." in row.file):
        raise ValueError(f"file {row.file!r} is not a name inside the store")
    return row


# ---- the folder


def read(root: str | Path) -> Store:
    """Everything under ``root``, checked; raises GoldenError where there is no readable manifest.

    A shared lock is held meanwhile, so that no accept takes files away between the manifest and its tensors.
    """
    folder = Path(root)
    with locked(folder, exclusive=False):
        return read_held(folder)


def read_held(folder: Path) -> Store:
    """``read`` for a caller that holds the lock already; a second lock in one process would wait for the first."""
    try:
        rows, problems = decode_manifest((folder / MANIFEST).read_bytes())
    except OSError as error:
        raise GoldenError(f"cannot read {folder / MANIFEST}: {error.strerror or error}") from None
    tensors = {}
    for row in rows.values():
        try:
            tensors[row.id] = _tensors(folder, row)
        except GoldenError as error:
            problems.append(f"golden {row.id}: {error}")
    named = {row.file for row in rows.values()}
    present = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    strays = [name for name in present if name not in named and name not in _OWN_FILES]
    return Store(folder, rows, tensors, tuple(problems), tuple(strays))


def _tensors(root: Path, row: Row) -> dict[str, Tensor]:
    """Tensors of a row, every byte checked; raises GoldenError."""
    if row.file is None:
        if row.outputs:
            raise GoldenError("has outputs and no file")
        return {}
    try:
        data = (root / row.file).read_bytes()
    except FileNotFoundError:
        raise GoldenError(f"file {row.file} is missing") from None
    except OSError as error:
        raise GoldenError(f"cannot read {row.file}: {error.strerror or error}") from None
    try:
        tensors = decode_file(data)
        if set(tensors) != set(row.outputs):
            raise GoldenError(f"holds tensors {', '.join(sorted(tensors))}, not {', '.join(sorted(row.outputs))}")
        for name, tensor in tensors.items():
            if tensor.digest() != row.outputs[name].stored_sha256:
                raise GoldenError(f"tensor {name} has other bytes than the manifest's digest")
            whole = row.outputs[name]
            if whole.rows is None and whole.sha256 != whole.stored_sha256:
                raise GoldenError(f"tensor {name} is stored whole under two digests")
        if encode_file(row.id, tensors) != data:
            raise GoldenError("has a header or bytes that belong to no tensor of it")
    except GoldenError as error:
        raise GoldenError(f"file {row.file}: {error}") from None
    return tensors


@contextlib.contextmanager
def locked(root: Path, *, exclusive: bool) -> Iterator[None]:
    """Hold the store's lock; readers share it. Raises GoldenError after ``LOCK_SECONDS``.

    A reader of a tree without a lock file goes on without: only a writer makes the file.
    """
    import fcntl

    path = root / LOCK
    try:
        stream = path.open("a" if exclusive else "r")
    except OSError as error:
        if exclusive:
            raise GoldenError(f"cannot write to {root}: {error.strerror or error}") from None
        yield
        return
    with stream:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(stream, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise GoldenError(f"{root} has been locked by another process for {LOCK_SECONDS:g} s") from None
                time.sleep(0.05)
        yield
