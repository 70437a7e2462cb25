"""Launch counts from profiler traces: synthetic ones of CUDA and ROCm, a real one of a CPU, and damaged files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from tests.support.traces import CUDA_FUSED, FUSED, GEMM, LAYERS, OTHER, PLAIN, QUANT, run, write_trace
from validators.__main__ import main
from validators.trace.file import Trace, load
from validators.trace.judge import judge, quantized_again
from validators.trace.names import TraceError, readable, role_of, template_arguments


def test_a_fused_model_meets_every_expectation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_trace(tmp_path / "fused.json", [FUSED, GEMM, OTHER])
    options = ("--layers", str(LAYERS), "--expect", f"add_rmsnorm_quant_kernel={LAYERS}", "--forbid", "per_token")
    code, out, _ = run(capsys, path, *options)
    assert code == 0
    assert out.splitlines() == [
        "30 kernel launches; forward passes: 2 (step 3, step 4)",
        f"  fused            5 per pass  {FUSED[:99]}…",
        f"  gemm             5 per pass  {GEMM[:99]}…",
        "  other           10 in all",
        "ok: 5 launches of add_rmsnorm_quant_kernel in every pass",
        "ok: no launch of per_token",
        "ok: 5 or 10 fused norm + quantization launches in every pass",
        "ok: no per-token quantization kernel between a fused norm and the GEMM after it",
    ]


def test_the_plain_norm_of_the_same_template_is_not_taken_for_the_fused_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its name matches, so counting names alone would call this path fused."""
    path = write_trace(tmp_path / "unfused.json", [PLAIN, QUANT, GEMM])
    assert run(capsys, path, "--expect", f"add_rmsnorm_quant_kernel={LAYERS}")[0] == 0
    code, out, _ = run(capsys, path, "--layers", str(LAYERS))
    assert code == 1
    assert "NOT MET: 5 or 10 fused norm + quantization launches in every pass; seen in step 3: 0, step 4: 0" in out
    assert run(capsys, path)[0] == 1


def test_quantizing_a_second_time_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_trace(tmp_path / "twice.json.gz", [FUSED, QUANT, GEMM])
    code, out, _ = run(capsys, path, "--layers", str(LAYERS))
    assert code == 1
    assert "NOT MET: no per-token quantization kernel between a fused norm and the GEMM after it; 10 do" in out
    assert "ok: 5 or 10 fused" in out


def test_a_quantization_after_the_gemm_or_on_another_stream_is_none_of_the_fused_norms(tmp_path: Path) -> None:
    after = load(write_trace(tmp_path / "after.json", [FUSED, GEMM, QUANT, GEMM]))
    assert quantized_again(after.launches) == ([], 0)
    beside = load(write_trace(tmp_path / "beside.json", [FUSED, QUANT, GEMM], streams={QUANT: 13}))
    assert quantized_again(beside.launches) == ([], 0)
    lonely = load(write_trace(tmp_path / "lonely.json", [FUSED, OTHER], steps=1))
    assert quantized_again(lonely.launches) == ([], LAYERS)


def test_kernels_belong_to_the_step_that_launched_them(tmp_path: Path) -> None:
    """The GPU runs behind: by their own time the last kernels of step 3 would be counted in step 4."""
    trace = load(write_trace(tmp_path / "late.json", [FUSED, GEMM], steps=3))
    counts = [sum(launch.step == k for launch in trace.launches) for k in (3, 4, 5)]
    assert counts == [2 * LAYERS] * 3
    assert trace.launches[2 * LAYERS - 1].start_us > 1000 + 300


def test_warm_up_belongs_to_no_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_trace(tmp_path / "warm.json", [FUSED, GEMM], warm_up=[FUSED, QUANT, GEMM])
    code, out, _ = run(capsys, path, "--layers", str(LAYERS), "--forbid", "per_token")
    assert code == 0
    assert "3 launches outside of every pass" in out


def test_a_replayed_graph_counts_like_its_kernels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_trace(tmp_path / "graph.json", [FUSED, GEMM], graph=True)
    assert run(capsys, path, "--layers", str(LAYERS))[0] == 0
    assert run(capsys, path, "--layers", str(LAYERS + 1))[0] == 1


def test_without_labels_the_trace_is_one_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_trace(tmp_path / "bare.json", [FUSED, GEMM], labels=False, steps=3)
    code, out, _ = run(capsys, path, "--expect", f"rmsnorm_quant={3 * LAYERS}")
    assert (code, "no labels of passes" in out) == (0, True)


def test_a_labelled_layer_without_its_launch_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_trace(tmp_path / "layers.json", [FUSED, GEMM], layer_labels=True)
    code, out, _ = run(capsys, path, "--layers", str(LAYERS))
    assert code == 0
    assert "ok: step 3: 5 labelled layers of 5, each with a fused launch" in out
    data = json.loads(path.read_text())
    fused = [event for event in data["traceEvents"] if event["name"] == FUSED]
    # Layer 2 of the first step runs unfused; layer 3 launches twice, so the count alone is right.
    fused[2]["name"], extra = PLAIN, dict(fused[3])
    data["traceEvents"].append({**extra, "ts": extra["ts"] + 1.0})
    path.write_text(json.dumps(data))
    code, out, _ = run(capsys, path, "--layers", str(LAYERS))
    assert code == 1
    assert "ok: 5 or 10 fused" in out
    assert "NOT MET: step 3: 5 labelled layers of 5, each with a fused launch; none in 2" in out


def test_a_step_in_which_nothing_ran_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_trace(tmp_path / "idle.json", [FUSED, GEMM])
    data = json.loads(path.read_text())
    data["traceEvents"].append(
        {"ph": "X", "cat": "user_annotation", "name": "ProfilerStep#9", "ts": 9e6, "dur": 5.0, "pid": 4242, "tid": 4242}
    )
    path.write_text(json.dumps(data))
    code, out, _ = run(capsys, path, "--expect", f"rmsnorm_quant={LAYERS}")
    assert code == 1
    assert "seen in step 9: 0" in out


def test_names_of_cuda_and_of_other_libraries(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_trace(
        tmp_path / "cuda.json", [CUDA_FUSED, "nvjet_qqtst_128x64_128x8_2x1_v_bz_TNT"], runtime="cudaLaunchKernel"
    )
    assert run(capsys, path, "--layers", str(LAYERS), "--expect", f"re:^void vllm::rms_.*quant={LAYERS}")[0] == 0


@pytest.mark.parametrize(
    ("name", "role"),
    [
        (FUSED, "fused"),
        (PLAIN, "norm"),
        (QUANT, "quant"),
        (GEMM, "gemm"),
        (OTHER, "other"),
        (CUDA_FUSED, "fused"),
        ("_quant_fused_add_rmsnorm_kernel", "fused"),
        ("_quant_fused_rmsnorm_kernel", "fused"),
        ("_rmsnorm_kernel", "norm"),
        ("void vllm::fused_add_rms_norm_kernel<c10::BFloat16, 8>(float*)", "norm"),
        ("void vllm::dynamic_per_token_scaled_fp8_quant_kernel_strided<c10::BFloat16>(float*)", "quant"),
        ("void per_token_quant_fp8_kernel<__nv_bfloat16, 16>(float*)", "quant"),
        ("_dynamic_per_token_quant_fp8_i8_kernel", "quant"),
        ("Cijk_Alik_Bljk_F8BS_BH_Bias_HA_S_SAV_UserArgs_MT256x256x128", "gemm"),
        ("void cutlass::device_kernel<cutlass::gemm::kernel::GemmUniversal<int>>(Params)", "gemm"),
        ("void aiter::add_rmsnorm_quant_kernel<__half, opus::fp8_t, 64, 8, false, true>(float*)", "fused"),
    ],
)
def test_the_role_of_a_kernel(name: str, role: str) -> None:
    assert role_of(readable(name)) == role


def test_names_are_taken_apart() -> None:
    assert template_arguments("void f<a<int, 2>, g(int, int), 3>(x, y)") == ["a<int, 2>", "g(int, int)", "3"]
    assert template_arguments("f(x, y)") == []
    assert template_arguments("n<1>::f<a, b", "f") == ["a", "…"]
    assert template_arguments("n<1>::f(a)", "f") == []


def test_a_real_trace_of_a_cpu_has_no_gpu_kernel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        torch.ones(8, 8) @ torch.ones(8, 8)
    path = tmp_path / "cpu.json"
    profiler.export_chrome_trace(str(path))
    code, _, err = run(capsys, path)
    assert code == 2
    assert "CPU operators and no GPU kernel; was the profiler started with ProfilerActivity.CUDA?" in err
    assert load(path).cpu_ops > 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"  \n", "is empty"),
        (b"[1, 2", "is cut"),
        (b'{"traceEvents": [{"ph": "X", "na', "is cut"),
        (b"step,kernel,count\n1,a,2\n", "is not a JSON file"),
        (b"\xff\xfe\x00binary", "is not a JSON file"),
        (b"{}", "no list of traceEvents"),
        (b"[3]", "no list of traceEvents"),
        (b"42", "no list of traceEvents"),
        (b'{"traceEvents": []}', "trace of another tool"),
        (b'{"traceEvents": [{"ph": "B", "name": "main", "ts": 1}]}', "trace of another tool"),
        (b'{"traceEvents": [{"ph": "X", "cat": "kernel", "name": "k", "ts": "soon"}]}', "does not write"),
        (gzip.compress(b'{"traceEvents": []}' * 50, mtime=0)[:30], "damaged gzip"),
        (b"[" * 100_000, ""),
    ],
)
def test_a_file_that_is_no_trace_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, words: str
) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    code, out, err = run(capsys, path)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert words in err


def test_every_cut_of_a_trace_is_one_sentence_or_the_whole_trace(tmp_path: Path) -> None:
    whole = write_trace(tmp_path / "whole.json", [FUSED, GEMM], steps=1, layers=1).read_bytes()
    path = tmp_path / "cut.json"
    for length in range(0, len(whole) - 1, 37):
        path.write_bytes(whole[:length])
        with pytest.raises(TraceError, match=r"is cut|is empty"):
            load(path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--expect", "fused"), "is not NAME=COUNT"),
        (("--expect", "=3"), "is not NAME=COUNT"),
        (("--expect", "a=many"), "is not NAME=COUNT"),
        (("--expect", "re:(=3"), "is not a regular expression"),
        (("--forbid", "re:["), "is not a regular expression"),
        (("--forbid", ""), "needs a name"),
        (("--layers", "0"), "is not a positive number"),
        (("--role", "fused"), "is not ROLE=NAME"),
        (("--role", "quick=a"), "is not ROLE=NAME"),
        (("--role", "fused=re:("), "is not a regular expression"),
    ],
)
def test_bad_options_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    code, _, err = run(capsys, write_trace(tmp_path / "t.json", [FUSED, GEMM], steps=1), *options)
    assert code == 2
    assert words in err
    assert len(err.splitlines()) == 1


def test_files_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, words in ((tmp_path / "none.json", "cannot be read"), (tmp_path, "is a folder")):
        code, _, err = run(capsys, path)
        assert code == 2
        assert words in err


def test_an_empty_set_of_launches_is_refused() -> None:
    with pytest.raises(TraceError, match="no GPU kernel"):
        judge(Trace((), {}, 0))


def test_a_record_of_the_outcome(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from validators.records.record import Status
    from validators.records.store import load as load_records

    good = write_trace(tmp_path / "good.json", [FUSED, GEMM])
    bad = write_trace(tmp_path / "bad.json", [PLAIN, QUANT, GEMM])
    about = ["--kernel", "aiter_hip/add_rmsnorm_quant", "--contract", "aiter-hip-gfx950", "--arch", "gfx950"]
    for file, code, status in ((good, 0, Status.PASSED), (bad, 1, Status.FAILED)):
        where = tmp_path / f"records-{file.stem}"
        assert main(["trace", str(file), "--layers", str(LAYERS), *about, "--records", str(where)]) == code
        (record,) = load_records(where)
        assert (record.status, record.op, record.lane, record.arch) == (status, "trace", "trace", "gfx950")
        assert record.case == f"trace-{file.name}-layers{LAYERS}"
        assert record.checks
        assert all(check.ok for check in record.checks) == (code == 0)
        assert record.launches is not None
        assert len(record.launches.sha256) == 64
        assert record.reproduce.startswith(f"python -m validators trace {file}")
        assert bool(record.reasons) == bool(code)
    capsys.readouterr()
    assert main(["trace", str(good), "--records", str(tmp_path / "none")]) == 2
    assert "--records needs --kernel and --arch" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
