"""Training data without end: problems in batches, made by worker processes, the same each time.

Worker w makes every W-th chunk, and chunks are taken in turn.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from multiprocessing.queues import Queue

import numpy as np
from numpy.typing import NDArray

from evals.model import synthetic, tokenizer

CHUNK = 8192
"""Problems per chunk, sorted by length, so that batches have little padding."""
Batch = tuple[NDArray[np.uint8], NDArray[np.int16]]
"""Token ids [B, T], padded with 0 to a multiple of 16, and where the answers begin [B]."""


def training_problems(seed: int, first: int, count: int) -> Iterator[synthetic.Problem]:
    """The problems of indices first..first+count-1 that may be trained on."""
    for index in range(first, first + count):
        problem = synthetic.problem(seed, index)
        if not problem.held_out:
            yield problem


def make_chunk(seed: int, number: int, batch: int) -> list[Batch]:
    """The problems of one chunk that may be trained on, as batches of ``batch`` in a random order."""
    rows = []
    for problem in training_problems(seed, number * CHUNK, CHUNK):
        asked = tokenizer.encode(synthetic.prompt(problem.question))
        rows.append((len(asked), asked + tokenizer.encode(synthetic.completion(problem.solution)) + [tokenizer.END_ID]))
    rows.sort(key=lambda row: len(row[1]))
    batches = []
    for first in range(0, len(rows) - batch + 1, batch):
        chosen = rows[first : first + batch]
        width = -(-max(len(ids) for _, ids in chosen) // 16) * 16
        ids = np.zeros((batch, width), dtype=np.uint8)
        for place, (_, row) in enumerate(chosen):
            ids[place, : len(row)] = row
        batches.append((ids, np.array([asked for asked, _ in chosen], dtype=np.int16)))
    dice = synthetic.Dice(seed, number)
    for last in range(len(batches) - 1, 0, -1):
        other = dice.between(0, last)
        batches[last], batches[other] = batches[other], batches[last]
    return batches


def _work(queue: Queue[list[Batch]], seed: int, worker: int, workers: int, batch: int) -> None:
    number = worker
    while True:
        queue.put(make_chunk(seed, number, batch))
        number += workers


class Stream:
    """Batches without end from ``workers`` processes, always in the same order."""

    def __init__(self, seed: int, batch: int, workers: int):
        context = multiprocessing.get_context("spawn")
        self._queues: list[Queue[list[Batch]]] = [context.Queue(maxsize=2) for _ in range(workers)]
        self._processes = [
            context.Process(target=_work, args=(queue, seed, worker, workers, batch), daemon=True)
            for worker, queue in enumerate(self._queues)
        ]
        for process in self._processes:
            process.start()

    def __iter__(self) -> Iterator[Batch]:
        while True:
            for queue in self._queues:
                yield from queue.get(timeout=120)

    def close(self) -> None:
        for process in self._processes:
            process.terminate()
