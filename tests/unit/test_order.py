from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.order import Order, OrderedSource, Samples, differences
from pretrain.data.stream import RankBatches

LANES, SPAN = 8, 4


def source(name: str, sequences: int, weight: float = 1.0, content: str | None = None) -> OrderedSource:
    return OrderedSource(name, weight, sequences, (content or name.encode().hex()).ljust(64, "0"))


def order_of(*sources: OrderedSource, **changes: Any) -> Order:
    return Order(sources, **({"seq_len": 16, "seed": 0, "lanes": LANES, "span": SPAN} | changes))


# 4 · LANES · SPAN = 128 sequences divide small sources from large ones.
SIZES = [1, 2, 5, 8, 100, 127, 128, 129, 131, 300, 1_001]


@pytest.mark.parametrize("sequences", SIZES)
def test_each_epoch_reads_each_sequence_exactly_once(sequences: int) -> None:
    order = order_of(source("a", sequences))
    readable = sequences if order.is_small(0) else sequences // SPAN * SPAN
    samples = order(np.arange(4 * sequences + 2 * LANES * SPAN))
    for epoch in range(3):
        read = samples.sequence[samples.epoch == epoch]
        assert np.array_equal(np.sort(read), np.arange(readable))


@pytest.mark.parametrize("sequences", [size for size in SIZES if size >= 8])
def test_epochs_are_read_in_different_orders(sequences: int) -> None:
    samples = order_of(source("a", sequences))(np.arange(3 * sequences))
    first, second = (samples.sequence[samples.epoch == epoch][: sequences // 2] for epoch in (0, 1))
    assert not np.array_equal(first, second)


def test_both_kinds_of_source_are_among_the_sizes() -> None:
    kinds = {order_of(source("a", sequences)).is_small(0) for sequences in SIZES}
    assert kinds == {True, False}


@pytest.mark.parametrize("sequences", [s for s in SIZES if s < 4 * LANES * SPAN])
def test_a_small_source_begins_no_epoch_before_the_last_has_ended(sequences: int) -> None:
    epochs = order_of(source("a", sequences))(np.arange(5 * sequences)).epoch
    assert np.array_equal(epochs, np.repeat(np.arange(5), sequences))


@pytest.mark.parametrize("sequences", [s for s in SIZES if s >= 4 * LANES * SPAN])
def test_a_large_source_repeats_nothing_before_its_last_round_of_spans(sequences: int) -> None:
    epochs = order_of(source("a", sequences))(np.arange(2 * sequences)).epoch
    assert int(np.argmax(epochs == 1)) >= sequences // SPAN // LANES * LANES * SPAN >= 3 / 4 * (sequences - SPAN)


def test_a_small_source_beside_a_large_one_does_not_repeat_early() -> None:
    order = order_of(source("large", 10_000, 0.7), source("small", 90, 0.3))
    samples = order(np.arange(3_000))
    small = samples.sequence[samples.source == 1]
    for start in range(0, len(small) - 90, 90):
        assert len(set(small[start : start + 90])) == 90


def test_a_lane_reads_a_span_of_consecutive_sequences() -> None:
    samples = order_of(source("a", 1_000))(np.arange(5, 5 + LANES * SPAN * 3, LANES))
    spans = samples.sequence.reshape(3, SPAN)
    assert (spans == spans[:, :1] + np.arange(SPAN)).all()
    assert (spans[:, 0] % SPAN == 0).all()
    assert len(set(spans[:, 0])) == 3


@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (0.7, 0.2, 0.1), (9, 7)])
@pytest.mark.parametrize("lanes", [8, 256])
def test_sources_are_mixed_within_each_batch_by_their_weights(weights: tuple[float, ...], lanes: int) -> None:
    order = order_of(*(source(f"s{i}", 5_000, weight) for i, weight in enumerate(weights)), lanes=lanes)
    batch = 64
    owners = order(np.arange(100 * batch)).source.reshape(100, batch)
    for number, weight in enumerate(weights):
        assert np.abs((owners == number).sum(axis=1) - batch * weight / sum(weights)).max() <= 8


def test_the_name_of_a_source_does_not_change_how_it_is_permuted() -> None:
    before = order_of(source("a", 500, content="77"))(np.arange(500))
    after = order_of(source("b", 500, content="77"))(np.arange(500))
    assert np.array_equal(before.sequence, after.sequence)


# --- a pure function of g ---------------------------------------------------------------------------------------------

MIXED = order_of(source("large", 1_000, 2), source("small", 50, 1), source("tiny", 1, 0.1))


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


@pytest.mark.parametrize("world_size", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_any_number_of_ranks_reads_the_same_global_sequence(world_size: int, micro_batch_size: int) -> None:
    start, steps, size = 4_096, 5, 64
    parts = [
        RankBatches(global_batch_size=size, micro_batch_size=micro_batch_size, rank=rank, world_size=world_size).steps(
            start, steps
        )
        for rank in range(world_size)
    ]
    assert {part.shape for part in parts} == {(steps, size // world_size // micro_batch_size, micro_batch_size)}
    together = np.stack([part.reshape(steps, -1) for part in parts], axis=1).ravel()
    assert together.tolist() == list(range(start, start + steps * size))


def test_growing_the_batch_goes_on_where_the_smaller_one_stopped() -> None:
    def read(start: int, size: int, steps: int) -> list[int]:
        return (
            RankBatches(global_batch_size=size, micro_batch_size=4, rank=0, world_size=1)
            .steps(start, steps)
            .ravel()
            .tolist()
        )

    assert read(0, 8, 3) + read(24, 16, 2) == list(range(24 + 32))


# --- the fingerprint --------------------------------------------------------------------------------------------------

TWO = (source("a", 1_000, 2), source("b", 1_000, 1))
MATTERS: dict[str, Order] = {
    "seed": order_of(*TWO, seed=1),
    "lanes": order_of(*TWO, lanes=16),
    "span": order_of(*TWO, span=5),
    "seq_len": order_of(*TWO, seq_len=32),
    "weight": order_of(TWO[0], TWO[1]._replace(weight=1.1)),
    "content": order_of(TWO[0], TWO[1]._replace(fingerprint="f" * 64)),
    "one more": order_of(*TWO, source("c", 10)),
    "one fewer": order_of(TWO[0]),
}


def test_whatever_matters_changes_the_fingerprint() -> None:
    prints = [order.fingerprint for order in (order_of(*TWO), *MATTERS.values())]
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize("what", sorted(set(MATTERS) - {"seq_len"}))
def test_and_changes_the_samples(what: str) -> None:
    g = np.arange(2_000)
    assert not equal(order_of(*TWO)(g), MATTERS[what](g))


def test_only_the_ratio_of_the_weights_is_in_the_fingerprint() -> None:
    scaled = order_of(*(s._replace(weight=s.weight * 7) for s in TWO))
    assert scaled.fingerprint == order_of(*TWO).fingerprint
    assert equal(scaled(np.arange(2_000)), order_of(*TWO)(np.arange(2_000)))


def test_the_fingerprint_is_the_same_in_another_process() -> None:
    assert order_of(*TWO).fingerprint == "6945e888d89bfbb340b6f464ba76beee8eeb344545c22eb265d76c3a35c46928"


def test_differences_are_named_with_both_values() -> None:
    found = differences(order_of(*TWO).description, MATTERS["seed"].description)
    assert found == ["seed: 0 → 1"]
    assert differences({"old": 1}, {"new": 2}) == ["new: None → 2", "old: 1 → None"]


def test_every_sample_exists() -> None:
    samples = MIXED(np.arange(20_000))
    sizes = np.array([s.sequences for s in MIXED.sources])
    assert (samples.sequence >= 0).all()
    assert (samples.sequence < sizes[samples.source]).all()
    assert set(Counter(samples.source.tolist())) == {0, 1, 2}
