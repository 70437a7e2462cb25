"""Killed, full, read-only, raced: no half-written golden ever counts."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import golden.store
from golden.commit import commit
from golden.store import MANIFEST, TEMPORARY, GoldenError, locked, read
from tests.support.golden_made import NEW, entry, made

ROOT = Path(__file__).resolve().parents[2]


class Killed(BaseException):
    """Takes the place of a kill: nothing catches it, so nothing is tidied up."""


def _nth(function: Callable[..., Any], n: int, error: BaseException) -> Callable[..., Any]:
    """``function``, whose n-th call (from 0) raises instead."""
    calls = iter(range(10**6))

    def call(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == n:
            raise error
        return function(*args, **kwargs)

    return call


@contextlib.contextmanager
def _ends(monkeypatch: pytest.MonkeyPatch, step: str, n: int, error: BaseException) -> Iterator[None]:
    """The n-th call of ``os.STEP`` raises ``error``."""
    with monkeypatch.context() as patch:
        patch.setattr(os, step, _nth(getattr(os, step), n, error))
        yield


# Three files and the manifest: four renames, and a sync of the file and of its folder for each.
STEPS = [*(("replace", n) for n in range(4)), *(("fsync", n) for n in range(0, 8, 2))]


@pytest.mark.parametrize(("step", "n"), STEPS)
def test_a_kill_at_any_step_leaves_the_old_goldens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, n: int
) -> None:
    before = made(tmp_path)
    with _ends(monkeypatch, step, n, Killed()), pytest.raises(Killed):
        commit(tmp_path, NEW)
    after = read(tmp_path)
    assert (after.rows, after.tensors, after.problems) == (before.rows, before.tensors, ())
    assert after.strays, "the kill came before anything was written, so this shows nothing"
    _accepts_again(tmp_path)


def _accepts_again(root: Path) -> None:
    """The next commit succeeds and clears up."""
    assert len(commit(root, NEW)) == 3
    done = read(root)
    assert done.problems == done.strays == ()
    assert done.tensors == {e.row.id: e.tensors for e in NEW}


def test_a_kill_after_the_manifest_leaves_the_new_goldens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", _nth(Path.unlink, 0, Killed()))
        with pytest.raises(Killed):
            commit(tmp_path, NEW)
    after = read(tmp_path)
    assert after.tensors == {e.row.id: e.tensors for e in NEW}
    assert (len(after.strays), after.problems) == (3, ())
    commit(tmp_path, [])
    assert read(tmp_path).strays == ()


@pytest.mark.parametrize("n", range(4))
def test_a_process_killed_for_good_leaves_the_old_goldens(tmp_path: Path, n: int) -> None:
    before = made(tmp_path)
    code = f"""
import os, signal
from pathlib import Path
from golden.commit import commit
from tests.support.golden_made import NEW
replace, calls = os.replace, iter(range(100))
def killed(*args):
    if next(calls) == {n}:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*args)
os.replace = killed
commit(Path({str(tmp_path)!r}), NEW)
"""
    assert _start(code).wait(timeout=120) == -signal.SIGKILL
    after = read(tmp_path)
    assert (after.rows, after.tensors, after.problems) == (before.rows, before.tensors, ())
    assert any(name.endswith(TEMPORARY) for name in after.strays)
    _accepts_again(tmp_path)


def _start(code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)


@pytest.mark.parametrize(("step", "n"), STEPS)
def test_a_full_disk_changes_nothing_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, n: int
) -> None:
    before, full = made(tmp_path), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    told = pytest.raises(GoldenError, match=r"No space left on device; nothing was accepted")
    with _ends(monkeypatch, step, n, full), told:
        commit(tmp_path, NEW)
    after = read(tmp_path)
    assert (after.rows, after.tensors, after.problems, after.strays) == (before.rows, before.tensors, (), ())
    _accepts_again(tmp_path)


def test_a_folder_that_cannot_be_synced_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems refuse it; the rename has happened, so taking the files back would break the store."""
    made(tmp_path)
    monkeypatch.setattr(os, "fsync", _nth(os.fsync, 7, OSError(errno.EINVAL, "no")))
    assert len(commit(tmp_path, NEW)) == 3
    assert read(tmp_path).problems == ()


def test_a_read_only_tree_is_read_and_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = made(tmp_path / "store")
    (store.root / ".lock").unlink()
    folders = [store.root, *(p for p in store.root.rglob("*") if p.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    if os.access(store.root, os.W_OK):
        # The superuser may write anyway, so the file system's answer is given for it.
        opened = Path.open

        def refusing(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if set(mode) & set("wax+"):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
            return opened(self, mode, *args, **kwargs)

        monkeypatch.setattr(Path, "open", refusing)
    try:
        assert read(store.root).tensors == store.tensors
        with pytest.raises(GoldenError, match=r"cannot write to .*(Permission denied|Read-only file system)"):
            commit(store.root, NEW)
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert read(store.root).rows == store.rows


def test_two_processes_that_accept_at_once_lose_nothing(tmp_path: Path) -> None:
    code = """
from pathlib import Path
from golden.commit import commit
from tests.support.golden_made import entry
for seed in range(15):
    commit(Path({root!r}), [entry(f"per_token_quant-m2-n16-bf16-e4m3fn-gaussian-s{{seed}}", kernel={kernel!r})])
"""
    kernels = ("emulated/aiter-triton", "emulated/eager")
    processes = [_start(code.format(root=str(tmp_path), kernel=kernel)) for kernel in kernels]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    store = read(tmp_path)
    assert store.problems == store.strays == ()
    assert {row.kernel for row in store.rows.values()} == set(kernels)
    assert len(store.rows) == 30


def test_a_reader_never_sees_a_store_between_two_states(tmp_path: Path) -> None:
    """Reading while another process replaces goldens over and over; without the shared lock files would go missing."""
    made(tmp_path)
    code = f"""
from pathlib import Path
from golden.commit import commit
from tests.support.golden_made import CASES, entry
for fill in range(40):
    commit(Path({str(tmp_path)!r}), [entry(case, fill=fill) for case in CASES])
"""
    process = _start(code)
    reads = 0
    while process.poll() is None:
        store = read(tmp_path)
        assert store.problems == store.strays == ()
        assert len({t["codes"].data[0] for t in store.tensors.values()}) in (1, 3)
        reads += 1
    assert process.returncode == 0
    assert reads > 5


def test_a_lock_that_is_not_released_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path)
    monkeypatch.setattr(golden.store, "LOCK_SECONDS", 0.2)
    with locked(tmp_path, exclusive=True), pytest.raises(GoldenError, match=r"locked by another process for 0\.2 s"):
        commit(tmp_path, NEW)


def test_a_damaged_store_accepts_nothing(tmp_path: Path) -> None:
    store = made(tmp_path)
    path = tmp_path / str(store.rows[entry().row.id].file)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(GoldenError, match="the store is damaged, so nothing was accepted"):
        commit(tmp_path, NEW)
    path.unlink()
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(GoldenError, match="restore it from version control"):
        commit(tmp_path, NEW)
