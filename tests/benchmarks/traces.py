"""Profiler traces of a fused and an unfused model, told apart by ``python -m validators trace``.

``python -m tests.benchmarks.traces --kernel triton/add_rmsnorm_quant --kernel torch_native/scaled_mm_hopper
--device cuda --write DIR`` runs a few dense layers of GLM-4.7's sizes on a GPU with real kernels, records three traces
(fused, unfused, and fused with one layer that falls back), and reads them again: the first must meet every
expectation, the others must not, and the fallback must be named by its layer. Exit codes: 0 told apart; 1 not; 2 a
trace could not be judged.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from reference import glm4_moe
from reference.glm4_moe import Config, Layer, Mlp
from validators.commands import options
from validators.layers import build, presets
from validators.layers.path import KernelPath, stored
from validators.trace import judge
from validators.trace.file import load
from validators.trace.names import TraceError

STEPS = 2
FALLS_BACK = 1


class OneFallsBack(KernelPath):
    """Layer ``FALLS_BACK`` takes the unfused path."""

    def is_fused(self, layer: Layer) -> bool:
        """All but one."""
        return layer.index != FALLS_BACK


def forward(path: KernelPath, config: Config, weights: Sequence[Layer], hidden: Tensor) -> Tensor:
    """One pass of bf16 [T, hidden] through dense layers, labelled ``layers.N``; the path's stream starts again."""
    path.residual = None
    for layer in weights:
        assert isinstance(layer.mlp, Mlp)
        with torch.profiler.record_function(f"layers.{layer.index}"):
            qkv = path.linear(layer, layer.qkv, path.prepare(layer, "input", hidden))
            attended = glm4_moe.attention(config, layer, qkv.double(), stored).to(torch.bfloat16)
            hidden = path.linear(layer, layer.o, path.quantize(attended))
            both = path.linear(layer, layer.mlp.gate_up, path.prepare(layer, "post", hidden))
            inner = glm4_moe.gated(both.double()).to(torch.bfloat16)
            hidden = path.linear(layer, layer.mlp.down, path.quantize(inner))
    return hidden


def record(
    path: KernelPath, config: Config, weights: Sequence[Layer], hidden: Tensor, where: Path, steps: int = STEPS
) -> None:
    """Run ``steps`` passes under torch's profiler after one that compiles, and write the Chrome trace to ``where``."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if hidden.is_cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.inference_mode():
        forward(path, config, weights, hidden)
        plan = torch.profiler.schedule(wait=0, warmup=1, active=steps, repeat=1)
        with torch.profiler.profile(activities=activities, schedule=plan) as profiler:
            for _ in range(steps + 1):
                forward(path, config, weights, hidden)
                profiler.step()
    profiler.export_chrome_trace(str(where))


def main(argv: Sequence[str] | None = None) -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    options.add(parser, "--kernel", several=True, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--model", default="glm-4.7", choices=sorted(presets.PRESETS))
    parser.add_argument("--write", type=Path, help="directory for the traces (default: not kept)")
    parsed = parser.parse_args(argv)
    preset = presets.PRESETS[parsed.model]
    config = dataclasses.replace(preset, layers=parsed.layers, first_dense=parsed.layers)
    source = presets.Synthetic(parsed.model, config, parsed.device)
    kernels = build.find_kernels(parsed.kernel, parsed.device)
    weights = [source.layer(i) for i in range(config.layers)]
    hidden = source.embed(presets.prompt(config, parsed.tokens)).to(torch.bfloat16)
    paths = {
        "fused": KernelPath(kernels, config, source.quant_format),
        "unfused": KernelPath(kernels, config, source.quant_format, fused=False),
        "fallback": OneFallsBack(kernels, config, source.quant_format),
    }
    found: dict[str, judge.Finding] = {}
    with tempfile.TemporaryDirectory(prefix="traces-") as scratch:
        directory = parsed.write or Path(scratch)
        directory.mkdir(parents=True, exist_ok=True)
        for name, path in paths.items():
            where = directory / f"{name}.json.gz"
            record(path, config, weights, hidden, where)
            try:
                found[name] = judge.judge(load(where), layers=config.layers)
            except TraceError as error:
                print(f"NOT JUDGED: {name}: {error}")
                return 2
            print(f"--- {name}: {where.stat().st_size / 1024:.0f} KiB")
            print("\n".join(found[name].lines))
    apart = found["fused"].ok and not found["unfused"].ok and not found["fallback"].ok
    placed = any(f"none in {FALLS_BACK}" in line for line in found["fallback"].lines)
    words = "the layer that falls back is named" if placed else "the layer that falls back is NOT named"
    print(f"{'TOLD APART' if apart and placed else 'NOT TOLD APART'}: fused, unfused and fallback traces; {words}")
    return 0 if apart and placed else 1


if __name__ == "__main__":
    sys.exit(main())
