"""Writes the fixtures of tests/fixtures/amdgcn: this project's Triton kernel as assembly text, without debug sections.

Run ``python -m tests.support.amdgcn_fixtures`` where Triton is installed; tests read the text and need none.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from validators.cases.tensors import NormQuantInputs, NormQuantOutputs
from validators.kernels import triton_own
from validators.kernels.amdgcn import Compiled, from_text, launch_values, signature_of, triton_text

FOLDER = Path(__file__).resolve().parents[1] / "fixtures" / "amdgcn"
TARGETS = {"gfx942": torch.float8_e4m3fnuz, "gfx950": torch.float8_e4m3fn}
WIDTHS = {"any": 1002, "vector": 1024}
"""Name -> a width whose hints make the text: of any n up to 1024, and of multiples of 16 up to 1024."""


def path_of(target: str, name: str) -> Path:
    """Where a fixture is."""
    return FOLDER / f"add_rmsnorm_quant.{name}.{target}.s"


def read(target: str, name: str) -> Compiled:
    """The kernel of a fixture; its LDS is in a comment of the first line."""
    path = path_of(target, name)
    text = path.read_text(encoding="utf-8")
    lds = int(re.search(r"lds (\d+)", text.split("\n")[0])[1])  # type: ignore[index]
    return from_text(text, "add_rmsnorm_quant", triton_own.WARPS, lds, path.name)


def stripped(text: str) -> str:
    """The text without sections of debug data, folders and comments."""
    kept, keep = [], True
    for line in text.splitlines():
        bare = line.strip()
        if bare.startswith((".section", ".text", ".amdgpu_metadata")):
            keep = ".debug" not in bare and ".note" not in bare
        if not keep or bare.startswith((";", ".cfi", ".set", ".fill", ".ident")):
            continue
        line = re.sub(r'\.file\s+(\d+) "[^"]*" ("[^"]*")', r".file\t\1 \2", line)
        kept.append(re.sub(r"\s*;.*", "", line).rstrip())
    return "\n".join(kept) + "\n"


def _signature(fp8: torch.dtype, n: int) -> tuple[object, ...]:
    x = torch.zeros(2, n, dtype=torch.bfloat16)
    codes = torch.zeros(2, n, dtype=torch.uint8).view(fp8)
    inputs = NormQuantInputs(x, x.clone(), torch.ones(n, dtype=torch.bfloat16), 1e-5, fp8)
    outputs = NormQuantOutputs(codes, torch.zeros(2, 1), x.clone())
    arguments, constants, _ = launch_values(inputs, outputs)
    return signature_of(arguments, constants)


def main() -> None:
    """Compile and write every fixture."""
    import triton

    FOLDER.mkdir(parents=True, exist_ok=True)
    for target, fp8 in TARGETS.items():
        for name, n in WIDTHS.items():
            function, signature = triton_own.kernel_function(), _signature(fp8, n)
            text, _, lds = triton_text(function, target, signature, {"num_warps": triton_own.WARPS})
            head = f"; triton {triton.__version__}, lds {lds}, {triton_own.WARPS} warps, bf16, with residual\n"
            path_of(target, name).write_text(head + stripped(text), encoding="utf-8")


if __name__ == "__main__":
    main()
