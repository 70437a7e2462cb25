"""Runs an in-process model: greedy generation, and teacher-forced scores of gold solutions with whole distributions.

Everything is a function of model, arm, questions and batch size: batches are made by length and in no other order, so
that the same arm twice gives the same bits. Another batch size is another order of sums in the environment; on models
with quantized activations that moves values across rounding boundaries, and is the honest noise floor (``split``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from evals.gsm8k.samples import TeacherForced, TokenPair, TokenScore
from evals.model.arms import Arm
from evals.model.decoder import Cache, Decoder

COMPACT = 0.8  # a batch is repacked when so small a share of its sequences is still being written


class GoldSolution(NamedTuple):
    """A question's id, and the token ids of its prompt and of its gold solution."""

    question: str
    prompt: Sequence[int]
    solution: Sequence[int]


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
class Pass:
    """One teacher-forced pass. name: of the comparison. split: 0 runs a batch as the baseline does, any other number in
    parts of so many rows. against: the name of an earlier pass to compare with; empty for the baseline."""

    name: str
    arm: Arm
    split: int = 0
    against: str = ""


FLAT = "flat: half the variance over the vocabulary of the log-probabilities' differences"


def divergence(base: Tensor, other: Tensor) -> Tensor:
    """KL(base || other) in nats at each place, [N], from log-probabilities [N, V]."""
    # A sum of fp32 terms over the vocabulary may come out a rounding below zero.
    return (base.exp() * (base - other)).sum(-1).clamp_min(0)


def flat_divergence(base: Tensor, other: Tensor) -> Tensor:
    """Half the variance over the vocabulary of ``base - other``, [N]: what T^2 KL tends to as the temperature T grows.

    A model that is sure of nearly every token hides from KL what happens to its logits, and the mean KL then depends
    on the few tokens that it is unsure of. Here every token has the same weight: this is the size of the numerical
    change.
    """
    return (base - other).var(-1, correction=0) / 2


def score(
    model: Decoder,
    baseline: Arm,
    passes: Sequence[Pass],
    questions: Sequence[GoldSolution],
    *,
    batch: int = 32,
    vocabulary: int = 0,
    yardstick: str = "",
    tick: Callable[[int], None] = lambda done: None,
) -> Iterator[TeacherForced]:
    """Teacher-forces (id, prompt ids, solution ids) through the baseline and every pass, batch by batch.

    vocabulary: ids from there on are padding of the embedding and are left out of the flat divergence; 0 for none.
    yardstick: the pass (against the baseline) by whose distributions the noise of the others is measured.
    """
    done = 0
    kept = {yardstick, *(entry.against for entry in passes)}
    # The yardstick's distributions are needed for every other pass.
    order = sorted(passes, key=lambda entry: entry.name != yardstick)
    for places in batches([len(a) + len(s) for _, a, s in questions], batch):
        some = [questions[place] for place in places]
        asked, solved = [a for _, a, _ in some], [s for _, _, s in some]
        sizes = [len(s) for s in solved]
        gold = torch.tensor([token for s in solved for token in s], device=model.device)
        logprobs = {"": solution_logprobs(model, baseline, asked, solved)}
        scores = {"": _scores(logprobs[""], gold, sizes, some)}
        width = vocabulary or logprobs[""].shape[-1]
        found: dict[str, dict[str, list[TokenPair]]] = {"pairs": {}, "flat": {}, "noise": {}, "flat_noise": {}}

        for entry in order:
            made = solution_logprobs(model, entry.arm, asked, solved, entry.split)
            scores[entry.name] = _scores(made, gold, sizes, some)
            if entry.name in kept:
                logprobs[entry.name] = made
            wanted = [("pairs", "flat", entry.against, entry.name, made)]
            if entry.name == yardstick:
                wanted.append(("noise", "flat_noise", yardstick, "", logprobs[""]))
            elif yardstick and not entry.against:
                wanted.append(("noise", "flat_noise", yardstick, entry.name, made))
            for full, flat, base, name, other in wanted:
                start, both = logprobs[base], (scores[base], scores[name])
                found[full][name] = _pairs(*both, divergence(start, other), sizes, "full")
                found[flat][name] = _pairs(*both, flat_divergence(start[:, :width], other[:, :width]), sizes, FLAT)
        for row, place in enumerate(places):
            yield TeacherForced(
                place,
                scores[""][row],
                {entry.name: scores[entry.name][row] for entry in passes},
                **{kind: {name: rows[row] for name, rows in of.items()} for kind, of in found.items()},
            )
        done += len(places)
        tick(done)


def _pairs(
    a: Sequence[TokenScore], b: Sequence[TokenScore], divergences: Tensor, sizes: Sequence[int], kind: str
) -> list[TokenPair]:
    made = []
    for x, y, each in zip(a, b, torch.split(divergences, list(sizes)), strict=True):
        same = tuple(p == q for p, q in zip(x.top1, y.top1, strict=True))
        made.append(TokenPair(x.question, x.logprob, y.logprob, tuple(each.tolist()), same, kind))
    return made


def _scores(
    logprobs: Tensor, gold: Tensor, sizes: Sequence[int], questions: Sequence[GoldSolution]
) -> list[TokenScore]:
    chosen = torch.split(logprobs.gather(1, gold[:, None])[:, 0], list(sizes))
    first = torch.split(logprobs.argmax(-1), list(sizes))
    return [
        TokenScore(name, tuple(solved), tuple(chosen[row].tolist()), tuple(first[row].tolist()))
        for row, (name, _, solved) in enumerate(questions)
    ]
