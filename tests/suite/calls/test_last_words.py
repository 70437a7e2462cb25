"""A crash says what was being done, and a random kernel is called random before it is called dependent on its batch."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from pathlib import Path

import pytest
import torch

from reference.contract import NORM_QUANT_CONTRACTS
from tests.support.child import python
from validators.cases.case import Case
from validators.cases.recipe import ADD, QUANT
from validators.cases.tensors import NormQuantInputs, NormQuantOutputs
from validators.isolate import run_isolated
from validators.kernels import emulated
from validators.kernels.kernel import Kernel
from validators.process import doing
from validators.records.record import Check, Status
from validators.records.verdict import decide
from validators.run import validate

ROOT = Path(__file__).resolve().parents[3]
CRASHES = """
import os, signal
import torch

def few_rows(x, fp8_dtype):
    if x.shape[0] {condition}:
        os.kill(os.getpid(), signal.SIGFPE)
    scale = x.float().abs().amax(-1, keepdim=True).clamp(min=1e-10) * (1.0 / 448)
    return (x.float() * (1.0 / scale)).clamp(-448, 448).to(fp8_dtype), scale
"""


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ("== 1", "worker died with signal 8 (SIGFPE) while row 0 was run alone (batch invariance)"),
        (
            "== 4",
            "worker died with signal 8 (SIGFPE) while 4 rows were run in a batch of every other row, reversed "
            "(batch invariance)",
        ),
        ("== 8", "worker died with signal 8 (SIGFPE)"),
    ],
)
def test_a_crash_says_what_was_being_done(tmp_path: Path, condition: str, words: str) -> None:
    file = tmp_path / "crashes.py"
    file.write_text(CRASHES.format(condition=condition))
    case = Case(QUANT, 8, 64, "gaussian")
    [record] = run_isolated(f"{file}:few_rows", QUANT, [case], contract="aiter-hip-gfx950")
    assert (record.status, record.reasons) == (Status.ERROR, (words,))


def test_identify_says_which_kernel_died_on_what(tmp_path: Path) -> None:
    file = tmp_path / "crashes.py"
    file.write_text(CRASHES.format(condition="> 1"))
    command = ["validators", "identify", "--device", "cpu"]
    done = python("-m", *command, "--kernel", f"{QUANT}={file}:few_rows")
    assert done.returncode == 4
    assert "died with signal 8 (SIGFPE) while it was run on per_token_quant-m64-n5120-" in done.stderr
    assert "to find its contract" in done.stderr


def test_words_hold_for_their_block_and_need_no_reader() -> None:
    with doing.during("nobody listens"):
        pass
    with tempfile.TemporaryFile() as file:
        doing.report_to(file.fileno())
        try:
            with doing.during("row 1 was run alone" + " very" * 100):
                assert doing.last(file.fileno()).startswith(" while row 1 was run alone very")
                assert len(doing.last(file.fileno())) <= doing.LENGTH + len(" while ")
            assert doing.last(file.fileno()) == ""
        finally:
            doing._file = None
            os.fstat(file.fileno())


def random_scale() -> Kernel:
    """The scale is one ulp up in every second call; both values are admissible under the contract's norm."""
    honest, calls = emulated.make(NORM_QUANT_CONTRACTS["aiter-triton"]), [0]

    def call(inputs: NormQuantInputs, buffers: NormQuantOutputs) -> NormQuantOutputs:
        outputs = honest(inputs, buffers)
        assert isinstance(outputs, NormQuantOutputs)
        calls[0] += 1
        if calls[0] % 2:
            outputs.scale.copy_(torch.nextafter(outputs.scale, torch.full_like(outputs.scale, float("inf"))))
        return outputs

    return Kernel("demo/random", ADD, "aiter-triton", call, in_place=True)


def test_a_random_scale_is_nondeterministic_and_not_dependent_on_its_batch() -> None:
    record = validate(random_scale(), Case(ADD, 8, 264, "gaussian"))
    assert record.status is Status.NONDETERMINISTIC, record.reasons
    assert record.reasons[0].startswith("run to run: two runs differ: ")


@pytest.mark.parametrize("who", ["kernel", "contract"])
def test_a_declared_nondeterministic_kernel_is_judged_by_the_values_of_each_run(
    who: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = random_scale()
    if who == "kernel":
        kernel = dataclasses.replace(kernel, deterministic=False)
    else:
        free = NORM_QUANT_CONTRACTS["aiter-triton"].replace(deterministic=False)
        monkeypatch.setitem(NORM_QUANT_CONTRACTS, "aiter-triton", free)
    record = validate(kernel, Case(ADD, 8, 264, "gaussian"))
    assert record.status is Status.PASSED, record.reasons
    said = {c.name: c for c in record.checks}
    assert said["run to run"].ok is None
    assert said["run to run"].detail.startswith("two runs differ: ")
    assert said["run to run"].detail.endswith("; declared, so each run is judged by its values")
    assert said["batch invariance"].ok is None


@pytest.mark.parametrize("wrong", [1, 2])
def test_a_wrong_value_in_either_run_of_a_nondeterministic_kernel_fails(wrong: int) -> None:
    random, calls = random_scale(), [0]

    def call(inputs: NormQuantInputs, buffers: NormQuantOutputs) -> NormQuantOutputs:
        outputs = random.call(inputs, buffers)
        assert isinstance(outputs, NormQuantOutputs)
        calls[0] += 1
        if calls[0] == wrong:
            outputs.scale[3] *= 2
        return outputs

    record = validate(dataclasses.replace(random, call=call, deterministic=False), Case(ADD, 8, 264, "gaussian"))
    assert record.status is Status.FAILED
    assert any(reason.startswith("scale: 1 of 8 rows outside their admissible set") for reason in record.reasons)
    second = "these are the values of the second of two runs; those of the first are admissible"
    assert (second in record.reasons) == (wrong == 2)


def test_the_order_of_reasons() -> None:
    unstable = Check("run to run", False, "differs", "determinism")
    varying = Check("batch invariance", False, "row 0 alone", "invariance")
    broken = Check("guards", False, "overwritten", "integrity")
    assert decide([], [varying, unstable]) == (
        Status.NONDETERMINISTIC,
        ("run to run: differs", "batch invariance: row 0 alone"),
    )
    assert decide([], [varying])[0] is Status.FAILED
    assert decide([], [varying, unstable, broken]) == (
        Status.FAILED,
        ("guards: overwritten", "run to run: differs", "batch invariance: row 0 alone"),
    )
