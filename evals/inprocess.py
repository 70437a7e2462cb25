"""Runs an in-process model: greedy generation, and teacher-forced scores of gold solutions with whole distributions.

Everything is a function of model, arm, questions and batch size: batches are made by length and in no other order, so
that the same arm twice gives the same bits. Another batch size is another order of sums in the environment; on models
with quantized activations that moves values across rounding boundaries, and is the honest noise floor (``split``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evals.arms import Arm
from evals.decoder import Cache, Decoder
from evals.samples import TokenPair, TokenScore

COMPACT = 0.8  # a batch is repacked when so small a share of its sequences is still being written


@dataclass(frozen=True)
class Written:
    """One completion: place among the prompts, token ids without the end token, ``stop`` or ``length``."""

    place: int
    tokens: tuple[int, ...]
    finish: str


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(row) for row in rows], device=device)
    made = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    return made.to(device), lengths


def batches(lengths: Sequence[int], batch: int) -> list[list[int]]:
    """Places in batches of at most ``batch``, longest first, so that memory runs out at once or never."""
    order = sorted(range(len(lengths)), key=lambda place: (-lengths[place], place))
    return [order[first : first + batch] for first in range(0, len(order), batch)]


def generate(
    model: Decoder,
    arm: Arm,
    prompts: Sequence[Sequence[int]],
    *,
    limit: int,
    end: int,
    batch: int = 256,
    expected: Sequence[int] | None = None,
) -> Iterator[Written]:
    """Greedy completions of at most ``limit`` tokens, each yielded when its batch is done.

    expected: lengths by which batches are put together (default: of the prompts), so that few wait for the longest.
    """
    for places in batches(expected or [len(prompt) for prompt in prompts], batch):
        yield from _generate(model, arm, places, [prompts[place] for place in places], limit, end)


@torch.no_grad()
def _generate(
    model: Decoder, arm: Arm, places: list[int], prompts: Sequence[Sequence[int]], limit: int, end: int
) -> list[Written]:
    ids, lengths = _padded(prompts, model.device)
    cache: Cache = model.cache(len(prompts), ids.shape[1] + limit)
    hidden = model.forward(ids, lengths, cache, arm)
    token = model.logits(hidden[lengths.cumsum(0) - 1]).argmax(-1)
    alive = torch.arange(len(prompts), device=model.device)  # row of the batch -> prompt
    going = torch.ones(len(prompts), dtype=torch.bool, device=model.device)
    steps: list[tuple[Tensor, Tensor]] = []
    for _ in range(limit):
        steps.append((alive, token))
        going = going & (token != end)
        left = int(going.sum())
        if not left:
            break
        if left <= COMPACT * len(alive):
            rows = going.nonzero()[:, 0]
            cache.keep(rows)
            alive, token, going = alive[rows], token[rows], going[rows]
        one = torch.ones_like(alive)
        token = model.logits(model.forward(token[:, None], one, cache, arm)).argmax(-1)
    written: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    for rows, tokens in steps:
        for row, value in zip(rows.tolist(), tokens.tolist(), strict=True):
            ended[row] = ended[row] or value == end
            if not ended[row]:
                written[row].append(value)
    return [
        Written(place, tuple(tokens), "stop" if stopped else "length")
        for place, tokens, stopped in zip(places, written, ended, strict=True)
    ]


@torch.no_grad()
def solution_logprobs(
    model: Decoder, arm: Arm, prompts: Sequence[Sequence[int]], solutions: Sequence[Sequence[int]], split: int = 0
) -> Tensor:
    """fp32 log-probabilities [N, V] at every solution token, packed in order; in parts of ``split`` rows if given."""
    parts = []
    step = split or len(prompts)
    for first in range(0, len(prompts), step):
        asked, solved = prompts[first : first + step], solutions[first : first + step]
        rows = [[*a, *s] for a, s in zip(asked, solved, strict=True)]
        ids, lengths = _padded(rows, model.device)
        hidden = model.forward(ids, lengths, model.cache(len(rows), ids.shape[1]), arm)
        starts = (lengths.cumsum(0) - lengths).tolist()
        # The token at place p is predicted by the hidden state at p - 1.
        wanted = [
            torch.arange(start + len(a) - 1, start + len(a) + len(s) - 1)
            for start, a, s in zip(starts, asked, solved, strict=True)
        ]
        parts.append(torch.log_softmax(model.logits(hidden[torch.cat(wanted).to(model.device)]).float(), dim=-1))
    return torch.cat(parts)


@dataclass(frozen=True)
class Scored:
    """One question, teacher-forced: the baseline's score, and the pair with every other arm by its name."""

    place: int
    baseline: TokenScore
    others: Mapping[str, TokenScore]
    pairs: Mapping[str, TokenPair]


def score(
    model: Decoder,
    baseline: Arm,
    others: Sequence[tuple[Arm, int]],
    questions: Sequence[tuple[str, Sequence[int], Sequence[int]]],
    *,
    batch: int = 32,
    tick: Callable[[int], None] = lambda done: None,
) -> Iterator[Scored]:
    """Teacher-forces (id, prompt ids, solution ids) through every arm, batch by batch, and compares to the baseline.

    others: (arm, split): split 0 runs the batch as the baseline does, any other number in parts of so many rows.
    KL is KL(baseline || arm) over the whole vocabulary, in fp32.
    """
    done = 0
    for places in batches([len(a) + len(s) for _, a, s in questions], batch):
        some = [questions[place] for place in places]
        asked, solved = [a for _, a, _ in some], [s for _, _, s in some]
        sizes = [len(s) for s in solved]
        base = solution_logprobs(model, baseline, asked, solved)
        gold = torch.tensor([token for s in solved for token in s], device=model.device)
        base_scores = _scores(base, gold, sizes, some)
        pairs: list[dict[str, TokenPair]] = [{} for _ in places]
        scores: list[dict[str, TokenScore]] = [{} for _ in places]
        for arm, split in others:
            other = solution_logprobs(model, arm, asked, solved, split)
            # A whole-vocabulary sum of fp32 terms may come out a rounding below zero.
            kl = (base.exp() * (base - other)).sum(-1).clamp_min(0).split(sizes)
            same = (base.argmax(-1) == other.argmax(-1)).split(sizes)
            made = _scores(other, gold, sizes, some)
            for row, (name, _, _) in enumerate(some):
                scores[row][arm.name] = made[row]
                pairs[row][arm.name] = TokenPair(
                    name, base_scores[row].logprob, made[row].logprob, tuple(kl[row].tolist()),
                    tuple(same[row].tolist()), "full",
                )  # fmt: skip
        for row, place in enumerate(places):
            yield Scored(place, base_scores[row], scores[row], pairs[row])
        done += len(places)
        tick(done)


def _scores(
    logprobs: Tensor, gold: Tensor, sizes: Sequence[int], some: Sequence[tuple[str, Sequence[int], Sequence[int]]]
) -> list[TokenScore]:
    chosen = logprobs.gather(1, gold[:, None])[:, 0].split(list(sizes))
    first = logprobs.argmax(-1).split(list(sizes))
    return [
        TokenScore(name, tuple(solved), tuple(chosen[row].tolist()), tuple(first[row].tolist()))
        for row, (name, _, solved) in enumerate(some)
    ]
