"""The walk: right wirings pass, every wiring defect is caught where it sits, and the command tells the truth."""

from __future__ import annotations

import dataclasses
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from reference.glm4_moe import Layer, Linear
from tests import zoo
from tests.benchmarks import traces
from tests.zoo.paths import TripleRight
from tests.zoo.wiring import DEFECTS, WiringDefect, accepted_names
from validators.__main__ import main
from validators.kernels import registry
from validators.layers import build, presets
from validators.layers.path import KernelPath, PathError, route_of
from validators.layers.picture import PictureError, error_against_depth
from validators.layers.result import Judged, Result
from validators.layers.timing import Clock
from validators.layers.tp import Group, column_shard, row_shard, rows_of
from validators.records import store
from validators.records.record import Record, Status

ROOT = Path(__file__).resolve().parents[3]
NORM, GEMM = "emulated/aiter-hip-gfx950", "emulated/fp32"
PAIR = ["--kernel", NORM, "--kernel", GEMM]
TINY = presets.GLM_TINY


def tiny_walk(norm: str = NORM, gemm: str = GEMM, tokens: int = 16, count: int = TINY.layers, **options: Any) -> Result:
    source = presets.Synthetic("glm-tiny", TINY)
    kernels = build.find_kernels([f"add_rmsnorm_quant={norm}", f"ptpc_gemm={gemm}"], "cpu")
    contracts, _ = build.find_contracts(kernels, "cpu")
    return build.walk(source, kernels, contracts, layers=count, tokens=tokens, **options)


def not_passed(result: Result) -> list[Judged]:
    return [j for j in result.judged if j.status is not Status.PASSED]


@pytest.mark.parametrize(
    ("norm", "gemm"),
    [
        (NORM, GEMM),
        ("emulated/vllm", "emulated/unknown"),
        ("emulated/aiter-triton", GEMM),
        ("torch_native/eager", "torch_native/scaled_mm"),
    ],
)
def test_a_right_wiring_passes_in_every_op(norm: str, gemm: str) -> None:
    if reason := registry.find_kernel(gemm, "ptpc_gemm").unavailable("cpu"):
        pytest.skip(reason)
    result = tiny_walk(norm, gemm, judge_unfused=True)
    assert [(j.layer, j.step, j.arm, j.reasons) for j in not_passed(result)] == []
    assert not result.stopped
    # Each arm: a norm, a quantizer and a GEMM for attention and for the (dense or shared) MLP, two GEMMs more. In a MoE
    # layer also the quantizer of the routed experts and the two GEMMs of one of them.
    routed = (TINY.layers - TINY.first_dense) * 2 * (1 + 2)
    assert len(result.judged) == TINY.layers * 2 * (2 + 2 + 4) + routed
    assert {(j.layer, j.arm) for j in result.judged} == {(i, a) for i in range(4) for a in ("fused", "unfused")}


@pytest.mark.parametrize("defect", DEFECTS, ids=[d.id for d in DEFECTS])
def test_a_wiring_defect_is_caught_placed_and_named(defect: WiringDefect) -> None:
    walked = tiny_walk(path=defect.path, tokens=defect.tokens, group=Group.simulated(defect.tp), count=defect.layer + 1)
    wrong = not_passed(walked)
    assert wrong, f"{defect.id}: {defect.summary}, and everything passed"
    assert (wrong[0].layer, wrong[0].step, wrong[0].arm) == (defect.layer, defect.step, "fused")
    assert (*(e.text for e in wrong[0].explanations), *wrong[0].reasons)[0].startswith(accepted_names(defect))
    assert {j.arm for j in wrong} == {"fused"}


def test_the_walks_that_show_a_defect_of_their_size_pass_without_it() -> None:
    for tokens, tp in {(d.tokens, d.tp) for d in DEFECTS} - {(16, 1)}:
        assert not_passed(tiny_walk(tokens=tokens, group=Group.simulated(tp), count=1)) == []


def test_a_defect_behind_a_number_of_tokens_shows_at_that_number_only() -> None:
    bucket = next(d for d in DEFECTS if d.name == "bucket-loses-products")
    assert not_passed(tiny_walk(path=bucket.path, tokens=16, count=1)) == []


def test_the_zoo_counts_the_wiring_defects() -> None:
    names = [identity for identity, _, _ in zoo.catalogue()]
    assert len(set(names)) == len(names) == len(zoo.all_defects()) + len(DEFECTS)
    assert {f"W{i:02d}" for i in range(1, len(DEFECTS) + 1)} <= set(names)


def test_a_tuple_of_three_taken_right_passes() -> None:
    assert not_passed(tiny_walk(path=TripleRight)) == []


def test_a_defect_of_one_layer_leaves_the_other_layers_passing() -> None:
    single = [d for d in DEFECTS if d.id in ("W10", "W11", "W23", "W24", "W25", "W26", "W27")]
    for defect in single:
        assert {j.layer for j in not_passed(tiny_walk(path=defect.path))} == {defect.layer}


class OneExpertRaises(KernelPath):
    """The GEMM refuses the padded rows of an expert."""

    def gemm(self, what: Linear, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        if len(codes) == 32:
            raise RuntimeError("no such number of tokens")
        return super().gemm(what, codes, scale)


def test_an_expert_that_the_gemm_refuses_is_an_error_of_that_op_alone() -> None:
    # 40 tokens choose 2 of 8 experts each, so the fullest has more than 10 and is padded to 16 or 32 rows.
    result = tiny_walk(tokens=40, path=OneExpertRaises)
    wrong = not_passed(result)
    assert wrong
    assert not result.stopped
    assert {(j.status, j.op, j.step.split(".")[0]) for j in wrong} == {(Status.ERROR, "ptpc_gemm", "experts")}


def test_the_gemm_of_one_expert_a_layer_and_every_row_of_the_quantizer_are_judged() -> None:
    result = tiny_walk(tokens=20)
    here = [j for j in result.judged if j.layer == 1 and j.arm == "fused" and j.step.startswith("experts.")]
    assert [(j.op, j.shape[0] % 16) for j in here if j.op == "ptpc_gemm"] == [("ptpc_gemm", 0)] * 2
    assert [j.shape for j in here if j.op == "per_token_quant"] == [(20 * TINY.top_k, TINY.moe_intermediate)]


class ExpertProductWrong(KernelPath):
    """Only the routed experts' GEMM loses products; the walk's own steps are right."""

    def linear(self, layer: Layer, what: Linear, handed: tuple[torch.Tensor, ...]) -> torch.Tensor:
        out = super().linear(layer, what, handed)
        return out * 2 if what.weight.shape[1] == TINY.moe_intermediate and len(out) == 32 else out


def test_a_wrong_product_of_an_expert_is_placed_there() -> None:
    wrong = not_passed(tiny_walk(tokens=40, path=ExpertProductWrong))
    assert {(j.op, j.step.split(".")[0], j.step.split(".")[-1]) for j in wrong} == {
        ("ptpc_gemm", "experts", "down_proj")
    }


@pytest.mark.parametrize(
    ("text", "route"), [("fp8_per_token", "per_token"), ("fp8", "group"), ("mxfp4", "mxfp4"), ("", "bf16")]
)
def test_a_route_is_chosen_by_exact_comparison(text: str, route: str) -> None:
    assert route_of(text) == route


@pytest.mark.parametrize("text", ["fp8_per_channel", "FP8", "fp8 "])
def test_an_unknown_quant_format_is_one_sentence(text: str) -> None:
    with pytest.raises(PathError, match=r"^unknown quant_format [^\n]*known: [^\n]+$"):
        route_of(text)


# ---- tensor parallelism


def test_split_ranks_pass_and_change_the_bits() -> None:
    alone, split = tiny_walk(), tiny_walk(group=Group.simulated(2))
    assert not_passed(split) == []
    assert {j.rank for j in split.judged} == {0, 1}
    assert alone.digest != split.digest
    assert split.digest == tiny_walk(group=Group.simulated(2)).digest


def test_shards_put_together_are_the_whole() -> None:
    whole = presets.Synthetic("glm-tiny", TINY).layer(0).qkv
    sizes = TINY.qkv_sizes()
    places = [rows_of(sizes, rank, 2, torch.device("cpu")) for rank in (0, 1)]
    assert sorted(torch.cat(places).tolist()) == list(range(sum(sizes)))
    back = torch.empty_like(whole.weight.view(torch.uint8))
    for place in places:
        back[place] = column_shard(whole, place).weight.view(torch.uint8)
    assert torch.equal(back, whole.weight.view(torch.uint8))
    halves = [row_shard(whole, rank, 2) for rank in (0, 1)]
    joined = torch.cat([half.weight.view(torch.uint8) for _, half in halves], 1)
    assert torch.equal(joined, whole.weight.view(torch.uint8))
    assert [half.bias is None for _, half in halves] == [False, True]


def test_the_all_reduce_adds_in_rank_order_and_stores_once() -> None:
    parts = [torch.tensor([[v]], dtype=torch.bfloat16) for v in (256.0, 1.0, 1.0, -256.0)]
    # In fp32 nothing is lost; storing each step in bf16 would leave 0 or -2.
    assert Group.simulated(4).all_reduce(parts).item() == 2.0


def test_two_processes_equal_two_simulated_ranks_bit_for_bit(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    arguments = ["--model", "glm-tiny", *PAIR, "--layers", "3", "--tp", "2"]
    started = []
    for rank in ("0", "1"):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
        environment, pipe = {**os.environ, **place, **address}, subprocess.PIPE
        command = [sys.executable, "-m", "validators", "layers", *arguments, "--records", str(tmp_path / "real")]
        started.append(subprocess.Popen(command, env=environment, cwd=ROOT, stdout=pipe, stderr=pipe))
    for process in started:
        _, errors = process.communicate(timeout=120)
        assert process.returncode in (0, 1), errors.decode()
    main(["layers", *arguments, "--records", str(tmp_path / "simulated")])
    real, simulated = (store.load(tmp_path / name) for name in ("real", "simulated"))
    walks = [records[-1].walk for records in (real, simulated)]
    assert walks[0] is not None
    assert walks[1] is not None
    assert walks[0].real_ranks
    assert walks[0].stream == walks[1].stream != {}
    assert failing(real) == failing(simulated) == []


# ---- command


def failing(records: Sequence[Record]) -> list[str]:
    return [r.case for r in records[:-1] if r.status is not Status.PASSED]


def test_a_checkpoint_on_disk_is_walked_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = build.write_tiny(tmp_path)
    code = main(["layers", "--model", str(directory), *PAIR, "--tokens", "256", "--records", str(tmp_path / "r")])
    said = capsys.readouterr().out
    records = store.load(tmp_path / "r")
    assert code == 0, said
    assert {r.status for r in records} == {Status.PASSED}
    assert {r.kernel for r in records} == {NORM, GEMM}
    assert {r.lane for r in records} == {"layers"}
    assert records[0].case == "layers-glm-tiny-l00-fused-input_layernorm-add_rmsnorm_quant-256x128"
    assert records[-1].case == "layers-glm-tiny-trajectory"
    assert "logits" in {c.name for c in records[-1].checks}
    assert "peak memory" in said
    stated = {c.name: c.detail for c in records[-1].checks}
    assert stated["memory"].startswith("peak memory")
    # 256 tokens of 2 experts in 3 MoE layers on two paths; both GEMMs of one expert in each on the fused path.
    assert "all 3,072 rows and 6 GEMMs" in stated["environment"]
    assert (tmp_path / "r" / "layers.svg").read_text().count("<polyline") == 2
    assert records[0].reproduce.startswith("python -m validators layers --model")


def test_a_part_of_the_layers_has_no_logits(tmp_path: Path) -> None:
    main(["layers", "--model", "glm-tiny", *PAIR, "--layers", "2", "--records", str(tmp_path)])
    records = store.load(tmp_path)
    assert "logits" not in {c.name for c in records[-1].checks}
    assert {r.case.split("-")[3] for r in records[:-1]} == {"l00", "l01"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model", "glm-5"], "neither a preset"),
        (["--model", "glm-tiny", "--layers", "0"], "no number of layers from 1 to the model's 4"),
        (["--model", "glm-tiny", "--layers", "5"], "no number of layers from 1 to the model's 4"),
        (["--model", "glm-tiny", "--layers", "0-3"], "invalid int value: '0-3'"),
        (["--model", "glm-tiny", "--tokens", "0"], "no length"),
        (["--model", "glm-tiny", "--tp", "4"], "do not split"),
        (["--model", "glm-tiny", "--tp", "0"], "do not split"),
        (["--model", "glm-tiny", "--device", "tpu"], "unknown device"),
        (["--model", "glm-tiny", "--kernel", "per_token_quant=nobody/none"], "unknown kernel"),
        (
            ["--model", "glm-tiny", "--kernel", "emulated/eager"],
            "both compute add_rmsnorm_quant; say which",
        ),
        (["--model", "glm-tiny", "--kernel", "static_quant=x"], "is a kernel of static_quant, and here it is one of"),
        (["--model", "glm-tiny", "--speed"], "unrecognized"),
    ],
)
def test_bad_usage_is_one_sentence(options: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layers", *PAIR, *options]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_the_real_sizes_are_made_layer_by_layer() -> None:
    source = presets.Synthetic("glm-4.7", presets.GLM_4_7)
    assert presets.GLM_4_7.qkv_sizes() == (12288, 1024, 1024)
    tokens = presets.prompt(source.config, 3)
    assert torch.equal(source.embed(tokens)[1], source.embed(tokens[1:2])[0])
    assert int(tokens.max()) < source.config.vocab


def test_synthetic_codes_are_the_quantiles_of_a_normal_distribution() -> None:
    source = presets.Synthetic("glm-tiny", TINY)
    layer = source.layer(0)
    values = layer.o.weight.float()
    assert not values.isnan().any()
    assert float(values.abs().max()) == 448.0
    again = presets.Synthetic("glm-tiny", TINY).layer(0)
    assert torch.equal(again.o.weight.view(torch.uint8), layer.o.weight.view(torch.uint8))
    other = presets.Synthetic("glm-tiny", TINY, seed=1).layer(0)
    assert not torch.equal(other.o.weight.view(torch.uint8), layer.o.weight.view(torch.uint8))


def test_a_picture_without_a_finite_error_is_refused() -> None:
    with pytest.raises(PictureError, match=r"^there is no finite error to draw$"):
        error_against_depth("t", [0, 1], {"fused": [math.nan, 0.0]})


def test_a_picture_escapes_its_title_and_has_a_point_a_value() -> None:
    text = error_against_depth("a < b", [0, 1, 2], {"fused": [0.1, 0.2, math.inf], "unfused": [0.1, 0.1, 0.1]})
    assert "a &lt; b" in text
    assert text.count("<circle") == 5


# ---- where the time goes, and the traces' model


def test_every_second_belongs_to_one_phase() -> None:
    clock, start = Clock("cpu", on=True), time.perf_counter()
    tiny_walk(tokens=8, count=2, clock=clock)
    took = time.perf_counter() - start
    lines = clock.lines(2)
    assert {"weights of the layer", "weights of experts", "routed experts", "judging ptpc_gemm"} <= set(clock.seconds)
    assert len(lines) == len(clock.seconds)
    assert 0.5 * took < sum(clock.seconds.values()) <= time.perf_counter() - start
    assert Clock().lines(2) == []


def test_a_phase_inside_another_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(100))
    monkeypatch.setattr("validators.layers.timing.time.perf_counter", lambda: float(next(now)))
    clock = Clock("cpu", on=True)
    with clock.phase("outer"), clock.phase("inner"):
        pass
    # One tick between any two looks at the clock: before, inside outer, inside inner, and outer again.
    assert clock.seconds == {"everything else": 1.0, "outer": 2.0, "inner": 1.0}


def test_timings_change_no_bit() -> None:
    assert tiny_walk(tokens=8, clock=Clock("cpu", on=True)).digest == tiny_walk(tokens=8).digest


@pytest.mark.parametrize(("path", "fused"), [(KernelPath, 6), (traces.OneFallsBack, 4)])
def test_the_traced_model_calls_the_fused_kernel_twice_a_layer(path: type[KernelPath], fused: int) -> None:
    config = dataclasses.replace(TINY, layers=3, first_dense=3)
    source = presets.Synthetic("glm-tiny", config)
    kernels = build.find_kernels([NORM, GEMM], "cpu")
    called: list[str] = []

    class Counted(path):  # type: ignore[misc, valid-type]
        def run(self, kernel: Any, inputs: Any) -> Any:
            called.append(kernel.op)
            return super().run(kernel, inputs)

    weights = [source.layer(i) for i in range(3)]
    hidden = source.embed(presets.prompt(config, 4)).bfloat16()
    runner = Counted(kernels, config, source.quant_format)
    first, second = (traces.forward(runner, config, weights, hidden) for _ in range(2))
    assert torch.equal(first, second)
    assert called.count("add_rmsnorm_quant") == 2 * fused
    assert called.count("ptpc_gemm") == 2 * 12
