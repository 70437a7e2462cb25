"""Which commands take an interpreted device, and what the others say."""

from __future__ import annotations

import pytest

import evals.__main__ as evals_main
import golden.__main__ as golden_main
import validators.__main__ as validators_main
from validators.kernels.registry import all_kernels
from validators.process.guard import Exit

DEVICE = ["--device", "amdgcn:gfx942"]


@pytest.mark.parametrize("name", [k.name for k in all_kernels() if not k.name.startswith("amdgcn/")])
def test_no_other_kernel_says_that_it_is_interpreted(name: str) -> None:
    for kernel in all_kernels():
        if kernel.name == name:
            assert kernel.refuses("amdgcn:gfx942")


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (golden_main.main, ["propose", "--out", "proposal"]),
        (golden_main.main, ["check"]),
        (evals_main.main, ["parity", "--questions", "2", "--token-questions", "2"]),
        (validators_main.main, ["machine", "--policy", "smoke", "--out", "signoff"]),
        (validators_main.main, ["probe", "--kernel", "emulated/unknown"]),
    ],
)
def test_a_command_that_needs_a_whole_device_says_so(
    main: object, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, *DEVICE]) == Exit.USAGE  # type: ignore[operator]
    assert "amdgcn:gfx942 interprets single kernels" in capsys.readouterr().err


def test_a_kernel_that_is_no_machine_code_does_not_run_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert validators_main.main(["run", "--kernel", "emulated/unknown", *DEVICE]) == Exit.NO_DECISION
    assert "is no machine code" in capsys.readouterr().err
