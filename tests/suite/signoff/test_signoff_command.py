"""The sign-off as a command: the story of a machine, records of several machines, the files that it writes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from tests.support.signed import (
    EVERY,
    EXAMPLES,
    LATER,
    NORM,
    ROOT,
    SMOKE,
    TARGET,
    made,
    ops,
    path,
    ruled,
    write_records,
)
from validators.__main__ import COMMANDS, main
from validators.commands import cli
from validators.records.record import Status
from validators.signoff import claims, decision, policy
from validators.signoff.decision import SignoffError, signoff_directory, under_policy
from validators.signoff.json import to_dict
from validators.signoff.policy import Waiver
from validators.signoff.ruling import rule
from validators.signoff.text import markdown

# ---- the command


def test_the_story_of_gfx950(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever was run elsewhere, the claim about an MI355X is UNTESTED, and says what to run there."""
    here = write_records(tmp_path / "cpu", path())
    claim = str(EXAMPLES / "glm47-aiter-gfx950.toml")
    assert main(["signoff", str(here), "--claim", claim, "--out", str(tmp_path / "out")]) == 3
    printed = capsys.readouterr().out
    assert printed.startswith("UNTESTED\n")
    assert "UNTESTED: ops; layers; goldens; trace." in printed
    assert "on an MI350X or MI355X:" in printed
    for kernel in ("aiter_hip/add_rmsnorm_quant", "aiter_hip/per_token_quant_hip", "aiter_hip/gemm_a8w8_bpreshuffle"):
        assert f"{kernel} --device cuda --records records/gfx950" in printed
    assert "golden propose --device cuda" in printed
    assert "validators trace trace.json.gz --layers 92 --kernel aiter_hip/add_rmsnorm_quant" in printed
    assert main(["signoff", "--claim", claim]) == 3
    assert capsys.readouterr().out.startswith("UNTESTED\n")


def test_every_command_for_another_machine_is_one_that_exists() -> None:
    ruling = rule(claims.from_file(EXAMPLES / "glm47-aiter-gfx950.toml"), policy.load("merge"), [])
    parsed = 0
    for step in ruling.steps:
        for command in step.commands:
            words = command.split()
            if words[:4] in (["python", "-m", "validators", "run"], ["python", "-m", "validators", "trace"]):
                cli.parser_of("validators", words[3], COMMANDS).parse_args(words[4:])
                parsed += 1
    assert parsed == 4


def test_records_of_two_machines_are_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half = [r for r in ops() if r.op == NORM]
    one, two = write_records(tmp_path / "a", half), write_records(tmp_path / "b", [r for r in ops() if r.op != NORM])
    decided = signoff_directory([one, two], policy=SMOKE, target=lambda records: [TARGET])
    assert decided.decision == "SIGNED"
    assert len(decided.files) == 2
    assert signoff_directory([one], policy=SMOKE, target=lambda records: [TARGET]).decision == "UNTESTED"
    with pytest.raises(SignoffError, match="one record file twice"):
        signoff_directory([one, one])
    assert main(["signoff", str(one), str(two), "--policy", "smoke", "--out", str(tmp_path / "out")]) == 3
    assert "UNTESTED: layers." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--policy", "lenient"], "neither a policy"),
        (["--claim", "absent.toml"], "cannot read absent.toml"),
        (["--claim", "absent/kernel"], "neither a claim's file nor a kernel"),
        (["--arch", "cpu"], "--arch and --contract belong to a claim"),
        (["--version", "torch=2.*"], "--version belongs to a claim or a policy"),
        (["--policy", "smoke", "--version", "torch"], "is not LIBRARY=PATTERN"),
    ],
)
def test_bad_usage_is_one_sentence_and_exits_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    here = write_records(tmp_path / "r", ops()[:1])
    assert main(["signoff", str(here), *arguments]) == 2
    said = capsys.readouterr()
    assert sentence in said.err
    assert said.err.count("\n") == 1
    assert "Traceback" not in said.err


def test_the_json_follows_the_published_schema(tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is in the group 'test' of pyproject.toml")
    schema = json.loads((ROOT / "docs" / "signoff.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    bad = made(NORM, "x", "random", Status.FAILED, reasons=("because",))
    waiver = Waiver("jane", "why", LATER, stage="trace")
    some = under_policy(
        [r for r in path() if r.lane != "trace"], dataclasses.replace(EVERY, waivers=(waiver,)), [TARGET]
    )
    for decided in (
        decision.decide(path()),
        under_policy(path(), EVERY, [TARGET]),
        under_policy([*path(), bad], EVERY, [TARGET]),
        under_policy([], EVERY, [TARGET]),
        some,
    ):
        jsonschema.validate(to_dict(decided), schema)
    wrong = {**to_dict(some), "decision": "FINE"}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema)


def test_the_comment_is_short_and_says_what_to_run() -> None:
    text = markdown(under_policy(ops()[1:], EVERY, [TARGET]))
    assert text.startswith("## UNTESTED\n")
    assert len(text) < 5_000
    assert "    python -m evals parity --baseline unfused,per_token_quant=demo/quant" in text


def test_the_parity_command_names_the_kernels_of_the_path() -> None:
    ruling = ruled([r for r in path() if r.lane != "parity"])
    assert ruling.steps[0].commands == (
        "python -m evals parity --baseline unfused,per_token_quant=demo/quant,ptpc_gemm=demo/gemm "
        "--candidate fused,add_rmsnorm_quant=demo/norm,per_token_quant=demo/quant,ptpc_gemm=demo/gemm "
        "--device cpu --records records",
    )
