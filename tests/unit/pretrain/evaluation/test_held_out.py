import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.config.schema import SourceConfig
from pretrain.data.source import Source
from pretrain.distributed.engine import Batch
from pretrain.distributed.world import World
from pretrain.evaluation.held_out import (
    BatchSums,
    Score,
    count_sequences,
    evaluation_values,
    held_out_batches,
    score_sources,
)
from pretrain.model.loss import IGNORE
from pretrain.shards.manifest_file import read_manifest, write_manifest
from tests.support.shards import BOS, EOS, write_corpus

T, PAD = 8, 3


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
    for inputs, targets, documents in (batch for batches in ranks for batch in batches):
        assert documents is None
        assert inputs.shape == targets.shape == (micro, T)
        assert inputs.dtype == targets.dtype == torch.int64
        for row, target in zip(inputs.tolist(), targets.tolist(), strict=True):
            if target == [IGNORE] * T:
                continue
            read.append(row[0] // T)
            assert row == list(range(row[0], row[0] + T))
            assert target == list(range(row[0] + 1, row[0] + T + 1))
    assert sorted(read) == list(range(count))


@pytest.mark.parametrize(("micro", "size"), [(1, 1), (4, 1), (3, 2), (5, 7)])
def test_every_target_of_every_shard_is_scored_once_tails_last(tmp_path: Path, micro: int, size: int) -> None:
    stream = write_corpus(
        tmp_path, 64 * 5 + 14, vocab_size=1_001, blocks_per_shard=2
    )  # the last shard ends in 5 targets
    source = Source("web", SourceConfig(str(tmp_path)), T)
    count = count_sequences(source, None, 1)
    assert (len(source), count) == (41, 42)
    assert count_sequences(source, 41, 1) == 41
    scored: list[int] = []
    for rank in range(size):
        for batch in held_out_batches(source, count, micro, World(rank, size)):
            known = batch.targets != IGNORE
            scored += batch.targets[known].tolist()
            assert (batch.inputs[known] + 1 == batch.targets[known]).all()  # `write_corpus` counts up
    assert sorted(scored) == stream[1:].tolist()
    score = run([source], None, micro_batch_size=micro)["web"]
    assert (score.sequences, score.targets) == (42, source.manifest.tokens)
    assert source.dropped_tokens == 5


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


def test_documents_are_marked_on_request(tmp_path: Path) -> None:
    write_corpus(tmp_path, [BOS, 8, EOS, BOS, 9, 9, 9, EOS, BOS, 9, 9, 9, 9, 9, 9, EOS, BOS])
    batches = held_out_batches(Source("web", SourceConfig(str(tmp_path)), T), 2, 3, World(), document_mask=True)
    (batch,) = batches
    assert batch.documents is not None
    assert batch.documents.tolist() == [[0, 0, 0, 1, 1, 1, 1, 1], [0] * T, [0] * T]


def two_nats_each(batch: Batch) -> BatchSums:
    """Each target costs 2 nats, and one with an even id is predicted."""
    counted = batch.targets[batch.targets != IGNORE]
    return BatchSums(2.0 * len(counted), int((counted % 2 == 0).sum()))


def run(
    sources: list[Source],
    max_sequences: int | None,
    loss: Callable[[Batch], BatchSums] = two_nats_each,
    *,
    micro_batch_size: int = 4,
    document_mask: bool = False,
) -> dict[str, Score]:
    """An evaluation in one process."""
    return score_sources(
        sources,
        loss,
        max_sequences=max_sequences,
        micro_batch_size=micro_batch_size,
        world=World(),
        add=lambda values: values,
        document_mask=document_mask,
    )


def packed_source(folder: Path) -> Source:
    """Two bins: a document of 4 ids and padding, then one that fills its bin."""
    bins = [[BOS, 8, 9, EOS] + [PAD] * 4, [BOS, 8, 8, 8, 8, 8, 8, EOS]]
    write_corpus(folder, [*bins[0], *bins[1], PAD], text_bytes=50)
    packed = {"layout": "packed", "packed_seq_len": T, "pad_id": PAD, "padding_tokens": 5, "tokens": 10}
    write_manifest(folder, replace(read_manifest(folder), **packed))
    return Source("web", SourceConfig(str(folder)), T)


def test_padding_of_a_packed_corpus_is_no_target(tmp_path: Path) -> None:
    source = packed_source(tmp_path)
    (batch,) = held_out_batches(source, 2, 2, World())
    assert batch.targets.tolist() == [[8, 9, EOS] + [IGNORE] * 5, [8, 8, 8, 8, 8, 8, EOS, IGNORE]]
    score = run([source], 10)["web"]
    assert (score.sequences, score.targets, score.correct) == (2, 10, 9)
    assert score.loss == pytest.approx(2.0)
    assert score.bits_per_byte == pytest.approx(2.0 * 10 / math.log(2) / 50)


@pytest.mark.parametrize("document_mask", [False, True])
@pytest.mark.parametrize("max_sequences", [1, 7, 125, 10_000, None])
def test_the_mean_is_over_targets_that_count(source: Source, max_sequences: int | None, document_mask: bool) -> None:
    def loss(batch: Batch) -> BatchSums:
        assert (batch.documents is not None) == document_mask
        return two_nats_each(batch)

    score = run([source], max_sequences, loss, document_mask=document_mask)["web"]
    assert score.sequences == min(max_sequences or 125, 125)
    assert score.targets == score.sequences * T
    assert score.loss == pytest.approx(2.0)
    assert score.perplexity == pytest.approx(math.exp(2))
    assert score.accuracy == pytest.approx(0.5)
    values = evaluation_values({"web": score})
    assert values == {"loss": score.loss, "bits_per_byte": score.bits_per_byte, "accuracy": score.accuracy}
    assert score.bits_per_byte == pytest.approx(2.0 / math.log(2) / 3.0)  # 3 bytes a token


def test_several_sources_are_reported_one_by_one_and_together(source: Source, tmp_path: Path) -> None:
    def loss(batch: Batch) -> BatchSums:
        count = int((batch.targets != IGNORE).sum())
        return BatchSums(3.0 * count, count) if batch.inputs.max() > 40 else BatchSums(0.0, 0)

    write_corpus(tmp_path, 33, text_bytes=64)
    other = Source("books", SourceConfig(str(tmp_path)), T)
    assert len(other) == 4
    values = evaluation_values(run([source, other], 20, loss, micro_batch_size=1))
    # 10 sequences of the first, of which 5 (tokens 40 … 79) lie above 40, and all 4 of the second, none above.
    assert values["loss/web"] == pytest.approx(3.0 * 5 / 10)
    assert values["loss/books"] == 0.0
    assert values["loss"] == pytest.approx(3.0 * 5 / 14)
    assert values["accuracy/web"] == pytest.approx(5 / 10)
    assert values["accuracy/books"] == 0.0
    assert values["accuracy"] == pytest.approx(5 / 14)
    assert values["bits_per_byte/web"] == pytest.approx(3.0 * 5 / math.log(2) / (10 * 3.0))
    assert values["bits_per_byte/books"] == 0.0
    assert values["bits_per_byte"] == pytest.approx(3.0 * 5 * T / math.log(2) / (10 * T * 3.0 + 4 * T * 2.0))
    assert len(values) == 9


def test_bits_per_byte_are_those_of_the_sources_whose_text_is_known(source: Source, tmp_path: Path) -> None:
    write_corpus(tmp_path, 33, text_bytes=0)
    foreign = Source("foreign", SourceConfig(str(tmp_path)), T)
    values = evaluation_values(run([source, foreign], 10))
    assert values["bits_per_byte"] == pytest.approx(2.0 / math.log(2) / 3.0)
    assert "bits_per_byte/foreign" not in values
    assert "bits_per_byte" not in evaluation_values(run([foreign], 10))


def test_sums_do_not_depend_on_the_number_of_ranks_at_all(source: Source) -> None:
    """Terms of which no two orders of adding give the same float64."""

    def loss(batch: Batch) -> BatchSums:
        first = int(batch.inputs[0, 0])
        return BatchSums(1e16 * math.sin(first) + 1 / (1 + first) if (batch.targets != IGNORE).any() else 0.0, 1)

    def evaluate(size: int) -> Score:
        """Every rank's part, one after the other, then the sum over ranks."""
        given: list[list[float]] = []

        def note(values: list[float]) -> list[float]:
            given.append(values)
            return values

        for rank in range(size):
            options = {"max_sequences": None, "micro_batch_size": 2, "add": note}
            score_sources([source], loss, world=World(rank, size), **options)
        summed = [sum(column) for column in zip(*given, strict=True)]
        options = {"max_sequences": None, "micro_batch_size": 2, "add": lambda _: summed}
        return score_sources([source], loss, world=World(0, size), **options)["web"]

    scores = [evaluate(size) for size in (1, 2, 3, 5, 8, 100)]
    assert len({(score.nats, score.targets, score.loss) for score in scores}) == 1
    (exact,) = {math.fsum(loss(batch).nats for batch in held_out_batches(source, 125, 2, World(0, 1)))}
    assert scores[0].nats == exact


@pytest.mark.parametrize("nats", [math.inf, math.nan, 1e9])
def test_a_model_that_is_broken_has_a_score_all_the_same(source: Source, nats: float) -> None:
    score = run([source], None, lambda _: BatchSums(nats, 0))["web"]
    assert not score.perplexity < math.inf
    assert score.accuracy == 0.0
