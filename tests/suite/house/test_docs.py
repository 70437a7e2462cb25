"""The documentation is run: commands, their outputs, samples, tables of constants, links and examples.

Every line ``$ command`` of a ``console`` or ``bash`` block is run, in order, in a folder of the document's own that
links to the checkout. The text below a command must be what the command prints; ``...`` matches anything. Commands
that are too slow or cannot run here are replaced or left out by the tables below, each entry with its reason.
"""

from __future__ import annotations

import doctest
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.child import python
from tests.support.pages import OURS, ROOT, commands, read, samples

NEW_ENVIRONMENT = "makes an environment from a package index"
REPLACED = {
    # The stages of an AMD GPU cannot run here; records of another path must leave the claim UNTESTED.
    "python -m validators machine --claim docs/examples/claims/glm47-aiter-gfx950.toml --out signoff/gfx950": (
        "python -m validators run --kernel add_rmsnorm_quant=emulated/aiter-hip-gfx942 --fp8 e4m3fnuz "
        "--lane shapes --depth smoke --records signoff/gfx950/records"
    ),
    # The same records, instead of those of every kernel.
    "python -m validators run --all-available --depth smoke --records records/rocm": (
        "mkdir -p records/rocm && cp signoff/gfx950/records/*.jsonl records/rocm"
    ),
    # Two questions decide nothing, and say so: the whole takes minutes, and `make signoff` runs it.
    "python -m evals parity --baseline unfused --candidate fused": (
        "python -m evals parity --baseline unfused --candidate fused --questions 2 --token-questions 2 --seed 264"
    ),
    "python -m evals parity --candidate fused,add_rmsnorm_quant=docs/examples/my_kernel.py:fused "
    "--records records/parity": (
        "python -m evals parity --candidate fused,add_rmsnorm_quant=docs/examples/my_kernel.py:fused "
        "--records records/parity --questions 2 --token-questions 2 --seed 264"
    ),
}
SKIPPED = {
    "pytest -m golden": "CI runs it as well",
    "python -m golden check": "tests/golden/test_goldens.py checks each of them; with --device cuda it needs a GPU",
    "python -m golden propose": "tests/golden/test_golden_check.py proposes; with --device cuda it needs a GPU",
    "python -m golden accept": "follows a proposal, and needs a person",
    "make test": "runs this very test; CI runs it as .ci/run",
    "make signoff": f"{NEW_ENVIRONMENT} and takes minutes; CI runs it",
    "make lint": f"{NEW_ENVIRONMENT}; CI runs it as .ci/run",
    ". .venv/bin/activate": "the test runs in its own environment",
    "python3 .ci/environment.py .venv test report": NEW_ENVIRONMENT,
    "docker run": "needs docker and an AMD GPU",
    "export SGLANG_USE_AITER=1": "for the server below",
    "python3 -m sglang": "needs a serving engine, its model and AMD GPUs",
    "find signoff/gfx950/trace": "needs the trace of that server",
    "exit": "leaves the container",
    "python -m validators probe --kernel aiter_hip": "needs an AMD GPU; the same command is run on a CPU below it",
    "python -m validators trace trace.json.gz": "needs a trace of a serving engine; tests/suite/trace has them",
    "gh pr comment": "needs a pull request",
    "pip download": "needs a package index, and 662 MB",
    "python -m zipfile -e .wheels": "needs a wheel; tests/suite/commands/test_wheel.py has made ones",
    "python -m validators wheel": "needs a wheel; tests/suite/commands/test_wheel.py has made ones",
    "python3 -m zipfile -e": "needs a slimmed wheel; tests/suite/commands/test_wheel.py has made ones",
    "export VLLM_PATH": "lasts for one command here",
    "for kernel in vllm/": "needs the libraries of other projects, and a GPU",
    "python3 -m validators signoff records/real": "needs the records of the command before it",
    "python -m tests.benchmarks.real_records records/real": "needs records of a GPU; see test_real_records.py",
    "python -m pytest -q tests/suite": "other tests of the suite, which CI runs; that they exist is tested below",
}
EXIT_CODES = {
    # The broken example and what follows from it; the sample of one lane leaves the other lanes UNTESTED.
    "--kernel add_rmsnorm_quant=docs/examples/broken_kernel.py:fused --contract": 1,
    "validators report records/broken": 1,
    "validators signoff records/rocm": 1,
    # The seed case: neither parity nor a regression is shown at one point.
    "--discordance 0.03 --margin 1": 3,
    "python -m evals parity": 3,
    "signoff signoff/gfx950/records --claim": 3,
    "python -m validators explain": 1,
    "validators signoff --claim docs/examples/claims/glm47-aiter-gfx950.toml": 3,
    "validators signoff records/eager": 3,
    # No library of theirs and no GPU here.
    "python -m tests.benchmarks.real_findings": 2,
}
# Programs whose commands run in a fork of this process.
FORKED = ("validators", "evals", "golden", "pytest")
TIME_LIMIT_S = 600
# Lines of a failure report that neither the machine nor the order of a CPU's sum changes.
STABLE = (
    "FAILED",
    "kernel",
    "lane",
    "non-finite",
    "where",
    "index",
    "also failed",
    "explained by",
    "reproduce",
)


def skip_reason(command: str) -> str | None:
    return next((reason for start, reason in SKIPPED.items() if command.startswith(start)), None)


def expected_code(command: str) -> int:
    """The exit code that the documentation implies."""
    return next((code for part, code in EXIT_CODES.items() if part in command), 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder in which the checkout's files appear and records can be written."""
    for entry in ROOT.iterdir():
        if not entry.name.startswith((".git", ".venv")) and entry.name not in ("records", "signoff"):
            (tmp_path / entry.name).symlink_to(entry)
    return tmp_path


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """``command`` in a shell whose python is this one, on the CPU, as it is where no terminal is attached."""
    hidden = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "ROCR_VISIBLE_DEVICES": ""}
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "COV"))}
    git = {"GIT_CONFIG_GLOBAL": str(folder / "gitconfig")}
    environment = {**inherited, **hidden, **git, "OMP_NUM_THREADS": "1"}
    words = shlex.split(command, comments=True)
    if words[:2] == ["python", "-m"] and words[2] in FORKED and not re.search(r"[|&;<>$]", command):
        return python(*words[1:], cwd=folder, environment=environment)
    line = re.sub(r"^python3?(?= )", lambda _: f'"{sys.executable}"', command)
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT_S
    )


def differences(shown: str, printed: str) -> str:
    """How what is shown differs from what was printed, or nothing."""
    checker, flags = doctest.OutputChecker(), doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    if not shown.strip() or checker.check_output(shown, printed, flags):
        return ""
    return checker.output_difference(doctest.Example("", shown), printed, flags)


def labelled(report: str) -> dict[str, str]:
    """Stable lines of a failure report by label; of element rows index, exact value and admissible set."""
    found = {}
    for number, line in enumerate(report.strip().splitlines()):
        label = next((s for s in STABLE if line.strip().startswith(s)), None)
        row = re.match(r"\s*(\(\d+, \d+\))\s+(\S+)\s+(\[.*?\]|\S+)", line)
        if row:
            found[row[1]] = f"{row[2]} {row[3]}"
        elif label is not None:
            found[f"{number} {label}"] = line.strip() if label != "index" else " ".join(line.split()[:4])
    return found


@pytest.mark.parametrize("name", [name for name in OURS if commands(read(name))])
def test_every_command_runs_and_prints_what_is_shown(name: str, folder: Path) -> None:
    wanted, ran, wrong = dict(samples(read(name))), 0, []
    for command in commands(read(name)):
        if skip_reason(command.text):
            continue
        done = run(REPLACED.get(command.text, command.text), folder)
        ran += 1
        code = expected_code(command.text)
        if done.returncode != code:
            wrong.append(f"{command.text}\nexit code {done.returncode}, not {code}\n{done.stdout}{done.stderr}")
        if command.text not in REPLACED and (words := differences(command.shown, done.stdout)):
            wrong.append(f"{command.text}\n{words}")
        if command.text in wanted:
            printed = labelled(done.stdout.split("\n\n")[0])
            assert len(printed) > len(STABLE), done.stdout
            assert labelled(wanted.pop(command.text)) == printed, done.stdout
    assert not wrong, "\n\n".join(wrong)
    assert not wanted, f"samples of commands that the page does not run: {list(wanted)}"
    assert ran or all(skip_reason(c.text) for c in commands(read(name)))


def test_the_tables_hold_nothing_that_no_document_needs() -> None:
    every = [command.text for name in OURS for command in commands(read(name))]
    assert not [text for text in REPLACED if text not in every]
    assert not [start for start in SKIPPED if not any(text.startswith(start) for text in every)]
    assert not [part for part in EXIT_CODES if not any(part in text for text in every)]


def test_what_is_skipped_names_targets_and_files_that_exist() -> None:
    makefile = read("Makefile")
    named = 0
    for name in OURS:
        for command in commands(read(name)):
            if command.text.startswith("make "):
                assert re.search(rf"^{command.text.split()[1]}:", makefile, re.MULTILINE), command.text
                named += 1
            elif skip_reason(command.text):
                for path in re.findall(r"(?:tests|\.ci)/\S+\.py", command.text):
                    assert (ROOT / path).is_file(), command.text
                    named += 1
    assert named > 5


def test_a_wrong_output_and_a_wrong_sample_are_seen() -> None:
    assert differences("20 records: ...\n", "20 records: 20 PASSED\n") == ""
    assert "19 PASSED" in differences("20 records: 19 PASSED\n", "20 records: 20 PASSED\n")
    [(_, sample)] = samples(read("README.md"))
    for old, new in (
        ("tail-not-in-amax", "rows-swapped"),
        ("2 of 37 rows (", "3 of 37 rows ("),
        ("[0.0761030", "[0.07"),
    ):
        assert old in sample
        assert labelled(sample) != labelled(sample.replace(old, new))
    assert labelled(sample) == labelled(re.sub(r"provenance .*", "provenance  another machine", sample))
