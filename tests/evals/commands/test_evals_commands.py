"""The command line: exit statuses, the one sentence on stderr, and nothing that prints a traceback."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from evals.__main__ import COMMANDS, main
from evals.gsm8k import store
from evals.gsm8k.samples import TokenScore
from tests.support.eval_arms import BASELINE, CANDIDATE, two_arms
from tests.support.harness_files import lm_eval_row, write
from validators.process.guard import Exit
from validators.records.record import Status
from validators.records.store import load

ROOT = Path(__file__).resolve().parents[3]
SEED_CASE = ["gsm8k", "compare", "--totals", "1250/1319", "1244/1319", "--discordance", "0.03"]


@pytest.fixture
def runs(tmp_path: Path) -> tuple[str, str]:
    a, b = two_arms(1319, 1250, 23, 17)
    store.write(tmp_path / "a", BASELINE, a)
    store.write(tmp_path / "b", CANDIDATE, b)
    return str(tmp_path / "a"), str(tmp_path / "b")


@pytest.mark.parametrize(("margin", "code", "verdict"), [("1", 3, "INCONCLUSIVE"), ("2", 0, "PARITY")])
def test_the_seed_case(capsys: pytest.CaptureFixture[str], margin: str, code: int, verdict: str) -> None:
    assert main([*SEED_CASE, "--margin", margin]) == code
    out = capsys.readouterr().out
    assert out.startswith(f"{verdict}: ")
    assert ("1,855 questions (536 more than here)" in out) == (code == Exit.NO_DECISION)


def test_runs_are_compared_and_recorded(
    runs: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records, file = tmp_path / "records", tmp_path / "verdict.json"
    assert main(["gsm8k", "compare", *runs, "--records", str(records), "--json", str(file)]) == 0
    assert capsys.readouterr().out.startswith("PARITY: fused is no worse than unfused by 1.5 points")
    assert json.loads(file.read_text())["verdict"] == "PARITY"
    [made] = load(records)
    assert (made.status, made.kernel, made.case) == (Status.PASSED, "x/fused", "parity-tiny-glm-n1319-margin1.5-s0")
    assert made.reproduce == f"python -m evals gsm8k compare {runs[0]} {runs[1]} --margin 1.5"
    assert main(["gsm8k", "compare", *runs, "--quiet"]) == Exit.YES
    assert capsys.readouterr().out == json.loads(file.read_text())["sentence"] + "\n"
    assert main(["gsm8k", "compare", *runs, "--verbose"]) == Exit.YES
    assert re.search(r"^  discordance +0\.03", capsys.readouterr().out, re.MULTILINE)
    assert main(["gsm8k", "compare", *runs, "--margin", "1", "--json", "-"]) == Exit.NO_DECISION
    assert json.loads(capsys.readouterr().out)["needed"] == 1875


def test_an_error_that_is_left_is_no_decision(runs: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    samples = Path(runs[1]) / store.SAMPLES
    lines = samples.read_text().splitlines(keepends=True)
    samples.write_text("".join(lines[:-1]))
    last = json.loads(lines[-1])
    with store.Writer(runs[1], CANDIDATE) as writer:
        writer.add(replace(store.read(runs[0]).samples[-1], text=None, error="connection refused"))
    assert main(["gsm8k", "compare", *runs]) == Exit.NO_DECISION
    err = capsys.readouterr().err
    assert err == (
        f"evals: 1 of 1319 questions of candidate ended in an error, so there is no verdict (first {last['question']}: "
        "connection refused); run it again to finish them\n"
    )


def scored(spread: float, seed: int) -> list[TokenScore]:
    """Scores of 40 solutions of 50 tokens around the same log-probabilities, ``spread`` from them."""
    fixed, noise = random.Random(0), random.Random(seed)
    return [
        TokenScore(
            f"q{i}", tuple(range(50)), tuple(-1 - fixed.random() + noise.gauss(0, spread) for _ in range(50)), (1,) * 50
        )
        for i in range(40)
    ]


def test_token_scores_of_recorded_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Arms as servers leave them: no top k, so KL is estimated from the gold tokens alone."""
    a, b = two_arms(1319, 1250, 3, 3)
    run = {name: str(tmp_path / name) for name in ("a", "b", "a2", "r", "bad", "none")}
    store.write(run["a"], BASELINE, a, scored(0.03, 1))
    store.write(run["b"], CANDIDATE, b, scored(0.03, 2))
    store.write(run["a2"], BASELINE, a, scored(0.0301, 1))
    store.write(run["r"], replace(CANDIDATE, arm="bf16", kernels={}), b, scored(0.0, 4))
    store.write(run["bad"], replace(CANDIDATE, arm="bad"), b, scored(0.06, 5))
    store.write(run["none"], replace(CANDIDATE, arm="none"), b)
    compare = ["gsm8k", "compare", run["a"]]
    assert main([*compare, run["b"], "--rerun", run["a2"], "--yardstick", run["r"]]) == 0
    assert "nats per token (k3;" in capsys.readouterr().out
    assert main([*compare, run["bad"], "--rerun", run["a2"], "--yardstick", run["r"]]) == 1
    out = capsys.readouterr().out
    assert out.startswith("REGRESSION: bad against unfused")
    assert "  NO    noise " in out
    assert main([*compare, run["none"]]) == 2
    assert "only the baseline has token scores: score both, or neither" in capsys.readouterr().err
    assert main([*compare, run["b"], "--rerun", run["bad"]]) == 2
    assert "is no re-run of the baseline" in capsys.readouterr().err


BAD = [
    ([], "", "usage"),
    (["gsm8k", "judge"], "unknown command 'gsm8k judge'; known: gsm8k run", ""),
    (["gsm8k", "compare"], "name two run directories", ""),
    (["gsm8k", "compare", "nothing", "there"], "nothing is no run directory", ""),
    (["gsm8k", "compare", "--margin", "x"], "argument --margin: invalid float value: 'x'; see python -m evals", ""),
    (["gsm8k", "compare", "a", "b", "--margin", "0"], "--margin 0 is no loss between 0 and 100 points", ""),
    (["gsm8k", "compare", "a", "b", "--alpha", "0.7"], "--alpha 0.7 is no error probability", ""),
    (["gsm8k", "compare", "a", "b", "--criterion", "best"], "unknown criterion 'best'; known: non-inferiority", ""),
    (["gsm8k", "compare", "a", "b", "--discordance", "0.1"], "--discordance belongs to --totals", ""),
    (["gsm8k", "compare", "--totals", "0.948", "0.943"], "totals are written RIGHT/ALL", ""),
    (["gsm8k", "compare", "--totals", "10/200", "10/100"], "over 200 and 100 questions", ""),
    (["gsm8k", "compare", "--totals", "190/200", "189/200"], "at least 0.0050 here", ""),
    ([*SEED_CASE[:-1], "nan"], "state a --discordance", ""),
    ([*SEED_CASE, "a", "b"], "--totals takes no other runs", ""),
    (["import", "helm", "f", "--out", "x"], "unknown harness 'helm'; known: lm-eval, sgl-eval", ""),
    (["import", "lm-eval", "nothing.jsonl", "--out", "x"], "cannot read nothing.jsonl", ""),
]


@pytest.mark.parametrize(("words", "sentence", "out"), BAD, ids=[" ".join(b[0]) or "nothing" for b in BAD])
def test_bad_input_is_one_sentence_and_status_two(
    words: list[str], sentence: str, out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert captured.err.count("\n") == (1 if sentence else 0)
    assert captured.out.startswith(out)


def test_an_unknown_extractor_is_named(runs: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gsm8k", "compare", *runs, "--extractor", "best"]) == 2
    assert "unknown extractor 'best'" in capsys.readouterr().err


def test_an_imported_run_is_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, lost in (("before", 0), ("after", 30)):
        rows = [lm_eval_row(i, f"#### {i if i >= lost else 9999}", "strict-match") for i in range(600)]
        file = write(tmp_path / f"samples_{name}.jsonl", rows)
        out = str(tmp_path / name)
        assert main(["import", "lm-eval", str(file), "--out", out, "--kernel", f"my/{name}"]) == 0
        assert capsys.readouterr().out == f"600 answers and 0 errors to 600 questions in {out}\n"
    assert main(["gsm8k", "compare", str(tmp_path / "before"), str(tmp_path / "after")]) == 1
    assert capsys.readouterr().out.startswith("REGRESSION: after against before")
    assert main(["import", "lm-eval", str(tmp_path / "samples_after.jsonl"), "--out", str(tmp_path / "before")]) == 2
    assert "before holds a run already; take a new directory" in capsys.readouterr().err


def test_one_file_imported_twice_is_no_parity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "samples_x.jsonl", [lm_eval_row(i, f"#### {i}", "strict-match") for i in range(600)])
    runs = [str(tmp_path / name) for name in ("a", "b")]
    for out in runs:
        assert main(["import", "lm-eval", str(file), "--out", out]) == 0
    capsys.readouterr()
    assert main(["gsm8k", "compare", *runs]) == Exit.NO_DECISION
    out = capsys.readouterr().out
    assert out.startswith("INCONCLUSIVE")
    assert "arms: nothing recorded shows that the arms differ; all completions are identical" in out
    assert main(["gsm8k", "compare", *runs, "--aa"]) == 0
    # With the kernels named, identical completions are what a harmless change gives.
    named = str(tmp_path / "c")
    assert main(["import", "lm-eval", str(file), "--out", named, "--kernel", "my/fused"]) == 0
    assert main(["gsm8k", "compare", runs[0], named]) == 0


def test_one_directory_is_not_two_runs(runs: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    a, b = runs
    again = str(Path(a) / ".." / "a")
    for words, sentence in (
        ([a, again], "baseline and candidate are the same run directory"),
        ([a, b, "--rerun", again], "baseline and re-run are the same run directory"),
        ([a, b, "--yardstick", b], "yardstick and candidate are the same run directory"),
    ):
        assert main(["gsm8k", "compare", *words]) == 2
        assert sentence in capsys.readouterr().err


def test_help_of_every_command_of_this_checkout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    usage = capsys.readouterr().out
    for name in COMMANDS:
        assert f"  {name} " in usage
        assert main([*name.split(), "--help"]) == 0
        assert "usage: python -m evals" in capsys.readouterr().out


def test_the_module_runs_and_statistics_need_no_torch() -> None:
    """The seed case in a process of its own where torch, scipy and the rest cannot be imported."""
    heavy = ("torch", "scipy", "transformers", "datasets", "httpx", "reference")
    code = (
        f"import sys\nfor name in {heavy!r}: sys.modules[name] = None\n"
        f"from evals.__main__ import main\nsys.exit(main({[*SEED_CASE, '--margin', '2']!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("PARITY")
