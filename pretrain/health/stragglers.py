"""Straggler detection: compares the time of each process in data loading and forward, where it waits for no other.

Backward is excluded: it reduces gradients, so a process that waits there looks as slow as the one it waits for. At ZeRO
stage 3 forward gathers weights and waits as well: there, only slow data loading is detected.
"""

import math
import socket
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from pretrain.distributed.collectives import gather_to_all

NOTABLE = 1.1  # times the median
DEVIATIONS = 3.0  # standard errors beyond which a difference is significant
FEWEST_STEPS = 3


class RankTiming(NamedTuple):
    """Mean seconds per step of one process since the last report, and the standard error of their sum."""

    host: str
    data_s: float
    forward_s: float
    error_s: float

    @property
    def total_s(self) -> float:
        """Data and forward."""
        return self.data_s + self.forward_s


class SlowestRank(NamedTuple):
    """The slowest rank, compared with the median."""

    rank: int
    own: RankTiming
    median: RankTiming
    notable: bool

    def to_json(self) -> dict[str, Any]:
        """For metrics.jsonl."""
        return {"rank": self.rank, "own_seconds": self.own.total_s, "median_seconds": self.median.total_s}

    def __str__(self) -> str:
        excess = self.own.total_s / self.median.total_s - 1
        return (
            f"rank {self.rank} on {self.own.host} is the slowest: {self.own.total_s:.3f} s per step in data and "
            f"forward, {100 * excess:.0f} % above the median (data {self.own.data_s:.3f} against {self.median.data_s:.3f}, "
            f"forward {self.own.forward_s:.3f} against {self.median.forward_s:.3f})"
        )


class Stragglers:
    """Times this process, and compares all processes every `every_steps` steps."""

    def __init__(self, device: torch.device, every_steps: int) -> None:
        self.device, self.every_steps = device, every_steps
        self._data_s = 0.0
        self._forwards: list[tuple[Any, Any]] = []
        self._steps: list[tuple[float, float]] = []  # (data, forward) seconds of each step
        self._warm = False

    @contextmanager
    def data(self) -> Iterator[None]:
        """Time the wait for a step's micro-batches."""
        self._forwards.clear()  # left by a step that was rolled back
        started = time.perf_counter()
        yield
        self._data_s = time.perf_counter() - started

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Time the forward of a micro-batch."""
        start = self._mark()
        yield
        self._forwards.append((start, self._mark()))

    def step(self, step: int) -> SlowestRank | None:
        """Call after each step, once the device has finished. A collective with a result at multiples of `every_steps`."""
        if self._warm:  # the first step compiles, allocates and opens files
            self._steps.append((self._data_s, sum(self._seconds(*pair) for pair in self._forwards)))
        self._warm = True
        if not self.every_steps or step % self.every_steps:
            return None
        steps, self._steps = self._steps, []
        return None if len(steps) < FEWEST_STEPS else find_slowest(gather_to_all(summarize(steps)))

    def _mark(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _seconds(self, start: Any, end: Any) -> float:
        return float(start.elapsed_time(end) / 1000 if self.device.type == "cuda" else end - start)


def summarize(steps: Sequence[tuple[float, float]]) -> RankTiming:
    """Means of at least two (data, forward) pairs, in seconds. Not medians: rare stalls delay all ranks too."""
    data, forward = zip(*steps, strict=True)
    error = statistics.stdev(map(sum, steps)) / math.sqrt(len(steps))
    return RankTiming(socket.gethostname(), statistics.fmean(data), statistics.fmean(forward), error)


def find_slowest(times: Sequence[RankTiming]) -> SlowestRank | None:
    """The slowest rank; None for a single rank.

    Compared with the lower median (of two processes, the faster one). Notable: more than 10 % above it, and more than three
    standard errors of the difference.
    """
    if len(times) < 2:
        return None
    median = sorted(times, key=lambda own: own.total_s)[(len(times) - 1) // 2]
    rank = max(range(len(times)), key=lambda rank: times[rank].total_s)
    own = times[rank]
    difference = own.total_s - median.total_s
    noise = DEVIATIONS * math.hypot(own.error_s, median.error_s)
    return SlowestRank(rank, own, median, difference > max((NOTABLE - 1) * median.total_s, noise))
