"""Small stores for the tests; imports no torch, so that the processes started here are quick."""

from __future__ import annotations

from pathlib import Path

from golden.commit import Entry, commit
from golden.store import Output, Row, Store, Tensor, read

CASES = tuple(f"per_token_quant-m2-n16-bf16-e4m3fn-gaussian-s{seed}" for seed in range(3))


def entry(
    case: str = CASES[0], *, fill: int = 1, kernel: str = "emulated/aiter-triton", reason: str = "first"
) -> Entry:
    """A golden of 2 x 16 codes and 2 scales whose bytes are ``fill``."""
    tensors = {"codes": Tensor("U8", (2, 16), bytes([fill]) * 32), "scale": Tensor("F32", (2, 1), bytes([fill]) * 8)}
    types = {"codes": "float8_e4m3fn", "scale": "float32"}
    outputs = {n: Output(types[n], t.shape, t.digest(), t.digest()) for n, t in tensors.items()}
    row = Row(
        id=f"{case}@{kernel}@cpu",
        kind="kernel",
        case=case,
        op="per_token_quant",
        inputs="0" * 64,
        kernel=kernel,
        arch="cpu",
        contract="aiter-triton",
        outputs=outputs,
        versions={"torch": "2.13"},
        reason=reason,
    )
    return Entry(row, tensors)


def made(root: Path) -> Store:
    """A store at ``root`` with a golden for each of ``CASES``."""
    commit(root, [entry(case, fill=i + 1) for i, case in enumerate(CASES)])
    return read(root)


NEW = [entry(case, fill=100 + i) for i, case in enumerate(CASES)]
"""Other bits for the goldens of ``made``."""
