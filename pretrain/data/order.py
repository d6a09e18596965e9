"""The data order of all ranks: a pure function of the global sample id g.

    1. stage, then source = owner of g's slot              weights apply from a sample on; mixture.py
    2. lane = g % lanes                                    parallel read streams, fixed for the run
       c = samples of that source in the lane before g     closed form, over all stages
    3. v = (c // span · lanes + lane) · span + c % span    the sample's place in the endless stream of the source
    4. epoch = v // N, place = v % N                       N sequences in the source
       sequence = place, its whole spans permuted          keyed by seed, source and epoch; permute.py
    5. a small source counts over all lanes in step 2, with spans of 1: otherwise some lanes would start the next epoch
       before others finish this one, and early batches would repeat sequences

The only state is g: resuming is a subtraction, for any number of ranks and any batch size. Samples before g do not depend on
a stage that starts at g or later, so weights can change in the middle of a run.

Glossary: a source's sequences are numbered 0 … N - 1 in their order on disk; a span is `span` consecutive ones that a lane
reads before it jumps, which makes range reads of a remote store efficient.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from pretrain.data.mixture import SlotTable
from pretrain.data.permute import I64, hash64, permute


class OrderedSource(NamedTuple):
    """The facts of a source that the order depends on."""

    name: str
    sequences: int
    fingerprint: str


class Stage(NamedTuple):
    """From sample `start` on, sources are mixed by these weights; one that is not named is not read."""

    start: int
    weights: Mapping[str, float]


class Samples(NamedTuple):
    """Source number, epoch of that source, and sequence number in it, of each sample."""

    source: I64
    epoch: I64
    sequence: I64


class Order:
    """`order(g)` for an array of g. Two orders with the same fingerprint give the same samples.

    The first stage starts at 0, and each later one after the one before it.
    """

    def __init__(
        self,
        sources: Sequence[OrderedSource],
        stages: Sequence[Stage],
        *,
        seq_len: int,
        seed: int,
        lanes: int,
        span: int,
    ) -> None:
        self.sources, self.lanes, self.span, self.seed = list(sources), lanes, span, seed
        self.seq_len = seq_len
        self.starts: I64 = np.array([stage.start for stage in stages], dtype=np.int64)
        assert self.starts[0] == 0 and (np.diff(self.starts) > 0).all(), self.starts
        shares = [[stage.weights.get(source.name, 0.0) for source in sources] for stage in stages]
        self.tables = [SlotTable(weights, lanes) for weights in shares]
        self.sequences: I64 = np.array([source.sequences for source in sources], dtype=np.int64)
        # A source's permutation depends on its content and not on its place in the list.
        self._keys = np.array([int(source.fingerprint[:15], 16) for source in sources], dtype=np.int64)
        self._small = np.array([self.is_small(number) for number in range(len(sources))])
        self._spans = np.where(self._small, 1, span)
        self._before, self._lanes_before = self._base_counts()

    @property
    def description(self) -> dict[str, Any]:
        """All inputs of the order, as plain values."""
        return {
            "format": "pretrain-order/2",
            "seq_len": self.seq_len,
            "seed": self.seed,
            "lanes": self.lanes,
            "span": self.span,
            "sources": {source.name: source.fingerprint for source in self.sources},
            "stages": [
                {
                    "start": int(start),
                    # A list: the position of a source decides ties between slots.
                    "slots": [[s.name, int(q)] for s, q in zip(self.sources, table.quanta, strict=True) if q],
                }
                for start, table in zip(self.starts, self.tables, strict=True)
            ],
        }

    @property
    def fingerprint(self) -> str:
        """Hash of the description."""
        return hashlib.sha256(json.dumps(self.description, sort_keys=True).encode()).hexdigest()

    def is_small(self, source: int) -> bool:
        """Whether the source is counted over all lanes and permuted by sequence (step 5).

        Lanes may be a few spans apart, plus the unevenness of the slot table; an epoch of a large source must be longer.
        The first table that holds the source decides: later stages must not change samples of the past.
        """
        first = next((table for table in self.tables if table.quanta[source]), self.tables[0])
        return bool(self.sequences[source] < 4 * (self.lanes * self.span + first.period))

    def __call__(self, g: ArrayLike) -> Samples:
        """Samples of an array of g, vectorized."""
        g = np.atleast_1d(np.asarray(g, dtype=np.int64))
        stage = np.searchsorted(self.starts, g, side="right") - 1
        source, place = np.empty_like(g), np.empty_like(g)
        for number in np.unique(stage):
            rows = stage == number
            source[rows], place[rows] = self._places(int(number), g[rows])
        epoch, sequence = self._permuted(source, place)
        return Samples(source, epoch, sequence)

    def counts(self, g: int) -> I64:
        """Number of samples before g, by source."""
        stage = int(np.searchsorted(self.starts, g, side="right")) - 1
        return self._before[stage] + self.tables[stage].counts(g - int(self.starts[stage]))

    def _base_counts(self) -> tuple[I64, I64]:
        """Samples used before each stage: by source, and by source and lane of the run."""
        before = np.zeros((len(self.starts), len(self.sources)), dtype=np.int64)
        by_lane = np.zeros((*before.shape, self.lanes), dtype=np.int64)
        for number, (table, start, end) in enumerate(zip(self.tables, self.starts, self.starts[1:], strict=False)):
            before[number + 1] = before[number] + table.counts(int(end - start))
            own = table.lane_counts(int(end - start))  # the table's lane 0 is the one that the stage starts in
            by_lane[number + 1] = by_lane[number] + np.roll(own, int(start) % self.lanes, axis=1)
        return before, by_lane

    def _places(self, stage: int, g: I64) -> tuple[I64, I64]:
        """Steps 1 to 3: the source of each g, and the place in that source's endless stream."""
        table, local = self.tables[stage], g - self.starts[stage]
        source = table.source(local)
        place = self._before[stage, source] + table.count(local)
        large = ~self._small[source]
        if large.any():
            lane = g[large] % self.lanes
            count = self._lanes_before[stage, source[large], lane] + table.lane_count(local[large])
            turn, row = np.divmod(count, self.span)
            place[large] = (turn * self.lanes + lane) * self.span + row
        return source, place

    def _permuted(self, source: I64, place: I64) -> tuple[I64, I64]:
        """Step 4. Spans continue across epochs, so an epoch begins with the rest of a span and ends with a part of one.

        Both together are the sequences after the last full span on disk; the full spans between them are permuted.
        """
        size, span = self.sequences[source], self._spans[source]
        epoch, place = np.divmod(place, size)
        head = -epoch * size % span
        whole = (size - head) // span
        index, row = np.divmod(place - head, span)
        key = hash64(self.seed, self._keys[source], epoch)
        inside = (index >= 0) & (index < whole)
        sequence = np.where(place < head, whole * span + place, place)
        sequence[inside] = permute(index[inside], whole[inside], key[inside]) * span[inside] + row[inside]
        return epoch, sequence


def past_of(description: Mapping[str, Any], samples: int) -> dict[str, Any]:
    """The part of a description that decided the samples before `samples`, without later stages and their sources."""
    stages = [stage for stage in description.get("stages", []) if stage["start"] < max(1, samples)]
    used = {name for stage in stages for name, _ in stage["slots"]}
    sources = {name: content for name, content in description.get("sources", {}).items() if name in used}
    return {**description, "stages": stages, "sources": sources}


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Differences between two descriptions of an order, a line each."""
    names = sorted({*expected, *found})
    return [
        f"{name}: {_shown(expected.get(name))} → {_shown(found.get(name))}"
        for name in names
        if expected.get(name) != found.get(name)
    ]


def _shown(value: Any) -> Any:
    """A value of a description for people: contents by the start of their hash, stages by their slots."""
    if isinstance(value, dict):
        return ", ".join(f"{name} ({str(content)[:8]}…)" for name, content in value.items())
    if isinstance(value, list):
        slots = (", ".join(f"{name} {count}" for name, count in stage["slots"]) for stage in value)
        return "; ".join(f"from sample {stage['start']}: {mix}" for stage, mix in zip(value, slots, strict=True))
    return value
