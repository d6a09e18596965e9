import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.mixture import SlotTable, quanta

WEIGHTS = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=8)


def tables(max_lanes: int = 20) -> st.SearchStrategy[SlotTable]:
    return st.builds(SlotTable, WEIGHTS, period=st.sampled_from([8, 12, 64, 97]), lanes=st.integers(1, max_lanes))


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


def test_a_weight_too_small_for_a_slot_still_gets_one() -> None:
    assert quanta([1.0, 1e-9, 1e-9], 4_096) == [4_094, 1, 1]


@given(tables())
def test_the_table_holds_each_source_as_often_as_its_quanta(table: SlotTable) -> None:
    assert np.bincount(table.owner, minlength=len(table.quanta)).tolist() == table.quanta


@given(WEIGHTS)
def test_each_source_is_spread_evenly_over_the_table(weights: list[float]) -> None:
    """In any stretch from the start, a source is at most as many slots from its share as there are sources."""
    table = SlotTable(weights, 1_024, 1)
    counts = np.cumsum(table.owner[:, None] == np.arange(len(weights)), axis=0)
    share = np.arange(1, 1_025)[:, None] * np.array(table.quanta) / 1_024
    assert np.abs(counts - share).max() <= len(weights)


@settings(deadline=None)
@given(tables(), st.integers(0, 400), st.integers(1, 64))
def test_any_run_of_samples_has_each_sources_share(table: SlotTable, first: int, length: int) -> None:
    """In the order of g: whole rows of lanes may straddle, each part within the table's own evenness."""
    lanes = len(table.phase)
    g = np.arange(first, first + length)
    owners = table.source(g // lanes, g % lanes)
    rows = len(np.unique(g // lanes))
    shares = length * np.array(table.quanta) / table.period
    counts = np.bincount(owners, minlength=len(shares))
    assert np.abs(counts - shares).max() <= rows * 2 * len(shares)


@pytest.mark.parametrize("weights", [[1, 1], [3, 1], [7, 2, 1], [1, 16], [2_584, 1_512], [1] * 5])
@pytest.mark.parametrize("lanes", [1, 8, 256, 1_024])
@pytest.mark.parametrize("batch", [32, 256])
def test_every_batch_is_mixed_by_the_weights(weights: list[float], lanes: int, batch: int) -> None:
    """Each batch of 200 has each source's share, within 6 samples: a third of what drawing at random gives."""
    table = SlotTable(weights, 4_096, lanes)
    g = np.arange(200 * batch)
    owners = table.source(g // lanes, g % lanes).reshape(200, batch)
    share = np.array(weights) / sum(weights) * batch
    counts = (owners[:, :, None] == np.arange(len(weights))).sum(axis=1)
    # One lane alone reads the table in order; more lanes read as many neighbouring stretches as rows fit in a batch.
    assert np.abs(counts - share).max() <= 6 * max(1, batch // lanes) ** 0.5


@pytest.mark.parametrize("lanes", [8, 256, 1_024])
def test_a_rare_source_comes_evenly_and_not_in_bursts(lanes: int) -> None:
    """One slot of 4,096: no stretch of the run goes without it for long."""
    table = SlotTable([4_095, 1], 4_096, lanes)
    g = np.arange(400_000)
    distances = np.diff(np.flatnonzero(table.source(g // lanes, g % lanes) == 1))
    assert distances.max() < 4_096 * 2


@given(tables(), st.data())
def test_counts_equal_counting_by_hand(table: SlotTable, data: st.DataObject) -> None:
    lanes = len(table.phase)
    until = data.draw(st.integers(0, 300))
    every_t, every_lane = np.divmod(np.arange(until * lanes + lanes), lanes)
    owners = table.source(every_t, every_lane)
    lane = data.draw(st.integers(0, lanes - 1))
    source = data.draw(st.integers(0, len(table.quanta) - 1))
    mine = owners == source
    t, where = np.array([until]), np.array([lane])
    assert table.lane_count(source, t, where) == (mine & (every_lane == lane) & (every_t < until)).sum()
    assert table.global_count(source, t, where) == mine[: until * lanes + lane].sum()


@given(tables())
def test_global_counts_number_the_samples_of_a_source_without_gap(table: SlotTable) -> None:
    lanes = len(table.phase)
    t, lane = np.divmod(np.arange(40 * lanes), lanes)
    owners = table.source(t, lane)
    for source in range(len(table.quanta)):
        mine = owners == source
        assert table.global_count(source, t[mine], lane[mine]).tolist() == list(range(mine.sum()))


@given(tables(), st.integers(1, 200))
def test_lanes_advance_alike(table: SlotTable, t: int) -> None:
    """Lanes that ran ahead would begin a source's next epoch while others are still in this one."""
    lanes = np.arange(len(table.phase))
    for source in range(len(table.quanta)):
        counts = table.lane_count(source, np.full_like(lanes, t), lanes)
        assert counts.max() - counts.min() <= 2 * len(table.quanta)
