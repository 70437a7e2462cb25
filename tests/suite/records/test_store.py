"""Records on disk: nothing is lost, nothing is changed, and a damaged file is never read as a good one."""

from __future__ import annotations

import functools
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.child import python
from tests.support.made import CASE, comparison, failed, record
from validators.records import provenance
from validators.records.provenance import Provenance
from validators.records.record import Comparison, Status
from validators.records.store import Sink, StoreError, StoreWarning, from_json, load, to_json

ROOT = Path(__file__).resolve().parents[3]


def _written(directory: Path, *lines: str, name: str = "records-x-1.jsonl") -> Path:
    path = directory / name
    path.write_bytes("\n".join(lines).encode())
    return path


def test_round_trip_keeps_every_field() -> None:
    # NaN is unequal to itself, so repr, which names every field, is compared.
    assert repr(from_json(to_json(failed()))) == repr(failed())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.0, 5e-324, 0.1, 1.7976931348623157e308])
def test_floats_are_lossless_and_the_line_is_strict_json(value: float) -> None:
    line = to_json(record(comparisons=(comparison(worst_use=value, use_quantiles={"max": value}),)))
    json.loads(line, parse_constant=lambda name: pytest.fail(f"bare {name}"))
    back = from_json(line).comparisons[0]
    assert repr(back.worst_use) == repr(value)
    assert repr(back.use_quantiles["max"]) == repr(value)


def test_text_that_looks_like_a_float_stays_text() -> None:
    back = from_json(to_json(record(kernel="nan", reasons=("inf", "-inf"), provenance=Provenance(cpu="nan"))))
    assert (back.kernel, back.reasons, back.provenance) == ("nan", ("inf", "-inf"), Provenance(cpu="nan"))


def test_numpy_scalars_become_numbers() -> None:
    back = from_json(to_json(record(seconds=np.float32(0.5), comparisons=(comparison(rows=np.int64(7)),))))
    assert (back.seconds, back.comparisons[0].rows) == (0.5, 7)
    assert type(back.comparisons[0].rows) is int


def test_values_without_json_form_are_refused() -> None:
    with pytest.raises(StoreError, match=r"record\.provenance\.cpu is a set, which has no JSON form"):
        to_json(record(provenance=Provenance(cpu={1})))  # type: ignore[arg-type]


def test_sink_writes_a_line_at_a_time(tmp_path: Path) -> None:
    with Sink(tmp_path) as sink:
        assert sink.path is None
        assert list(tmp_path.iterdir()) == []
        for i in range(3):
            sink.write(record(seconds=float(i)))
            # Read back while the sink is open: a kill right now would lose nothing.
            assert [r.seconds for r in load(tmp_path)] == [float(j) for j in range(i + 1)]
        assert sink.path is not None
        assert sink.path.name.endswith(f"-{os.getpid()}.jsonl")


def test_sink_never_appends_to_a_file_of_another_run(tmp_path: Path) -> None:
    for _ in range(3):
        with Sink(tmp_path) as sink:
            sink.write(record())
    assert len(list(tmp_path.glob("records-*.jsonl"))) == 3
    assert len(load(tmp_path)) == 3


def _write_two(sink: Sink) -> None:
    sink.write(record(kernel="child"))
    sink.write(record(kernel="child"))


def test_a_forked_process_writes_its_own_file(tmp_path: Path) -> None:
    with Sink(tmp_path) as sink:
        sink.write(record(kernel="parent"))
        child = multiprocessing.get_context("fork").Process(target=_write_two, args=(sink,))
        child.start()
        child.join()
        assert child.exitcode == 0
        sink.write(record(kernel="parent"))
    counts = sorted([r.kernel for r in map(from_json, p.read_bytes().splitlines())] for p in tmp_path.iterdir())
    assert counts == [["child", "child"], ["parent", "parent"]]


def test_a_killed_run_keeps_what_it_recorded(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from tests.support.made import record; from validators.records.store import Sink\n"
        "s = Sink(sys.argv[1]); s.write(record()); s.write(record()); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = python("-c", code, str(tmp_path))
    assert done.returncode == -signal.SIGKILL
    assert len(load(tmp_path)) == 2


def test_unwritable_directory_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write records to"):
        Sink(tmp_path / "file" / "below")


def test_load_reads_folders_below_in_a_fixed_order(tmp_path: Path) -> None:
    for host in ("b", "a"):
        (tmp_path / host).mkdir()
        _written(tmp_path / host, to_json(record(kernel=host)), "")
    (tmp_path / "signoff.json").write_text("{}")
    assert [r.kernel for r in load(tmp_path)] == ["a", "b"]


@pytest.mark.parametrize("keep", [1, 40, 400])
def test_a_cut_last_line_is_reported_and_skipped(tmp_path: Path, keep: int) -> None:
    line = to_json(record())
    path = _written(tmp_path, line, line[:keep])
    with pytest.warns(StoreWarning, match=f"{path.name}:2 was cut while it was written"):
        assert len(load(tmp_path)) == 1
    said: list[str] = []
    load(tmp_path, warn=said.append)
    assert len(said) == 1


def test_a_last_line_that_lacks_only_its_newline_counts(tmp_path: Path) -> None:
    _written(tmp_path, to_json(record()))
    assert len(load(tmp_path)) == 1


def test_a_cut_line_that_is_not_the_last_is_an_error(tmp_path: Path) -> None:
    line = to_json(record())
    path = _written(tmp_path, line, line[:40], line, "")
    with pytest.raises(StoreError, match=rf"{path.name}:2: not JSON"):
        load(tmp_path)


def test_a_whole_last_line_that_is_no_record_is_an_error(tmp_path: Path) -> None:
    _written(tmp_path, "garbage", "")
    with pytest.raises(StoreError, match=r":1: not JSON"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 99}, "record schema 99, and this suite reads schemas 1 and 2"),
        ({"schema": None}, "record schema None"),
        ({"status": "FINE"}, "record.status is 'FINE', which is no status"),
        ({"status": ["PASSED"]}, "which is no status"),
        ({"kernel": 5}, "record.kernel is 5, which is not of type str"),
        ({"emulated": "no"}, "record.emulated is 'no', which is not of type bool"),
        ({"seconds": True}, "record.seconds is True"),
        ({"seconds": "fast"}, "record.seconds is 'fast'"),
        ({"reasons": "text"}, "record.reasons is 'text'"),
        ({"comparisons": [5]}, r"record.comparisons\[0\] is 5, which is not an object"),
        ({"comparisons": [{}]}, r"record.comparisons\[0\] lacks the field"),
        ({"colour": "red"}, "record has a field 'colour'"),
    ],
)
def test_a_record_of_another_shape_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    value = {**json.loads(to_json(record())), **change}
    path = _written(tmp_path, json.dumps(value), "")
    with pytest.raises(StoreError, match=message) as caught:
        load(tmp_path)
    assert str(caught.value).startswith(f"{path}:1: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("line", ["[]", "3", '"text"', '{"schema": NaN}'])
def test_json_that_is_no_object_is_refused(line: str) -> None:
    with pytest.raises(StoreError):
        from_json(line)


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not a directory of records"):
        load(tmp_path / "absent")


def test_provenance_names_where_a_record_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["validators", "run", "--all-available"])
    monkeypatch.setenv("AITER_CONFIG_GEMM_A8W8", "tuned.csv")
    monkeypatch.setenv("AITER_ASM_DIR", "/opt/aiter/hsa")
    monkeypatch.setenv("SOME_TOKEN", "secret")
    found = provenance.provenance("cpu")
    assert found.environment["AITER_CONFIG_GEMM_A8W8"] == "tuned.csv"
    assert not {"AITER_ASM_DIR", "SOME_TOKEN"} & set(found.environment)
    assert all((found.python, found.torch, found.platform, found.host, found.cpu, found.date))
    assert found.arguments == ("run", "--all-available")
    assert found.gpu is None
    assert from_json(to_json(record(provenance=found))).provenance == found


def test_kernels_of_ones_own_are_no_changed_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A checkout with a file of the suite that changed is dirty; one with a kernel of the user's in it is not."""
    run = functools.partial(subprocess.run, cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "validators").mkdir()
    (tmp_path / "validators" / "run.py").write_text("")
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "x"]):
        run(["git", *words])
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "validators" / "records" / "provenance.py"))
    (tmp_path / "mine.py").write_text("def f(x): ...")
    assert provenance._git()[1] is False
    (tmp_path / "validators" / "run.py").write_text("changed")
    assert provenance._git()[1] is True


def test_provenance_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object, **__: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", absent)
    provenance._machine.cache_clear()
    try:
        found = provenance.provenance()
    finally:
        provenance._machine.cache_clear()
    assert found.commit is None
    assert found.dirty is None
    assert found.python


def test_status_and_comparison_types_survive() -> None:
    back = from_json(to_json(failed()))
    assert back.status is Status.FAILED
    assert isinstance(back.comparisons[0], Comparison)
    assert isinstance(back.comparisons, tuple)
    assert back.case == CASE
