"""A kernel of one's own as assembly text and a launch file: verdicts, and a sentence for each thing that is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.amdgcn_edit import text_of
from validators.__main__ import main
from validators.amdgcn.errors import TextError
from validators.cases.case import Case
from validators.kernels.kernel import KernelError
from validators.kernels.registry import find_kernel
from validators.process.guard import Exit
from validators.records.record import Record, Status
from validators.run import validate

LAUNCH = """
text = "kernel.s"
op = "add_rmsnorm_quant"
contract = "aiter-triton"
arguments = [
  "x", "residual", "weight", "codes", "scale", "residual_out", "x_stride", "residual_stride", "n", "eps", "null",
  "null",
]
grid = ["m", 1, "2 - 1"]
block = [512, 1, 1]
lds = 2048
takes = { dtype = ["bf16"], gamma = ["T"], residual = [true] }
"""


def _written(folder: Path, launch: str = LAUNCH, text: str | None = None) -> str:
    (folder / "kernel.s").write_text(text if text is not None else text_of("gfx942", "any"), encoding="utf-8")
    (folder / "kernel.toml").write_text(launch, encoding="utf-8")
    return str(folder / "kernel.toml")


def _judged(name: str, case: str = "m9-n1002-bf16-e4m3fnuz-gaussian-s0", device: str = "amdgcn:gfx942") -> Record:
    return validate(find_kernel(name), Case.parse(f"add_rmsnorm_quant-{case}"), device=device)


def test_an_assembly_file_is_judged(tmp_path: Path) -> None:
    record = _judged(_written(tmp_path))
    assert record.status is Status.PASSED, record.reasons
    assert record.provenance.kernel_source is not None
    assert record.provenance.chosen["target"] == "gfx942"


def test_what_the_launch_file_does_not_take_is_unsupported(tmp_path: Path) -> None:
    name = _written(tmp_path)
    record = _judged(name, "m9-n1002-bf16-e4m3fnuz-gaussian-nores-s0")
    assert record.status is Status.UNSUPPORTED
    assert "takes residual True only" in record.reasons[0]
    record = _judged(name, "m9-n1002-bf16-e4m3fn-gaussian-s0")
    assert record.reasons == ("gfx942 converts to e4m3fnuz only",)
    other = _written(tmp_path, LAUNCH.replace("takes = { ", "takes = { n = { max = 1000, multiple_of = 2 }, "))
    assert "takes n up to 1000, multiples of 2 only" in _judged(other).reasons[0]
    record = _judged(name, device="amdgcn:gfx950")
    assert record.reasons == ("the text is for gfx942, and the device is amdgcn:gfx950",)


def test_a_folder_of_triton_s_cache_tells_block_and_local_memory(tmp_path: Path) -> None:
    launch = LAUNCH.replace("block = [512, 1, 1]\nlds = 2048\n", "").replace("kernel.s", "kernel.amdgcn")
    launch = launch.replace(', "null",\n  "null",', ",")
    name = _written(tmp_path, launch)
    (tmp_path / "kernel.s").rename(tmp_path / "kernel.amdgcn")
    (tmp_path / "kernel.json").write_text(json.dumps({"num_warps": 8, "shared": 2048, "name": "add_rmsnorm_quant"}))
    assert _judged(name).status is Status.PASSED


WRONG = {
    "an unknown key": ("lds = ", "lsd = ", "has unknown keys: lsd"),
    "a key is missing": ("grid = ", "# ", "lacks grid"),
    "no op": ("add_rmsnorm_quant", "add_rmsnorm", "unknown op 'add_rmsnorm'"),
    "too few arguments": ('"x", "residual", ', "", "maps 10 arguments, and add_rmsnorm_quant takes 12"),
    "another kernel": ("contract = ", 'kernel = "other"\ncontract = ', "has no kernel other"),
    "no file": ("kernel.s", "nowhere.s", "cannot be read"),
    "no TOML": ("[512", "(512", "cannot be read"),
    "a range": ('["bf16"]', "{ min = 3 }", "is no list and no range"),
    "a case's field": ("dtype = ", "type = ", "takes 'type' is no field of a case"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_launch_file_is_one_sentence(name: str, tmp_path: Path) -> None:
    old, new, words = WRONG[name]
    assert old in LAUNCH
    path = _written(tmp_path, LAUNCH.replace(old, new))
    with pytest.raises((KernelError, TextError), match=words) as raised:
        find_kernel(path)
    assert "\n" not in str(raised.value)


def test_an_argument_that_is_nothing_is_an_error_of_the_case(tmp_path: Path) -> None:
    record = _judged(_written(tmp_path, LAUNCH.replace('"x_stride"', '"x_strides"')))
    assert record.status is Status.ERROR
    assert "'x_strides' names no tensor and no number of this op" in record.reasons[0]


def test_arguments_in_the_wrong_order_are_found(tmp_path: Path) -> None:
    record = _judged(_written(tmp_path, LAUNCH.replace('"x", "residual", "weight"', '"x", "weight", "residual"')))
    assert record.status in (Status.ERROR, Status.FAILED)


def test_another_op_than_the_file_s(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="is a kernel of add_rmsnorm_quant, not of ptpc_gemm"):
        find_kernel(_written(tmp_path), "ptpc_gemm")


def test_the_example_of_the_documentation_is_judged(tmp_path: Path) -> None:
    example = Path(__file__).resolve().parents[3] / "docs" / "examples" / "amdgcn" / "add_rmsnorm_quant.toml"
    words = ["run", "--device", "amdgcn:gfx942", "--kernel", str(example), "--lane", "shapes", "--depth", "smoke"]
    assert main([*words, "--records", str(tmp_path / "records")]) == Exit.YES
