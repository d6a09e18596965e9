from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.config.schema import BatchConfig
from pretrain.data.loader import Position, rank_samples
from pretrain.data.order import Order, OrderedSource, Samples, Stage, differences, past_of
from pretrain.distributed.world import World
from pretrain.optim.schedule import batch_levels, samples_between

LANES, SPAN = 8, 4
LARGE = 10_003  # sequences: above 4 · (LANES · SPAN + period), where lanes read on their own


def source(name: str, sequences: int, content: str | None = None) -> OrderedSource:
    return OrderedSource(name, sequences, (content or name.encode().hex()).ljust(64, "0"))


def order_of(*sources: OrderedSource, stages: list[Stage] | None = None, **changes: Any) -> Order:
    stages = stages or [Stage(0, {source.name: 1.0 for source in sources})]
    return Order(sources, stages, **({"seq_len": 16, "seed": 0, "lanes": LANES, "span": SPAN} | changes))


# --- one source -------------------------------------------------------------------------------------------------------

SIZES = [1, 2, 5, 8, 129, 1_001, LARGE, LARGE + 1, LARGE + 2, LARGE + 3, LARGE + 29]


@pytest.mark.parametrize("sequences", SIZES)
def test_each_epoch_reads_each_sequence_exactly_once(sequences: int) -> None:
    samples = order_of(source("a", sequences))(np.arange(3 * sequences + 20 * LANES * SPAN))
    for epoch in range(3):
        read = samples.sequence[samples.epoch == epoch]
        assert np.array_equal(np.sort(read), np.arange(sequences))


@pytest.mark.parametrize("sequences", [size for size in SIZES if size >= 8])
def test_epochs_are_read_in_different_orders(sequences: int) -> None:
    samples = order_of(source("a", sequences))(np.arange(3 * sequences))
    first, second = (samples.sequence[samples.epoch == epoch][: sequences // 2] for epoch in (0, 1))
    assert not np.array_equal(first, second)


def test_both_kinds_of_source_are_among_the_sizes() -> None:
    assert {order_of(source("a", sequences)).is_small(0) for sequences in SIZES} == {True, False}


@pytest.mark.parametrize("sequences", [s for s in SIZES if s < LARGE])
def test_a_small_source_begins_no_epoch_before_the_last_has_ended(sequences: int) -> None:
    epochs = order_of(source("a", sequences))(np.arange(5 * sequences)).epoch
    assert np.array_equal(epochs, np.repeat(np.arange(5), sequences))


@pytest.mark.parametrize("sequences", [s for s in SIZES if s >= LARGE])
def test_a_large_source_repeats_nothing_before_its_last_round_of_spans(sequences: int) -> None:
    epochs = order_of(source("a", sequences))(np.arange(2 * sequences)).epoch
    assert int(np.argmax(epochs == 1)) >= sequences - 2 * LANES * SPAN


def test_a_lane_reads_a_span_of_consecutive_sequences() -> None:
    samples = order_of(source("a", LARGE))(np.arange(5, 5 + LANES * SPAN * 3, LANES))
    spans = samples.sequence.reshape(3, SPAN)
    assert (spans == spans[:, :1] + np.arange(SPAN)).all()
    assert (spans[:, 0] % SPAN == 0).all()
    assert len(set(spans[:, 0])) == 3


def test_spans_stay_on_the_same_places_of_the_disk_in_every_epoch() -> None:
    """A span is a whole block of a remote store; were it cut differently in epoch 1, each would cost two reads."""
    samples = order_of(source("a", LARGE))(np.arange(3 * LARGE))
    for epoch in (1, 2):
        mine = np.flatnonzero(samples.epoch == epoch)
        lane = mine % LANES
        for number in range(LANES):
            read = samples.sequence[mine[lane == number]]
            starts = read[np.flatnonzero(np.diff(read, prepend=-9) != 1)]
            assert (starts % SPAN == 0).mean() > 0.99


def test_the_name_of_a_source_does_not_change_how_it_is_permuted() -> None:
    before = order_of(source("a", 500, content="77"))(np.arange(500))
    after = order_of(source("b", 500, content="77"))(np.arange(500))
    assert np.array_equal(before.sequence, after.sequence)


# --- any mixture, any stages ------------------------------------------------------------------------------------------


@st.composite
def orders(draw: st.DrawFn) -> Order:
    sizes = draw(st.lists(st.one_of(st.integers(1, 300), st.integers(LARGE, LARGE + 2_000)), min_size=1, max_size=5))
    sources = [source(f"s{number}", size) for number, size in enumerate(sizes)]
    names = [s.name for s in sources]
    starts = [0, *draw(st.lists(st.integers(1, 30_000), max_size=3, unique=True).map(sorted))]
    stages = []
    for start in starts:
        weights = draw(st.lists(st.integers(0, 20), min_size=len(names), max_size=len(names)).filter(any))
        stages.append(Stage(start, dict(zip(names, map(float, weights), strict=True))))
    return order_of(*sources, stages=stages, seed=draw(st.integers(0, 2**32)), lanes=draw(st.sampled_from([1, 8, 24])))


@settings(deadline=None, max_examples=60)
@given(orders())
def test_each_epoch_of_each_source_is_read_exactly_once_across_stages(order: Order) -> None:
    samples = order(np.arange(60_000))
    for number, s in enumerate(order.sources):
        mine = samples.source == number
        pairs = samples.epoch[mine] * s.sequences + samples.sequence[mine]
        assert len(np.unique(pairs)) == len(pairs)  # no sequence twice in an epoch
        counts = np.bincount(samples.epoch[mine]) if mine.any() else np.zeros(1)
        if order._small[number]:
            assert (counts[:-1] == s.sequences).all()  # an epoch ends before the next begins
        assert (samples.sequence[mine] < s.sequences).all()


@settings(deadline=None, max_examples=60)
@given(orders(), st.integers(0, 50_000), st.integers(1, 4_000))
def test_every_window_of_a_stage_is_within_two_samples_of_its_weights(order: Order, first: int, length: int) -> None:
    stage = int(np.searchsorted(order.starts, first, side="right")) - 1
    end = order.starts[stage + 1] if stage + 1 < len(order.starts) else 10**9
    length = int(min(length, end - first))
    counts = np.bincount(order(np.arange(first, first + length)).source, minlength=len(order.sources))
    table = order.tables[stage]
    assert np.abs(counts - length * table.quanta / table.period).max() < 2


@settings(deadline=None, max_examples=60)
@given(orders(), st.integers(0, 60_000))
def test_the_ledger_is_what_was_read(order: Order, until: int) -> None:
    counted = np.bincount(order(np.arange(until)).source, minlength=len(order.sources))
    assert np.array_equal(order.counts(until), counted)


@settings(deadline=None, max_examples=40)
@given(orders(), st.data())
def test_what_has_been_read_does_not_depend_on_later_stages(order: Order, data: st.DataObject) -> None:
    """A stage that is added in the middle of a run, with a source that is new, repeats and skips nothing."""
    start = data.draw(st.integers(1, 40_000))
    past = [stage for stage in stages_of(order) if stage.start < start]
    new = [*order.sources, source("new", 77)]
    changed = order_of(*new, stages=[*past, Stage(start, {"new": 1.0, "s0": 1.0})], seed=order.seed, lanes=order.lanes)
    before, after = (every(np.arange(60_000)) for every in (order, changed))
    assert equal(Samples(*(part[:start] for part in before)), Samples(*(part[:start] for part in after)))
    for number, s in enumerate(changed.sources):
        mine = after.source == number
        pairs = after.epoch[mine] * s.sequences + after.sequence[mine]
        assert len(np.unique(pairs)) == len(pairs)


def stages_of(order: Order) -> list[Stage]:
    return [
        Stage(int(start), {s.name: float(q) for s, q in zip(order.sources, table.quanta, strict=True) if q})
        for start, table in zip(order.starts, order.tables, strict=True)
    ]


# --- any number of ranks, any batch -----------------------------------------------------------------------------------


@st.composite
def batches(draw: st.DrawFn) -> BatchConfig:
    """Batches that 1 … 64 ranks can share, half of them growing."""
    micro = draw(st.integers(1, 3))
    unit = 64 * micro
    if draw(st.booleans()):
        return BatchConfig(global_batch_size=unit * draw(st.integers(1, 4)), micro_batch_size=micro)
    growths = draw(st.integers(1, 4))
    return BatchConfig(
        global_batch_size=unit * (1 + growths),
        micro_batch_size=micro,
        ramp_start_size=unit,
        ramp_increment=unit,
        ramp_steps=draw(st.integers(growths, 100)),
    )


def read_by(world_size: int, batch: BatchConfig, position: Position, steps: int) -> list[int]:
    """The g of the next steps, in the order in which a single rank would read them."""
    by_rank = []
    for rank in range(world_size):
        found: list[list[int]] = []
        for array in rank_samples(batch, World(rank, world_size), position):
            found += [step.ravel().tolist() for step in array]
            if len(found) >= steps:
                break
        by_rank.append(found[:steps])
    return [g for step in range(steps) for rank in by_rank for g in rank[step]]


@settings(deadline=None, max_examples=60)
@given(
    batches(),
    st.lists(st.tuples(st.sampled_from([1, 2, 4, 8, 16, 32, 64]), st.integers(1, 90)), min_size=1, max_size=4),
)
def test_runs_cut_anywhere_and_shared_by_any_number_of_ranks_read_each_sample_once(
    batch: BatchConfig, attempts: list[tuple[int, int]]
) -> None:
    step, samples, read = 0, 0, []
    for world_size, steps in attempts:
        read += read_by(world_size, batch, Position(step, samples), steps)
        samples += samples_between(step, step + steps, batch)
        step += steps
    assert read == list(range(samples))


def test_a_batch_that_was_changed_goes_on_where_the_old_one_stopped() -> None:
    small, large = BatchConfig(8, 4), BatchConfig(16, 4)
    assert read_by(1, small, Position(0, 0), 3) + read_by(2, large, Position(3, 24), 2) == list(range(24 + 32))


def test_levels_of_a_growing_batch_are_planned_one_by_one() -> None:
    batch = BatchConfig(32, 4, ramp_start_size=8, ramp_increment=8, ramp_steps=7)
    assert batch_levels(batch) == [(0, 8), (2, 16), (4, 24), (7, 32)]
    sizes = []
    for array in rank_samples(batch, World(0, 2), Position(1, 8)):
        sizes += [2 * step.size for step in array]
        if len(sizes) > 8:
            break
    assert sizes[:8] == [8, 16, 16, 24, 24, 24, 32, 32]


# --- a pure function of g ---------------------------------------------------------------------------------------------

MIXED = order_of(
    source("large", LARGE),
    source("small", 50),
    source("tiny", 1),
    stages=[
        Stage(0, {"large": 2, "small": 1, "tiny": 0.1}),
        Stage(1_003, {"large": 1, "small": 1}),
        Stage(17_000, {"large": 1}),
    ],
)


def equal(one: Samples, other: Samples) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=40))
def test_a_sample_does_not_depend_on_what_is_asked_with_it(gs: list[int]) -> None:
    alone = [MIXED(g) for g in gs]
    together = Samples(*(np.concatenate(part) for part in zip(*alone, strict=True)))
    assert equal(MIXED(gs), together)


@settings(deadline=None)
@given(st.integers(0, 10**12), st.integers(1, 200), st.data())
def test_a_stretch_may_be_cut_anywhere(start: int, length: int, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, length))
    g = np.arange(start, start + length)
    left, right = MIXED(g[:cut]), MIXED(g[cut:])
    assert equal(MIXED(g), Samples(*(np.concatenate(parts) for parts in zip(left, right, strict=True))))


# --- the fingerprint --------------------------------------------------------------------------------------------------

TWO = (source("a", 1_000), source("b", 1_000))
STAGES = [Stage(0, {"a": 2.0, "b": 1.0}), Stage(500, {"a": 1.0, "b": 1.0})]


def two(*sources: OrderedSource, stages: list[Stage] = STAGES, **changes: Any) -> Order:
    return order_of(*(sources or TWO), stages=stages, **changes)


MATTERS: dict[str, Order] = {
    "seed": two(seed=1),
    "lanes": two(lanes=16, stages=STAGES),
    "span": order_of(source("a", LARGE), span=5),
    "seq_len": two(seq_len=32),
    "weight": two(stages=[Stage(0, {"a": 2.2, "b": 1.0}), STAGES[1]]),
    "stage": two(stages=[STAGES[0], STAGES[1]._replace(start=501)]),
    "content": two(TWO[0], TWO[1]._replace(fingerprint="f" * 64)),
    "one more": two(*TWO, source("c", 10), stages=[STAGES[0], Stage(500, {"a": 1.0, "b": 1.0, "c": 1.0})]),
    "one fewer": two(TWO[0], stages=[Stage(0, {"a": 1.0})]),
}


def test_whatever_matters_changes_the_fingerprint() -> None:
    prints = [order.fingerprint for order in (two(), *MATTERS.values())]
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize("what", sorted(set(MATTERS) - {"seq_len", "lanes"}))
def test_and_changes_the_samples(what: str) -> None:
    plain = order_of(source("a", LARGE)) if what == "span" else two()
    g = np.arange(2_000)
    assert not equal(plain(g), MATTERS[what](g))


def test_only_the_ratio_of_the_weights_is_in_the_fingerprint() -> None:
    scaled = two(stages=[Stage(s.start, {name: 7 * weight for name, weight in s.weights.items()}) for s in STAGES])
    assert scaled.fingerprint == two().fingerprint
    assert equal(scaled(np.arange(2_000)), two()(np.arange(2_000)))


def test_the_fingerprint_is_the_same_in_another_process() -> None:
    assert two().fingerprint == "25ba2ab77681468b5d86d40d597d13b793c98430da66e6c86b11c41c14baa213"


def test_differences_are_named_with_both_values() -> None:
    assert differences(two().description, MATTERS["seed"].description) == ["seed: 0 → 1"]
    assert differences({"old": 1}, {"new": 2}) == ["new: None → 2", "old: 1 → None"]


@pytest.mark.parametrize(("what", "samples"), [("stage", 500), ("one more", 500)])
def test_a_later_stage_and_its_sources_are_no_difference(what: str, samples: int) -> None:
    changed = MATTERS[what].description
    assert differences(past_of(two().description, samples), past_of(changed, samples)) == []
    assert differences(past_of(two().description, samples + 1), past_of(changed, samples + 1)) != []


@pytest.mark.parametrize("what", ["weight", "content", "one fewer", "seed"])
def test_what_has_been_read_is_a_difference_from_the_first_sample_on(what: str) -> None:
    changed = MATTERS[what].description
    assert differences(past_of(two().description, 1), past_of(changed, 1)) != []


def test_every_sample_exists() -> None:
    samples = MIXED(np.arange(20_000))
    assert (samples.sequence >= 0).all()
    assert (samples.sequence < MIXED.sequences[samples.source]).all()
    assert set(Counter(samples.source.tolist())) == {0, 1, 2}
