"""Checkpoints as they really are: layers that are not quantized, other shapes of scales, tied and FP8 heads.

What is missing or broken is found before the first layer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from reference import glm4_moe
from validators.__main__ import main
from validators.layers import build, checkpoint_check, presets
from validators.layers.build import write_tiny
from validators.layers.checkpoint import INDEX, Checkpoint
from validators.layers.path import KernelPath
from validators.records import store
from validators.records.record import Status
from validators.tensor_file import CheckpointError, Shard, write_shard

TINY = presets.GLM_TINY
PAIR = ["--kernel", "emulated/aiter-hip-gfx950", "--kernel", "emulated/fp32"]
ATTENTION = "model.layers.0.self_attn"
Q, K, V, OUT = (f"{ATTENTION}.{n}_proj.weight" for n in "qkvo")
Change = Callable[[Path], None]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny(tmp_path)


def change(directory: Path, made: dict[str, Tensor | None]) -> None:
    """Write the tensors again, with new ones next to the first of the names; None removes one."""
    index = json.loads((directory / INDEX).read_text())
    where = index["weight_map"]
    beside = where[next(name for name in made if name in where)]
    for file in {where.get(name, beside) for name in made}:
        shard = Shard(directory / file)
        kept: dict[str, Tensor | None] = {name: shard.tensor(name).clone() for name in shard.entries}
        kept |= {name: tensor for name, tensor in made.items() if where.get(name, beside) == file}
        write_shard(directory / file, {name: tensor for name, tensor in kept.items() if tensor is not None})
    where.update(dict.fromkeys(made, beside) | {name: where[name] for name in made if name in where})
    for name in [name for name, tensor in made.items() if tensor is None]:
        where.pop(name)
    (directory / INDEX).write_text(json.dumps(index))


def plain(directory: Path, *names: str) -> None:
    """Linears in bf16, without a scale, as an ignore list leaves them."""
    source = Checkpoint(directory)
    made: dict[str, Tensor | None] = {}
    for name in names:
        made[name] = (glm4_moe.values(source.tensor(name)) * source.tensor(f"{name}_scale").double()).bfloat16()
        made[f"{name}_scale"] = None
    change(directory, made)


def scale(name: str, of: Callable[[Tensor], Tensor]) -> Change:
    def apply(directory: Path) -> None:
        change(directory, {f"{name}_scale": of(Checkpoint(directory).tensor(f"{name}_scale").clone()).contiguous()})

    return apply


def with_value(value: float, row: int) -> Callable[[Tensor], Tensor]:
    def apply(found: Tensor) -> Tensor:
        found[row] = value
        return found

    return apply


def walk(directory: Path, *options: str) -> int:
    where = ["--tokens", "16", "--records", str(directory.parent / "records")]
    return main(["layers", "--model", str(directory), *PAIR, *where, *options])


def without(*names: str) -> Change:
    def apply(directory: Path) -> None:
        change(directory, dict.fromkeys(names))

    return apply


def lost_files(directory: Path) -> None:
    (directory / "model-layer-001.safetensors").unlink()
    (directory / "model-layer-003.safetensors").unlink()


EXPERT = "model.layers.2.mlp.experts.3"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: plain(d, K, V), f"{ATTENTION}: q_proj is FP8 and k_proj BF16; one linear needs one type"),
        (lambda d: plain(d, Q), f"{ATTENTION}: q_proj is BF16 and k_proj FP8; one linear needs one type"),
        (
            lambda d: plain(d, "model.layers.0.mlp.up_proj.weight"),
            "model.layers.0.mlp: gate_proj is FP8 and up_proj BF16; one linear needs one type",
        ),
        (scale(Q, lambda s: s[0, 0]), f"{Q}_scale has shape [], expected [256, 1]"),
        (scale(Q, lambda s: s.view(1, -1)), f"{Q}_scale has shape [1, 256], expected [256, 1]"),
        (scale(OUT, lambda s: s[:-1]), f"{OUT}_scale has shape [127, 1], expected [128, 1]"),
        (scale(OUT, lambda s: s.to(torch.int32)), f"{OUT}_scale has type I32, expected BF16 or F16 or F32"),
        (without(f"{Q}_scale"), f"{Q} is FP8 and the checkpoint holds no tensor '{Q}_scale'"),
        (
            lambda d: change(d, {Q: torch.zeros(256, 128, dtype=torch.uint8)}),
            f"{Q[:-7]}.weight has type U8, expected F8_E4M3, or BF16 or F16 or F32 unquantized",
        ),
        (
            lambda d: change(d, {K: Checkpoint(d).tensor(K)[:32].clone(), f"{K}_scale": torch.ones(32, 1)}),
            f"{K} has shape [32, 128], expected [64, 128] by config.json",
        ),
        (without("model.layers.3.input_layernorm.weight"), "holds no tensor 'model.layers.3.input_layernorm.weight'"),
        (
            without(f"{EXPERT}.up_proj.weight", f"{EXPERT}.down_proj.weight"),
            f"holds no tensor '{EXPERT}.up_proj.weight' (2 are missing, also '{EXPERT}.down_proj.weight')",
        ),
        (
            lambda d: plain(d, f"{EXPERT}.down_proj.weight"),
            "model.layers.2.mlp.experts: 1 of 8 down_proj are not quantized and the others are FP8",
        ),
        (
            lost_files,
            "lacks a file that its index names: 'model-layer-001.safetensors' (2 are missing, also "
            "'model-layer-003.safetensors')",
        ),
        (without("lm_head.weight"), "holds no tensor 'lm_head.weight'"),
    ],
)
def test_what_cannot_be_walked_is_one_sentence_before_the_first_layer(
    tiny: Path, capsys: pytest.CaptureFixture[str], damage: Change, words: str
) -> None:
    damage(tiny)
    assert walk(tiny) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert said.err.count("\n") == 1
    assert "layer   0" not in said.out
    assert not (tiny.parent / "records").exists()


def test_layers_beyond_the_walk_may_be_missing(tiny: Path) -> None:
    """A part of a large model may be all that was copied."""
    (tiny / "model-layer-003.safetensors").unlink()
    assert walk(tiny, "--layers", "2", "--tokens", "128") == 0


def test_scales_stored_as_a_row_are_the_same_scales(tiny: Path, tmp_path: Path) -> None:
    before = Checkpoint(tiny).layer(0)
    for name in (Q, K, V, OUT):
        scale(name, lambda s: s.view(-1))(tiny)
    source = Checkpoint(tiny)
    assert source.check(TINY.layers) == []
    after = source.layer(0)
    for one, other in ((before.qkv, after.qkv), (before.o, after.o)):
        assert one.scale is not None
        assert other.scale is not None
        assert torch.equal(one.scale, other.scale)


def test_scales_in_bf16_are_read_as_they_are(tiny: Path) -> None:
    scale(Q, lambda s: s.bfloat16())(tiny)
    source = Checkpoint(tiny)
    source.check(TINY.layers)
    found = source.layer(0).qkv.scale
    assert found is not None
    assert torch.equal(found[:256], source.tensor(f"{Q}_scale").float())


@pytest.mark.parametrize(("value", "said"), [(math.nan, "is nan in channel 7"), (math.inf, "is inf in channel 7")])
def test_a_scale_that_is_no_number_is_refused_by_name(
    tiny: Path, capsys: pytest.CaptureFixture[str], value: float, said: str
) -> None:
    name = "model.layers.2.self_attn.o_proj.weight"
    scale(name, with_value(value, 7))(tiny)
    assert walk(tiny) == 4
    out = capsys.readouterr().out
    assert f"ERROR trajectory: {name}_scale {said}; a scale must be a number" in out
    # What was judged before is kept.
    records = store.load(tiny.parent / "records")
    assert records[-1].status is Status.ERROR
    assert {r.status for r in records[:-1]} == {Status.PASSED}
    assert {r.case.split("-")[3] for r in records[:-1]} == {"l00", "l01"}


def test_a_code_that_is_no_number_is_refused_by_name(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    codes = Checkpoint(tiny).tensor(OUT).view(torch.uint8).clone()
    codes[3, 5] = 0xFF
    change(tiny, {OUT: codes.view(torch.float8_e4m3fn)})
    assert walk(tiny) == 4
    assert f"ERROR trajectory: {OUT} holds NaN" in capsys.readouterr().out


def test_linears_of_the_ignore_list_are_walked_and_not_judged(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All of q, k, v in bf16 in one layer, a whole MLP in another: said, and every other op judged as ever."""
    plain(tiny, Q, K, V, *(f"model.layers.1.mlp.shared_experts.{n}_proj.weight" for n in ("gate", "up", "down")))
    assert walk(tiny, "--tokens", "128") == 0
    said = capsys.readouterr().out
    names = f"{ATTENTION}.q/k/v_proj, model.layers.1.mlp.shared_experts.gate/up_proj, "
    names += "model.layers.1.mlp.shared_experts.down_proj"
    assert f"not quantized in the checkpoint, so walked in bf16 and not judged: {names}\n" in said
    *ops, whole = store.load(tiny.parent / "records")
    assert {r.status for r in [*ops, whole]} == {Status.PASSED}
    cases = {"-".join(r.case.split("-")[3:7]) for r in ops}
    assert not any("l00-fused-qkv_proj" in c or "l00-fused-input_layernorm" in c for c in cases)
    assert not any("l01-fused-shared" in c for c in cases)
    assert any("l01-fused-qkv_proj" in c for c in cases)
    assert any("l00-fused-o_proj" in c for c in cases)
    assert names in {c.name: c.detail for c in whole.checks}["environment"]
    assert walk(tiny, "--tokens", "128", "--tp", "2", "--records", str(tiny.parent / "split")) == 0


def test_experts_of_the_ignore_list_are_walked_and_not_judged(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experts = [f"model.layers.1.mlp.experts.{e}" for e in range(TINY.experts)]
    plain(tiny, *(f"{e}.{n}_proj.weight" for e in experts for n in ("gate", "up", "down")))
    plain(tiny, *(f"model.layers.2.mlp.experts.{e}.down_proj.weight" for e in range(TINY.experts)))
    assert walk(tiny, "--tokens", "128") == 0
    assert "not judged: 24 of experts" in capsys.readouterr().out
    cases = [r.case for r in store.load(tiny.parent / "records")]
    assert not any("l01" in c and "experts." in c for c in cases)
    assert any("l02-fused-experts" in c and "gate_up" in c for c in cases)
    assert not any("l02-fused-experts" in c and "down" in c for c in cases)


def test_a_walk_of_unquantized_linears_follows_the_truth(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = [f"{ATTENTION}.{n}_proj.weight" for n in "qkvo"]
    everything += [f"model.layers.1.self_attn.{n}_proj.weight" for n in "qkvo"]
    mlps = ["0.mlp", "1.mlp.shared_experts", *(f"1.mlp.experts.{e}" for e in range(TINY.experts))]
    everything += [f"model.layers.{mlp}.{n}_proj.weight" for mlp in mlps for n in ("gate", "up", "down")]
    plain(tiny, *everything)
    source = Checkpoint(tiny)
    kernels = build.find_kernels([PAIR[1], PAIR[3]], "cpu")
    contracts, _ = build.find_contracts(kernels, "cpu")

    def error(arm: str) -> float:
        found = build.walk(source, kernels, contracts, layers=2, tokens=16, unjudged=source.check(2))
        # The norm before the router is judged as ever, with the quantizer behind it.
        assert {j.step for j in found.judged} == {"post_attention_layernorm"}
        return float(found.depths[1].error[arm].median())

    # 8 bits of bf16 and a few stores; FP8 activations in the experts alone would leave twice as much.
    assert error("fused") < 0.01
    assert error("fused") == error("unfused")
    right = KernelPath.add_rmsnorm
    monkeypatch.setattr(KernelPath, "add_rmsnorm", lambda self, weight, hidden: 2 * right(self, weight, hidden))
    assert error("fused") > 0.1


def test_a_tied_head_is_the_embedding(tiny: Path) -> None:
    change(tiny, {"lm_head.weight": None})
    config = json.loads((tiny / "config.json").read_text())
    (tiny / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    source = Checkpoint(tiny)
    assert source.check(TINY.layers) == []
    assert torch.equal(torch.cat(list(source.head())), source.tensor("model.embed_tokens.weight"))
    assert walk(tiny, "--tokens", "128") == 0


def test_an_fp8_head_is_decoded_with_its_scales(tiny: Path) -> None:
    codes = torch.arange(TINY.vocab * TINY.hidden, dtype=torch.int64).remainder(0x7F).to(torch.uint8)
    codes = codes.view(TINY.vocab, TINY.hidden).view(torch.float8_e4m3fn)
    scales = torch.rand(TINY.vocab, 1, generator=torch.Generator().manual_seed(0))
    change(tiny, {"lm_head.weight": codes, "lm_head.weight_scale": scales})
    source = Checkpoint(tiny)
    assert source.check(TINY.layers) == []
    assert torch.equal(torch.cat(list(source.head())), codes.float().double() * scales.double())
    assert walk(tiny, "--tokens", "128") == 0
    change(tiny, {"lm_head.weight_scale": None})
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is FP8 and the checkpoint holds no tensor"):
        Checkpoint(tiny).check(TINY.layers)


def _paths(table: dict[str, Any], before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in table.items():
        yield (*before, name)
        if isinstance(value, dict):
            yield from _paths(value, (*before, name))


def test_no_value_of_a_setting_ends_in_a_traceback(tiny: Path) -> None:
    """Every setting of config.json, also those inside tables, in turn of another type, and absurdly large."""
    file = tiny / "config.json"
    right = json.loads(file.read_text())
    said = []
    for path in _paths(right):
        value: Any
        for value in ("x", "5120", None, [], {}, -1, 0, 1.5, True, math.inf, 10**9):
            config = json.loads(json.dumps(right))
            inner = config
            for name in path[:-1]:
                inner = inner[name]
            inner[path[-1]] = value
            file.write_text(json.dumps(config))
            try:
                source = Checkpoint(tiny)
                source.check(source.config.layers)
            except CheckpointError as error:
                said.append(str(error))
    assert len(said) > 200
    assert [text for text in said if "\n" in text or len(text) > 400] == []


def test_a_damaged_index_is_one_sentence(tiny: Path) -> None:
    for text in ('{"weight_map": []}', '{"weight_map": {"a": 1}}', "{}"):
        (tiny / INDEX).write_text(text)
        with pytest.raises(CheckpointError, match=r"has no weight_map from tensors to files$"):
            Checkpoint(tiny)


def test_the_names_that_a_walk_needs_are_those_of_the_checkpoint(tiny: Path) -> None:
    """Planted: the list of what is needed is not shorter than what a writer writes."""
    needed = set(checkpoint_check.needed(TINY, TINY.layers, tied=False))
    there = set(json.loads((tiny / INDEX).read_text())["weight_map"])
    assert needed == {name for name in there if not name.endswith("_scale")}


# ---- own kernels


def test_an_own_kernel_that_raises_and_declares_nothing_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "own.py"
    file.write_text("def gemm(a, a_scale, b, b_scale, bias, out_dtype):\n    raise RuntimeError('no such tile')\n")
    options = ["--kernel", PAIR[1], "--kernel", f"{file}:gemm", "--records", str(tmp_path / "r")]
    assert main(["layers", "--model", "glm-tiny", *options]) == 2
    said = capsys.readouterr()
    assert "declares no contract" in said.err
    assert "no such tile" in said.err
    assert said.err.count("\n") == 1
    assert "Traceback" not in said.err + said.out


def test_a_right_kernel_passes_with_the_default_number_of_tokens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*PAIR, "--records", str(tmp_path / "r")]
    assert main(["layers", "--model", "glm-tiny", *options]) == 0
    assert "PASSED trajectory" in capsys.readouterr().out
    assert main(["layers", "--model", "glm-tiny", *PAIR, "--tokens", "4", "--records", str(tmp_path / "few")]) == 1
    assert "undecided, walk more tokens (--tokens 128 decided" in capsys.readouterr().out
