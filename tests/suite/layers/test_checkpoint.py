"""Reading and writing compressed-tensors FP8 checkpoints: against the safetensors library, and broken on purpose."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from reference import glm4_moe
from tests.support.checkpoint_config import quantization
from validators.layers import presets
from validators.layers.build import write_tiny
from validators.layers.checkpoint import INDEX, Checkpoint
from validators.layers.checkpoint_scheme import quant_format
from validators.tensor_file import CheckpointError, Shard, write_shard

TINY = presets.GLM_TINY
TENSORS = {
    "odd": torch.arange(7, dtype=torch.uint8).view(torch.float8_e4m3fn),
    "scale": torch.tensor([[1.5], [2.5]], dtype=torch.bfloat16),
    "wide": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)),
    "empty": torch.empty(0, 4),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("checkpoint"))


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.float(), b.float())


def test_a_shard_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.safetensors", TENSORS)
    shard = Shard(tmp_path / "a.safetensors")
    assert list(shard.entries) == list(TENSORS)
    assert all(same(shard.tensor(name), tensor) for name, tensor in TENSORS.items())


def test_the_safetensors_library_agrees_in_both_directions(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.torch", reason="safetensors is not installed: no second reader")
    write_shard(tmp_path / "ours.safetensors", TENSORS)
    theirs = library.load_file(tmp_path / "ours.safetensors")
    assert all(same(theirs[name], tensor) for name, tensor in TENSORS.items())
    library.save_file(TENSORS, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    shard = Shard(tmp_path / "theirs.safetensors")
    assert set(shard.entries) == set(TENSORS)
    assert all(same(shard.tensor(name), tensor) for name, tensor in TENSORS.items())


def cut_data(raw: bytes) -> bytes:
    return raw[:-3]


def cut_header(raw: bytes) -> bytes:
    return raw[:40]


def no_json(raw: bytes) -> bytes:
    return raw[:8] + b"x" + raw[9:]


def wrong_dtype(raw: bytes) -> bytes:
    return raw.replace(b'"F32"', b'"F99"')


@pytest.mark.parametrize("damage", [cut_data, cut_header, no_json, wrong_dtype, lambda raw: b"", lambda raw: raw[:9]])
def test_a_damaged_shard_is_one_sentence(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "a.safetensors"
    write_shard(path, {k: v for k, v in TENSORS.items() if k != "empty"})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=r"^[^\n]+$"):
        Shard(path).tensor("wide")


def test_a_checkpoint_holds_the_layers_that_were_written(tiny: Path) -> None:
    made, read = presets.Synthetic("glm-tiny", TINY), Checkpoint(tiny)
    assert read.config == TINY
    assert read.quant_format == "fp8_per_token"
    for index in range(TINY.layers):
        a, b = made.layer(index), read.layer(index)
        for name in ("input_norm", "post_norm", "q_norm", "k_norm"):
            assert same(getattr(a, name), getattr(b, name))
        for x, y in ((a.qkv, b.qkv), (a.o, b.o)):
            assert same(x.weight, y.weight)
            assert same(x.scale, y.scale)  # type: ignore[arg-type]
        assert same(a.qkv.bias, b.qkv.bias)  # type: ignore[arg-type]
    tokens = presets.prompt(TINY, 5)
    assert torch.equal(glm4_moe.forward(made, tokens), glm4_moe.forward(read, tokens))


def test_only_the_experts_that_are_routed_to_are_read(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Checkpoint(tiny)
    asked: list[str] = []
    read = source.tensor

    def noted(name: str) -> torch.Tensor:
        asked.append(name)
        return read(name)

    monkeypatch.setattr(source, "tensor", noted)
    layer = source.layer(2)
    assert isinstance(layer.mlp, glm4_moe.Moe)
    assert not [name for name in asked if ".experts." in name]
    layer.mlp.expert(5)
    assert {name.split(".experts.")[1].split(".")[0] for name in asked if ".experts." in name} == {"5"}


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (quantization(), "fp8_per_token"),
        (quantization(weights__strategy="block"), "fp8"),
        ({}, ""),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}, "fp8"),
        ({"quantization_config": {"quant_method": "quark", "weight": {"dtype": "fp4"}}}, "mxfp4"),
    ],
)
def test_the_quant_format_follows_the_configuration(config: dict[str, Any], name: str) -> None:
    assert quant_format(config) == name


@pytest.mark.parametrize(
    "config",
    [
        quantization(weights__strategy="tensor"),
        quantization(input_activations__strategy="tensor"),
        quantization(input_activations__dynamic=False),
        quantization(weights__num_bits=4),
        quantization(weights__type="int"),
        quantization(input_activations__symmetric=False),
        quantization(format="int-quantized"),
        quantization(quant_method="awq"),
        quantization(config_groups={}),
    ],
)
def test_another_quantization_is_refused_in_one_sentence(config: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"^[^\n]+$"):
        quant_format(config)


def without_tensor(directory: Path) -> None:
    index = json.loads((directory / INDEX).read_text())
    index["weight_map"].pop("model.layers.1.self_attn.o_proj.weight_scale")
    (directory / INDEX).write_text(json.dumps(index))


def without_shard(directory: Path) -> None:
    (directory / "model-layer-001.safetensors").unlink()


def other_model(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))


def without_size(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    config.pop("head_dim")
    (directory / "config.json").write_text(json.dumps(config))


def no_config(directory: Path) -> None:
    (directory / "config.json").unlink()


def bad_config(directory: Path) -> None:
    (directory / "config.json").write_text("{")


@pytest.mark.parametrize("damage", [without_tensor, without_shard, other_model, without_size, no_config, bad_config])
def test_a_broken_checkpoint_is_one_sentence(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    directory = write_tiny(tmp_path)
    damage(directory)
    with pytest.raises(CheckpointError, match=r"^[^\n]+$"):
        Checkpoint(directory).layer(1)
