"""Forward passes in traces of serving engines: their own labels, launches of graphs, or none at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.traces import FUSED, GEMM, LAYERS, OTHER, PLAIN, QUANT, run, write_trace
from validators.__main__ import main
from validators.records.record import Status
from validators.records.store import load

VLLM = "execute_context_0(0)_generation_64(64)"
SGLANG = "sglang/srt/model_executor/model_runner.py(1520): forward"
BOTH = [FUSED, GEMM, FUSED, GEMM]


def replace(path: Path, name: str, other: str, which: int) -> None:
    """Another name for the ``which``-th kernel called ``name``."""
    data = json.loads(path.read_text())
    found = [event for event in data["traceEvents"] if event["name"] == name]
    found[which]["name"] = other
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("label", "category", "called"),
    [(VLLM, "user_annotation", f"pass 1 ({VLLM})"), (SGLANG, "python_function", "pass 1 (ModelRunner.forward)")],
)
def test_passes_are_told_by_the_engines_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], label: str, category: str, called: str
) -> None:
    path = write_trace(tmp_path / "engine.json", [FUSED, GEMM], steps=5, label=label, category=category)
    code, out, _ = run(capsys, path, "--layers", str(LAYERS))
    assert code == 0
    assert "forward passes: 5 (pass 0" in out
    replace(path, FUSED, PLAIN, LAYERS)
    code, out, _ = run(capsys, path, "--layers", str(LAYERS))
    assert code == 1
    assert f"NOT MET: 5 or 10 fused norm + quantization launches in every pass; seen in {called}: 4" in out


def test_an_engines_label_inside_a_step_is_the_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One step of the profiler around three passes of the engine."""
    path = write_trace(tmp_path / "both.json", [FUSED, GEMM], steps=3, label=VLLM)
    data = json.loads(path.read_text())
    step = {"ph": "X", "cat": "user_annotation", "name": "ProfilerStep#0", "pid": 1, "tid": 1, "ts": 0, "dur": 1e9}
    data["traceEvents"].append(step)
    path.write_text(json.dumps(data))
    assert run(capsys, path, "--layers", str(LAYERS))[0] == 0


def test_kernels_without_a_launch_take_the_gpus_copy_of_the_label(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_trace(tmp_path / "gpu.json", [FUSED, GEMM], steps=2, label=VLLM, category="gpu_user_annotation")
    data = json.loads(path.read_text())
    events = [e for e in data["traceEvents"] if e.get("cat") != "cuda_runtime"]
    kernels = [e for e in events if e.get("cat") == "kernel"]
    copies = [e for e in events if e.get("cat") == "gpu_user_annotation"]
    for number, copy in enumerate(copies):
        own = kernels[number * 2 * LAYERS : (number + 1) * 2 * LAYERS]
        copy |= {"ts": own[0]["ts"] - 0.5, "dur": own[-1]["ts"] - own[0]["ts"] + 1.0}
    path.write_text(json.dumps({"traceEvents": events}))
    code, out, _ = run(capsys, path, "--layers", str(LAYERS))
    assert (code, f"pass 1 ({VLLM})" in out) == (0, True)


def test_passes_are_told_by_launches_of_whole_graphs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_trace(tmp_path / "graphs.json", [FUSED, GEMM], steps=4, labels=False, graph=True, warm_up=[OTHER])
    code, out, _ = run(capsys, path, "--layers", str(LAYERS))
    assert code == 0
    assert "forward passes: 4 (graph launch 0, graph launch 1, graph launch 2, ...); 1 launches outside" in out
    replace(path, FUSED, PLAIN, 2 * LAYERS)
    code, out, _ = run(capsys, path, "--layers", str(LAYERS))
    assert code == 1
    assert "NOT MET: 5 or 10 fused norm + quantization launches in every pass; seen in graph launch 2: 4" in out


def test_graphs_of_parts_of_the_model_are_no_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Engines that leave attention outside of graphs launch one a layer: taken for passes, each would be a failure."""
    path = write_trace(tmp_path / "pieces.json", BOTH, steps=5, labels=False, pieces=True)
    code, out, _ = run(capsys, path, "--layers", str(LAYERS))
    assert code == 3
    assert "NOT MET" not in out
    assert "seen in the whole trace: 50 = 5 x 10: several passes without labels" in out


def test_several_passes_without_labels_decide_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Five right steps of 92 layers with two fused norms each, as SGLang's own profiler writes them."""
    path = write_trace(tmp_path / "bare.json", BOTH, steps=5, layers=92, labels=False)
    about = ["--kernel", "aiter_hip/add_rmsnorm_quant", "--arch", "gfx950", "--records", str(tmp_path / "records")]
    assert main(["trace", str(path), "--layers", "92", *about]) == 3
    out = capsys.readouterr().out
    assert (
        "undecided: 92 or 184 fused norm + quantization launches in every pass; seen in the whole trace: "
        "920 = 5 x 184: several passes without labels; record one pass, or passes that are labelled"
    ) in out
    assert "NOT MET" not in out
    (record,) = load(tmp_path / "records")
    assert record.status is Status.MISTRUSTED
    assert record.reasons[0].startswith("launches undecided: 92 or 184")
    assert [check.ok for check in record.checks] == [None, True]


@pytest.mark.parametrize("steps", [1, 2])
def test_one_or_two_fused_norms_a_layer_in_one_pass(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], steps: int
) -> None:
    path = write_trace(tmp_path / "one.json", [FUSED, GEMM], steps=steps, labels=False)
    assert run(capsys, path, "--layers", str(LAYERS))[0] == 0


def test_what_no_sharing_out_explains_is_not_met(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_trace(tmp_path / "odd.json", BOTH, steps=5, labels=False)
    replace(path, FUSED, PLAIN, 7)
    code, out, _ = run(capsys, path, "--layers", str(LAYERS))
    assert code == 1
    assert "seen in the whole trace: 49, which is no multiple: a layer fell back, or the trace begins or ends" in out
    unfused = write_trace(tmp_path / "none.json", [PLAIN, QUANT, GEMM], steps=5, labels=False)
    code, out, _ = run(capsys, unfused, "--layers", str(LAYERS))
    assert code == 1
    assert "NOT MET: 5 or 10 fused norm + quantization launches in every pass; seen in the whole trace: 0\n" in out


def test_a_second_quantization_is_not_met_whatever_the_passes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_trace(tmp_path / "twice.json", [FUSED, QUANT, GEMM], steps=5, labels=False)
    code, out, _ = run(capsys, path, "--layers", str(LAYERS))
    assert code == 1
    assert "undecided: 5 or 10 fused" in out
    assert "NOT MET: no per-token quantization kernel between" in out


def test_expected_counts_are_undecided_in_the_same_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_trace(tmp_path / "bare.json", [FUSED, GEMM], steps=4, labels=False)
    code, out, _ = run(capsys, path, "--expect", f"rmsnorm_quant={LAYERS}")
    assert code == 3
    assert f"undecided: {LAYERS} launches of rmsnorm_quant in every pass; seen in the whole trace: 20 = 4 x 5" in out
    code, out, _ = run(capsys, path, "--expect", "rmsnorm_quant=3")
    assert (
        "NOT MET: 3 launches of rmsnorm_quant in every pass; seen in the whole trace: 20, which is no multiple" in out
    )
