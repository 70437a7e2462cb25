"""The pytest options: bad names are usage errors of one sentence, and nothing passes by not running."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

import conftest
from tests.support.child import python
from validators.commands import cli
from validators.errors import UserError
from validators.records.record import Status
from validators.records.store import load

ROOT = Path(__file__).resolve().parents[3]
HOSTILE = ROOT / "tests" / "support" / "hostile.py"


def _pytest(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "COV_"))}
    command = ["-m", "pytest", "-p", "no:cacheprovider", "-q", "tests/kernels", *arguments]
    return python(*command, environment=environment)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--kernel", "nobody/nothing"], "unknown kernel 'nobody/nothing'"),
        (["--kernel", "emulated/vllm", "--contract", "strict"], "unknown contract 'strict'"),
    ],
)
def test_a_bad_name_is_a_usage_error(arguments: list[str], sentence: str) -> None:
    """As pytest shows what ``pytest_configure`` raises: with the names alone, and where kernels were looked up."""
    done = _pytest(*arguments)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    assert len(errors) == 1
    assert sentence in errors[0]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_run_without_a_kernel_case_fails(workers: str) -> None:
    done = _pytest("--kernel", "aiter_hip/add_rmsnorm_quant", "--device", "cpu", "-n", workers)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "ERROR: no kernel case ran" in done.stdout
    assert "1 skipped" in done.stdout


def test_records_are_written_and_a_users_kernel_is_isolated(tmp_path: Path) -> None:
    arguments = ("--device", "cpu", "--lane", "shapes", "-n", "1", "--records", str(tmp_path))
    done = _pytest("--kernel", f"{HOSTILE}:exits_at_once", *arguments)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    records = load(tmp_path)
    assert len(records) > 1
    assert {record.status for record in records} <= {Status.ERROR, Status.UNSUPPORTED}
    assert any("worker died with exit code 7" in record.reasons for record in records)
    assert "worker died with exit code 7" in done.stdout
    assert "Traceback" not in done.stdout


class _Options:
    """What ``pytest_addoption`` adds, by name: the metavar and the default of each."""

    def __init__(self) -> None:
        self.added: dict[str, dict[str, object]] = {}

    def getgroup(self, *_: str) -> _Options:
        return self

    def addoption(self, name: str, **settings: object) -> None:
        self.added[name.removeprefix("--")] = settings


BAD = {
    "kernel": ["nobody/nothing"],
    "contract": "law",
    "lane": ["fast"],
    "depth": "abyss",
    "dtype": "bf15",
    "fp8": "e5m2",
    "records": "/dev/null/x",
    "device": "tpu",
    "time-limit": "-1",
}


SAYS = {
    "kernel": "unknown kernel 'nobody/nothing'",
    "contract": "unknown contract 'law'",
    "lane": "unknown lane 'fast'; known: ",
    "depth": "unknown depth 'abyss'; known: ",
    "dtype": "unknown dtype 'bf15'; known: ",
    "fp8": "unknown FP8 format 'e5m2'; known: ",
    "records": "/dev/null/x",
    "device": "unknown device 'tpu'",
    "time-limit": "-1 is not a positive number of seconds",
}


def _options() -> dict[str, dict[str, object]]:
    found = _Options()
    conftest.pytest_addoption(found)  # type: ignore[arg-type]
    return found.added


@pytest.mark.parametrize("name", list(_options()))
def test_a_value_that_cannot_be_right_is_a_usage_error(name: str) -> None:
    """Every option that is added, so that a new one is walked as soon as it is there."""
    assert name in BAD, f"write into BAD what cannot be a value of --{name}"
    settings = _options()
    if {"choices", "type"} & settings[name].keys():
        parser = cli.Parser()
        parser.add_argument(f"--{name}", **settings[name])  # type: ignore[arg-type]
        bad = BAD[name] if isinstance(BAD[name], str) else BAD[name][0]
        with pytest.raises(UserError) as refused:
            parser.parse_args([f"--{name}={bad}"])
        assert SAYS[name] in str(refused.value)
        return
    values = {key: option.get("default") for key, option in settings.items()}
    config = SimpleNamespace(
        option=SimpleNamespace(**{**values, name: BAD[name]}, log_level="WARNING", collectonly=False),
        stash=pytest.Stash(),
        getini=lambda _: "",
    )
    with pytest.raises(pytest.UsageError) as caught:
        conftest.pytest_configure(config)  # type: ignore[arg-type]
    assert SAYS[name] in str(caught.value)
    assert "\n" not in str(caught.value)
