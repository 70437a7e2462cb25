"""Disks that are full or fill up, and places that cannot be written: one sentence, and nothing recorded is lost."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.made import record
from tests.support.walk import BELOW_A_FILE, CASE, NORM, one_sentence, the_command, words_of
from validators.records import files
from validators.records.store import Sink, StoreError, load, to_json

pytest_plugins = ("tests.support.place",)

pytestmark = pytest.mark.usefixtures("elsewhere")


class _Disk:
    """A disk with room for so many bytes; the write that does not fit is done in part, as the system does it."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.write = os.write

    def __call__(self, handle: int, data: bytes | memoryview) -> None:
        taken = bytes(data)[: self.room]
        self.room -= len(taken)
        left = memoryview(taken)
        while left:
            left = left[self.write(handle, left) :]
        if len(taken) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """disk(room): from here on files of results take so many bytes more. Trying a folder takes nothing."""

    def limit(room: int) -> None:
        full = _Disk(room)
        monkeypatch.setattr(files, "_PROBE_BYTES", 0)
        monkeypatch.setattr(files, "write_all", full)

    return limit


WRITES = {
    "validators run": "",
    "validators probe": " --json {file}",
    "validators signoff": " --out {new}",
    "validators trace": f" --layers 2 --kernel {NORM} --contract {NORM[9:]} --arch gfx950 --records {{new}}",
    "validators layers": " --records {new}",
    "golden check": " --markdown {file}",
    "golden propose": "",
    "evals gsm8k compare": " --json {file}",
    "evals import": "",
}
"""Commands that write results, with the option that says where; the rest of their arguments is in ``VALID``."""
DEAR = {"golden propose", "validators layers", "validators probe"}
"""Commands that work for seconds before they write; a place that is full from the start is found before that."""


@pytest.mark.parametrize("name", WRITES)
def test_a_disk_that_is_full_from_the_start(
    name: str,
    place: dict[str, str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of = the_command(name)
    own = {**place, "new": str(tmp_path / "new"), "file": str(tmp_path / "file")}
    full = _Disk(0)
    monkeypatch.setattr(files, "write_all", full)
    started = []
    if name in DEAR:
        monkeypatch.setattr("validators.commands.layers.walk", lambda *_, **__: started.append(1))
        monkeypatch.setattr("validators.explain.probe.probe", lambda *_, **__: started.append(1))
        monkeypatch.setattr("golden.propose._entries", lambda *_, **__: started.append(1))
    said = one_sentence(of, [*words_of(of, own), *WRITES[name].format(**own).split()], capfd, code=4)
    assert "No space left on device" in said
    assert not started
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.name != ".lock"]


def test_a_disk_that_fills_up_keeps_the_records_before(
    disk: Callable[[int], None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """``run`` of three cases, room for one record and a half."""
    of = the_command("validators run")
    words = f"--kernel add_rmsnorm_quant={NORM} --device cpu".split()
    for seed in range(3):
        words += ["--case", CASE.replace("-s0", f"-s{seed}")]
    assert of.main([*of.start, *words, "--records", str(tmp_path / "whole")]) == 0
    [whole] = (tmp_path / "whole").iterdir()
    first, second, _ = whole.read_bytes().splitlines(keepends=True)
    disk(len(first) + len(second) // 2)
    capfd.readouterr()
    said = one_sentence(of, [*words, "--records", str(tmp_path / "r")], capfd, code=4)
    assert len(load(tmp_path / "r")) == 1
    assert "No space left on device; 1 record" in said
    [file] = (tmp_path / "r").iterdir()
    assert file.read_bytes().endswith(b"}\n")


def test_half_a_line_does_not_stand_before_the_next_one(disk: Callable[[int], None], tmp_path: Path) -> None:
    size = len(to_json(record())) + 1
    with Sink(tmp_path) as sink:
        disk(size + 50)
        sink.write(record())
        with pytest.raises(StoreError, match="No space left on device; 1 record"):
            sink.write(record())
        disk(10**6)
        sink.write(record(kernel="later"))
    assert [r.kernel for r in load(tmp_path)] == ["demo/fused", "later"]


def test_an_import_is_whole_or_not_there(
    disk: Callable[[int], None], place: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    of = the_command("evals import")
    words = ["lm-eval", place["samples"], "--out", str(tmp_path / "run")]
    disk(900)
    assert "No space left on device" in one_sentence(of, words, capfd, code=4)
    assert [p.name for p in (tmp_path / "run").iterdir()] == [".lock"]
    disk(10**6)
    assert of.main([*of.start, *words]) == 0


@pytest.mark.parametrize("room", [0, 300, 12_000])
def test_a_sign_off_is_whole_or_not_there(
    disk: Callable[[int], None], room: int, place: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    of = the_command("validators signoff")
    words = [place["records"], "--out", str(tmp_path / "out")]
    assert of.main([*of.start, *words]) == 0
    whole = {p.name: p.stat().st_size for p in (tmp_path / "out").iterdir()}
    assert set(whole) >= {"signoff.json", "signoff.md"}
    disk(room)
    capfd.readouterr()
    assert of.main([*of.start, *words]) == 4
    out, err = capfd.readouterr()
    assert out.startswith("SIGNED")  # the decision is told all the same
    assert "cannot write" in err
    assert err.count("\n") == 1
    left = {p.name: p.stat().st_size for p in (tmp_path / "out").iterdir()}
    assert left.items() <= whole.items()  # whole files only, and none under a temporary name


def test_history_gets_a_whole_line_or_none(disk: Callable[[int], None], tmp_path: Path) -> None:
    files.append_whole(tmp_path / "h", "first\n")
    disk(3)
    with pytest.raises(files.FileError, match="No space left on device"):
        files.append_whole(tmp_path / "h", "second\n")
    assert (tmp_path / "h").read_text() == "first\n"


def test_a_device_is_written_and_never_replaced(tmp_path: Path) -> None:
    with pytest.raises(files.FileError, match="No space left on device"):
        files.write_whole("/dev/full", "text")
    assert not Path("/dev/full").is_file()
    files.write_whole(os.devnull, "text")
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    files.write_whole(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_runs_that_start_in_one_second_get_folders_of_their_own(tmp_path: Path) -> None:
    made = [files.new_folder(tmp_path / "records") for _ in range(3)]
    assert len(set(made)) == 3
    assert all(folder.is_dir() for folder in made)


def test_machine_says_before_its_stages_that_its_folder_cannot_be_written(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    of = the_command("validators machine")
    monkeypatch.setattr("validators.commands.machine._run", lambda *_: pytest.fail("a stage ran"))
    for folder in (BELOW_A_FILE, "/proc/x"):
        said = one_sentence(of, ["--policy", "smoke", "--device", "cpu", "--out", folder], capfd)
        assert f"cannot write to {folder}" in said
