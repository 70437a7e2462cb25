"""The shipped model on kernels, short form: the legitimate path passes the token level, each defect is refused there.

The long form (1,319 answers, 20 seeds) is ``python -m tests.benchmarks.parity``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from evals.errors import EvalError
from evals.model import inprocess, tokenizer
from evals.model.arms import Arm, make_arm
from evals.model.decoder import Decoder
from evals.model.inprocess import Pass
from evals.offline.models import DEFAULT_MODEL, load_embedded
from evals.offline.parity import answers
from evals.offline.questions import EmbeddedQuestions, embedded_questions
from evals.stats import logit_gates
from evals.stats.gate import Gate
from evals.stats.logit_gates import InProcessPairs
from evals.stats.token_gates import NOISE_LIMIT, gates
from evals.stats.tokens import statistics, typical_kl_ratio
from tests.evals.defects import DEFECTS, arm

SUBTLE = ("truncating_cast", "per_tensor_scale")
REBATCHED = ("fused", "per_tensor_scale")  # a further pass each; the others are refused without it
QUESTIONS, FEW, BATCH, SPLIT = 30, 20, 30, 7  # one batch, which SPLIT cuts in five: no question is left uncut


@pytest.fixture(scope="module")
def model() -> Decoder:
    return load_embedded(DEFAULT_MODEL, "cpu")


def passes(names: tuple[str, ...]) -> list[Pass]:
    made = [Pass("re-run", make_arm("unfused"), SPLIT), Pass("yardstick", make_arm("bf16-norms"))]
    for name in names:
        tested = make_arm("fused" if name == "fused" else arm(name))
        made.append(Pass(name, tested))
        if name in REBATCHED:
            made.append(Pass(f"{name} again", tested, SPLIT, against=name))
    return made


def token_level(model: Decoder, names: tuple[str, ...], count: int) -> dict[str, InProcessPairs]:
    """What ``evals.offline.parity.token_level`` gives, for several candidates that share the baseline's passes."""
    asked = embedded_questions(count, 0)
    known = len(tokenizer.vocabulary())
    scored = list(
        inprocess.score(
            model,
            make_arm("unfused"),
            passes(names),
            asked.gold(count),
            batch=BATCH,
            vocabulary=known,
            yardstick="yardstick",
        )
    )
    found = {}
    for name in names:
        called = {"candidate": name, "re-run": "re-run", "yardstick": "yardstick"}
        if name in REBATCHED:
            called["candidate again"] = f"{name} again"
        found[name] = logit_gates.collected(scored, called)
    return found


@pytest.fixture(scope="module")
def subtle(model: Decoder) -> dict[str, InProcessPairs]:
    return token_level(model, ("fused", *SUBTLE), QUESTIONS)


@pytest.fixture(scope="module")
def gross(model: Decoder) -> dict[str, InProcessPairs]:
    return token_level(model, tuple(name for name in DEFECTS if name not in SUBTLE), FEW)


def judged(tokens: InProcessPairs) -> list[Gate]:
    return [*(logit_gates.only_reported(gate) for gate in gates(tokens.token_level)), *logit_gates.gates(tokens, 0)]


def refusals(tokens: InProcessPairs) -> list[str]:
    return [gate.name for gate in judged(tokens) if gate.ok is False]


def test_the_legitimate_fused_path_passes_every_token_gate(subtle: dict[str, InProcessPairs]) -> None:
    found = judged(subtle["fused"])
    assert {"finite", "mean dlogp", "logits", "batch"} <= {gate.name for gate in found if gate.decides}
    assert [gate.sentence for gate in found if gate.decides and gate.ok is not True] == []


def test_the_noise_of_a_legitimate_kernel_is_that_of_the_baseline(subtle: dict[str, InProcessPairs]) -> None:
    noise = subtle["fused"].flat_noise
    ratio, bounds, _ = typical_kl_ratio(noise["candidate"], noise["baseline"])
    assert 0.8 < ratio < 1.1
    assert bounds.high < NOISE_LIMIT
    same = typical_kl_ratio(noise["baseline"], noise["baseline"])
    assert same[0] == 1.0


def test_the_legitimate_change_is_a_change(subtle: dict[str, InProcessPairs]) -> None:
    """Fused and unfused differ by about the model's own quantisation noise, not by nothing: the arms are two arms."""
    ratio, bounds, _ = typical_kl_ratio(subtle["fused"].flat["candidate"], subtle["fused"].flat["yardstick"])
    assert 0.5 < ratio < 1.5
    assert bounds.low > 0.5


@pytest.mark.parametrize("name", SUBTLE)
def test_a_subtle_defect_is_refused(subtle: dict[str, InProcessPairs], name: str) -> None:
    wanted = {"truncating_cast": {"logits"}, "per_tensor_scale": {"batch"}}[name]
    assert wanted <= set(refusals(subtle[name]))


@pytest.mark.parametrize("name", [name for name in DEFECTS if name not in SUBTLE])
def test_a_gross_defect_is_refused(gross: dict[str, InProcessPairs], name: str) -> None:
    assert "logits" in refusals(gross[name])


@pytest.fixture(scope="module")
def few() -> EmbeddedQuestions:
    return embedded_questions(12, 0)


def test_answers_are_right_as_often_as_the_model_card_says(model: Decoder, few: EmbeddedQuestions) -> None:
    samples = list(answers(model, make_arm("fused"), few, 12))
    assert sorted(s.order for s in samples) == list(range(12))
    assert all(s.error is None and s.finish == "stop" for s in samples)
    right = sum((s.text or "").rpartition("#### ")[2] == s.gold for s in samples)
    # 0.92 in the long run: below 8 of 12 has probability 0.002, and the run is the same every time.
    assert right >= 8


def test_the_same_arm_twice_gives_the_same_bits(model: Decoder, few: EmbeddedQuestions) -> None:
    prompts, solutions = few.prompts[:6], few.solutions[:6]
    unfused = make_arm("unfused")
    first = inprocess.solution_logprobs(model, unfused, prompts, solutions)
    again = inprocess.solution_logprobs(model, unfused, prompts, solutions)
    assert torch.equal(first, again)
    assert torch.isfinite(first).all()
    assert len(first) == sum(map(len, solutions))


def test_teacher_forcing_and_generation_agree(model: Decoder, few: EmbeddedQuestions) -> None:
    """Where the answer was written greedily, every token of it is the first choice when forced: two ways, one model."""
    unfused = make_arm("unfused")
    prompts = few.prompts[:6]
    written = sorted(inprocess.generate(model, unfused, prompts, limit=224, end=1, batch=6), key=lambda w: w.place)
    forced = inprocess.solution_logprobs(model, unfused, prompts, [[*w.tokens, 1] for w in written])
    tokens = torch.tensor([token for w in written for token in (*w.tokens, 1)])
    # Cached and whole passes add in another order, so a near-tie may turn over.
    assert (forced.argmax(-1) == tokens).float().mean() > 0.995


def test_the_length_limit_is_said(model: Decoder, few: EmbeddedQuestions) -> None:
    written = list(inprocess.generate(model, make_arm("bf16"), few.prompts[:3], limit=4, end=1, batch=2))
    assert [(w.finish, len(w.tokens)) for w in written] == [("length", 4)] * 3


def test_every_kernel_of_an_arm_was_called(model: Decoder, few: EmbeddedQuestions) -> None:
    for spec, wanted in (
        ("fused", {"add_rmsnorm_quant": 6 + 1, "per_token_quant": 6 + 1 + 5 * 2, "ptpc_gemm": 6 * 2 + 2 + 5 * 2}),
        ("unfused", {"per_token_quant": 6 * 2 + 2 + 5 * 2, "ptpc_gemm": 6 * 2 + 2 + 5 * 2}),
        ("bf16", {}),
    ):
        tested = make_arm(spec)
        inprocess.solution_logprobs(model, tested, few.prompts[:1], few.solutions[:1])
        assert tested.calls == wanted


def test_the_flat_divergence_is_the_limit_of_kl_at_high_temperature() -> None:
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(5, 40, generator=generator, dtype=torch.float64) * 5
    other = base + torch.randn(5, 40, generator=generator, dtype=torch.float64) * 0.1
    hot = 1e3
    kl = inprocess.divergence((base / hot).log_softmax(-1), (other / hot).log_softmax(-1)) * hot**2
    flat = inprocess.flat_divergence(base.log_softmax(-1), other.log_softmax(-1))
    assert ((kl - flat).abs() / flat).max() < 0.05
    assert inprocess.flat_divergence(base, base + 3).abs().max() < 1e-20


# ---- bad input


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("fast", "unknown arm 'fast'"),
        ("fused,norm", "unknown kernel 'norm'"),
        ("unfused,add_rmsnorm_quant=emulated/vllm", "has no add_rmsnorm_quant kernel to replace"),
        ("fused,norm=emulated/vllm", "unknown op 'norm'; known: "),
        ("bf16,emulated/fp32", "has no kernel to replace"),
        ("fused,add_rmsnorm_quant=nobody/knows", "unknown kernel 'nobody/knows'"),
        ("fused,add_rmsnorm_quant=nowhere.py:f", "there is no file nowhere.py"),
        ("fused,ptpc_gemm=torch_native/scaled_mm_hopper", "is not available on cpu"),
    ],
)
def test_a_bad_arm_is_one_sentence(spec: str, words: str) -> None:
    with pytest.raises(EvalError, match=words):
        make_arm(spec)


def _raises(*_: Any) -> Any:
    raise RuntimeError("out of\nregisters")


def _nothing(*_: Any) -> Any:
    return None


@pytest.mark.parametrize(
    ("call", "words"),
    [(_raises, "raised RuntimeError: out of registers"), (_nothing, "returned no NormQuantOutputs")],
)
def test_a_kernel_that_fails_is_one_sentence(
    model: Decoder, few: EmbeddedQuestions, call: Callable[..., Any], words: str
) -> None:
    import dataclasses

    good = make_arm("fused")
    assert good.norm is not None
    broken: Arm = dataclasses.replace(good, name="mine", norm=dataclasses.replace(good.norm, name="my/norm", call=call))
    with pytest.raises(EvalError, match=f"kernel my/norm of arm mine {words}"):
        inprocess.solution_logprobs(model, broken, few.prompts[:1], few.solutions[:1])


def test_an_unknown_model_is_one_sentence() -> None:
    with pytest.raises(EvalError, match="no model 'gpt-nano': neither shipped \\(tiny-glm\\) nor a folder"):
        load_embedded("gpt-nano", "cpu")


def test_questions_of_another_seed_are_others() -> None:
    a, b = embedded_questions(20, 0), embedded_questions(20, 1)
    assert a.sha256 != b.sha256
    assert not {p.question for p in a.problems} & {p.question for p in b.problems}
    assert embedded_questions(20, 0).problems == a.problems


def test_statistics_take_the_pairs(subtle: dict[str, InProcessPairs]) -> None:
    stats = statistics(subtle["fused"].full["candidate"])
    assert stats.questions == QUESTIONS
    assert stats.kl_kind == "full"
