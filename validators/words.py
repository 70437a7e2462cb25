"""The ops by name; apart from the tensors, so that case ids can be read without torch."""

from __future__ import annotations

OPS = ("add_rmsnorm_quant", "per_token_quant", "ptpc_gemm")
