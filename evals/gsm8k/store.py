"""Run directories: what an arm left behind, appended as it happens, read strictly.

``header.json`` is written first and never changed. ``samples.jsonl`` holds one answer for each (question, repeat),
``errors.jsonl`` every request that failed for good, for an answer or for the scores of a gold solution (a later one
settles it), ``tokens.jsonl`` teacher-forced scores.
A kill can cut the last line of a file: it is dropped, and its question is asked again. Anything else that cannot be
read is an error, as is a question that was answered twice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from evals.errors import EvalError
from evals.gsm8k.samples import ANSWER, SCHEMA_VERSION, SCORE, Header, Sample, TokenScore
from validators.records import files
from validators.records.codec import CodecError, decode, encode

T = TypeVar("T")

HEADER, SAMPLES, ERRORS, TOKENS = "header.json", "samples.jsonl", "errors.jsonl", "tokens.jsonl"
Key = tuple[str, int]
SYNC_EVERY = 64
SYNC_SECONDS = 2.0
"""A batch is synced to disk after so many lines or so many seconds; a power cut costs no more than one batch."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory as read. samples: answers. errors: the last error of every question that has no answer yet;
    unscored: of every gold solution that failed and has no scores yet."""

    path: Path
    header: Header
    samples: tuple[Sample, ...]
    errors: tuple[Sample, ...] = ()
    tokens: tuple[TokenScore, ...] = ()
    unscored: tuple[Sample, ...] = ()

    @property
    def everything(self) -> tuple[Sample, ...]:
        """Answers and unsettled errors together, in the order of the permutation; what ``parity.decide`` takes."""
        return tuple(sorted((*self.samples, *self.errors), key=lambda s: (s.repeat, s.order)))


def key(sample: Sample) -> Key:
    return sample.question, sample.repeat


def identity(header: Header) -> dict[str, Any]:
    """What must be equal for a run to be resumed: everything but the server's words and the circumstances."""
    return {name: value for name, value in encode(header).items() if name not in ("fingerprint", "provenance")}


class Writer:
    """Appends to a run directory; a context manager. One process at a time.

    done: keys (question, repeat) that are answered, those of earlier processes included. Raises EvalError if the
    directory belongs to another run (its header differs), if another process writes it, or on a key written twice.
    """

    def __init__(self, path: str | Path, header: Header) -> None:
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EvalError(f"cannot make the run directory {self.path} ({error.strerror or error})") from None
        self._files: dict[str, _Lines] = {}
        self._lock = self._take_lock()
        try:
            _settle_header(self.path, header)
            self.header = read_header(self.path)
            for name in (SAMPLES, ERRORS, TOKENS):
                _drop_cut_line(self.path / name)
            found = read(self.path)
            self.done: set[Key] = {key(s) for s in found.samples}
            self.scored: set[str] = {t.question for t in found.tokens}
        except BaseException:
            os.close(self._lock)
            raise
        self._unsynced, self._synced = 0, time.monotonic()

    def _take_lock(self) -> int:
        try:
            handle = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise _unwritable(self.path, error) from None
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # no such lock on this system
            pass
        except OSError:
            os.close(handle)
            raise EvalError(f"another process is writing {self.path}") from None
        return handle

    def add(self, sample: Sample) -> None:
        """One answer, or one error; flushed at once, synced by batch."""
        if sample.error is not None:
            self._append(ERRORS, sample)
            return
        if sample.text is None or sample.what != ANSWER:
            raise EvalError(f"question {sample.question} has neither text nor error")
        if key(sample) in self.done:
            raise EvalError(f"question {sample.question} (repeat {sample.repeat}) is answered twice in {self.path}")
        self.done.add(key(sample))
        self._append(SAMPLES, sample)

    def add_tokens(self, score: TokenScore) -> None:
        """Teacher-forced scores of one question."""
        if score.question in self.scored:
            raise EvalError(f"question {score.question} is scored twice in {self.path}")
        self.scored.add(score.question)
        self._append(TOKENS, score)

    def _append(self, name: str, value: Sample | TokenScore) -> None:
        try:
            if name not in self._files:
                self._files[name] = _Lines(self.path / name)
            self._files[name].append(json.dumps(encode(value), allow_nan=False).encode() + b"\n")
        except OSError as error:
            raise _unwritable(self.path, error) from None
        self._unsynced += 1
        if self._unsynced >= SYNC_EVERY or time.monotonic() - self._synced > SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Waits until everything written is on the disk; EvalError where it does not get there."""
        try:
            for file in self._files.values():
                os.fsync(file.handle)
        except OSError as error:
            raise _unwritable(self.path, error) from None
        self._unsynced, self._synced = 0, time.monotonic()

    def close(self) -> None:
        if self._lock < 0:
            return
        try:
            self.sync()
        finally:
            for file in self._files.values():
                with contextlib.suppress(OSError):
                    os.close(file.handle)
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        # What ended the work is the sentence to show, and not that closing failed for the same reason.
        with contextlib.suppress(*([] if kind is None else [EvalError])):
            self.close()


class _Lines:
    """Appends whole lines to a file. After a write that failed the file ends with the last whole line."""

    def __init__(self, path: Path) -> None:
        self.handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def append(self, line: bytes) -> None:
        size = os.fstat(self.handle).st_size
        try:
            files.write_all(self.handle, line)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self.handle, size)
            raise


def _unwritable(path: Path, error: OSError) -> EvalError:
    return EvalError(f"cannot write to {path} ({error.strerror or error})")


def _settle_header(path: Path, header: Header) -> None:
    file = path / HEADER
    if file.exists():
        ours, theirs = identity(header), identity(read_header(path))
        different = [name for name in ours if ours[name] != theirs[name]]
        if different:
            name = different[0]
            raise EvalError(
                f"{path} holds another run: its {name} is {theirs[name]!r} and not {ours[name]!r}; take a new directory"
            )
        return
    if any((path / name).exists() for name in (SAMPLES, ERRORS, TOKENS)):
        raise EvalError(f"{path} holds samples and no {HEADER}, so nobody knows what ran; take a new directory")
    part = file.with_suffix(".part")
    try:
        with part.open("wb", buffering=0) as out:
            files.write_all(out.fileno(), json.dumps(encode(header), indent=1, allow_nan=False).encode())
            os.fsync(out.fileno())
        part.replace(file)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise EvalError(f"cannot write to {path} ({error.strerror or error})") from None


def _drop_cut_line(file: Path) -> None:
    """Cuts off a last line without its newline, unless it is whole."""
    if not file.exists():
        return
    with file.open("r+b") as handle:
        end = handle.seek(0, os.SEEK_END)
        start, tail = end, b""
        while start > 0 and b"\n" not in tail:
            step = min(1 << 16, start)
            start -= step
            handle.seek(start)
            tail = handle.read(step) + tail
        cut = tail[tail.rfind(b"\n") + 1 :]
        if not cut:
            return
        try:
            json.loads(cut)
        except ValueError:
            handle.truncate(end - len(cut))
        else:
            handle.seek(0, os.SEEK_END)
            handle.write(b"\n")


def read_header(path: str | Path) -> Header:
    """The header of a run directory; EvalError if there is none or it cannot be read."""
    file = Path(path) / HEADER
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise EvalError(f"{path} is no run directory: cannot read {file.name} ({error.strerror or error})") from None
    except ValueError:
        raise EvalError(f"{file} is not JSON") from None
    if isinstance(value, dict) and value.get("schema") != SCHEMA_VERSION:
        raise EvalError(f"{file} has schema {value.get('schema')!r}, and this suite reads schema {SCHEMA_VERSION}")
    return _decoded(Header, value, str(file))


def read(path: str | Path) -> Run:
    """Everything in a run directory; EvalError with file and line for what cannot be read, and for a duplicate."""
    root = Path(path)
    header = read_header(root)
    samples = [_sample(value, where) for value, where in _lines(root / SAMPLES)]
    seen: set[Key] = set()
    for sample in samples:
        if sample.error is not None or sample.text is None or sample.what != ANSWER:
            raise EvalError(f"{root / SAMPLES}: question {sample.question} is an error or has no text")
        if key(sample) in seen:
            raise EvalError(f"{root / SAMPLES}: question {sample.question} (repeat {sample.repeat}) is answered twice")
        seen.add(key(sample))
    errors: dict[str, dict[Key, Sample]] = {ANSWER: {}, SCORE: {}}
    for failed in (_sample(value, where) for value, where in _lines(root / ERRORS)):
        errors[failed.what][key(failed)] = failed
    tokens = [_decoded(TokenScore, value, where) for value, where in _lines(root / TOKENS)]
    scored = {t.question for t in tokens}
    if len(scored) != len(tokens):
        raise EvalError(f"{root / TOKENS}: a question is scored twice")
    left = tuple(s for k, s in errors[ANSWER].items() if k not in seen)
    unscored = tuple(s for s in errors[SCORE].values() if s.question not in scored)
    return Run(root, header, tuple(samples), left, tuple(tokens), unscored)


def write(path: str | Path, header: Header, samples: Iterable[Sample], tokens: Iterable[TokenScore] = ()) -> None:
    """A whole run at once, or none: a run that could not be written to its end leaves the new directory empty."""
    with Writer(path, header) as writer:
        fresh = not (writer.done or writer.scored)
        try:
            for sample in samples:
                writer.add(sample)
            for score in tokens:
                writer.add_tokens(score)
            writer.sync()
        except BaseException:
            if fresh:
                for name in (HEADER, SAMPLES, ERRORS, TOKENS):
                    with contextlib.suppress(OSError):
                        (writer.path / name).unlink()
            raise


def _lines(file: Path) -> Iterator[tuple[Any, str]]:
    """(value, "file:line") of every line; a cut last line is passed over."""
    if not file.exists():
        return
    with file.open("rb") as handle:
        for number, line in enumerate(handle, 1):
            try:
                value = json.loads(line)
            except ValueError:
                if not line.endswith(b"\n"):
                    return
                raise EvalError(f"{file}:{number} is not JSON") from None
            yield value, f"{file}:{number}"


def _decoded(kind: type[T], value: object, where: str) -> T:
    """``value`` as the dataclass ``kind``; EvalError with ``where`` (file and line) for what does not fit."""
    try:
        return decode(value, kind, f"{where}: {kind.__name__.lower()}")
    except CodecError as error:
        raise EvalError(str(error)) from None


def _sample(value: Any, where: str) -> Sample:
    sample = _decoded(Sample, value, where)
    if sample.what not in (ANSWER, SCORE):
        raise EvalError(f"{where}: what is {sample.what!r}, and must be {ANSWER} or {SCORE}")
    return sample
