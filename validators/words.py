"""The closed lists of names; apart from everything else, so that case ids and records are read without torch."""

from __future__ import annotations

OPS = ("add_rmsnorm_quant", "per_token_quant", "ptpc_gemm")
LANES = ("exact", "random", "adversarial", "special", "shapes", "model")
"""Strongest evidence first; the order of a summary's columns."""
DTYPES = ("bf16", "fp16")
FP8_FORMATS = ("e4m3fn", "e4m3fnuz")
DEPTHS = ("smoke", "default", "deep")
