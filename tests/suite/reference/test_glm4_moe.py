"""The float64 model against transformers' own, and its parts against what they are defined to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from reference import glm4_moe
from reference.formats import E4M3FN, decode, decode_table, format_of
from tests.support.hf_glm4 import HfSource, build_hf

CONFIGS = {
    "as GLM-4.7": {},
    "without qk norm and bias": {"use_qk_norm": False, "attention_bias": False},
    "expert groups": {"n_routed_experts": 8, "n_group": 4, "topk_group": 2},
    "all dense": {"first_k_dense_replace": 3},
    "all experts, weights not normalised": {"first_k_dense_replace": 0, "norm_topk_prob": False},
    "whole rotary, two shared experts": {"partial_rotary_factor": 1.0, "n_shared_experts": 2},
}


def fp32_size(logits: torch.Tensor) -> float:
    """What fp32 may lose: one unit of the largest logit for each of the under 200 roundings on a path of three
    layers."""
    return 2.0**-24 * 200 * float(logits.abs().max())


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=list(CONFIGS))
def test_logits_equal_those_of_transformers_to_the_rounding_of_fp32(changes: dict[str, Any]) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed, so its Glm4Moe cannot be compared")
    model = build_hf(seed=7, **changes)
    tokens = torch.randint(0, 97, (9,), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        theirs = model(tokens[None]).logits[0].double()
    ours = glm4_moe.forward(HfSource(model), tokens)
    assert float((ours - theirs).abs().max()) < fp32_size(ours)


@pytest.mark.parametrize("what", ["bias", "rotary", "correction", "shared", "scaling"])
def test_a_model_with_one_part_changed_leaves_that_bound(what: str) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed, so its Glm4Moe cannot be compared")
    model = build_hf(seed=7)
    source = HfSource(model)
    tokens = torch.randint(0, 97, (9,), generator=torch.Generator().manual_seed(3))
    right = glm4_moe.forward(source, tokens)
    wrong = glm4_moe.forward(HfSource(model, broken=what), tokens)
    assert float((right - wrong).abs().max()) > fp32_size(right)


def test_a_later_token_changes_no_earlier_logit() -> None:
    pytest.importorskip("transformers", reason="transformers is not installed, so there is no model to ask")
    source = HfSource(build_hf(seed=7))
    tokens = torch.randint(0, 97, (9,), generator=torch.Generator().manual_seed(3))
    whole, part = glm4_moe.forward(source, tokens), glm4_moe.forward(source, tokens[:5])
    assert float((whole[:5] - part).abs().max()) <= 2.0**-45 * float(whole.abs().max())


def test_a_weight_is_decoded_as_the_format_says() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(16, 16)
    got, want = glm4_moe.values(codes.view(torch.float8_e4m3fn)), decode(codes, E4M3FN)
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got.nan_to_num(), want.nan_to_num())


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e4m3fnuz])
def test_torchs_cast_is_trusted_only_where_it_gives_every_code(dtype: torch.dtype) -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    cast, want = codes.view(dtype).double(), decode(codes, format_of(dtype))
    alike = torch.equal(cast.nan_to_num(9e9), want.nan_to_num(9e9))
    assert glm4_moe.cast_decodes(dtype, "cpu") == alike


def test_a_cast_that_gives_other_values_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glm4_moe, "decode_table", lambda fmt, device: decode_table(fmt, device) * 2)
    assert not glm4_moe.cast_decodes.__wrapped__(torch.float8_e4m3fn, "cpu")


def test_a_linear_of_fp8_codes_is_its_exact_product() -> None:
    codes = (torch.arange(6 * 32) % 120).to(torch.uint8).view(6, 32).view(torch.float8_e4m3fn)
    scale = torch.tensor([[0.5], [1.0], [2.0], [4.0], [8.0], [0.25]])
    x = torch.randint(-4, 5, (3, 32), generator=torch.Generator().manual_seed(0)).double()
    want = x @ (decode(codes, E4M3FN) * scale.double()).t()
    assert torch.equal(glm4_moe.Linear(codes, scale).apply(x), want)


def test_experts_of_several_batches_equal_those_of_each_alone() -> None:
    draw = torch.Generator().manual_seed(0)
    config = glm4_moe.Config(8, 1, 2, 1, 4, 16, 4, 6, 2, 0, 0, 10)
    made: list[tuple[str, int]] = []

    def gate_up(number: int) -> glm4_moe.Linear:
        made.append(("gate_up", number))
        return glm4_moe.Linear(torch.randn(8, 8, generator=torch.Generator().manual_seed(number)))

    def down(number: int) -> glm4_moe.Linear:
        made.append(("down", number))
        return glm4_moe.Linear(torch.randn(8, 4, generator=torch.Generator().manual_seed(99 - number)))

    moe = glm4_moe.Moe(torch.randn(6, 8, generator=draw), torch.zeros(6), gate_up, down, None)
    xs = [
        torch.randn(5, 8, generator=draw, dtype=torch.float64),
        torch.randn(3, 8, generator=draw, dtype=torch.float64),
    ]
    batches = [glm4_moe.Routed(x, *glm4_moe.router(config, moe, x)) for x in xs]
    together = glm4_moe.experts(config, moe, batches)
    assert len(made) == len(set(made))
    for batch, got in zip(batches, together, strict=True):
        alone = glm4_moe.experts(config, moe, [batch])[0]
        terms = []
        for x, index, weight in zip(batch.x, batch.index, batch.weight, strict=True):
            outs = [float(w) * glm4_moe.mlp(moe.expert(int(e)), x[None])[0] for e, w in zip(index, weight, strict=True)]
            terms.append(torch.stack(outs).sum(0))
        size = 2.0**-45 * float(got.abs().max())
        assert float((got - alone).abs().max()) <= size
        assert float((got - torch.stack(terms)).abs().max()) <= size


SIZES = (
    "hidden",
    "layers",
    "heads",
    "kv_heads",
    "head_dim",
    "intermediate",
    "moe_intermediate",
    "experts",
    "top_k",
    "shared_experts",
    "first_dense",
    "vocab",
)


@pytest.mark.parametrize(("field", "value"), [("kv_heads", 3), ("top_k", 9), ("head_dim", 6), ("n_group", 5)])
def test_an_impossible_configuration_is_one_sentence(field: str, value: int) -> None:
    sizes = dict.fromkeys(SIZES, 8) | {"kv_heads": 2, "top_k": 2}
    with pytest.raises(glm4_moe.Glm4MoeError, match=r"^[^\n]+$"):
        glm4_moe.Config(**{**sizes, field: value})  # type: ignore[arg-type]
