"""torch._scaled_mm on Hopper against the bit-exact emulation, over GLM-4.7's GEMM shapes. Prints one JSON line each.

    python -m tests.benchmarks.hopper_gemm [--out FILE]

For each shape, data recipe, scaling (rowwise with bf16 output, tensorwise with fp32 output) and accumulation mode: the
share of outputs that equal the emulation, over all outputs. Where it is below 1, split-K and other promotion intervals
are tried, so that another path of the library is named.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import torch

from reference.contract import GEMM_CONTRACTS
from reference.formats import E4M3FN
from validators.cases.case import Case
from validators.cases.inputs import build
from validators.cases.tensors import GemmInputs
from validators.judge.gpu.accumulate import checked_fast

SHAPES = {  # name: (N, K) of GLM-4.7 on one GPU and on eight
    "qkv": (14336, 5120),
    "o_proj": (5120, 12288),
    "qkv_tp8": (1792, 5120),
    "o_proj_tp8": (5120, 1536),
}
ROWS = (1, 16, 128, 4096)
RECIPES = ("random_bytes", "gaussian", "positive_mean", "outlier_channels")


def outputs(inputs: GemmInputs, fast: bool, rowwise: bool) -> torch.Tensor:
    """The library's result: rowwise bf16, or tensorwise fp32 with the first scale of each operand."""
    sa, sb = inputs.a_scale, inputs.b_scale.reshape(1, -1)
    if not rowwise:
        sa, sb = sa[:1, 0].reshape(()), sb[0, :1].reshape(())
    out_dtype = torch.bfloat16 if rowwise else torch.float32
    return torch._scaled_mm(inputs.a, inputs.b.t(), scale_a=sa, scale_b=sb, out_dtype=out_dtype, use_fast_accum=fast)


def predicted(accumulator: torch.Tensor, inputs: GemmInputs, rowwise: bool) -> dict[str, torch.Tensor]:
    """Outputs by epilogue order."""
    sa, sb = inputs.a_scale, inputs.b_scale.reshape(1, -1)
    if not rowwise:
        sa, sb = sa[:1], sb[:, :1]
    dtype = torch.bfloat16 if rowwise else torch.float32
    return {
        "(acc*sa)*sb": ((accumulator * sa) * sb).to(dtype),
        "(acc*sb)*sa": ((accumulator * sb) * sa).to(dtype),
        "acc*(sa*sb)": (accumulator * (sa * sb)).to(dtype),
    }


def measure(inputs: GemmInputs, fast: bool, rowwise: bool, rows: slice) -> dict[str, object]:
    """Best agreement over the epilogue orders, and over split-K if one chain does not explain all."""
    got = outputs(inputs, fast, rowwise)[rows]
    contract = GEMM_CONTRACTS["hopper-fast" if fast else "hopper-promote128"]
    best: dict[str, object] = {"share": -1.0}
    for splits in (1, 2, 3, 4, 5, 6, 8, 16):
        accumulator = checked_fast(inputs.a[rows], inputs.b, E4M3FN, contract.replace(splits=splits))
        for order, value in predicted(accumulator, inputs_of(inputs, rows), rowwise).items():
            share = float((value == got).double().mean())
            if share > float(str(best["share"])):
                best = {"share": share, "order": order, "splits": splits, "mismatches": int((value != got).sum())}
        if best["share"] == 1.0:
            break
    return best


def inputs_of(inputs: GemmInputs, rows: slice) -> GemmInputs:
    """The same inputs with some rows of a."""
    return GemmInputs(inputs.a[rows], inputs.a_scale[rows], inputs.b, inputs.b_scale, None, inputs.out_dtype)


def main(argv: list[str] | None = None) -> int:
    """Run all configurations; exit status 0 if every output of every one equals the emulation, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="file for the JSON lines")
    parser.add_argument("--rows", type=int, nargs="*", default=list(ROWS))
    options = parser.parse_args(argv)
    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9:
        print("this benchmark needs a Hopper GPU", file=sys.stderr)
        return 2
    lines, all_equal = [], True
    header = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda}
    for m in options.rows:
        for name, (n, k) in SHAPES.items():
            for recipe in RECIPES:
                inputs = build(Case("ptpc_gemm", m, n, recipe, k=k), device="cuda")
                assert isinstance(inputs, GemmInputs)
                for fast in (False, True):
                    for rowwise in (True, False):
                        torch.cuda.synchronize()
                        start = time.perf_counter()
                        found = measure(inputs, fast, rowwise, slice(0, m))
                        all_equal &= found["share"] == 1.0
                        row = {
                            "shape": name,
                            "m": m,
                            "n": n,
                            "k": k,
                            "recipe": recipe,
                            "fast_accum": fast,
                            "scaling": "rowwise" if rowwise else "tensorwise",
                            "out": "bf16" if rowwise else "fp32",
                            **found,
                            "seconds": round(time.perf_counter() - start, 3),
                            **header,
                        }
                        lines.append(json.dumps(row))
                        print(lines[-1], flush=True)
                del inputs
    if options.out:
        with open(options.out, "w") as file:
            file.write("\n".join(lines) + "\n")
    return 0 if all_equal else 1


if __name__ == "__main__":
    raise SystemExit(main())
