"""The one order that all ranks share: a pure function of the global sample id g.

    1. lane = g % lanes, t = g // lanes                    parallel read streams, pinned for the run
    2. source = slot(t, lane)                              mixture.py; c = how often the lane had it before
    3. u = (c // span) · lanes + lane                      the lane's number of a span, over all epochs
       epoch = u // F, physical = permute(u % F; epoch)    F spans a source; permute.py
       sequence = physical · span + c % span
    4. a source with F < 4 · lanes counts over all lanes and is permuted by sequence: lanes of a small source would
       otherwise start the next epoch before others have finished this one, and early batches repeat

There is no state but g: resuming is a subtraction, for any number of ranks and any batch size.

Glossary: a source's sequences are numbered 0 … N - 1 in the order in which they lie on disk; a span is `span` consecutive
ones that a lane reads before it jumps (what makes range reads of a remote store efficient). In step 3 up to span - 1
sequences at the end of a large source belong to no span and are not read: fewer than 1 in 4 · lanes.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from pretrain.data.mixture import SlotTable
from pretrain.data.permute import I64, hash64, permute
from pretrain.errors import DataError

PERIODS = (4096, 65_536)  # slots of the mixture's table; the larger where a source has less than a slot of the smaller


class OrderedSource(NamedTuple):
    """What the order needs to know of a source."""

    name: str
    weight: float
    sequences: int
    fingerprint: str


class Samples(NamedTuple):
    """Where samples come from: source number, epoch of that source, and sequence number in it."""

    source: I64
    epoch: I64
    sequence: I64


class Order:
    """`order(g)` for an array of g. Two orders with the same fingerprint give the same samples."""

    def __init__(self, sources: Sequence[OrderedSource], *, seq_len: int, seed: int, lanes: int, span: int) -> None:
        self.sources, self.lanes, self.span, self.seed = list(sources), lanes, span, seed
        weights = [source.weight for source in sources]
        self.table = SlotTable(weights, _period(weights), lanes)
        # A source's permutation depends on its content and not on its place in the list.
        self.keys = [int(source.fingerprint[:15], 16) for source in sources]
        self.spans = [source.sequences // span for source in sources]
        self.description = {
            "format": "pretrain-order/1",
            "seq_len": seq_len,
            "seed": seed,
            "lanes": lanes,
            "span": span,
            "period": self.table.period,
            "sources": {source.name: source.fingerprint for source in sources},
            # A list: which of two sources comes first decides ties between their slots.
            "quanta": [[source.name, q] for source, q in zip(sources, self.table.quanta, strict=True)],
        }

    @property
    def fingerprint(self) -> str:
        """Hash of everything that the order depends on."""
        return hashlib.sha256(json.dumps(self.description, sort_keys=True).encode()).hexdigest()

    def is_small(self, source: int) -> bool:
        """Whether the source is counted over all lanes and permuted by sequence (step 4)."""
        return self.spans[source] < 4 * self.lanes

    def __call__(self, g: ArrayLike) -> Samples:
        """The samples of each g, in one vectorized call."""
        g = np.atleast_1d(np.asarray(g, dtype=np.int64))
        t, lane = np.divmod(g, self.lanes)
        source = self.table.source(t, lane)
        epoch, sequence = np.empty_like(g), np.empty_like(g)
        for number in np.unique(source):
            rows = source == number
            place = self._by_sequence if self.is_small(number) else self._by_span
            epoch[rows], sequence[rows] = place(int(number), t[rows], lane[rows])
        return Samples(source, epoch, sequence)

    def _by_sequence(self, source: int, t: I64, lane: I64) -> tuple[I64, I64]:
        size = self.sources[source].sequences
        epoch, index = np.divmod(self.table.global_count(source, t, lane), size)
        return epoch, permute(index, size, self._key(source, epoch))

    def _by_span(self, source: int, t: I64, lane: I64) -> tuple[I64, I64]:
        turn, row = np.divmod(self.table.lane_count(source, t, lane), self.span)
        epoch, index = np.divmod(turn * self.lanes + lane, self.spans[source])
        return epoch, permute(index, self.spans[source], self._key(source, epoch)) * self.span + row

    def _key(self, source: int, epoch: I64) -> np.ndarray:
        return hash64(self.seed, self.keys[source], epoch)


def _period(weights: Sequence[float]) -> int:
    """The smallest table in which every source has at least one whole slot. Raises DataError where none has."""
    smallest = min(weights) / sum(weights)
    for period in PERIODS:
        if smallest * period >= 1:
            return period
    raise DataError(
        f"the smallest weight is {smallest:.2g} of all weights, less than one sample in {PERIODS[-1]}",
        hint="leave the source out, or give it more weight",
    )


def differences(expected: dict[str, object], found: dict[str, object]) -> list[str]:
    """What differs between two descriptions of an order, a line each."""
    names = sorted({*expected, *found})
    return [
        f"{name}: {expected.get(name)} → {found.get(name)}" for name in names if expected.get(name) != found.get(name)
    ]
