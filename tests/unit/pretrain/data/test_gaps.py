"""Skipped ranges stay skipped, whatever the batch: positions are compared with ranges of samples."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.config.schema import BatchConfig
from pretrain.data.gaps import Gap, position_after, samples_at
from pretrain.data.loader import Position, rank_samples
from pretrain.distributed.world import World

GAPS = st.lists(st.tuples(st.integers(0, 120), st.integers(1, 40)), max_size=4)


def unread(gaps: list[Gap]) -> set[int]:
    return {sample for first, count in gaps for sample in range(first, first + count)}


@settings(deadline=None)
@given(GAPS, st.integers(0, 130), st.integers(1, 60))
def test_samples_are_the_next_ones_outside_all_gaps(gaps: list[Gap], start: int, count: int) -> None:
    outside = [sample for sample in range(start, 400) if sample not in unread(gaps)][:count]
    assert samples_at(np.arange(count), start, gaps).tolist() == outside
    assert position_after(start, count, gaps) == outside[-1] + 1
    assert position_after(start, 0, gaps) == start


@settings(deadline=None, max_examples=60)
@given(GAPS, st.lists(st.tuples(st.integers(1, 5), st.sampled_from([1, 2]), st.integers(1, 6)), min_size=1, max_size=5))
def test_runs_that_change_their_batch_read_each_sample_outside_the_gaps_once(
    gaps: list[Gap], attempts: list[tuple[int, int, int]]
) -> None:
    position, read = 0, []
    for unit, world_size, steps in attempts:
        batch = BatchConfig(global_batch_size=2 * unit, micro_batch_size=unit)
        of_ranks = [
            next(rank_samples(batch, World(rank, world_size), Position(0, position), gaps))
            for rank in range(world_size)
        ]
        for step in range(steps):
            read += [sample for samples in of_ranks for sample in samples[step].ravel().tolist()]
            position = position_after(position, batch.global_batch_size, gaps)
    assert read == [sample for sample in range(position) if sample not in unread(gaps)]
