"""Prompt profiles: how public harnesses ask GSM8K, as named, versioned, pure functions.

A profile fixes the bytes of a prompt, where its shots come from, where generation stops and how the answer is found.
The same model moves by 3 to 60 points for such reasons alone, so two arms are compared under one profile, and a profile
whose bytes change gets a new version. Read from the public sources named in ``note``; own code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from evals.errors import EvalError
from evals.gsm8k.data import Problem, draws
from evals.gsm8k.versioned import Versioned, find

LM_EVAL_SEED = 1234


@dataclass(frozen=True, kw_only=True)
class Profile(Versioned):
    """One way to ask.

    kind: ``completion`` (raw text) or ``chat`` (one user message). shots_from: ``none``; ``test-head``: the first
    lines of the test file, ``train-head``: of the train file, ``train-drawn``: a draw from train for each question.
    exclude_shots: lines that serve as shots are not asked. extractor: of ``evals.gsm8k.answers``.
    """

    kind: str
    shots: int
    shots_from: str
    exclude_shots: bool
    stop: tuple[str, ...]
    max_tokens: int
    extractor: str
    note: str
    instruction: str = ""

    def settings(self) -> dict[str, object]:
        """What an arm's header states of it; two arms must agree in every entry."""
        return {
            "kind": self.kind,
            "shots": self.shots,
            "shots_from": self.shots_from,
            "stop": list(self.stop),
            "max_tokens": self.max_tokens,
            "temperature": 0.0,
            "extractor": self.extractor,
        }


_SGLANG = Profile(
    name="sglang-5shot",
    kind="completion",
    shots=5,
    shots_from="test-head",
    exclude_shots=False,
    stop=("Question", "Assistant:", "<|separator|>"),
    max_tokens=512,
    extractor="sglang",
    note="SGLang's benchmark/gsm8k/bench_sglang.py and few_shot_gsm8k.py. The shots are the first 5 lines of "
    "the test file, which are asked as well: 5 questions are in their own prompt with the answer.",
)
_PLAIN = replace(
    _SGLANG,
    name="plain",
    shots=0,
    shots_from="none",
    stop=("Question",),
    extractor="strict",
    note="Zero shots, for models trained on this very form (the embedded tiny model) and for gold solutions.",
)
PROFILES = {
    p.name: p
    for p in (
        _SGLANG,
        replace(
            _SGLANG,
            name="sglang-5shot-clean",
            exclude_shots=True,
            extractor="last-number",
            note="SGLang's simple_eval_gsm8k.py with api=completion: same prompt, the 5 shot lines not asked "
            "(N = 1314).",
        ),
        replace(
            _SGLANG,
            name="lm-eval-gsm8k",
            shots_from="train-drawn",
            stop=("Question:", "</s>", "<|im_end|>"),
            max_tokens=256,
            extractor="flexible",
            note="lm-eval's task gsm8k: 5 shots drawn again from train for each question in file order with seed 1234, "
            "256 new tokens (the default of its API models); strict and flexible read the same text.",
        ),
        replace(
            _SGLANG,
            name="vllm-ci",
            shots_from="train-head",
            max_tokens=256,
            note="vLLM's tests/evals/gsm8k/gsm8k_eval.py: SGLang's prompt and extractor, shots from train, 256 new "
            "tokens.",
        ),
        replace(
            _PLAIN,
            name="boxed-chat",
            kind="chat",
            stop=(),
            max_tokens=2048,
            extractor="boxed",
            note="sgl-eval's gsm8k (NeMo-Skills): zero shots, one user message, the answer in a box.",
            instruction="Solve the following math problem. Make sure to put the answer (and only answer) inside "
            "\\boxed{}.",
        ),
        _PLAIN,
    )
}


def find_profile(name: str) -> Profile:
    """The profile ``name`` or ``name/version``; EvalError for one that is not known."""
    return find("prompt profile", PROFILES, name)


def asked(profile: Profile, problems: Sequence[Problem]) -> list[Problem]:
    """The test questions that the profile asks, in file order: all, or all but its shots."""
    skip = profile.shots if profile.shots_from == "test-head" and profile.exclude_shots else 0
    if skip >= len(problems) > 0:
        raise EvalError(f"profile {profile.id} takes {skip} questions as shots, and there are {len(problems)}")
    return list(problems[skip:])


def prompts(profile: Profile, problems: Sequence[Problem], train: Sequence[Problem] = ()) -> dict[str, str]:
    """question id -> prompt text of every question that is asked; for chat profiles the text of the user message.

    problems: the whole test set in file order (its head may serve as shots). train: needed where shots come from there.
    """
    return {
        problem.id: prompt(profile, problem, shots)
        for problem, shots in zip(asked(profile, problems), _shots(profile, problems, train), strict=True)
    }


def _shots(profile: Profile, problems: Sequence[Problem], train: Sequence[Problem]) -> list[Sequence[Problem]]:
    count, take = len(asked(profile, problems)), profile.shots
    if profile.shots_from == "none":
        return [()] * count
    source = problems if profile.shots_from == "test-head" else train
    if len(source) < take:
        raise EvalError(
            f"profile {profile.id} takes {take} shots from the {profile.shots_from.split('-')[0]} file, which has "
            f"{len(source)} questions here"
        )
    if profile.shots_from == "train-drawn":
        return [[source[i] for i in drawn] for drawn in draws(len(source), take, count, LM_EVAL_SEED)]
    return [source[:take]] * count


def prompt(profile: Profile, problem: Problem, shots: Sequence[Problem] = ()) -> str:
    """The bytes that are sent for one question."""
    if profile.instruction:
        return f"{profile.instruction}\n\n{problem.question}"
    solved = "".join(f"Question: {s.question}\nAnswer: {s.solution}\n\n" for s in shots)
    return f"{solved}Question: {problem.question}\nAnswer:"


def messages(text: str) -> list[dict[str, str]]:
    """A chat profile's prompt as the chat endpoint takes it."""
    return [{"role": "user", "content": text}]


def prompt_sha256(text: str) -> str:
    """Digest of a prompt's UTF-8 bytes, as a sample has it."""
    return hashlib.sha256(text.encode()).hexdigest()
