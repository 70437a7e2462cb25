"""FP8 checkpoints: bytes checked against exhaustive rounding, layout, and the round trip to what transformers loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from evals.errors import EvalError
from evals.model import checkpoint
from evals.model.weights import from_folder
from evals.offline.models import DEFAULT_MODEL, MODELS

SHIPPED = MODELS / DEFAULT_MODEL


def finite_values() -> torch.Tensor:
    """The 127 non-negative finite values of e4m3fn, in order, from its definition."""
    codes = range(0x7F)
    return torch.tensor(
        [((8 + c % 8 if c >= 8 else c % 8) * 2.0 ** (max(c >> 3, 1) - 10)) for c in codes], dtype=torch.float64
    )


def test_codes_are_the_nearest_value_ties_to_even() -> None:
    """Against a search over all values in float64, midpoints of every pair of neighbours included."""
    values = finite_values()
    middle = (values[1:] + values[:-1]) / 2
    rows = torch.cat([values, middle, torch.linspace(0, 448, 4000, dtype=torch.float64)]).float()
    rows = torch.cat([rows, -rows, torch.tensor([448.0])])[None, :]
    codes, scale = checkpoint.quantize_rows(rows)
    assert scale.tolist() == [[1.0]]
    magnitude = codes.view(torch.uint8)[0] & 0x7F
    distance = (rows[0].abs().double()[:, None] - values[None, :]).abs()
    best = distance.min(dim=1).values
    assert torch.equal(distance.gather(1, magnitude.long()[:, None])[:, 0], best)
    ties = (distance == best[:, None]).sum(1) == 2
    assert int(ties.sum()) >= 2 * 126
    assert not (magnitude[ties] & 1).any()
    assert torch.equal(torch.signbit(codes.float()[0]), torch.signbit(rows[0]))


def test_a_row_of_zeros_and_the_largest_element() -> None:
    weight = torch.tensor([[0.0, 0.0], [3.0, -7.0]])
    codes, scale = checkpoint.quantize_rows(weight)
    assert scale[0].item() == 1.0
    assert codes.float()[0].tolist() == [0.0, 0.0]
    assert codes.float()[1, 1].item() == -448.0


def test_the_shipped_model_is_fp8_with_one_scale_a_row() -> None:
    state = checkpoint.read(SHIPPED)
    config = json.loads((SHIPPED / "config.json").read_text())
    assert config["quantization_config"]["config_groups"]["group_0"]["weights"]["strategy"] == "channel"
    quantized = [name for name, tensor in state.items() if tensor.dtype == torch.float8_e4m3fn]
    assert len(quantized) == 6 * 4 + 3 + 5 * (8 + 1) * 3
    assert all(state[f"{name}_scale"].shape == (len(state[name]), 1) for name in quantized)
    assert not any("lm_head" in name or name.endswith("mlp.gate.weight") for name in quantized)
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 12e6
    biases = [tensor for name, tensor in state.items() if name.endswith("e_score_correction_bias")]
    assert len(biases) == 5
    assert all(bool((bias != 0).any()) for bias in biases)


def test_safetensors_are_read_as_the_library_reads_them() -> None:
    library = pytest.importorskip("safetensors.torch", reason="the optional package safetensors is not installed")
    theirs = library.load_file(SHIPPED / "model.safetensors")
    ours = checkpoint.read(SHIPPED)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert ours[name].shape == tensor.shape
        assert torch.equal(ours[name].view(torch.uint8), tensor.view(torch.uint8))


def test_a_cut_file_is_said_to_be_cut(tmp_path: Path) -> None:
    whole = (SHIPPED / "model.safetensors").read_bytes()
    (tmp_path / "config.json").write_bytes((SHIPPED / "config.json").read_bytes())
    for size in (4, 1000, len(whole) - 1):
        (tmp_path / "model.safetensors").write_bytes(whole[:size])
        with pytest.raises(EvalError, match="cut"):
            from_folder(tmp_path)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda d: (d / "config.json").unlink(), "no readable config.json"),
        (lambda d: (d / "config.json").write_text("{"), "is not JSON"),
        (lambda d: (d / "model.safetensors").unlink(), "no \\*.safetensors"),
        (lambda d: (d / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0garbage!"), "cannot read the checkpoint"),
        (lambda d: (d / "config.json").write_text('{"model_type": "gpt2"}'), "'gpt2' is not supported"),
    ],
)
def test_a_broken_folder_is_one_sentence(tmp_path: Path, spoil: object, words: str) -> None:
    from safetensors.torch import save_file

    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": 8}')
    save_file({"x": torch.zeros(2)}, tmp_path / "model.safetensors")
    spoil(tmp_path)  # type: ignore[operator]
    with pytest.raises(EvalError, match=words):
        from_folder(tmp_path)
