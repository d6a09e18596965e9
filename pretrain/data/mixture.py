"""How the slots of time are shared among sources, in closed form.

Weights become integers that sum to `period` (largest remainder). A table of `period` slots spreads each source as evenly
as it can; each lane walks the table from a phase of its own, so that the sources are mixed within a batch too.
"""

import math
from collections.abc import Sequence

import numpy as np

from pretrain.data.permute import I64


class SlotTable:
    """`period` slots, each owned by a source; slot t of a lane is `owner[(t + phase[lane]) % period]`."""

    def __init__(self, weights: Sequence[float], period: int, lanes: int) -> None:
        self.period = period
        self.quanta = quanta(weights, period)
        # Source s with q slots wants them at (i + 1/2) / q for i in 0 … q - 1: sort everyone's wishes.
        wishes = np.concatenate([(np.arange(q) + 0.5) / q for q in self.quanta])
        owners = np.repeat(np.arange(len(self.quanta)), self.quanta)
        self.owner: I64 = owners[np.lexsort((owners, wishes))]
        self.positions = [np.flatnonzero(self.owner == source) for source in range(len(self.quanta))]
        # Phases a golden section apart: any run of lanes is spread evenly over the table, and for no weights in step with
        # it. (Phases 16 slots apart gave all lanes the same one of two equal sources.) Odd, so that it visits every slot
        # of a table whose size is a power of two.
        stride = round(period * (math.sqrt(5) - 1) / 2) | 1
        self.phase: I64 = np.arange(lanes, dtype=np.int64) * stride % period

    def source(self, t: I64, lane: I64) -> I64:
        """Who owns slot t of each lane."""
        return self.owner[(t + self.phase[lane]) % self.period]

    def lane_count(self, source: int, t: I64, lane: I64) -> I64:
        """Slots of `source` in the lane before t."""
        start = self.phase[lane]
        return self._count(source, t + start) - self._count(source, start)

    def global_count(self, source: int, t: I64, lane: I64) -> I64:
        """Slots of `source` before (t, lane) in the order of g: all lanes before t, and lower lanes at t."""
        times, where = np.unique(t, return_inverse=True)
        lanes = np.arange(len(self.phase))
        before = self.lane_count(source, times[:, None], lanes[None, :]).sum(axis=1)
        now = self.source(times[:, None], lanes[None, :]) == source
        lower = np.concatenate([np.zeros((len(times), 1), np.int64), now.cumsum(axis=1)], axis=1)
        return before[where] + lower[where, lane]

    def _count(self, source: int, slots: I64) -> I64:
        """Slots of `source` among the first `slots` of an endless repetition of the table."""
        whole, rest = np.divmod(slots, self.period)
        return whole * self.quanta[source] + np.searchsorted(self.positions[source], rest)


def quanta(weights: Sequence[float], period: int) -> list[int]:
    """Integers in proportion to the weights that sum to `period`; a source with a weight never gets none."""
    exact = np.asarray(weights, dtype=np.float64) / np.sum(weights) * period
    floor = np.maximum(np.floor(exact).astype(np.int64), 1)
    missing = period - int(floor.sum())
    for _ in range(-missing):  # what tiny sources got is taken from the largest, one by one
        floor[int(np.argmax(floor))] -= 1
    floor[np.argsort(-(exact - floor), kind="stable")[: max(0, missing)]] += 1
    return [int(value) for value in floor]
