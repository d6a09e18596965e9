from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.mixture import PERIODS, SlotTable, best_period, choose_period, quanta, spread
from pretrain.errors import DataError

WEIGHTS = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=8)
# Weights of which each has its slots in the smaller table, or only in the larger one.
MIXTURES = st.lists(st.integers(0, 60), min_size=1, max_size=12).filter(any)
LANES = st.sampled_from([1, 2, 3, 8, 12, 64, 100, 256])


@given(WEIGHTS, st.sampled_from([8, 100, 4_096]))
def test_quanta_sum_to_the_period_and_none_is_zero(weights: list[float], period: int) -> None:
    found = quanta(weights, period)
    assert sum(found) == period
    assert min(found) >= 1


@given(st.lists(st.floats(0.05, 1), min_size=1, max_size=8))
def test_quanta_are_within_one_of_the_exact_share(weights: list[float]) -> None:
    exact = np.array(weights) / sum(weights) * 4_096
    assert np.abs(np.array(quanta(weights, 4_096)) - exact).max() < 1


@given(WEIGHTS, st.floats(0.01, 100))
def test_only_the_ratio_of_weights_counts(weights: list[float], factor: float) -> None:
    scaled, plain = quanta([weight * factor for weight in weights], 4_096), quanta(weights, 4_096)
    assert np.abs(np.array(scaled) - np.array(plain)).max() <= 1  # a tie may fall the other way by rounding


def test_a_weight_too_small_for_a_slot_still_gets_one_and_none_stays_none() -> None:
    assert quanta([1.0, 1e-9, 0.0, 1e-9], 4_096) == [4_094, 1, 0, 1]


# --- evenness ---------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(MIXTURES, st.integers(1, 2_000))
def test_every_prefix_has_each_sources_share_within_one(weights: list[int], period: int) -> None:
    slots = quanta(weights, period + 2 * len(weights))
    owner = spread(slots)
    assert np.bincount(owner, minlength=len(slots)).tolist() == slots
    counts = np.cumsum(owner[:, None] == np.arange(len(slots)), axis=0)
    shares = np.arange(1, len(owner) + 1)[:, None] * np.array(slots) / len(owner)
    assert np.abs(counts - shares).max() < 1


@settings(deadline=None, max_examples=50)
@given(MIXTURES, LANES, st.integers(0, 10**9), st.integers(1, 5_000))
def test_every_window_has_each_sources_share_within_two(
    weights: list[int], lanes: int, first: int, length: int
) -> None:
    table = SlotTable(weights, lanes)
    owners = table.source(np.arange(first, first + length))
    counts = np.bincount(owners, minlength=len(weights))
    assert np.abs(counts - length * table.quanta / table.period).max() < 2


@pytest.mark.parametrize("weights", [[1, 1], [3, 1], [7, 2, 1], [1] * 7, [255, 1], [5, 3, 2, 2, 1], [1, 1, 1]])
@pytest.mark.parametrize("lanes", [64, 100, 256, 1_024])
def test_lanes_advance_alike(weights: list[float], lanes: int) -> None:
    """Lanes that ran ahead would begin a source's next epoch while others are still in this one: a span is 64 samples."""
    table = SlotTable(weights, lanes)
    for turn in (100, 1_000, 1_777, 20_000):
        counts = table.lane_counts(turn * lanes)
        assert (counts.max(axis=1) - counts.min(axis=1)).max() <= 4 * 4_096 / lanes + 64


@pytest.mark.parametrize("lanes", [1, 2, 8, 100, 256, 1_024, 4_092])
@pytest.mark.parametrize("limit", PERIODS)
def test_the_period_is_a_prime_larger_than_the_lanes(lanes: int, limit: int) -> None:
    period = best_period(lanes, limit)
    assert max(lanes, limit // 2) < period < limit
    assert all(period % divisor for divisor in range(2, int(period**0.5) + 1))


def test_small_weights_get_the_larger_table_and_smaller_ones_are_refused() -> None:
    assert choose_period([1, 1], 256) < PERIODS[0]
    assert PERIODS[0] < choose_period([1, 0.001], 256) < PERIODS[1]
    assert choose_period([1, 0], 256) < PERIODS[0]
    with pytest.raises(DataError, match=r"smallest weight is 1e-05 of all weights.*one sample in") as caught:
        choose_period([1, 1e-5], 256)
    assert "remove the source" in str(caught.value.hint)


# --- closed forms, held against counting ------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(MIXTURES, LANES, st.integers(0, 30_000))
def test_counts_equal_counting_by_hand(weights: list[int], lanes: int, until: int) -> None:
    table = SlotTable(weights, lanes)
    g = np.arange(until + 1)
    owners = table.source(g)
    mine = owners == owners[until]
    last = np.array([until])
    assert table.count(last) == mine[:until].sum()
    assert table.lane_count(last) == (mine & (g % lanes == until % lanes))[:until].sum()
    by_hand = np.zeros((len(weights), lanes), dtype=np.int64)
    np.add.at(by_hand, (owners[:until], g[:until] % lanes), 1)
    assert np.array_equal(table.lane_counts(until), by_hand)
    assert np.array_equal(table.counts(until), by_hand.sum(axis=1))


@pytest.mark.parametrize("count", [SlotTable.count, SlotTable.lane_count])
def test_counting_costs_the_same_far_from_the_start(count: Callable[..., np.ndarray]) -> None:
    table = SlotTable([3, 1], 256)
    far = np.array([10**15, 10**15 + 1])
    assert (count(table, far) > 10**11).all()
