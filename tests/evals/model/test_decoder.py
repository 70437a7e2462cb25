"""The decoder against transformers' own models: the same logits where nothing is rounded, with and without a cache."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from evals.model.arms import make_arm
from evals.model.decoder import Decoder
from evals.model.weights import from_state
from evals.studies import export
from evals.studies.config import glm4_moe

transformers = pytest.importorskip("transformers", reason="the optional package transformers is not installed")


def glm() -> Any:
    return transformers.Glm4MoeForCausalLM(glm4_moe("tiny"))


def llama() -> Any:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=144,
            hidden_size=96,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=6,
            num_key_value_heads=2,
            max_position_embeddings=64,
        )
    )


def pair(build: Any) -> tuple[Any, Decoder]:
    """The library's model and ours with the same random weights, FP8 codes times scale; all in fp32."""
    torch.manual_seed(0)
    model = build()
    model.config._experts_implementation = "eager"
    state = {}
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape) * (0.3 if tensor.dim() > 1 else 0.1)
        state[name] = noise + 1 if "norm" in name else noise
    split = export.quantized(export.split_experts(state))
    model.load_state_dict(export.join_experts(export.dequantized(split, torch.float32)))
    config = json.loads(model.config.to_json_string(use_diff=False))
    return model.eval(), from_state("random", config, split, storage=torch.float32)


@pytest.mark.parametrize("build", [glm, llama], ids=["glm4_moe", "llama"])
def test_logits_are_those_of_transformers(build: Any) -> None:
    theirs, ours = pair(build)
    arm = make_arm("bf16")
    ids = torch.randint(3, 130, (4, 20), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([20, 7, 13, 18])
    with torch.no_grad():
        wanted = [theirs(ids[row : row + 1, :n]).logits[0] for row, n in enumerate(lengths.tolist())]
        whole = ours.logits(ours.forward(ids, lengths, ours.cache(4, 20), arm))
        cache = ours.cache(4, 20)
        ours.forward(ids, lengths - 2, cache, arm)
        rows, one = torch.arange(4), torch.ones(4, dtype=torch.int64)
        ours.forward(ids[rows, lengths - 2][:, None], one, cache, arm)
        last = ours.logits(ours.forward(ids[rows, lengths - 1][:, None], one, cache, arm))
    # fp32 sums of a few hundred terms in another order: some 1e-6 of the largest logit; a wrong wiring is of its size.
    largest = torch.cat(wanted).abs().max()
    assert (whole - torch.cat(wanted)).abs().max() < 1e-5 * largest
    assert (last - torch.stack([w[-1] for w in wanted])).abs().max() < 1e-5 * largest


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    """Packing, masks and cache slots: the same sequence alone and in a ragged batch."""
    _, ours = pair(glm)
    arm = make_arm("bf16")
    ids = torch.randint(3, 130, (3, 12), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        batch = ours.forward(ids, torch.tensor([5, 12, 9]), ours.cache(3, 12), arm)
        alone = ours.forward(ids[1:2], torch.tensor([12]), ours.cache(1, 12), arm)
    assert (batch[5:17] - alone).abs().max() < 1e-5 * alone.abs().max()
