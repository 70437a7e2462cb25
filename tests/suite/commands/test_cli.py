"""The command line: exit codes, and one sentence for every bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.child import python
from tests.support.made import failed, lanes_passed, record
from validators.__main__ import main
from validators.cases.case import Case, CaseError
from validators.commands import identify, plan, run
from validators.commands import list as list_command
from validators.commands.cli import exit_of
from validators.kernels import registry
from validators.kernels.kernel import Kernel, KernelError
from validators.records.record import Record, Status
from validators.records.store import Sink, load

ROOT = Path(__file__).resolve().parents[3]
REAL = "emulated/aiter-hip-gfx950"
CASES = [
    Case("add_rmsnorm_quant", 4, 64, "gaussian"),
    Case("add_rmsnorm_quant", 4, 64, "midpoints"),
    Case("ptpc_gemm", 4, 64, "one_hot_k", k=32),
]


def _never_called(*_: object) -> Any:
    raise AssertionError("the command line itself never calls a kernel")


KERNELS = [
    Kernel("demo/fused", "add_rmsnorm_quant", "vllm", _never_called, emulated=True),
    Kernel("demo/gemm", "ptpc_gemm", "fp32", _never_called),
    Kernel("demo/both", "add_rmsnorm_quant", "vllm", _never_called),
    Kernel("demo/both", "per_token_quant", "vllm", _never_called),
    Kernel("demo/gpu", "ptpc_gemm", None, _never_called, unavailable=lambda _: "demo/gpu needs a device of its own."),
]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Known kernels, cases and outcomes, so that what is tested is the command line and nothing below it."""
    state = SimpleNamespace(statuses={}, calls=[], unloadable=set())

    def cases_for(op: str, *, depth: str, lanes: Any, dtype: str, fp8: str) -> list[Case]:
        from validators.cases.recipes import lane_of

        state.asked = (depth, lanes, dtype, fp8)
        return [c for c in CASES if c.op == op and (not lanes or lane_of(c) in lanes)]

    def find(ids: list[str]) -> list[Case]:
        unknown = [i for i in ids if i not in [c.id for c in CASES]]
        if unknown:
            raise CaseError(f"unknown case {unknown[0]!r}")
        return [c for c in CASES if c.id in ids]

    def run_isolated(name: str, op: str, cases: list[Case], **options: Any) -> Iterator[Record]:
        state.calls.append((name, op, [c.id for c in cases], options))
        if name in state.unloadable:
            raise KernelError(f"kernel {name!r} could not be loaded")
        for case in cases:
            status = state.statuses.get((name, case.id), Status.PASSED)
            reasons = () if status is Status.PASSED else ("because",)
            made = failed if status is Status.FAILED else record
            changes = {} if status is Status.FAILED else {"status": status}
            yield made(kernel=name, op=op, case=case.id, reasons=reasons, **changes)

    monkeypatch.setattr(plan, "cases_for", cases_for)
    monkeypatch.setattr(plan, "find", find)
    monkeypatch.setattr(run, "run_isolated", run_isolated)
    for module in (registry, plan, list_command):
        monkeypatch.setattr(module, "all_kernels", lambda: list(KERNELS))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    return state


def _run(*words: str) -> int:
    return main(["run", *words])


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        ([Status.PASSED], 0),
        ([Status.PASSED, Status.UNSUPPORTED], 0),
        ([Status.UNSUPPORTED], 3),
        ([], 3),
        ([Status.PASSED, Status.UNTESTED], 3),
        ([Status.PASSED, Status.FAILED], 1),
        ([Status.PASSED, Status.NONDETERMINISTIC], 1),
        ([Status.PASSED, Status.MISTRUSTED], 1),
        ([Status.PASSED, Status.ERROR], 4),
        ([Status.ERROR, Status.FAILED], 1),
        ([Status.ERROR, Status.MISTRUSTED], 1),
    ],
)
def test_exit_codes(statuses: list[Status], code: int) -> None:
    records = [record(s, reasons=() if s is Status.PASSED else ("because",)) for s in statuses]
    assert exit_of(records) == code
    assert exit_of(reversed(records)) == code


def test_unsupported_without_a_reason_is_not_0() -> None:
    assert exit_of([record(), record(Status.UNSUPPORTED)]) == 4


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (Status.PASSED, 0),
        (Status.UNSUPPORTED, 0),
        (Status.FAILED, 1),
        (Status.NONDETERMINISTIC, 1),
        (Status.MISTRUSTED, 1),
        (Status.ERROR, 4),
    ],
)
def test_run_records_and_returns(
    world: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str], status: Status, code: int
) -> None:
    world.statuses["demo/fused", CASES[1].id] = status
    words = ["--kernel", "add_rmsnorm_quant=demo/fused", "--records", str(tmp_path)]
    assert _run(*words) == code
    records = load(tmp_path)
    assert [r.status for r in records] == [Status.PASSED, status]
    assert all(r.provenance.arguments == ("run", *words) for r in records)
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == ""
    assert lines[-1] == f"records in {tmp_path}; next: python -m validators signoff {tmp_path}"
    shown = [line for line in lines if CASES[1].id in line]
    assert len(shown) == (0 if code == 0 else 1)
    assert not [line for line in lines if CASES[0].id in line]


def test_run_passes_options_on(world: SimpleNamespace, tmp_path: Path) -> None:
    words = "--kernel demo/fused --lane random --dtype fp16 --fp8 e4m3fnuz --depth deep --contract eager --time-limit 7"
    assert _run(*words.split(), "--records", str(tmp_path)) == 0
    assert world.asked == ("deep", ["random"], "fp16", "e4m3fnuz")
    options = {"contract": "eager", "device": "cpu", "time_limit_s": 7.0}
    assert world.calls == [("demo/fused", "add_rmsnorm_quant", [CASES[0].id], options)]


def test_run_one_case(world: SimpleNamespace, tmp_path: Path) -> None:
    assert _run("--kernel", "demo/fused", "--case", CASES[1].id, "--records", str(tmp_path)) == 0
    assert [call[2] for call in world.calls] == [[CASES[1].id]]


def test_run_without_records_makes_a_directory_of_its_own(
    world: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _run("--kernel", "demo/gemm") == 0
    (directory,) = (tmp_path / "records").iterdir()
    assert len(load(directory)) == 1


def test_all_available_runs_what_can_run(world: SimpleNamespace, tmp_path: Path) -> None:
    assert _run("--all-available", "--records", str(tmp_path)) == 0
    assert [(name, op) for name, op, *_ in world.calls] == [
        ("demo/fused", "add_rmsnorm_quant"),
        ("demo/gemm", "ptpc_gemm"),
        ("demo/both", "add_rmsnorm_quant"),
    ]


def test_all_available_goes_on_after_a_kernel_that_does_not_load(
    world: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world.unloadable.add("demo/fused")
    assert _run("--all-available", "--records", str(tmp_path)) == 2
    assert len(load(tmp_path)) == 3
    assert capsys.readouterr().err == "validators: kernel 'demo/fused' could not be loaded\n"


def test_interruption_keeps_what_was_recorded(
    world: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> Iterator[Record]:
        yield record()
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "run_isolated", interrupted)
    assert _run("--kernel", "demo/fused", "--records", str(tmp_path)) == 130
    assert len(load(tmp_path)) == 1
    assert capsys.readouterr().err.startswith("validators: interrupted")


BAD_INPUT = [
    ("frob", "unknown command 'frob'; known: list, run"),
    ("run --frob", "unrecognized arguments: --frob"),
    ("run", "say which kernel with --kernel"),
    ("run --all-available --kernel demo/fused", "not both"),
    ("run --kernel nobody/nothing", "unknown kernel 'nobody/nothing'; known: demo/fused"),
    ("run --kernel add_rmsnorm_quant=demo/gemm", "unknown kernel 'demo/gemm' for op add_rmsnorm_quant"),
    (
        "identify --kernel demo/both",
        "computes 2 ops; say which: --kernel add_rmsnorm_quant=demo/both or --k",
    ),
    ("identify --kernel demo/fused --kernel demo/gemm", "one kernel is needed, and --kernel names 2"),
    ("run --kernel softmax=demo/fused", "'softmax=demo/fused' is not [OP=]NAME: unknown op 'softmax'; known: add_"),
    ("run --kernel ptpc_gemm=", "names no kernel"),
    ("run --kernel demo/fused --contract ptpc_gemm=fp32", "is a contract of ptpc_gemm, and one of add_rmsnorm_quant"),
    (
        "run --kernel ptpc_gemm=demo/gemm --op add_rmsnorm_quant",
        "is a kernel of ptpc_gemm, and here it is one of ",
    ),
    ("run --kernel demo/gpu", "demo/gpu needs a device of its own"),
    ("run --kernel demo/fused --op softmax", "unknown op 'softmax'; known: add_rmsnorm_quant"),
    ("run --kernel demo/fused --lane fast", "unknown lane 'fast'; known: exact, random"),
    ("run --kernel demo/fused --depth abyss", "unknown depth 'abyss'; known: smoke, default, deep"),
    ("run --kernel demo/fused --dtype bf15", "unknown dtype 'bf15'; known: bf16, fp16"),
    ("run --kernel demo/fused --fp8 e5m2", "unknown FP8 format 'e5m2'; known: e4m3fn, e4m3fnuz"),
    ("run --kernel demo/fused --contract law", "unknown contract 'law' for op add_rmsnorm_quant; known: aiter"),
    ("run --kernel demo/fused --device tpu", "unknown device 'tpu'; known: cpu, cuda"),
    ("run --kernel demo/fused --device cuda", "this torch finds no GPU"),
    ("run --all-available --device cuda:1", "this torch finds no GPU"),
    ("run --kernel demo/fused --case nonsense", "'nonsense' is not a case id"),
    ("run --kernel demo/fused --case add_rmsnorm_quant-m4-n64-bf16-e4m3fn-gaussian-s7", "unknown case"),
    (f"run --kernel ptpc_gemm=demo/gemm --case {CASES[0].id}", "here it is one of add_rmsnorm_quant"),
    (f"run --kernel demo/fused --case {CASES[0].id} --lane random", "--case goes without --lane"),
    (f"run --all-available --case {CASES[0].id}", "need --kernel"),
    ("run --all-available --contract vllm", "need --kernel"),
    ("run --kernel demo/fused --lane model", "no case has all the properties asked for"),
    ("run --kernel demo/fused --time-limit 0", "0 is not a positive number of seconds"),
    ("run --kernel demo/fused --time-limit nan", "nan is not a positive number of seconds"),
    ("run --kernel demo/fused --time-limit soon", "'soon' is not a number of seconds"),
    ("run --kernel demo/fused --records /dev/null/x", "cannot write records to /dev/null/x"),
    ("list bits", "unknown list 'bits'; known: kernels, cases, contracts"),
    ("list cases --lane model", "there are no cases for these options"),
    ("list kernels --op softmax", "unknown op 'softmax'"),
    ("identify --kernel nobody/nothing", "unknown kernel"),
    ("identify --kernel demo/fused --rows 0", "--rows must be at least 1"),
    ("report", "the following arguments are required: DIR"),
    ("run --kernel per_token_quant=mine.py", "'mine.py' is a file; name the function in it: mine.py:FUNCTION"),
    ("report absent", "absent is not a directory of records"),
    ("report .", "holds no records"),
    ("signoff absent", "absent is not a directory of records"),
    ("signoff .", "holds no records"),
]


@pytest.mark.parametrize(("words", "sentence"), BAD_INPUT, ids=[words or "nothing" for words, _ in BAD_INPUT])
def test_bad_input_is_one_sentence_and_its_code(
    world: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: str,
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(identify, "identify", _never_called)
    no_answer = ("no case has all", "there are no cases", "holds no records", "finds no GPU", "a device of its own")
    nothing = any(text in sentence for text in no_answer)
    code = 3 if nothing else 2
    assert main(words.split()) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert sentence in err
    assert err.startswith("validators: ")
    assert err.count("\n") == 1
    assert world.calls == []


def test_identify_prints_and_returns(
    world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {}
    result = SimpleNamespace(lines=lambda: ["vllm: 0 violations"], admitted=["vllm"], unstable="")

    def fake(kernel: Kernel, **options: Any) -> SimpleNamespace:
        asked.update(options, name=kernel.name)
        return result

    monkeypatch.setattr(identify, "identify", fake)
    assert main(["identify", "--kernel", "add_rmsnorm_quant=demo/fused", "--rows", "8"]) == 0
    assert capsys.readouterr().out == "vllm: 0 violations\n"
    assert asked == {"name": "demo/fused", "device": "cpu", "rows": 8, "seed": 0, "dtype": "bf16", "fp8": "e4m3fn"}
    result.unstable = "1 of 4 elements of scale differ"
    assert main(["identify", "--kernel", "demo/fused"]) == 1
    result.unstable, result.admitted = "", []
    assert main(["identify", "--kernel", "demo/fused"]) == 1


def test_list_kernels_says_why_one_cannot_run(world: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "demo/fused  add_rmsnorm_quant  contract vllm (emulated): available on cpu"
    assert lines[-1] == "demo/gpu  ptpc_gemm  contract to be identified: demo/gpu needs a device of its own."


def test_list_cases_and_contracts(world: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "cases", "--op", "ptpc_gemm"]) == 0
    assert capsys.readouterr().out == f"exact  {CASES[2].id}\n"
    assert main(["list", "contracts"]) == 0
    out = capsys.readouterr().out
    assert "add_rmsnorm_quant  vllm: vLLM csrc" in out
    assert "ptpc_gemm  fp32: " in out


def _recorded(directory: Path, *records: Record) -> None:
    with Sink(directory) as sink:
        for r in records:
            sink.write(r)


def test_report_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _recorded(tmp_path, record(), failed())
    assert main(["report", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert out.startswith("FAILED scale: 510 of 512 rows outside their admissible set, worst 1892x\n")
    assert "2 records: 1 PASSED, 1 FAILED" in out


def test_report_command_shows_a_bounded_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _recorded(tmp_path, *[failed(case=f"c{i}") for i in range(25)])
    assert main(["report", str(tmp_path)]) == 1
    assert "5 more failure reports; --all shows them." in capsys.readouterr().out
    assert main(["report", str(tmp_path), "--all"]) == 1
    assert capsys.readouterr().out.count("reproduce  ") == 25


def test_signoff_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _recorded(tmp_path / "in", *lanes_passed())
    assert main(["signoff", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 0
    decision = "SIGNED on 5 chosen cases only"
    assert capsys.readouterr().out.startswith(f"{decision}\n")
    assert json.loads((tmp_path / "out" / "signoff.json").read_text())["decision"] == decision
    _recorded(tmp_path / "in", failed(lane="random"))
    assert main(["signoff", str(tmp_path / "in")]) == 1
    out = capsys.readouterr().out
    assert out.startswith("NOT SIGNED\n")
    assert "add_rmsnorm_quant of demo/fused: FAILED in 1 of 6 cases (ops: random)." in out
    # The files of a sign-off are no records: a second one reads the same evidence.
    assert main(["signoff", str(tmp_path / "in")]) == 1


def test_a_damaged_file_is_named_and_a_cut_one_warned_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _recorded(tmp_path, record())
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes() + b'{"cut')
    assert main(["report", str(tmp_path)]) == 0
    assert f"{path}:2 was cut" in capsys.readouterr().err
    path.write_bytes(b"garbage\n" + path.read_bytes())
    assert main(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"validators: {path}:1: not JSON")


def test_help_without_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; from validators.__main__ import main; sys.exit(main(sys.argv[1:]))"
    shown, refused = (
        subprocess.run([sys.executable, "-c", code, word], cwd=ROOT, capture_output=True, text=True, check=False)
        for word in ("--help", "list")
    )
    assert shown.returncode == 0
    assert "signoff" in shown.stdout
    assert (refused.returncode, refused.stderr.count("\n")) == (3, 1)


def test_real_kernels_and_cases_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    kernels = python("-m", "validators", "list")
    assert (kernels.returncode, kernels.stderr) == (0, "")
    assert REAL in [line.split()[0] for line in kernels.stdout.splitlines() if line]
    assert main(["list", "cases", "--depth", "smoke"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out
    assert all(Case.parse(line.split()[1]).id == line.split()[1] for line in out.splitlines())


def test_a_real_kernel_from_run_to_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "--kernel", f"add_rmsnorm_quant={REAL}", "--device", "cpu", "--records", str(tmp_path)]
    ran = python("-m", "validators", *words, "--case", "add_rmsnorm_quant-m16-n64-bf16-e4m3fn-gaussian-s0")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (only,) = load(tmp_path)
    assert (only.status, only.lane, only.emulated) == (Status.PASSED, "random", True)
    assert main(["report", str(tmp_path)]) == 0
    assert "1 record: 1 PASSED" in capsys.readouterr().out
