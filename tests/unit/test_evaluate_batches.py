import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pretrain.evaluate
from pretrain.config.schema import SourceConfig
from pretrain.data.source import Source
from pretrain.evaluate import evaluate, held_out_batches
from pretrain.loss import IGNORE
from pretrain.world import World
from tests.support.shards import write_corpus

T = 8


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("valid")
    write_corpus(folder, 1_001, vocab_size=1_001, text_bytes=3_000)
    return Source("web", SourceConfig(str(folder)), T)


@settings(max_examples=60)
@given(count=st.integers(1, 125), micro=st.integers(1, 9), world_size=st.integers(1, 9))
def test_any_number_of_ranks_reads_each_sequence_once_in_as_many_batches(
    source: Source, count: int, micro: int, world_size: int
) -> None:
    ranks = [list(held_out_batches(source, count, micro, World(rank, world_size))) for rank in range(world_size)]
    assert {len(batches) for batches in ranks} == {math.ceil(count / (micro * world_size))}
    read = []
    for inputs, targets in (batch for batches in ranks for batch in batches):
        assert inputs.shape == targets.shape == (micro, T)
        assert inputs.dtype == targets.dtype == torch.int64
        for row, target in zip(inputs.tolist(), targets.tolist(), strict=True):
            if target == [IGNORE] * T:
                continue
            read.append(row[0] // T)
            assert row == list(range(row[0], row[0] + T))
            assert target == list(range(row[0] + 1, row[0] + T + 1))
    assert sorted(read) == list(range(count))


def test_places_that_are_left_over_hold_valid_ids_and_no_targets(source: Source) -> None:
    (batch,) = held_out_batches(source, 3, 4, World(1, 2))
    assert batch[0].tolist() == [[0] * T] * 4
    assert (batch[1] == IGNORE).all()


def test_later_batches_do_not_write_into_earlier_ones(source: Source) -> None:
    batches = held_out_batches(source, 8, 2, World())
    first = next(batches)
    before = first[0].clone()
    list(batches)
    assert torch.equal(first[0], before)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums without a process group."""
    monkeypatch.setattr(pretrain.evaluate, "sum_over_ranks", lambda values, _: values)


def run(sources: list[Source], max_sequences: int, nats: float = 2.0) -> dict[str, float]:
    return evaluate(
        sources,
        lambda batch: nats * int((batch[1] != IGNORE).sum()),
        max_sequences=max_sequences,
        micro_batch_size=4,
        world=World(),
        device=torch.device("cpu"),
    )


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("max_sequences", [1, 7, 125, 10_000])
def test_the_mean_is_over_targets_that_count(source: Source, max_sequences: int) -> None:
    values = run([source], max_sequences)
    assert values["loss"] == pytest.approx(2.0)
    assert values["bits_per_byte"] == pytest.approx(2.0 / math.log(2) / 3.0)  # 3 bytes a token
    assert set(values) == {"loss", "bits_per_byte"}


@pytest.mark.usefixtures("alone")
def test_several_sources_are_reported_one_by_one_and_together(source: Source, tmp_path: Path) -> None:
    write_corpus(tmp_path, 33, text_bytes=64)
    other = Source("books", SourceConfig(str(tmp_path)), T)
    assert len(other) == 4
    values = evaluate(
        [source, other],
        lambda batch: 3.0 * int((batch[1] != IGNORE).sum()) if batch[0].max() > 40 else 0.0,
        max_sequences=20,
        micro_batch_size=1,
        world=World(),
        device=torch.device("cpu"),
    )
    # 10 sequences of the first, of which 5 (tokens 40 … 79) lie above 40, and all 4 of the second, none above.
    assert values["loss/web"] == pytest.approx(3.0 * 5 / 10)
    assert values["loss/books"] == 0.0
    assert values["loss"] == pytest.approx(3.0 * 5 / 14)
    assert values["bits_per_byte"] == pytest.approx(3.0 * 5 * T / math.log(2) / (10 * T * 3.0 + 4 * T * 2.0))
