import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pretrain.evaluate
from pretrain.config.schema import SourceConfig
from pretrain.data.manifest import read_manifest, write_manifest
from pretrain.data.source import Source
from pretrain.engine import Batch
from pretrain.evaluate import evaluate, held_out_batches
from pretrain.loss import IGNORE
from pretrain.world import World
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


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums without a process group."""
    monkeypatch.setattr(pretrain.evaluate, "sum_over_ranks", lambda values, _: values)


def run(sources: list[Source], max_sequences: int, *, document_mask: bool = False) -> dict[str, float]:
    """An evaluation in which each target costs 2 nats."""

    def loss(batch: Batch) -> float:
        assert (batch.documents is not None) == document_mask
        return 2.0 * int((batch.targets != IGNORE).sum())

    return evaluate(
        sources,
        loss,
        max_sequences=max_sequences,
        micro_batch_size=4,
        world=World(),
        device=torch.device("cpu"),
        document_mask=document_mask,
    )


def packed_source(folder: Path) -> Source:
    """Two bins: a document of 4 ids and padding, then one that fills its bin."""
    bins = [[BOS, 8, 9, EOS] + [PAD] * 4, [BOS, 8, 8, 8, 8, 8, 8, EOS]]
    write_corpus(folder, [*bins[0], *bins[1], PAD], text_bytes=50)
    packed = {"layout": "packed", "packed_seq_len": T, "pad_id": PAD, "padding_tokens": 5, "tokens": 10}
    write_manifest(folder, replace(read_manifest(folder), **packed))
    return Source("web", SourceConfig(str(folder)), T)


@pytest.mark.usefixtures("alone")
def test_padding_of_a_packed_corpus_is_no_target(tmp_path: Path) -> None:
    source = packed_source(tmp_path)
    (batch,) = held_out_batches(source, 2, 2, World())
    assert batch.targets.tolist() == [[8, 9, EOS] + [IGNORE] * 5, [8, 8, 8, 8, 8, 8, EOS, IGNORE]]
    values = run([source], 10)
    assert values["loss"] == pytest.approx(2.0)
    assert values["bits_per_byte"] == pytest.approx(2.0 * 10 / math.log(2) / 50)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("document_mask", [False, True])
@pytest.mark.parametrize("max_sequences", [1, 7, 125, 10_000])
def test_the_mean_is_over_targets_that_count(source: Source, max_sequences: int, document_mask: bool) -> None:
    values = run([source], max_sequences, document_mask=document_mask)
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
        lambda batch: 3.0 * int((batch.targets != IGNORE).sum()) if batch.inputs.max() > 40 else 0.0,
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


@pytest.mark.usefixtures("alone")
def test_bits_per_byte_are_those_of_the_sources_whose_text_is_known(source: Source, tmp_path: Path) -> None:
    write_corpus(tmp_path, 33, text_bytes=0)
    foreign = Source("foreign", SourceConfig(str(tmp_path)), T)
    assert run([source, foreign], 10)["bits_per_byte"] == pytest.approx(2.0 / math.log(2) / 3.0)
    assert "bits_per_byte" not in run([foreign], 10)
