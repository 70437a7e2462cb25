"""A search over several streams of drawn cases, each with a kernel of its own, until the time is up.

A stream is a thread of this process that waits for its worker process (``validators.isolate``). Each draws its own
cases; findings are shared, so that what one has explained no other one reduces again.
"""

from __future__ import annotations

import functools
import itertools
import math
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from validators.cases.case import Case
from validators.records.record import Record, Status
from validators.search.draw import Space, draw
from validators.search.reduce import FAILURES, Finding, Reduction

AGAIN = 8
"""Of the draws that a finding explains already one of so many is run: the others look for something else."""
GRACE_S = 5.0
"""A case that runs when the time is up may end by itself for so long; then its worker is killed."""
REDUCTION_S = 60.0
REDUCTION_SHARE = 0.25
"""A reduction ends after so many seconds, or after that share of the search where it is more: a kernel that hangs costs
the time limit of a case each time, and the search has others to find."""


class Judge(Protocol):
    """What a stream asks, as ``validators.isolate.Worker``; ``kill`` may come from another thread."""

    def validate(self, case: Case, *, explain: bool = True) -> Record: ...

    def close(self) -> None: ...

    def kill(self) -> None: ...


@dataclass(frozen=True)
class Judged:
    """A case that was drawn, and its record. explained: by a finding before it."""

    case: Case
    record: Record
    explained: bool = False


Event = Judged | Finding


@dataclass
class Hunt:
    """open() -> the judge of a stream. seconds: from the first case on. first: end at the first finding.

    unfinished: cases that still ran when the time was up, and were killed.
    """

    space: Space
    open: Callable[[], Judge]
    seconds: float
    seed: int = 0
    streams: int = 1
    first: bool = False
    findings: list[Finding] = field(default_factory=list)
    unfinished: list[Case] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._asked: dict[int, Case] = {}
        self._events: queue.Queue[Event | BaseException | None] = queue.Queue()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._end = math.inf

    def run(self) -> Generator[Event, None, None]:
        """Every case that was drawn and every finding, as they come; two streams may find the same at once.

        Close it to end early: the workers are killed. Raises what a stream raised, such as KernelError for a kernel
        that cannot be loaded.
        """
        judges = [self.open() for _ in range(self.streams)]
        threads = [
            threading.Thread(target=self._stream, args=(number, judge), daemon=True)
            for number, judge in enumerate(judges)
        ]
        for thread in threads:
            thread.start()
        try:
            yield from self._until_the_end(len(threads))
        finally:
            self._stop.set()
            while any(thread.is_alive() for thread in threads):
                for judge in judges:
                    judge.kill()
                threads[0].join(0.05)
                threads = [thread for thread in threads if thread.is_alive()] or threads[:1]

    def _until_the_end(self, running: int) -> Iterator[Event]:
        while running:
            left = self._end + GRACE_S - time.monotonic()
            if left <= 0:
                self.unfinished = list(self._asked.values())
                return
            try:
                event = self._events.get(timeout=min(left, 1.0))
            except queue.Empty:
                continue
            if event is None:
                running -= 1
            elif isinstance(event, BaseException):
                raise event
            else:
                yield event
                if self.first and isinstance(event, Finding):
                    return

    def _begin(self) -> None:
        """The time runs from the first case on: a kernel may take minutes to load."""
        with self._lock:
            self._end = min(self._end, time.monotonic() + self.seconds)

    def _more(self) -> bool:
        return not self._stop.is_set() and time.monotonic() < self._end

    def _stream(self, number: int, judge: Judge) -> None:
        """The thread: draw, ask, and reduce what fails."""
        try:
            for count in itertools.count():
                if not self._more():
                    return
                case = draw(self.space, self.seed, number, count)
                if count % AGAIN and self._explained(case):
                    continue
                record = self._ask(number, judge, case)
                if self._stop.is_set():
                    return  # the worker was killed, which says nothing about the kernel
                self._begin()
                failed = record.status in FAILURES
                explained = failed and self._explained(case, record.status)
                self._events.put(Judged(case, record, explained))
                if failed and not explained:
                    self._reduce(number, judge, record)
        except BaseException as error:
            # The thread that reads the events raises it.
            if not self._stop.is_set():
                self._events.put(error)
        finally:
            judge.close()
            self._events.put(None)

    def _explained(self, case: Case, status: Status | None = None) -> bool:
        with self._lock:
            return any(each.covers(case) and status in (None, each.record.status) for each in self.findings)

    def _ask(self, number: int, judge: Judge, case: Case, explain: bool = True) -> Record:
        self._asked[number] = case
        record = judge.validate(case, explain=explain)
        del self._asked[number]
        return record

    def _reduce(self, number: int, judge: Judge, record: Record) -> None:
        """The smaller cases are judged without explanations; the last one is asked again, with them."""
        end = time.monotonic() + max(REDUCTION_S, REDUCTION_SHARE * self.seconds)

        def more() -> bool:
            return self._more() and time.monotonic() < end

        ask = functools.partial(self._ask, number, judge)
        finding = Reduction(self.space, functools.partial(ask, explain=False), record, more).run()
        if finding.case != record.case and not self._stop.is_set():
            finding = finding.confirmed(ask(Case.parse(finding.case)))
        with self._lock:
            if self._stop.is_set():
                return
            self.findings.append(finding)
        self._events.put(finding)
