"""``python -m evals parity`` and ``tokens`` from the command line: what they leave behind, and bad input."""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
from pathlib import Path

import pytest

from evals.__main__ import main
from evals.commands import token_record, tokens
from evals.errors import EvalError
from evals.model.arms import make_arm
from evals.offline.models import MODELS
from evals.offline.questions import GoldSolutions, embedded_questions, gold_solutions
from tests.evals.defects import ROOT, arm
from validators.process.guard import Exit


def test_parity_leaves_runs_a_record_and_a_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two questions decide nothing, and the verdict says so: INCONCLUSIVE, status 3."""
    words = ["parity", "--questions", "2", "--token-questions", "2", "--seed", "264"]  # two short ones
    words += ["--json", str(tmp_path / "verdict.json")]
    code = main([*words, "--runs", str(tmp_path / "runs"), "--records", str(tmp_path / "records")])
    assert code == Exit.NO_DECISION
    assert capsys.readouterr().out.startswith("INCONCLUSIVE")
    for name in ("baseline", "candidate", "again"):
        lines = (tmp_path / "runs" / name / "samples.jsonl").read_text().splitlines()
        assert len({json.loads(line)["question"] for line in lines}) == 2
    header = json.loads((tmp_path / "runs" / "candidate" / "header.json").read_text())
    assert header["kernels"]["add_rmsnorm_quant"] == "emulated/aiter-hip-gfx950"
    record = json.loads(next((tmp_path / "records").glob("*.jsonl")).read_text())
    assert record["status"] == "MISTRUSTED"
    assert record["emulated"] is True
    assert "--token-questions 2 --seed 264 --criterion non-inferiority --margin 1.5 --alpha 0.05" in record["reproduce"]
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    assert {"logits", "batch", "accuracy", "mean dlogp"} <= {gate["name"] for gate in verdict["gates"]}


def test_the_table_names_each_arm_and_its_file_says_what_it_takes_to_repeat_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tokens", "--questions", "20", "--batch", "20", "--arm", arm("missing_residual")]
    code = main([*words, "--json", str(tmp_path / "table.json")])
    out = capsys.readouterr().out
    assert code == Exit.NO
    rows = [line for line in out.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows[1:]] == [
        "| unfused again, other batch",
        "| yardstick bf16-norms",
        "| fused, missing_residual",
    ]
    assert "NO: mean dlogp" in rows[-1]
    made = json.loads((tmp_path / "table.json").read_text())
    assert (made["schema"], made["version"]) == ("evals-tokens", 1)
    weights = MODELS / "tiny-glm" / "model.safetensors"
    assert made["model"]["name"] == "tiny-glm"
    assert made["model"]["sha256"]["model.safetensors"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert made["data"] == {
        "name": "synthetic held-out problems",
        "sha256": embedded_questions(20, 0).sha256,
    }
    assert {name: made[name] for name in ("questions", "seed", "batch", "device", "baseline", "yardstick")} == {
        "questions": 20,
        "seed": 0,
        "batch": 20,
        "device": "cpu",
        "baseline": "unfused",
        "yardstick": "bf16-norms",
    }
    assert f"{made['tokens']:,} tokens of 20 gold solutions" in out
    assert {"commit", "dirty", "torch", "platform", "cpu", "date"} <= set(made["provenance"])
    assert [row["arm"] for row in made["rows"]] == [row.split(" | ")[0][2:] for row in rows[1:]]
    assert made["rows"][-1]["stats"]["mean_dlogp"] < -1
    # The command of the file asks for the same table: parsed again, no option differs.
    again = shlex.split(made["reproduce"])
    assert again[:4] == ["python", "-m", "evals", "tokens"]
    parsed = [token_options(w) for w in (words[1:], again[4:])]
    assert parsed[0] == parsed[1]


def test_other_questions_are_scored_on_request_and_named_as_such(tmp_path: Path) -> None:
    file = tmp_path / "ours.jsonl"
    rows = ({"question": f"How much is {i}?", "answer": f"It is {i}.\n#### {i}"} for i in range(3))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def asked(count: int, *, any_data: bool) -> GoldSolutions:
        def letters(text: str) -> list[int]:
            return [ord(c) for c in text]

        return gold_solutions(str(file), count, 0, encode=letters, end=(0,), any_data=any_data)

    gold = asked(3, any_data=True)
    assert (gold.name, gold.sha256) == ("other:ours.jsonl", hashlib.sha256(file.read_bytes()).hexdigest())
    assert sorted("".join(map(chr, entry.solution)) for entry in gold.solutions) == [
        f" It is {i}.\n#### {i}\0" for i in range(3)
    ]
    with pytest.raises(EvalError, match="--questions 4 is more than the 3 that there are"):
        asked(4, any_data=True)
    with pytest.raises(EvalError, match="is not GSM8K's test file"):
        asked(3, any_data=False)


def token_options(words: list[str]) -> dict[str, object]:
    parser = argparse.ArgumentParser()
    tokens.add_options(parser)
    return vars(parser.parse_args(words))


def test_a_file_of_numbers_that_are_not_finite_is_strict_json(tmp_path: Path) -> None:
    token_record.write(str(tmp_path / "x.json"), {"a": [float("nan"), (float("-inf"), 1.5)], "b": None})
    assert json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail) == {
        "a": ["nan", ["-inf", 1.5]],
        "b": None,
    }


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["parity", "--model", "nope"], "there is no model 'nope'"),
        (["parity", "--candidate", "slow"], "unknown arm 'slow'"),
        (["parity", "--candidate", "unfused"], "are the same kernels"),
        (["parity", "--questions", "1"], "at least two questions"),
        (["parity", "--device", "tpu"], "unknown device 'tpu'; known: cpu, cuda"),
        (["parity", "--candidate", "fused,add_rmsnorm_quant=nowhere.py:f"], "there is no file nowhere.py"),
        (["parity", "--model", ""], "there is no model ''"),
        (["parity", "--extractor", "best"], "unknown extractor 'best'"),
        (["parity", "--json", "nowhere/verdict.json"], "there is no folder nowhere"),
        (["parity", "--json", "tests"], "cannot write tests: it is a folder"),
        (["parity", "--records", "pyproject.toml"], "cannot write to pyproject.toml"),
        (["parity", "--runs", "pyproject.toml"], "cannot write to pyproject.toml"),
        (["tokens", "--json", "nowhere/table.json"], "there is no folder nowhere"),
        (["tokens", "--model", ".."], "tokenizer.json"),
        (["tokens", "--model", ""], "there is no model ''"),
        (["tokens", "--data", ""], "--data names nothing"),
        (["tokens", "--yardstick-arm", "fused"], "does not measure the quantisation noise of unfused"),
        (["tokens", "--yardstick-arm", "bf16-norms", "--baseline", "bf16-norms"], "another than the baseline"),
        (["tokens", "--model", "nope"], "there is no model 'nope'"),
        (["tokens", "--model", "none.gguf"], "cannot read none.gguf"),
        (["tokens", "--questions", "4", "--arm", "fused", "--arm", "fused"], "two arms have the same name"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(
    capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert main(words) == Exit.USAGE
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert sentence in error[0]


def test_a_defect_is_named_without_the_folder_of_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A record holds a kernel's name as it was given; elsewhere than in the root only the whole path is found."""
    monkeypatch.chdir(ROOT)
    assert arm("stale_scale") == "fused,add_rmsnorm_quant=tests/evals/defects.py:stale_scale"
    assert make_arm(arm("stale_scale")).kernels["add_rmsnorm_quant"] == "tests/evals/defects.py:stale_scale"
    monkeypatch.chdir(tmp_path)
    assert make_arm(arm("stale_scale")).kernels["add_rmsnorm_quant"] == f"{ROOT}/tests/evals/defects.py:stale_scale"
