"""Where a walk's time goes: seconds by phase, each second counted once.

On a GPU a phase ends with a synchronisation, so that work is charged to the phase that launched it; that costs a few
percent and is done only where timings are asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from reference.glm4_moe import Layer, Linear, Moe, Source

OTHER = "everything else"


class Clock:
    """Seconds by phase of nested phases; a phase inside another is not counted in the outer one.

    device: a GPU that is synchronised at every change of phase, or "cpu". on: a clock that is off measures nothing.
    """

    def __init__(self, device: str = "cpu", on: bool = False) -> None:
        self.seconds: dict[str, float] = {}
        self.on, self._gpu = on, device if device.startswith("cuda") else ""
        self._open = [OTHER]
        self._since = time.perf_counter()

    def _charge(self) -> None:
        if self._gpu:
            torch.cuda.synchronize(self._gpu)
        now = time.perf_counter()
        self.seconds[self._open[-1]] = self.seconds.get(self._open[-1], 0.0) + now - self._since
        self._since = now

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Charge what runs inside to ``name``."""
        if not self.on:
            yield
            return
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def lines(self, layers: int) -> list[str]:
        """The phases, the longest first."""
        if not self.on:
            return []
        self._charge()
        total = sum(self.seconds.values())
        ordered = sorted(self.seconds.items(), key=lambda item: -item[1])
        return [f"time {name}: {s:.2f} s, {s / max(1, layers):.3f} s per layer, {s / total:.0%}" for name, s in ordered]


class TimedSource:
    """A source whose weights are made or read on the clock."""

    def __init__(self, source: Source, clock: Clock) -> None:
        self.source, self.clock, self.config = source, clock, source.config

    def layer(self, index: int) -> Layer:
        """The layer; its experts are timed when they are asked for."""
        with self.clock.phase("weights of the layer"):
            layer = self.source.layer(index)
        if not isinstance(layer.mlp, Moe):
            return layer
        moe = dataclasses.replace(layer.mlp, gate_up=self._timed(layer.mlp.gate_up), down=self._timed(layer.mlp.down))
        return dataclasses.replace(layer, mlp=moe)

    def _timed(self, make: Callable[[int], Linear]) -> Callable[[int], Linear]:
        @functools.wraps(make)
        def timed(number: int) -> Linear:
            with self.clock.phase("weights of experts"):
                return make(number)

        return timed

    def embed(self, tokens: Tensor) -> Tensor:
        """As the source."""
        return self.source.embed(tokens)

    def final_norm(self) -> Tensor:
        """As the source."""
        return self.source.final_norm()

    def head(self) -> Iterator[Tensor]:
        """As the source."""
        return self.source.head()
