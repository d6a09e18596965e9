"""Tokens per CPU second in interleaved rounds, and the time to come back in the middle of an epoch."""

import gc
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch

from benchmarks.loader.simple import Batches

ROUND_S = 0.5  # CPU seconds of a contender in a round
WARM_BATCHES = 32


@dataclass
class Contender:
    """A loader. `open(batch, state)` begins at this batch of an epoch; `state(batch)` is what a checkpoint would hold."""

    name: str
    open: Callable[[int, Any], Batches]
    state: Callable[[int], Any] | None = None
    epoch: int | None = None  # batches; None where the loader never ends
    whole: int | None = None  # measure this many batches of a newly opened loader, and not a part of a running one
    speeds: list[float] = field(default_factory=list)  # million tokens a CPU second
    resume_s: float | None = None
    batches: int = 0  # of a round
    _running: Iterator[Any] | None = None
    _left: int = 0

    def check(self, shape: tuple[int, int]) -> None:
        """Raise AssertionError unless it delivers what all must: int64 inputs, and targets one token further on."""
        batches = self.open(0, None)
        inputs, targets = next(batches)
        close(batches)
        assert inputs.shape == targets.shape == shape, (inputs.shape, targets.shape)
        assert inputs.dtype == targets.dtype == torch.int64, (inputs.dtype, targets.dtype)
        assert torch.equal(inputs[:, 1:], targets[:, :-1])

    def measure_round(self, tokens_per_batch: int) -> None:
        """One more speed."""
        if self.whole:
            self.speeds.append(self._newly_opened() * tokens_per_batch / 1e6)
            return
        if not self.batches:
            self._timed(WARM_BATCHES)  # the first ones fill buffers
            seconds = self._timed(WARM_BATCHES)
            self.batches = max(WARM_BATCHES, round(WARM_BATCHES * ROUND_S / seconds))
            if self.epoch:
                self.batches = min(self.batches, self.epoch // 2)
        self.speeds.append(self.batches * tokens_per_batch / self._timed(self.batches) / 1e6)

    def measure_resume(self, batch: int) -> None:
        """Seconds from nothing to the first batch."""
        state = self.state(batch) if self.state else None
        seconds: list[float] = []
        while len(seconds) < 5 and sum(seconds) < 5:
            gc.collect()
            started = time.perf_counter()
            batches = self.open(batch, state)
            next(batches)
            seconds.append(time.perf_counter() - started)
            close(batches)
        self.resume_s = statistics.median(seconds)

    def _timed(self, count: int) -> float:
        if self._running is None or self._left < count:
            close(self._running)
            self._running = self.open(0, None)
            use_up(self._running, WARM_BATCHES)
            self._left = (self.epoch or 1 << 60) - WARM_BATCHES
        self._left -= count
        started = time.process_time()
        assert use_up(self._running, count) == count
        return time.process_time() - started

    def _newly_opened(self) -> float:
        """Batches a CPU second of a whole pass, worker processes included; they count once they have ended."""
        assert self.whole
        batches = self.open(0, None)
        started = time.process_time() + children_s()
        count = use_up(batches, self.whole)
        close(batches)
        return count / (time.process_time() + children_s() - started)


def children_s() -> float:
    """CPU seconds of child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def use_up(batches: Iterator[Any], count: int) -> int:
    """Use up `count` batches; how many there were."""
    return sum(1 for _ in islice(batches, count))


def close(batches: Any) -> None:
    """End a loader, its worker processes included."""
    with suppress(AttributeError):
        batches.close()


def measure(contenders: list[Contender], *, rounds: int, tokens_per_batch: int) -> None:
    """Rounds in which each has its turn: what slows the machine slows all alike. The first warms up and is not counted."""
    for number in range(rounds + 1):
        for contender in contenders:
            contender.measure_round(tokens_per_batch)
            if number == 0:
                contender.speeds.clear()
