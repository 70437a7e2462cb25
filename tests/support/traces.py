"""Profiler traces as ``torch.profiler`` writes them, made up."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from validators.__main__ import main

LAYERS = 5
FUSED = "void aiter::add_rmsnorm_quant_kernel<__hip_bfloat16, _BitInt(8), 256, 24, true, true, true, 1>(float*)"
PLAIN = "void aiter::add_rmsnorm_quant_kernel<__hip_bfloat16, __hip_bfloat16, 256, 24, true, false, true, 1>(float*)"
QUANT = "void aiter::dynamic_per_token_scaled_quant_kernel<__hip_bfloat16, _BitInt(8), 256>(_BitInt(8)*, float*)"
GEMM = "void ck::kernel_gemm_xdl_cshuffle_v3_multi_d_b_preshuffle<ck::GridwiseGemm_xdl<256, 16, 64>>(Argument)"
OTHER = "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<c10::BFloat16>>(int)"
CUDA_FUSED = "void vllm::rms_norm_dynamic_per_token_quant_kernel<c10::BFloat16, c10::Float8_e4m3fn, true>(float*)"


class _Recorder:
    """The events of a trace as they come: the CPU launches, the GPU runs 300 us behind, into the next step."""

    def __init__(self, *, runtime: str, streams: dict[str, int], alone: bool) -> None:
        """alone: whether every kernel has a runtime call of its own."""
        self.events: list[dict[str, Any]] = [{"ph": "M", "name": "process_name", "pid": 0, "args": {"name": "python"}}]
        self.runtime, self.streams, self.alone = runtime, streams, alone
        self.now, self.correlation, self.gpu_free = 1000.0, 0, 0.0

    def span(self, name: str, category: str, start: float, length: float, **arguments: object) -> None:
        place = {"pid": 0, "tid": 7} if category == "kernel" else {"pid": 4242, "tid": 4242}
        self.events.append(
            {"ph": "X", "cat": category, "name": name, **place, "ts": start, "dur": length, "args": arguments}
        )

    def launch(self, name: str) -> None:
        if self.alone:
            self.correlation += 1
            self.span(self.runtime, "cuda_runtime", self.now, 2.0, correlation=self.correlation)
        start = max(self.gpu_free, self.now + 300.0)
        self.gpu_free = start + 5.0
        stream = self.streams.get(name, 7)
        self.span(name, "kernel", start, 5.0, device=0, stream=stream, correlation=self.correlation, context=1)
        self.now += 3.0

    def graph(self) -> None:
        """The launch of a graph, whose kernels follow."""
        self.correlation += 1
        self.span("hipGraphLaunch", "cuda_runtime", self.now, 2.0, correlation=self.correlation)
        self.now += 1.0


def write_trace(
    path: Path,
    layer: list[str],
    *,
    steps: int = 2,
    layers: int = LAYERS,
    labels: bool = True,
    layer_labels: bool = False,
    graph: bool = False,
    pieces: bool = False,
    label: str = "ProfilerStep#{step}",
    category: str = "user_annotation",
    runtime: str = "hipLaunchKernel",
    warm_up: list[str] | None = None,
    streams: dict[str, int] | None = None,
) -> Path:
    """A trace as ``torch.profiler`` writes it.

    layer: kernels of one decoder layer in order. graph: one runtime call launches the whole step; pieces: one a layer.
    label, category: what marks a step. warm_up: kernels launched before the first step.
    streams: kernel name -> stream, 7 for all others.
    """
    to = _Recorder(runtime=runtime, streams=streams or {}, alone=not (graph or pieces))
    for name in warm_up or []:
        to.launch(name)
    for step in range(steps):
        to.now += 10.0
        begin = to.now
        if graph:
            to.graph()
        for index in range(layers):
            first = to.now
            if pieces:
                to.graph()
            for name in layer:
                to.span("aten::op", "cpu_op", to.now, 2.5)
                to.launch(name)
            if layer_labels:
                to.span(f"model.layers.{index}", "user_annotation", first - 0.5, to.now - first)
        if labels:
            to.span(label.format(step=step + 3), category, begin - 1.0, to.now - begin + 1.0)
    gpu = {"id": 0, "name": "AMD Instinct MI355X"}
    text = json.dumps({"schemaVersion": 1, "deviceProperties": [gpu], "traceEvents": to.events}).encode()
    path.write_bytes(gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)
    return path


def run(capsys: pytest.CaptureFixture[str], path: Path, *options: str) -> tuple[int, str, str]:
    code = main(["trace", str(path), *options])
    seen = capsys.readouterr()
    return code, seen.out, seen.err
