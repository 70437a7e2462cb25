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
    """A trace as ``torch.profiler`` writes it: the CPU launches, the GPU runs 300 us behind, into the next step.

    layer: kernels of one decoder layer in order. graph: one runtime call launches the whole step; pieces: one a layer.
    label, category: what marks a step. warm_up: kernels launched before the first step.
    streams: kernel name -> stream, 7 for all others.
    """
    events: list[dict[str, Any]] = [{"ph": "M", "name": "process_name", "pid": 0, "args": {"name": "python"}}]
    now, correlation = 1000.0, 0
    gpu_free = 0.0

    def span(name: str, category: str, start: float, length: float, **arguments: object) -> None:
        place = {"pid": 0, "tid": 7} if category == "kernel" else {"pid": 4242, "tid": 4242}
        events.append(
            {"ph": "X", "cat": category, "name": name, **place, "ts": start, "dur": length, "args": arguments}
        )

    def kernel(name: str, number: int) -> None:
        nonlocal gpu_free
        start = max(gpu_free, now + 300.0)
        gpu_free = start + 5.0
        stream = (streams or {}).get(name, 7)
        span(name, "kernel", start, 5.0, device=0, stream=stream, correlation=number, context=1)

    def launch(name: str) -> None:
        nonlocal now, correlation
        if not (graph or pieces):
            correlation += 1
            span(runtime, "cuda_runtime", now, 2.0, correlation=correlation)
        kernel(name, correlation)
        now += 3.0

    for name in warm_up or []:
        launch(name)
    for step in range(steps):
        now += 10.0
        begin = now
        if graph:
            correlation += 1
            span("hipGraphLaunch", "cuda_runtime", now, 2.0, correlation=correlation)
            now += 1.0
        for index in range(layers):
            first = now
            if pieces:
                correlation += 1
                span("hipGraphLaunch", "cuda_runtime", now, 2.0, correlation=correlation)
                now += 1.0
            for name in layer:
                span("aten::op", "cpu_op", now, 2.5)
                launch(name)
            if layer_labels:
                span(f"model.layers.{index}", "user_annotation", first - 0.5, now - first)
        if labels:
            span(label.format(step=step + 3), category, begin - 1.0, now - begin + 1.0)
    data = {"schemaVersion": 1, "deviceProperties": [{"id": 0, "name": "AMD Instinct MI355X"}], "traceEvents": events}
    text = json.dumps(data).encode()
    path.write_bytes(gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)
    return path


def run(capsys: pytest.CaptureFixture[str], path: Path, *options: str) -> tuple[int, str, str]:
    code = main(["trace", str(path), *options])
    seen = capsys.readouterr()
    return code, seen.out, seen.err
