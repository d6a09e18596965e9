"""Mixing sources by weight, in closed form.

    weights  →  whole numbers of slots that sum to `period`            quanta
             →  a table of slots, as even as any table can be          spread
    sample g of a stage belongs to owner[g % period]

Evenness: among the first n slots, a source has n · its share of them, ± less than one; in any window, ± less than two. This
is the pfair property of Baruah et al. 1996, "Proportionate Progress", https://doi.org/10.1007/BF01940883.

A lane is every lanes-th sample. The period is a prime, so that each lane visits every slot before it repeats one; the prime
is chosen so that lanes visit the slots of a source at about the same rate, whatever its share.
"""

import heapq
from collections.abc import Sequence

import numpy as np

from pretrain.data.permute import I64
from pretrain.errors import DataError

PERIODS = (4_096, 65_536)  # the period is a prime in the upper half below one of these
ENOUGH_SLOTS = 25  # rounding changes a weight by 2 % at most


class SlotTable:
    """`period` slots that repeat forever, in sample order and in the order of a lane.

    Samples and lanes are counted from the start of the stage: sample g is number g // lanes of lane g % lanes.
    """

    def __init__(self, weights: Sequence[float], lanes: int) -> None:
        self.lanes, self.period = lanes, choose_period(weights, lanes)
        self.quanta = np.array(quanta(weights, self.period), dtype=np.int64)
        self.owner = spread(self.quanta.tolist())
        self._earlier = _earlier(self.owner)
        # Slot k of a lane's walk is slot k · lanes of the table; lane l starts its walk where that is l.
        self._walk = self.owner[np.arange(self.period) * lanes % self.period]
        self._walk_earlier = _earlier(self._walk)
        self._phase: I64 = np.arange(lanes, dtype=np.int64) * pow(lanes, -1, self.period) % self.period
        places = [np.flatnonzero(self._walk == source) for source in range(len(self.quanta))]
        self._places = places
        self._before_phase = np.stack([np.searchsorted(place, self._phase) for place in places])  # (sources, lanes)

    def source(self, g: I64) -> I64:
        """Source of each sample g."""
        return self.owner[g % self.period]

    def count(self, g: I64) -> I64:
        """Number of samples before g with the same source as g."""
        whole, slot = np.divmod(g, self.period)
        return whole * self.quanta[self.owner[slot]] + self._earlier[slot]

    def lane_count(self, g: I64) -> I64:
        """Number of samples before g with the same source and lane as g."""
        turn, lane = np.divmod(g, self.lanes)
        whole, slot = np.divmod(turn + self._phase[lane], self.period)
        source = self._walk[slot]
        return whole * self.quanta[source] + self._walk_earlier[slot] - self._before_phase[source, lane]

    def counts(self, g: int) -> I64:
        """Samples before g, by source."""
        whole, slot = divmod(g, self.period)
        return whole * self.quanta + np.bincount(self.owner[:slot], minlength=len(self.quanta))

    def lane_counts(self, g: int) -> I64:
        """Samples before g, by source and lane: (sources, lanes)."""
        turns = (g - np.arange(self.lanes) + self.lanes - 1) // self.lanes
        whole, slot = np.divmod(turns + self._phase, self.period)
        within = np.stack([np.searchsorted(place, slot) for place in self._places])
        return whole * self.quanta[:, None] + within - self._before_phase


def choose_period(weights: Sequence[float], lanes: int) -> int:
    """The smallest period that represents the weights. Raises DataError for a weight below one slot of the larger."""
    smallest = min(weight for weight in weights if weight > 0) / sum(weights)
    small, large = (best_period(lanes, limit) for limit in PERIODS)
    if smallest * large < 1:
        raise DataError(
            f"the smallest weight is {smallest:.2g} of all weights, less than one sample in {large}",
            hint="remove the source, or raise its weight",
        )
    return small if smallest * small >= ENOUGH_SLOTS else large


def best_period(lanes: int, limit: int) -> int:
    """A prime between limit / 2 and limit, for which a lane's next pass through the table is shifted by about 0.38 lanes.

    The golden section spreads a lane's slots evenly for every share. The shift is coprime to small numbers, because shares
    of 1/2, 1/3 … are common.
    """
    primes = [prime for prime in _primes(limit) if prime > max(limit // 2, lanes)]
    shifts = {prime: -prime % lanes for prime in primes}
    coprime = [prime for prime in primes if np.gcd(shifts[prime], 2 * 3 * 5 * 7) == 1]
    return min(coprime or primes, key=lambda prime: (abs(shifts[prime] / lanes - 0.381966), prime))


def quanta(weights: Sequence[float], period: int) -> list[int]:
    """Integers in proportion to the weights, with sum `period`; at least 1 for a positive weight."""
    exact = np.asarray(weights, dtype=np.float64) / np.sum(weights) * period
    floor = np.maximum(np.floor(exact).astype(np.int64), exact > 0)
    missing = period - int(floor.sum())
    for _ in range(-missing):  # slots given to tiny sources are taken from the largest, one by one
        floor[int(np.argmax(floor))] -= 1
    floor[np.argsort(-(exact - floor), kind="stable")[: max(0, missing)]] += 1
    return [int(value) for value in floor]


def spread(quanta: Sequence[int]) -> I64:
    """Owners of sum(quanta) slots. A source's i-th slot lies in [⌊i / share⌋, ⌈(i + 1) / share⌉), first due first served."""
    period = sum(quanta)
    owner = np.empty(period, dtype=np.int64)
    given = [0] * len(quanta)
    waiting = [(0, source) for source, count in enumerate(quanta) if count]  # by the first slot that it may have
    ready: list[tuple[int, int]] = []  # by the slot before which it must have one
    for slot in range(period):
        while waiting and waiting[0][0] <= slot:
            _, source = heapq.heappop(waiting)
            heapq.heappush(ready, (-(-(given[source] + 1) * period // quanta[source]), source))
        _, source = heapq.heappop(ready)
        owner[slot] = source
        given[source] += 1
        if given[source] < quanta[source]:
            heapq.heappush(waiting, (given[source] * period // quanta[source], source))
    return owner


def _earlier(owner: I64) -> I64:
    """For each slot, the number of earlier slots with the same owner."""
    by_owner = np.argsort(owner, kind="stable")
    first = np.searchsorted(owner[by_owner], owner[by_owner])
    earlier = np.empty(len(owner), dtype=np.int64)
    earlier[by_owner] = np.arange(len(owner)) - first
    return earlier


def _primes(limit: int) -> list[int]:
    sieve = np.ones(limit, dtype=bool)
    sieve[:2] = False
    for number in range(2, int(limit**0.5) + 1):
        if sieve[number]:
            sieve[number * number :: number] = False
    return [int(prime) for prime in np.flatnonzero(sieve)]
