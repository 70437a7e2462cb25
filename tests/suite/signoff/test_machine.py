"""One command a machine: what it plans, what it leaves out, and that it ends with a decision and a report."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.made import record
from tests.support.signed import EXAMPLES, ops
from validators.__main__ import main
from validators.commands import machine
from validators.records.evidence import WalkEvidence
from validators.records.record import Record
from validators.records.store import Sink
from validators.signoff import claims, policy, ruling
from validators.signoff.claims import ClaimError
from validators.words import OPS, PATH

ROOT = Path(__file__).resolve().parents[3]


def test_every_stage_of_the_policy_is_planned_for_every_kernel() -> None:
    planned = machine.of_machine(policy.load("machine"), "cpu", "there")
    words = [" ".join(stage.command) for stage in planned if stage.command]
    assert words[0] == "-m validators run --all-available --depth default --records there"
    assert words[1].startswith(
        "-m validators layers --model glm-tiny --tokens 256 --kernel add_rmsnorm_quant=emulated/"
    )
    assert words[2] == "-m golden check --device cpu --records there"
    assert planned[3].title == "parity"
    assert planned[3].command[:3] == ("-m", "evals", "parity") or "no command 'evals'" in planned[3].left_out
    assert all(word.endswith("--records there") for word in words)


def test_a_claim_is_run_by_the_commands_that_its_sign_off_would_name() -> None:
    target = claims.from_file(EXAMPLES / "glm47-emulated-gfx950.toml")
    planned = machine.of_claim(target, policy.load("merge"), "cpu", "there")
    assert [stage.command[2] for stage in planned] == ["run", "run", "run", "layers", "check"]
    assert all(stage.command[-2:] == ("--records", "there") for stage in planned)


def test_what_a_person_has_to_do_first_is_left_out_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_architecture", lambda device: "gfx950")
    target = claims.from_file(EXAMPLES / "glm47-aiter-gfx950.toml")
    planned = machine.of_claim(target, policy.load("merge"), "cuda", "there")
    left = {stage.title: stage.left_out for stage in planned if not stage.command}
    assert set(left) == {"goldens", "trace"}
    assert "let a person accept" in left["goldens"]
    assert "trace of the serving engine" in left["trace"]


def test_a_claim_about_another_machine_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    claim = str(EXAMPLES / "glm47-aiter-gfx950.toml")
    assert main(["machine", "--claim", claim, "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert "is about gfx950 (an MI350X or MI355X), and cpu here is cpu" in said
    assert said.count("\n") == 1


def _write(directory: str, records: list[Record]) -> None:
    with Sink(directory) as sink:
        for r in records:
            sink.write(r)


@pytest.mark.parametrize("dies", [False, True])
def test_it_ends_with_a_decision_and_the_report_also_where_a_stage_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], dies: bool
) -> None:
    """The stages are played: each writes what it would record, or dies before it does."""

    def play(command: list[str], check: bool, env: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
        if "run" in command:
            _write(command[-1], ops("default"))
        elif dies:
            return subprocess.CompletedProcess(command, -9)
        elif "layers" in command:
            about = WalkEvidence(layers=(0, 1), of=2, margin=0.5, tokens=256)
            walked = [
                record(op=r.op, lane="layers", kernel=r.kernel, case="layers-x-trajectory", walk=about) for r in ops()
            ]
            _write(command[-1], walked)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", play)
    code = main(["machine", "--policy", "smoke", "--device", "cpu", "--out", str(tmp_path)])
    printed = capfd.readouterr().out
    last = printed.strip().splitlines()[-1]
    decision = "UNTESTED" if dies else "SIGNED"
    assert (code, last.split(" after ")[0]) == (3 if dies else 0, decision)
    assert ("ended with status -9" in printed) == dies
    page = Path(last.split("the report is ")[1])
    assert decision in page.read_text()
    assert sorted(p.name for p in tmp_path.iterdir())[0] == "records"


STAGE = """
import argparse, time
from validators.commands import machine
sleeps = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
machine._run(machine.Stage("a long one", ("-c", sleeps)), "[1/1]", 0.0, argparse.Namespace(quiet=True, verbose=False))
"""


def test_a_stage_ends_with_the_command_that_started_it() -> None:
    with subprocess.Popen([sys.executable, "-c", STAGE], cwd=ROOT, stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout is not None
        command.stdout.readline()
        stage = int(command.stdout.readline())
        os.kill(stage, 0)
        command.terminate()
        assert command.wait(60) == -signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(stage, 0)


def test_nothing_recorded_is_no_sign_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 2))
    assert main(["machine", "--policy", "smoke", "--device", "cpu", "--out", str(tmp_path)]) == 2
    assert "no stage wrote a record" in capsys.readouterr().err


def test_a_bad_policy_stops_before_anything_runs() -> None:
    with pytest.raises(ClaimError, match="neither a policy"):
        policy.load("lenient")
    assert main(["machine", "--policy", "lenient"]) == 2


def test_a_walk_is_asked_of_the_ops_that_a_model_walks() -> None:
    """Another op is one of the machine and of no layer: its walk would stay UNTESTED for ever."""
    target = claims.Target("", "cpu", {op: (f"emulated/{op}",) for op in OPS}, one_path=False)
    ruled = ruling.rule(target, policy.load("machine"), [])
    assert {c.op for c in ruled.cells if c.stage == "layers"} == set(PATH)
    assert {c.op for c in ruled.cells if c.stage == "ops"} == set(OPS)
