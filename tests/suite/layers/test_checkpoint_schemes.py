"""What a checkpoint says of its quantization: which schemes are walked, and one sentence for any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.checkpoint_config import quantization
from validators.__main__ import main
from validators.layers.build import write_tiny
from validators.layers.checkpoint_scheme import not_ptpc, quant_format
from validators.tensor_file import CheckpointError


def groups(*changes: dict[str, Any]) -> dict[str, Any]:
    """config.json with one group a change; each with targets of its own."""
    config = quantization()
    quant = config["quantization_config"]
    base = quant["config_groups"].pop("group_0")
    for number, change_ in enumerate(changes):
        quant["config_groups"][f"group_{number}"] = {**base, "targets": [f"re:.*part{number}"], **change_}
    return config


BLOCK = {"weights": {"num_bits": 8, "type": "float", "strategy": "block", "symmetric": True, "dynamic": False}}


def test_equal_groups_are_one_scheme() -> None:
    assert quant_format(groups({}, {})) == "fp8_per_token"
    assert quant_format(groups({"format": "float-quantized"}, {})) == "fp8_per_token"
    assert not_ptpc(groups({}, {})) == ""
    with pytest.raises(CheckpointError, match=r"several schemes \(group_0 fp8_per_token, group_1 fp8\)"):
        quant_format(groups({}, BLOCK))


@pytest.mark.parametrize(
    ("config", "field", "value", "wanted"),
    [
        (quantization(weights__strategy="tensor"), "config_groups.group_0.weights.strategy", "'tensor'", "'channel'"),
        (quantization(weights__num_bits=4), "config_groups.group_0.weights.num_bits", "4", "8"),
        (quantization(weights__type="int"), "config_groups.group_0.weights.type", "'int'", "'float'"),
        (quantization(weights__dynamic=True), "config_groups.group_0.weights.dynamic", "True", "False"),
        (
            quantization(input_activations__strategy="tensor"),
            "config_groups.group_0.input_activations.strategy",
            "'tensor'",
            "'token'",
        ),
        (
            quantization(input_activations__dynamic=False),
            "config_groups.group_0.input_activations.dynamic",
            "False",
            "True",
        ),
        (
            quantization(input_activations__symmetric=False),
            "config_groups.group_0.input_activations.symmetric",
            "False",
            "True",
        ),
        (groups({"input_activations": None}), "config_groups.group_0.input_activations", "missing", "8-bit float"),
        (
            groups({}, {"weights": {**BLOCK["weights"], "strategy": "tensor"}}),
            "config_groups.group_1.weights.strategy",
            "'tensor'",
            "'channel'",
        ),
        (groups({"format": "pack-quantized"}), "config_groups.group_0.format", "'pack-quantized'", "'float-quantized'"),
        (quantization(format="int-quantized"), "format", "'int-quantized'", "'float-quantized'"),
        (quantization(quant_method="awq"), "quant_method", "'awq'", "'compressed-tensors'"),
        (quantization(config_groups={}), "config_groups", "{}", "a table of at least one group"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quant_method", "'fp8'", "'compressed-tensors'"),
        ({"quantization_config": "fp8"}, "", "'fp8'", "a table of settings"),
    ],
)
def test_a_refusal_names_the_field_and_what_is_wanted(
    config: dict[str, Any], field: str, value: str, wanted: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        quant_format(config)
    name = f"quantization_config.{field}" if field else "quantization_config"
    assert str(caught.value).startswith(f"config.json: {name} is {value}, ")
    assert str(caught.value).endswith(wanted)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "has no quantization_config"),
        (groups(BLOCK), "config_groups.group_0.weights.strategy is 'block', and this walk takes 'channel'"),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}, "quant_method is 'fp8'"),
    ],
)
def test_a_known_scheme_that_is_another_is_refused_in_the_same_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: dict[str, Any], words: str
) -> None:
    tiny = write_tiny(tmp_path)
    own = json.loads((tiny / "config.json").read_text())
    own.pop("quantization_config")
    (tiny / "config.json").write_text(json.dumps({**own, **config}))
    kernels = ["--kernel", "emulated/aiter-hip-gfx950", "--kernel", "emulated/fp32"]
    assert main(["layers", "--model", str(tiny), *kernels, "--records", str(tmp_path / "records")]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
