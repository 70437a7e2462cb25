"""A user's own Triton function as machine code, where Triton is installed; without it the reason is told."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from validators.cases.case import Case
from validators.kernels.amdgcn import kernels
from validators.kernels.kernel import KernelError
from validators.kernels.plugin import load
from validators.kernels.registry import find_kernel
from validators.records.record import Status
from validators.run import validate

EXAMPLE = Path(__file__).resolve().parents[3] / "docs" / "examples" / "amdgcn" / "my_triton_kernel.py"
WITH_TRITON = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed here")


@WITH_TRITON
@pytest.mark.parametrize(("target", "fp8"), [("gfx942", "e4m3fnuz"), ("gfx950", "e4m3fn")])
def test_the_example_of_the_documentation_is_judged(target: str, fp8: str) -> None:
    kernel = find_kernel(f"{EXAMPLE}:quantize")
    for name in ("m17-n1002-bf16-{}-gaussian-s0", "m3-n264-bf16-{}-midpoints-s0"):
        record = validate(kernel, Case.parse(f"per_token_quant-{name.format(fp8)}"), device=f"amdgcn:{target}")
        assert record.status is Status.PASSED, record.reasons
        assert record.emulated
        assert record.provenance.chosen["target"] == target


@WITH_TRITON
@pytest.mark.parametrize(("target", "fp8"), [("gfx942", "e4m3fnuz"), ("gfx950", "e4m3fn")])
def test_this_project_s_gemm_is_judged(target: str, fp8: str) -> None:
    kernel = find_kernel("amdgcn/triton/ptpc_gemm")
    for name in ("m24-n48-k176-bf16-{}-small_integers-s0", "m37-n136-k144-bf16-{}-shape_walk-s0"):
        record = validate(kernel, Case.parse(f"ptpc_gemm-{name.format(fp8)}"), device=f"amdgcn:{target}")
        assert record.status is Status.PASSED, record.reasons
        assert record.contract == {"gfx942": "cdna3-mfma", "gfx950": "unknown"}[target]


def test_a_kernel_of_another_device_is_not_interpreted(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text("def quantize(x, fp8_dtype): ...\nquantize.devices = ('cpu',)\n")
    kernel = load(f"{tmp_path / 'plain.py'}:quantize")
    assert "says that it runs on cpu, not on amdgcn" in str(kernel.unavailable("amdgcn"))
    (tmp_path / "other.py").write_text("def quantize(x, fp8_dtype): ...\nquantize.devices = ('tpu',)\n")
    with pytest.raises(KernelError, match='"cpu", "cuda" and "amdgcn"'):
        load(f"{tmp_path / 'other.py'}:quantize")


def test_an_interpreted_kernel_says_which_devices_it_has() -> None:
    for kernel in kernels():
        assert "--device amdgcn:gfx942 or amdgcn:gfx950" in str(kernel.unavailable("cpu"))
        with pytest.raises(KernelError, match="a device is needed"):
            kernel.call(None, None)
