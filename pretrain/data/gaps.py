"""Positions in the stream of samples, some ranges of which are not read: a batch that meets such a gap goes on behind it.

All functions compare ranges, never batches: the batch size may have changed since a range was skipped.
"""

from collections.abc import Sequence

import numpy as np

from pretrain.data.permute import I64

Gap = tuple[int, int]  # first sample, number of samples; gaps may overlap


def samples_at(numbers: I64, start: int, gaps: Sequence[Gap]) -> I64:
    """Sample number n of those that are read from `start` on, for each n of an array."""
    samples, end = start + numbers, start
    for first, count in sorted(gaps):
        begin = max(first, end)
        if begin < first + count:
            end = first + count
            samples = np.where(samples >= begin, samples + end - begin, samples)
    return samples


def position_after(start: int, count: int, gaps: Sequence[Gap]) -> int:
    """The position once `count` samples from `start` on were read. A gap that begins there is not yet stepped over."""
    return int(samples_at(np.array([count - 1]), start, gaps)[0]) + 1 if count else start
