"""What is to be signed: a claim names kernels, contracts, an architecture and versions.

A claim is a TOML file, or the name of a kernel with options. Records that it does not name cannot help it: a kernel
judged under another contract, on another architecture or with another version of a library is another kernel.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from validators.errors import UserError
from validators.records.record import Record, Status
from validators.words import FUSED, OPS


class ClaimError(UserError):
    """A claim or policy that cannot be read or makes no sense; its message is one sentence."""


@dataclass(frozen=True)
class Target:
    """What a claim claims.

    sources: kernel -> SHA-256 of its source, or the beginning of it, absent where any will do. kernels: op -> names; a
    claim of one path names one an op, that of a whole machine all it has. contracts: op ->
    name, absent where any will do. versions: library -> pattern (``2.13.*``). one_path: each op has one kernel, and
    stages of the whole path belong to it. source: where the claim comes from, in words.
    """

    name: str
    arch: str
    kernels: Mapping[str, tuple[str, ...]]
    contracts: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    one_path: bool = True
    source: str = ""
    about: str = ""

    @property
    def norm(self) -> str:
        """The kernel that names the path: the fused norm's, or the first there is."""
        every = [name for names in self.kernels.values() for name in names]
        return next(iter(self.kernels.get(FUSED, ())), every[0])

    def names(self, record: Record) -> bool:
        """Whether the claim is about the kernel of ``record`` on the record's architecture, or may be."""
        if record.arch not in (self.arch, "", "unknown"):
            return False
        if record.op in OPS:
            return record.kernel in self.kernels.get(record.op, ())
        return any(record.kernel in found for found in self.kernels.values())

    def refuses(self, record: Record) -> str | None:
        """Why a record of one of its kernels does not count, in words; None if it does."""
        wanted = self.contracts.get(record.op)
        if wanted and record.contract not in (wanted, None):
            return f"judged under contract {record.contract}, and the claim says {wanted}"
        digest = source_of(record)
        if (source := self.sources.get(record.kernel)) and not digest.startswith(source):
            return f"made from source {digest[:12] or 'unknown'}, and the claim says {source[:12]}"
        for library, pattern in self.versions.items():
            found = version_of(record, library)
            if found is None:
                return f"without the version of {library}, and the claim says {pattern}"
            if not fnmatch.fnmatchcase(found, pattern):
                return f"with {library} {found}, and the claim says {pattern}"
        return None


def source_of(record: Record) -> str:
    """SHA-256 of the kernel's source that the record names, or ""."""
    source = record.provenance.kernel_source
    return source.sha256 if source else ""


def version_of(record: Record, library: str) -> str | None:
    """The version of ``library`` (or of ``torch``, ``python``) that ``record`` names, or None."""
    known = record.provenance
    own = {"torch": known.torch, "python": known.python}.get(library)
    return known.kernel_versions.get(library) or own or None


def read_toml(path: str | Path) -> dict[str, Any]:
    """The content of a TOML file; raises ClaimError with one sentence."""
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        try:
            import tomli as tomllib
        except ModuleNotFoundError:
            try:
                from pip._vendor import tomli as tomllib
            except ImportError:
                raise ClaimError("Python 3.10 reads TOML with tomli: python -m pip install tomli") from None
    try:
        found: dict[str, Any] = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ClaimError(f"cannot read {path}: {error.strerror or error}.") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise ClaimError(f"{path} is no TOML: {error}.") from None
    return found


def texts(value: object, where: str) -> dict[str, str]:
    """A table of strings, or ClaimError."""
    if not isinstance(value, dict) or not all(isinstance(v, str) and v.strip() for v in value.values()):
        raise ClaimError(f"{where} must be a table of texts.")
    return dict(value)


def known_keys(table: Mapping[str, object], known: Sequence[str], where: str) -> None:
    """Raise ClaimError for a key that nothing reads: a misspelt one would silently mean nothing."""
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise ClaimError(f"{where} has {unknown[0]!r}, which means nothing there; known: {', '.join(known)}.")


def from_file(path: str | Path) -> Target:
    """The claim in a TOML file: ``name``, ``arch``, ``[kernels]``, and optionally ``about``, ``[contracts]``,
    ``[versions]`` and ``[sources]`` (kernel -> SHA-256 of its source, or at least its first eight characters)."""
    data = read_toml(path)
    known_keys(data, ("name", "about", "arch", "kernels", "contracts", "versions", "sources"), f"claim {path}")
    for key in ("name", "arch"):
        if not isinstance(data.get(key), str) or not data[key].strip():
            raise ClaimError(f"claim {path} must say its {key!r}.")
    kernels = texts(data.get("kernels"), f"[kernels] of claim {path}")
    contracts = texts(data.get("contracts", {}), f"[contracts] of claim {path}")
    for op in (*kernels, *contracts):
        if op not in OPS:
            raise ClaimError(f"claim {path} names op {op!r}; known: {', '.join(OPS)}.")
    if not kernels:
        raise ClaimError(f"claim {path} names no kernel.")
    for op in contracts:
        if op not in kernels:
            raise ClaimError(f"claim {path} has a contract of {op} and no kernel.")
    sources = texts(data.get("sources", {}), f"[sources] of claim {path}")
    for kernel, digest in sources.items():
        if kernel not in kernels.values():
            raise ClaimError(f"claim {path} has a source of {kernel}, which is none of its kernels.")
        check_source(digest, f"[sources] of claim {path}")
    return Target(
        name=data["name"],
        arch=data["arch"],
        kernels={op: (kernels[op],) for op in OPS if op in kernels},
        contracts=contracts,
        sources=sources,
        versions=texts(data.get("versions", {}), f"[versions] of claim {path}"),
        source=str(path),
        about=str(data.get("about", "")).strip(),
    )


def check_source(digest: str, where: str) -> str:
    """The digest, or ClaimError: a short beginning would fit many."""
    if not re.fullmatch(r"[0-9a-f]{8,64}", digest):
        raise ClaimError(f"{where}: {digest!r} is no SHA-256, nor at least eight characters of its beginning.")
    return digest


def of_kernel(
    name: str,
    records: Sequence[Record],
    *,
    arch: str | None = None,
    contract: str | None = None,
    versions: Mapping[str, str] | None = None,
    source: str | None = None,
) -> Target:
    """The claim of one kernel, its ops and architecture found in the records; raises ClaimError where they differ."""
    found = [r for r in records if r.kernel == name and r.op in OPS and not r.fake]
    if not found:
        raise ClaimError(f"{name!r} is neither a claim's file nor a kernel that the records name.")
    archs = sorted({r.arch for r in found if r.arch not in ("", "unknown")})
    if arch is None and len(archs) != 1:
        raise ClaimError(f"the records of {name} come from {' and '.join(archs) or 'no known arch'}; say --arch.")
    ops = {r.op for r in found}
    return Target(
        name=name,
        arch=arch or archs[0],
        kernels={op: (name,) for op in OPS if op in ops},
        contracts=dict.fromkeys(ops, contract) if contract else {},
        versions=dict(versions or {}),
        source="options",
        sources={name: check_source(source, "--source")} if source else {},
    )


def of_machines(records: Sequence[Record], versions: Mapping[str, str] | None = None) -> list[Target]:
    """One claim for each architecture: every kernel that ran there."""
    by_arch: dict[str, dict[str, dict[str, None]]] = {}
    for r in records:
        if r.op in OPS and r.status is not Status.UNTESTED and r.arch not in ("", "unknown", "any") and not r.fake:
            by_arch.setdefault(r.arch, {}).setdefault(r.op, {})[r.kernel] = None
    return [
        Target(
            name=f"every kernel on {arch}",
            arch=arch,
            kernels={op: tuple(ops[op]) for op in OPS if op in ops},
            versions=dict(versions or {}),
            one_path=False,
            source="the records",
        )
        for arch, ops in by_arch.items()
    ]
