"""Kept records of real kernels: their compact form, the tables made of them, and how findings are measured.

The findings run on doubles of the libraries here (tests/support/fakes.py); docs/records/real-* are of a GPU.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benchmarks import real_findings
from tests.benchmarks.real_findings import (
    GEMMS,
    KERNELS,
    QUANTIZERS,
    ROWWISE,
    no_rows,
    padded_rows,
    sentence,
    sliced_batches,
    zero_rows,
)
from tests.benchmarks.real_records import (
    PAGE,
    RESULTS,
    RecordsError,
    compact,
    keep,
    kept,
    main,
    result_cell,
    table,
    verdict,
    with_rows,
    with_table,
)
from tests.support.fakes import unpacked_wheel
from tests.support.made import PROVENANCE, failed, record
from validators.cases.tensors import GemmInputs, GemmOutputs, Inputs, NormQuantInputs, Outputs, QuantInputs
from validators.kernels import extension
from validators.kernels.kernel import Kernel
from validators.kernels.registry import find_kernel
from validators.records.record import Explanation, Record, Status
from validators.records.store import Sink

HERE = dataclasses.replace(PROVENANCE, cpu="", gpu="NVIDIA H200", kernel_versions={"vllm": "0.24.0"})


def of(kernel: str, case: int, **changes: Any) -> Record:
    make = changes.pop("make", record)
    where = {
        "arch": "sm_90",
        "device": "cuda",
        "provenance": dataclasses.replace(HERE, **changes.pop("provenance", {})),
    }
    return make(kernel=kernel, case=f"per_token_quant-m{case}-n64-bf16-e4m3fn-gaussian-s0", **{**where, **changes})


def three(kernel: str) -> list[Record]:
    away = of(kernel, 3, status=Status.UNSUPPORTED, reasons=("takes no such rows",), comparisons=(), checks=())
    return [of(kernel, 1), of(kernel, 2, make=failed, explanations=(Explanation("", "it is so"),)), away]


# ---- what is kept ---------------------------------------------------------------------------------


def test_the_pages_show_what_is_kept() -> None:
    heads = kept()
    assert sorted({head["kernel"] for head in heads}) == sorted(KERNELS)
    page, results = PAGE.read_text("utf-8"), RESULTS.read_text("utf-8")
    assert with_table(page, heads) == page
    assert with_rows(results, heads) == results


def test_every_kept_file_counts_its_own_lines() -> None:
    files = [p for p in sorted((PAGE.parent / "records").glob("real-*/*.jsonl")) if p.stem != "findings"]
    assert files
    for path in files:
        head, *lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        for status, count in head["statuses"].items():
            assert sum(line["status"] == status for line in lines) == count, path
        assert sum(head["statuses"].values()) == len(lines)
        assert head["judged"] == sum(line.get("judged", 0) for line in lines) > 1e5
        assert head["gpu"], path
        # What failed or was declared away says why.
        assert all(line.get("reasons") for line in lines if line["status"] != "PASSED")


def test_the_finding_of_padded_rows_is_kept_with_its_numbers() -> None:
    path = PAGE.parent / "records" / "padded-rows-h200.jsonl"
    for line in map(json.loads, path.read_text("utf-8").splitlines()):
        assert (line["status"], line["violations"], line["judged"]) == ("FAILED", 5279, 5280)
        assert line["nonfinite"]["got_nan"] == 5268
        assert "-strided-" in line["case"]


# ---- how it is made -------------------------------------------------------------------------------


def test_compact_lines() -> None:
    head, good, bad, away = compact(three("vllm/one"))
    assert head["statuses"] == {"PASSED": 1, "FAILED": 1, "UNSUPPORTED": 1}
    assert verdict(head) == "1 PASSED, 1 FAILED, 1 UNSUPPORTED"
    assert (head["judged"], head["violations"]) == (512 * 5, 550)
    assert good == {
        "case": "per_token_quant-m1-n64-bf16-e4m3fn-gaussian-s0",
        "lane": "adversarial",
        "status": "PASSED",
        "judged": 1024,
        "single": 996,
        "unspecified": 0,
        "violations": 0,
    }
    assert bad["explanations"] == ["it is so"]
    assert bad["checks"] == ["joint: row maximum: 510 rows do not decode to 448"]
    assert away["reasons"] == ["takes no such rows"]
    assert "judged" not in away


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (of("vllm/one", 9, provenance={"commit": "fff"}), "2 runs that differ"),
        (of("vllm/one", 9, provenance={"kernel_versions": {"vllm": "0.25.0"}}), "2 runs that differ"),
        (of("vllm/one", 9, contract="eager"), "2 runs that differ"),
        (of("vllm/one", 1), "two records of per_token_quant-m1-"),
    ],
)
def test_records_that_do_not_belong_together_are_refused(more: Record, words: str) -> None:
    with pytest.raises(RecordsError, match=words):
        compact([*three("vllm/one"), more])


@pytest.mark.parametrize("kind", ["fake", "emulated"])
def test_doubles_are_never_kept(kind: str) -> None:
    with pytest.raises(RecordsError, match="test double or of an emulated kernel"):
        compact([of("vllm/one", 1, **{kind: True})])


def test_keep_writes_one_file_a_kernel_and_the_sign_off(tmp_path: Path) -> None:
    for name in ("vllm/one", "sgl_kernel/two", "other/three"):
        with Sink(tmp_path / "real" / name.replace("/", "-")) as sink:
            for r in three(name):
                sink.write(r)
    findings = tmp_path / "findings.jsonl"
    findings.write_text('{"finding": "no rows"}\n')
    target = keep(tmp_path / "real", findings, tmp_path / "kept")
    assert target.name == "real-h200"
    assert sorted(p.name for p in target.iterdir()) == [
        "findings.jsonl",
        "sgl_kernel-two.jsonl",
        "signoff.json",
        "signoff.md",
        "vllm-one.jsonl",
    ]
    assert [head["kernel"] for head in kept(tmp_path / "kept")] == ["sgl_kernel/two", "vllm/one"]
    for name in ("signoff.md", "signoff.json", "vllm-one.jsonl"):
        assert str(tmp_path) not in (target / name).read_text("utf-8")
    assert "NOT SIGNED" in (target / "signoff.md").read_text("utf-8")


def test_an_empty_folder_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"real_records: {tmp_path} has no record of vllm or sgl_kernel\n"


def test_shares_are_rounded_down() -> None:
    head = {**compact(three("vllm/one"))[0], "single": 2559}
    assert "| 2,560 | 99.9 % |" in table([head])
    assert "| 2,560 | 100 % |" in table([{**head, "single": 2560}])
    assert result_cell([head], "vllm").startswith("vLLM 0.24.0 on NVIDIA H200: 1 PASSED, 1 FAILED, 1 UNSUPPORTED; ")
    assert result_cell([], "vllm").startswith("UNTESTED; ")


def test_a_page_without_the_table_is_refused() -> None:
    with pytest.raises(RecordsError, match="has no"):
        with_table("text", [])
    with pytest.raises(RecordsError, match=r"0 rows of vllm/\*"):
        with_rows("text", [])


# ---- findings -------------------------------------------------------------------------------------


@pytest.fixture(params=["vllm", "sgl_kernel"])
def double(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """One of the libraries as a double that honours row strides, and its package's name."""
    for name in ("VLLM_PATH", "SGL_KERNEL_PATH"):
        monkeypatch.delenv(name, raising=False)
    if importlib.util.find_spec(request.param) is not None:
        pytest.skip(f"an installed {request.param} could have registered these ops already")
    extension._load.cache_clear()
    with unpacked_wheel(monkeypatch, tmp_path, request.param):
        yield request.param


def packing(kernel: Kernel, operands: str) -> Kernel:
    """``kernel`` with a GEMM that takes the rows of ``operands`` to be side by side."""

    def call(inputs: Inputs, buffers: Outputs) -> Outputs:
        assert isinstance(inputs, GemmInputs)
        changed: dict[str, Any] = {name: real_findings._misread(getattr(inputs, name)) for name in operands}
        return kernel.call(dataclasses.replace(inputs, **changed), buffers)

    return dataclasses.replace(kernel, call=call)


def test_padded_rows_are_measured(double: str) -> None:
    [name] = [n for n in GEMMS if n.startswith(double)]
    kernel = find_kernel(name)
    honest = list(padded_rows(kernel, "cpu"))
    assert [line["padded"] for line in honest] == ["a", "b", "a and b"]
    assert [line["right"] for line in honest] == [5280] * 3
    misled = list(padded_rows(packing(kernel, "ab"), "cpu"))
    assert [line["as_packed"] for line in misled] == [5280] * 3
    # The numbers of tests/suite/judge/test_unit_defects.py, and of the H200.
    assert [line["nan"] for line in misled] == [4800, 5148, 5268]
    assert max(line["right"] for line in misled) < 200
    right = misled[2]["right"]
    assert sentence(misled[2]) == (
        f"{name}, rows of a and b with gaps: {right} of 5,280 outputs right; 5,280 as if the rows were packed"
    )
    half = list(padded_rows(packing(kernel, "b"), "cpu"))
    assert half[0]["right"] == 5280
    assert half[1]["right"] < 200


@pytest.mark.parametrize("name", ROWWISE)
def test_sliced_batches_are_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    if importlib.util.find_spec("vllm") is not None:
        pytest.skip("an installed vllm could have registered these ops already")
    extension._load.cache_clear()
    with unpacked_wheel(monkeypatch, tmp_path, "vllm"):
        kernel = find_kernel(name)

        def one_stride(inputs: Inputs, buffers: Outputs) -> Outputs:
            assert isinstance(inputs, NormQuantInputs | QuantInputs)
            if inputs.x.is_contiguous():
                return kernel.call(inputs, buffers)
            x = inputs.x.as_strided((34, 1024), (inputs.x.stride(-2), 1))
            return kernel.call(real_findings._with_rows(inputs, x), buffers)

        def refuse(inputs: Any, buffers: Outputs) -> Outputs:
            if inputs.x.is_contiguous():
                return kernel.call(inputs, buffers)
            raise RuntimeError("view size is not compatible")

        [honest] = sliced_batches(kernel, "cpu")
        [wrong] = sliced_batches(dataclasses.replace(kernel, call=one_stride), "cpu")
        [raised] = sliced_batches(dataclasses.replace(kernel, call=refuse), "cpu")
    assert (honest["right"], honest["as_one_stride"]) == (34, 17)
    # Of two batches of 17 rows the second is read one row too early.
    assert (wrong["right"], wrong["as_one_stride"]) == (17, 34)
    assert sentence(wrong) == (f"{name}, sliced batches: 17 of 34 rows right; 34 as if all batches had one row stride")
    assert sentence(raised) == f"{name}, sliced batches: raises view size is not compatible"


def test_no_rows_are_measured(double: str) -> None:
    for name in [n for n in KERNELS if n.startswith(double)]:
        [line] = no_rows(find_kernel(name), "cpu")
        assert line["raised"] is None, line
        assert sentence(line) == f"{name}, no rows: returns"

    def refuse(inputs: Inputs, buffers: Outputs) -> Outputs:
        assert isinstance(inputs, GemmInputs)
        assert len(inputs.a) == len(inputs.a_scale) == 0
        raise RuntimeError("Error Internal\nat line 3")

    [gemm] = [n for n in GEMMS if n.startswith(double)]
    [line] = no_rows(dataclasses.replace(find_kernel(gemm), call=refuse), "cpu")
    assert sentence(line) == f"{gemm}, no rows: raises Error Internal"


def test_a_row_of_zeros_is_measured(double: str) -> None:
    [name] = [n for n in QUANTIZERS if n.startswith(double)]
    lines = list(zero_rows(find_kernel(name), "cpu"))
    assert [line["m"] for line in lines] == [16, 15, 16, 64]
    for line in lines:
        assert line["codes"] == ["0x00"]
        assert line["scale"] == pytest.approx(1e-10 / 448)


def test_the_command(double: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [gemm] = [n for n in GEMMS if n.startswith(double)]
    out = tmp_path / "found.jsonl"
    assert real_findings.main(["--device", "cpu", "--kernel", gemm, "--out", str(out)]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["finding"] for line in lines] == ["padded rows"] * 3 + ["no rows"]
    assert lines[0]["device"] == "cpu"
    assert lines[0]["versions"]["torch"] == torch.__version__
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_a_kernel_that_is_not_here_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        real_findings, "find_kernel", lambda name: Kernel(name, "ptpc_gemm", None, _never, unavailable=_gone)
    )
    assert real_findings.main(["--kernel", GEMMS[0]]) == 2
    assert capsys.readouterr().err == f"{GEMMS[0]} cannot run here: it is not here\n"


def _gone(device: str) -> str:
    return "it is not here"


def _never(inputs: Inputs, buffers: Outputs) -> GemmOutputs:
    raise AssertionError("called although it is not here")
