"""Which process is slowest, by its own time: waiting for data and running forwards, where it waits for no other process.

Backwards are left out: gradients are reduced in them, so whoever waits there looks as slow as the one that it waits for.
At ZeRO stage 3 forwards gather weights and wait as well: there, only a process that is slow to get its data stands out.
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
DEVIATIONS = 3.0  # standard errors of a mean beyond which a difference is no noise
FEWEST_STEPS = 3


class OwnTime(NamedTuple):
    """A process's seconds a step: means over the steps since the last report, and the standard error of their sum."""

    host: str
    data_s: float
    forward_s: float
    error_s: float

    @property
    def total_s(self) -> float:
        """Data and forward."""
        return self.data_s + self.forward_s


class Slowest(NamedTuple):
    """The slowest process, and the median of all."""

    rank: int
    own: OwnTime
    median: OwnTime
    notable: bool

    def to_json(self) -> dict[str, Any]:
        """For metrics.jsonl."""
        return {"rank": self.rank, "own_seconds": self.own.total_s, "median_seconds": self.median.total_s}

    def __str__(self) -> str:
        excess = self.own.total_s / self.median.total_s - 1
        return (
            f"rank {self.rank} on {self.own.host} is the slowest: {self.own.total_s:.3f} s a step for its own data and "
            f"forward, {100 * excess:.0f} % above the median (data {self.own.data_s:.3f} against {self.median.data_s:.3f}, "
            f"forward {self.own.forward_s:.3f} against {self.median.forward_s:.3f})"
        )


class Stragglers:
    """Measures this process, and compares all of them every so many steps."""

    def __init__(self, device: torch.device, every_steps: int) -> None:
        self.device, self.every_steps = device, every_steps
        self._data_s = 0.0
        self._forwards: list[tuple[Any, Any]] = []
        self._steps: list[tuple[float, float]] = []  # seconds for data, seconds for forwards
        self._warm = False

    @contextmanager
    def data(self) -> Iterator[None]:
        """Around the wait for a step's micro-batches."""
        self._forwards.clear()  # of a step that was taken back
        started = time.perf_counter()
        yield
        self._data_s = time.perf_counter() - started

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Around the forward of each micro-batch."""
        start = self._mark()
        yield
        self._forwards.append((start, self._mark()))

    def step(self, step: int) -> Slowest | None:
        """After each step, when the device has done it. At the steps of a report, a collective with its result."""
        if self._warm:  # the first step compiles, allocates, and opens files
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


def summarize(steps: Sequence[tuple[float, float]]) -> OwnTime:
    """Means of at least two (data, forward) pairs, in seconds. Not medians: a stall every fifty steps delays everybody too."""
    data, forward = zip(*steps, strict=True)
    error = statistics.stdev(map(sum, steps)) / math.sqrt(len(steps))
    return OwnTime(socket.gethostname(), statistics.fmean(data), statistics.fmean(forward), error)


def find_slowest(times: Sequence[OwnTime]) -> Slowest | None:
    """The slowest of at least two ranks; None for one rank.

    Compared with the lower median: of two processes, with the faster one. Notable is what is more than a tenth above it, and
    more than three standard errors of their difference.
    """
    if len(times) < 2:
        return None
    median = sorted(times, key=lambda own: own.total_s)[(len(times) - 1) // 2]
    rank = max(range(len(times)), key=lambda rank: times[rank].total_s)
    own = times[rank]
    difference = own.total_s - median.total_s
    noise = DEVIATIONS * math.hypot(own.error_s, median.error_s)
    return Slowest(rank, own, median, difference > max((NOTABLE - 1) * median.total_s, noise))
