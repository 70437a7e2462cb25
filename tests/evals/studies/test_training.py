"""The training script's parts: data that is the same each time, batches, a step that learns, what is exported."""

from __future__ import annotations

import argparse
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from evals.model import synthetic, tokenizer
from evals.model.weights import from_folder
from evals.studies import export, stream, train

pytest.importorskip("transformers", reason="the optional package transformers is not installed")


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "CHUNK", 200)


def test_a_chunk_is_the_same_each_time_and_holds_no_held_out_question(small_chunks: None) -> None:
    first, again = stream.make_chunk(5, 3, 16), stream.make_chunk(5, 3, 16)
    assert len(first) == len(again) >= 10
    for (ids, starts), (same_ids, same_starts) in zip(first, again, strict=True):
        assert (ids == same_ids).all()
        assert (starts == same_starts).all()
        for row, start in zip(ids.tolist(), starts.tolist(), strict=True):
            asked = tokenizer.decode(row[:start])
            question = asked.removeprefix("Question: ").removesuffix("\nAnswer:")
            assert asked == synthetic.prompt(question)
            assert not synthetic.is_held_out(question)
            assert row[len([i for i in row if i]) - 1] == tokenizer.END_ID


def model() -> Any:
    return train.build("tiny", "cpu", seed=1)


def test_training_is_bf16_with_routers_and_rotary_in_fp32() -> None:
    made = model()
    types = {name.rsplit(".", 2)[-2]: parameter.dtype for name, parameter in made.named_parameters()}
    assert types["q_proj"] == types["embed_tokens"] == torch.bfloat16
    assert types["gate"] == torch.float32
    assert made.model.rotary_emb.inv_freq.dtype == torch.float32


def test_a_few_steps_learn_and_the_router_is_balanced(small_chunks: None) -> None:
    made = model()
    trainer, balance = train.Trainer(made, 3e-3), train.Balance(made)
    made.train()
    ids, starts = (torch.from_numpy(part).long() for part in stream.make_chunk(1, 0, 16)[0])
    losses = []
    for _ in range(6):
        logits, gold, _ = train.answer_logits(made, ids, starts)
        loss = torch.nn.functional.cross_entropy(logits, gold)
        trainer.step(loss, 3e-3)
        balance.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    biases = [m.e_score_correction_bias for m in made.modules() if hasattr(m, "e_score_correction_bias")]
    assert all(bool((bias != 0).any()) for bias in biases)


def test_only_answers_are_learnt() -> None:
    """The loss counts the tokens from the first of the answer to the end token, and none of the question."""
    problem = synthetic.problem(1, 0)
    ids, starts = train.evaluation_batch([problem])
    with torch.no_grad():
        _, gold, _ = train.answer_logits(model(), ids, starts)
    assert tokenizer.decode(gold.tolist()) == synthetic.completion(problem.solution)
    assert gold[-1] == tokenizer.END_ID


def test_the_rate_warms_up_and_comes_down() -> None:
    rates = [train.cosine(share / 100, 1.0) for share in range(101)]
    assert rates[0] < 0.01
    assert max(rates) == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.02)
    assert rates[3:] == sorted(rates[3:], reverse=True)


def test_the_last_snapshot_in_the_band_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = model()
    shares = iter([0.50, 0.90, 0.92, 0.97])
    monkeypatch.setattr(train, "exact_share", lambda *_: (next(shares), [True, False, True]))
    state = export.stored(made)
    snapshots = [train.Snapshot(step, 0.0, state) for step in (10, 20, 30, 40)]
    train.export(made, snapshots, argparse.Namespace(out=str(tmp_path), questions=3, device="cpu"))
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == [
        "bf16-model.safetensors",
        "fp8-20.safetensors",
        "fp8-30.safetensors",
        "fp8-40.safetensors",
        "small.tar",
    ]
    with tarfile.open(tmp_path / "small.tar") as bundle:
        bundle.extractall(tmp_path / "small", filter="data")
    folder = tmp_path / "small" / "fp8"
    (tmp_path / "fp8-30.safetensors").rename(folder / "model.safetensors")
    read = from_folder(folder)
    assert len(read.layers) == 3
    assert read.layers[0].experts is None
    assert read.layers[1].experts is not None


def test_training_never_sees_a_held_out_question() -> None:
    held_out = {problem.question for problem in synthetic.held_out(300)}
    assert len(held_out) == 300
    assert all(synthetic.is_held_out(question) for question in held_out)
    # Of the very stream that the held-out problems come from: what is trained on is the rest.
    trained = {problem.question for problem in stream.training_problems(synthetic.EMBEDDED_SEED, 0, 12_000)}
    assert not trained & held_out
    assert len(trained) > 11_000


def test_the_tokenizers_library_cuts_the_same(tmp_path: Path) -> None:
    library = pytest.importorskip("tokenizers", reason="the optional package tokenizers is not installed")
    export.write_tokenizer(tmp_path)
    reader = library.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for problem in (synthetic.problem(7, index) for index in range(200)):
        text = synthetic.prompt(problem.question) + synthetic.completion(problem.solution)
        ids = reader.encode(text).ids
        assert ids == tokenizer.encode(text)
        assert reader.decode(ids) == text


def test_experts_survive_the_split() -> None:
    state = {
        "a.mlp.experts.gate_up_proj": torch.randn(3, 8, 5),
        "a.mlp.experts.down_proj": torch.randn(3, 5, 4),
        "a.mlp.gate.weight": torch.randn(3, 5),
    }
    split = export.split_experts(state)
    assert "a.mlp.experts.2.up_proj.weight" in split
    back = export.join_experts(split)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
