"""The closed lists of names, and the FP8 format of an architecture; apart from everything else, so that case ids and
records are read without torch."""

from __future__ import annotations

from pathlib import Path

_OP_FILES = (Path(__file__).resolve().parent / "cases" / "ops").glob("[a-z]*.py")
OPS = tuple(sorted(file.stem for file in _OP_FILES))
"""An op exists where it has a file in ``cases/ops``: nothing else lists it."""
PATH = ("add_rmsnorm_quant", "per_token_quant", "ptpc_gemm")
"""The ops of the path through a model of PTPC linears: the fused norm, the quantizer, the GEMM."""
FUSED, QUANT, GEMM = PATH
LANES = ("exact", "random", "adversarial", "special", "shapes", "model")
"""Strongest evidence first; the order of a summary's columns."""
STAGES = ("ops", "layers", "goldens", "parity", "trace")
"""What a record is evidence of: cases of the suite, a walk, accepted bits, an evaluation, a profiler trace."""
DTYPES = ("bf16", "fp16")
FP8_FORMATS = ("e4m3fn", "e4m3fnuz")
DEPTHS = ("smoke", "default", "deep")
_FNUZ_ARCHITECTURES = ("gfx940", "gfx941", "gfx942")
"""Their matrix units and conversions take e4m3fnuz; those of gfx950 and later, and of NVIDIA, take e4m3fn."""


def native_fp8(arch: str) -> str:
    """FP8 format of the hardware: ``"e4m3fnuz"`` up to gfx942, ``"e4m3fn"`` on every other architecture."""
    return "e4m3fnuz" if arch in _FNUZ_ARCHITECTURES else "e4m3fn"
