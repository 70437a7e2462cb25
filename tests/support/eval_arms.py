"""Made-up arms: runs whose right, wrong and broken answers are known by construction."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from evals.gsm8k.samples import Header, Sample

SETTINGS = {"max_tokens": 512, "temperature": 0.0, "stop": ["Question"], "extractor": "strict"}
BASELINE = Header(
    "unfused",
    "tiny-glm",
    "openai",
    "plain/1",
    "gsm8k-test",
    "ab" * 32,
    1319,
    kernels={"add_rmsnorm_quant": "x/unfused"},
    settings=SETTINGS,
)
CANDIDATE = replace(BASELINE, arm="fused", kernels={"add_rmsnorm_quant": "x/fused"})


def answered(right: Sequence[bool], *, wrong: int = 99, finish: str = "stop", repeat: int = 0) -> list[Sample]:
    """One sample a question, its gold answer being its number."""
    return [
        Sample(f"q{i}", i, str(i), f"so it is\n#### {i if ok else wrong + 10**6}", finish=finish, repeat=repeat)
        for i, ok in enumerate(right)
    ]


def two_arms(count: int, baseline: int, lost: int, gained: int, seed: int = 0) -> tuple[list[Sample], list[Sample]]:
    """Arms with ``baseline`` right answers of ``count``, of which ``lost`` are lost and to which ``gained`` come."""
    a = [i < baseline for i in range(count)]
    b = [lost <= i < baseline + gained for i in range(count)]
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return answered([a[i] for i in order]), answered([b[i] for i in order])
