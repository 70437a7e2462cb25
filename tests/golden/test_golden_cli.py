"""``python -m golden``: exit codes, sentences, the table; and what ``verify`` finds beyond damaged bytes."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from golden.__main__ import main
from golden.check import DATA, load, problems
from golden.commit import Entry, commit
from golden.outcome import Outcome, State
from golden.report import details, headline, markdown, table
from golden.store import MANIFEST, Row, encode_manifest, read
from tests.support.golden_made import entry, made
from validators.records.record import Status
from validators.records.store import load as load_records

ROOT = Path(__file__).resolve().parents[2]
TOKENS = "per_token_quant-m24-n528-bf16-e4m3fn-gaussian-s0@emulated/aiter-triton@cpu"
INPUTS = "ptpc_gemm-m24-n48-k176-bf16-e4m3fn-gaussian-s0@inputs"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the repository's own store."""
    shutil.copytree(DATA, tmp_path / "data")
    return tmp_path / "data"


def _golden(*arguments: str, store: Path | None = None) -> int:
    return main([*arguments, *(["--store", str(store)] if store else [])])


# ---- verify


def test_verify_of_a_whole_store(capsys: pytest.CaptureFixture[str]) -> None:
    assert _golden("verify") == 0
    assert "goldens are whole" in capsys.readouterr().out


def _without(root: Path, golden: str) -> None:
    """Take a row out of the manifest and its file with it, as a bad merge would."""
    rows = dict(read(root).rows)
    row = rows.pop(golden)
    if row.file:
        (root / row.file).unlink()
    (root / MANIFEST).write_bytes(encode_manifest(rows))


@pytest.mark.parametrize(
    ("golden", "words"),
    [
        (TOKENS, "is marked golden for emulated/aiter-triton on cpu, but has no row"),
        (INPUTS, "is marked golden for inputs, but has no row"),
    ],
)
def test_a_marked_case_without_a_row_is_named(
    copy: Path, capsys: pytest.CaptureFixture[str], golden: str, words: str
) -> None:
    _without(copy, golden)
    assert _golden("verify", store=copy) == 1
    assert capsys.readouterr().err == f"golden: case {golden.split('@')[0]} {words}\n"


def test_a_whole_kernel_without_rows_is_named_on_the_cpu(copy: Path) -> None:
    store = read(copy)
    gone = [name for name, row in store.rows.items() if row.kernel == "torch_native/scaled_mm"]
    for name in gone:
        _without(copy, name)
    assert len(problems(load(copy))) == len(gone) > 3


def _with(root: Path, golden: str, **changes: object) -> None:
    store = read(root)
    row: Row = dataclasses.replace(store.rows[golden], **changes)  # type: ignore[arg-type]
    (root / MANIFEST).write_bytes(encode_manifest({**store.rows, row.id: row}))


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("nonsense", "has no case: 'nonsense' is not a case id"),
        ("ptpc_gemm-m24-n48-k176-bf16-e4m3fn-nothing-s0", "has no case: unknown recipe 'nothing'"),
        ("ptpc_gemm-m24-n48-k176-bf16-e4m3fn-gaussian-3d-s0", "its case cannot be built: ptpc_gemm takes two-dim"),
        ("per_token_quant-m24-n520-bf16-e4m3fn-gaussian-s0", "is no case of op ptpc_gemm"),
    ],
)
def test_a_row_without_a_case_is_named(copy: Path, capsys: pytest.CaptureFixture[str], case: str, words: str) -> None:
    _with(copy, INPUTS, case=case)
    assert _golden("verify", store=copy) == 1
    assert f"golden {INPUTS}" in (err := capsys.readouterr().err)
    assert words in err


def test_a_row_whose_case_nobody_marked_is_named(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commit(copy, [Entry(entry().row, entry().tensors)])
    assert _golden("verify", store=copy) == 1
    assert capsys.readouterr().err == (
        f"golden: golden {entry().row.id} has a row, but its case is not marked golden\n"
    )


def test_a_stray_file_and_a_missing_one_are_named(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = copy / str(read(copy).rows[TOKENS].file)
    file.rename(file.with_name("moved.safetensors"))
    assert _golden("verify", store=copy) == 1
    err = capsys.readouterr().err
    assert f"golden {TOKENS}: file {file.relative_to(copy)} is missing" in err
    assert "moved.safetensors belongs to no golden" in err


def test_a_damaged_row_is_named_once(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (copy / MANIFEST).read_text()
    digest = read(copy).rows[INPUTS].inputs
    at = text.index(digest, text.index(f'"case": "{INPUTS.split("@")[0]}"'))
    (copy / MANIFEST).write_text(text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :])
    assert _golden("verify", store=copy) == 1
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert f"({INPUTS}) is damaged: its digest does not fit its fields" in err


@pytest.mark.parametrize("command", [["check"], ["list"]])
def test_nothing_is_read_from_a_damaged_store(
    copy: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    file = copy / str(read(copy).rows[TOKENS].file)
    file.write_bytes(file.read_bytes()[:-3])
    assert _golden(*command, store=copy) == 2
    output = capsys.readouterr()
    assert f"golden {TOKENS}: file {file.relative_to(copy)}: is cut" in output.err
    assert output.out == ""


# ---- check


def test_check_writes_records_table_and_history(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, history = tmp_path / "summary.md", tmp_path / "history.jsonl"
    page.write_text("before\n")
    arguments = ["check", "--kernel", "emulated/aiter-triton", "--records", str(tmp_path / "records")]
    for _ in range(2):
        assert _golden(*arguments, "--markdown", str(page), "--history", str(history)) == 0
    assert "As accepted. 12 goldens: 12 UNCHANGED." in capsys.readouterr().out
    records = load_records(tmp_path / "records")
    assert len(records) == 24
    assert {r.status for r in records} == {Status.PASSED}
    assert {r.golden and r.golden.state for r in records} == {"UNCHANGED"}
    assert {r.lane for r in records} == {"goldens"}, "a golden cannot stand for a case of a lane"
    assert page.read_text().startswith("before\n### As accepted.")
    assert "| emulated/aiter-triton | cpu | 12 | 12 |" in page.read_text()
    lines = [json.loads(line) for line in history.read_text().splitlines()]
    assert [line["states"] for line in lines] == [{"UNCHANGED": 12}] * 2


def test_reference_and_inputs_leave_records_too(tmp_path: Path) -> None:
    ids = [name for name in sorted(read(DATA).rows) if name.endswith(("@reference", "@inputs"))]
    chosen = [next(n for n in ids if n.endswith(kind)) for kind in ("@reference", "@inputs")]
    assert _golden("check", *(word for n in chosen for word in ("--id", n)), "--records", str(tmp_path)) == 0
    found = {(r.kernel, r.op, r.lane, r.arch, r.status) for r in load_records(tmp_path)}
    assert found == {(f"golden/{kind}", "goldens", "goldens", "any", Status.PASSED) for kind in ("reference", "inputs")}


def test_the_line_that_a_record_gives_reproduces_the_check(tmp_path: Path) -> None:
    assert _golden("check", "--id", TOKENS, "--records", str(tmp_path)) == 0
    (record,) = load_records(tmp_path)
    assert record.reproduce == f"python -m golden check --id {TOKENS}"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["check", "--kernel", "nobody/knows"], "no golden of kernel 'nobody/knows'; known: "),
        (["check", "--id", "x"], "no golden 'x'; 'list' shows"),
        (["check", "--device", "tpu"], "unknown device 'tpu'"),
        (["check", "--id", TOKENS, "--records", "/dev/null/x"], "cannot write records to /dev/null/x"),
        (["check", "--id", TOKENS, "--markdown", "/dev/null/x"], "cannot write /dev/null/x"),
        (["check", "--id", TOKENS, "--history", "/dev/null/x"], "cannot write /dev/null/x"),
        (["check", "--store", "/nowhere"], "cannot read /nowhere/manifest.json: No such file or directory"),
        (["propose", "--out", "/dev/null/x", "--kernel", "nobody"], "no golden kernel 'nobody' on cpu; known: emul"),
        (["propose", "--out", "/dev/null/x", "--device", "npu"], "unknown device 'npu'"),
        (["accept", "/nowhere", "--why", "x"], "/nowhere holds no proposal"),
        (["accept", str(DATA), "--why", "x"], "is the store itself"),
        (["accept", "/nowhere"], "--why; see python -m golden accept --help"),
    ],
)
def test_bad_usage_is_one_sentence(capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str) -> None:
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("golden: ")
    assert sentence in err
    assert len(err.splitlines()) == 1


def test_a_refused_proposal_exits_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(tmp_path / "proposal")
    assert _golden("accept", str(tmp_path / "proposal"), "--why", "x", store=tmp_path / "store") == 1
    output = capsys.readouterr()
    assert output.err.count("refused, it is not marked golden") == 3
    assert output.out == "0 goldens accepted, 0 were there with the same bits, 3 refused.\n"


def test_list_needs_no_torch() -> None:
    code = "import sys\nsys.modules['torch'] = None\nfrom golden.__main__ import main\nsys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    done = subprocess.run([*command, "list"], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert TOKENS in done.stdout
    other = subprocess.run([*command, "verify"], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120)
    assert (other.returncode, other.stderr) == (3, "golden: torch is not installed here; only list works without it.\n")


# ---- the table


def _outcome(name: str, state: State, sentence: str = "", case: str = "c") -> Outcome:
    return Outcome(f"{case}@{name}@sm_90", "kernel", name, "sm_90", state, sentence)


def test_the_table_opens_with_what_matters() -> None:
    outcomes = [
        _outcome("a", State.UNCHANGED),
        _outcome("a", State.DRIFTED, "codes: 3 | of 9", "d"),
        _outcome("b", State.MISSING, "no vllm", "c"),
        _outcome("b", State.MISSING, "no vllm", "d"),
        _outcome("a", State.FAILED, "codes: 1 outside", "e"),
    ]
    assert headline(outcomes) == "NOT as accepted. 5 goldens: 1 UNCHANGED, 1 DRIFTED, 1 FAILED, 2 MISSING."
    assert headline(outcomes[:2]).startswith("Bits have drifted; all of them are admissible.")
    assert headline([]) == "Nothing was checked. 0 goldens: none."
    assert table(outcomes)[1] == [
        ("a", "sm_90", "3", "1", "1", "1", "", ""),
        ("b", "sm_90", "2", "", "", "", "2", ""),
    ]
    assert details(outcomes) == [
        "FAILED e@a@sm_90: codes: 1 outside",
        "DRIFTED d@a@sm_90: codes: 3 | of 9",
        "MISSING b (2 goldens): no vllm",
    ]
    assert "codes: 3 \\| of 9" in markdown(outcomes)


def test_the_repository_does_not_grow_beyond_its_limit() -> None:
    """20 MiB for all architectures together; a set of one is about 2 MiB."""
    assert sum(p.stat().st_size for p in DATA.rglob("*") if p.is_file()) <= 20 * 2**20
