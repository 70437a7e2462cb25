"""Scores of tokens of two arms and of a re-run, drawn."""

from __future__ import annotations

import random

from evals.gsm8k.samples import TokenPair


def arms(
    seed: int, questions: int = 60, *, spread: float = 0.03, shift: float = 0.0, size: int = 80
) -> list[TokenPair]:
    """Log-probabilities that differ by ``spread`` a token, by another share of it in each question (the same in every
    arm: a question is as sensitive as it is), and by ``shift``.

    KL of a small change is about half its mean square.
    """
    generator = random.Random(seed)
    made = []
    for i in range(questions):
        own = spread * random.Random(i).uniform(0.5, 1.5)
        a = [-generator.expovariate(2.0) for _ in range(size)]
        moves = [generator.gauss(0, own) for _ in range(size)]
        b = [x + m + shift for x, m in zip(a, moves, strict=True)]
        kl = tuple(max(0.0, m * m / 2) for m in moves)
        made.append(TokenPair(f"q{i}", tuple(a), tuple(b), kl, tuple(abs(m) < 2.3 * own for m in moves)))
    return made
