"""Integrity: whatever byte changes, whatever file goes, is named."""

from __future__ import annotations

import dataclasses
import difflib
import json
import shutil
from pathlib import Path

import pytest

from golden.check import DATA
from golden.commit import Entry, commit, file_name
from golden.store import (
    MANIFEST,
    GoldenError,
    Row,
    Store,
    Tensor,
    decode_file,
    decode_manifest,
    encode_file,
    encode_manifest,
    read,
    row_digest,
)
from tests.support.golden_made import CASES, entry, made


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return made(tmp_path / "store")


def test_a_store_reads_back_what_was_committed(store: Store) -> None:
    assert store.problems == store.strays == ()
    assert sorted(store.rows) == sorted(entry(case).row.id for case in CASES)
    for i, case in enumerate(CASES):
        assert store.tensors[entry(case).row.id] == entry(case, fill=i + 1).tensors


def _complaints(root: Path) -> str:
    """Everything that reading the store says is wrong; empty for an intact one."""
    try:
        return "\n".join(read(root).problems)
    except GoldenError as error:
        return str(error)


def test_every_flipped_bit_of_a_tensor_file_names_its_golden(store: Store) -> None:
    row = store.rows[entry(CASES[1]).row.id]
    path = store.root / str(row.file)
    data = path.read_bytes()
    for position in range(len(data)):
        for bit in (position % 8, (position + 5) % 8):
            path.write_bytes(data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :])
            found = read(store.root).problems
            assert len(found) == 1, (position, bit)
            assert row.id in found[0]
            assert str(row.file) in found[0]
    path.write_bytes(data)
    assert _complaints(store.root) == ""


def test_every_flipped_bit_of_the_manifest_is_reported(store: Store) -> None:
    path = store.root / MANIFEST
    data = path.read_bytes()
    for position in range(len(data)):
        flipped = data[:position] + bytes([data[position] ^ 1 << position % 8]) + data[position + 1 :]
        try:
            _, found = decode_manifest(flipped)
        except GoldenError as error:
            found = [str(error)]
        assert found, (position, data[max(0, position - 20) : position + 20])


@pytest.mark.parametrize("field", ["sha256", "stored_sha256"])
def test_a_changed_digest_names_its_row(store: Store, field: str) -> None:
    value = json.loads((store.root / MANIFEST).read_bytes())
    digest = value["goldens"][2]["outputs"]["scale"][field]
    value["goldens"][2]["outputs"]["scale"][field] = ("1" if digest[0] == "0" else "0") + digest[1:]
    (store.root / MANIFEST).write_text(json.dumps(value))
    found = read(store.root).problems
    assert len(found) == 1
    assert value["goldens"][2]["id"] in found[0]
    assert "digest" in found[0]


@pytest.mark.parametrize("name", ["manifest", "tensors"])
def test_every_cut_is_reported(store: Store, name: str) -> None:
    path = store.root / (MANIFEST if name == "manifest" else str(store.rows[entry().row.id].file))
    data = path.read_bytes()
    # Without its last newline alone, the manifest still says all that it said.
    for size in range(0, len(data) - 1, 7):
        path.write_bytes(data[:size])
        words = _complaints(store.root)
        assert MANIFEST in words if name == "manifest" else entry().row.id in words, size


def test_a_missing_file_names_its_golden(store: Store) -> None:
    row = store.rows[entry(CASES[2]).row.id]
    (store.root / str(row.file)).unlink()
    assert read(store.root).problems == (f"golden {row.id}: file {row.file} is missing",)


def test_a_file_that_no_row_names_is_a_stray_and_no_golden(store: Store) -> None:
    shutil.copy(store.root / str(store.rows[entry().row.id].file), store.root / "cpu" / "other.safetensors")
    again = read(store.root)
    assert again.strays == ("cpu/other.safetensors",)
    assert again.problems == ()
    assert again.rows == store.rows


def test_exchanged_files_are_reported(store: Store) -> None:
    first, second = (store.root / str(store.rows[entry(case).row.id].file) for case in CASES[:2])
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)
    assert len(read(store.root).problems) == 2


def test_a_row_cannot_reach_outside_the_store(store: Store) -> None:
    rows = dict(store.rows)
    row = dataclasses.replace(rows[entry().row.id], file="cpu/../../elsewhere.safetensors")
    (store.root / MANIFEST).write_bytes(encode_manifest({**rows, row.id: row}))
    assert "not a name inside the store" in _complaints(store.root)


def test_a_row_that_stands_twice_and_a_foreign_schema_are_reported(store: Store) -> None:
    value = json.loads((store.root / MANIFEST).read_bytes())
    twice = {**value, "goldens": [*value["goldens"], value["goldens"][0]]}
    assert "is there twice" in decode_manifest(json.dumps(twice).encode())[1][0]
    with pytest.raises(GoldenError, match="schema 2"):
        decode_manifest(json.dumps({**value, "schema": 2}).encode())


def test_files_are_safetensors() -> None:
    """The library of that name reads them; ours is written out only because one encoding has to count."""
    library = pytest.importorskip("safetensors", reason="the safetensors library is not installed")
    data = encode_file("g", entry().tensors)
    found = dict(library.deserialize(data))
    assert {name: (t["shape"], t["dtype"], bytes(t["data"])) for name, t in found.items()} == {
        name: (list(t.shape), t.dtype, t.data) for name, t in entry().tensors.items()
    }
    assert decode_file(data) == entry().tensors


def test_a_tensor_of_the_wrong_length_is_not_written() -> None:
    with pytest.raises(GoldenError, match="31 bytes"):
        encode_file("g", {"codes": Tensor("U8", (2, 16), bytes(31))})


def test_a_changed_golden_keeps_its_history_and_a_repeated_one_changes_nothing(store: Store) -> None:
    first = entry(fill=9, reason="new kernel")
    assert commit(store.root, [first]) == [first.row.id]
    assert commit(store.root, [entry(fill=9, reason="once more")]) == []
    commit(store.root, [entry(fill=10, reason="newer kernel")])
    again = read(store.root)
    row: Row = again.rows[first.row.id]
    assert [row.reason, *(old["reason"] for old in row.history)] == ["newer kernel", "new kernel", "first"]
    assert [old["outputs"]["codes"]["sha256"] for old in row.history] == [
        entry(fill=fill).row.outputs["codes"].sha256 for fill in (9, 1)
    ]
    assert again.problems == again.strays == ()


def test_accepting_a_golden_leaves_every_other_line_of_the_committed_manifest(tmp_path: Path) -> None:
    """Rows of the repository's own store are of several ages: some lack fields that a row of today has."""
    before = (DATA / MANIFEST).read_bytes()
    rows, problems = decode_manifest(before)
    assert not problems
    older = [row for row in rows.values() if row.unwritten]
    assert older, "every row has every field, so this shows nothing"
    assert encode_manifest(rows) == before

    shutil.copytree(DATA, tmp_path / "store")
    assert commit(tmp_path / "store", [entry()]) == [entry().row.id]
    after = (tmp_path / "store" / MANIFEST).read_bytes()
    changes = difflib.SequenceMatcher(None, before.splitlines(), after.splitlines(), autojunk=False).get_opcodes()
    assert [tag for tag, *_ in changes if tag != "equal"] == ["insert"]

    # A golden of an old row that is replaced stays in the history as it was written.
    replaced = older[0]
    new = dataclasses.replace(replaced, inputs="0" * 64, outputs={}, unwritten=frozenset())
    commit(tmp_path / "store", [Entry(new, {})])
    found = json.loads((tmp_path / "store" / MANIFEST).read_bytes())["goldens"]
    history = next(row["history"] for row in found if row["id"] == replaced.id)
    assert history[0] == {k: v for k, v in replaced.to_json().items() if k != "history"}


def test_a_field_that_no_row_has_is_damage(store: Store) -> None:
    value = json.loads((store.root / MANIFEST).read_bytes())
    for name in ("unwritten", "colour"):
        row = {**value["goldens"][0], name: []}
        row["row_sha256"] = row_digest(row)
        _, problems = decode_manifest(json.dumps({**value, "goldens": [row]}).encode())
        assert problems == [
            f"manifest.json: row 1 ({row['id']}) is damaged: it has a field {name!r} that this schema does not know"
        ]


def test_file_names_tell_cases_kernels_and_bytes_apart() -> None:
    names = {
        file_name(e.row, encode_file(e.row.id, e.tensors))
        for e in (entry(), entry(CASES[1]), entry(fill=2), entry(kernel="emulated/eager"))
    }
    assert len(names) == 4
