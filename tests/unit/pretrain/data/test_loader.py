import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset

from pretrain.config.schema import BatchConfig, DataConfig, SourceConfig
from pretrain.data.loader import Item, Position, build_stream, prefetch, split_targets
from pretrain.data.order import Order, Stage
from pretrain.data.source import Source
from pretrain.distributed.world import World
from pretrain.errors import DataError
from pretrain.model.loss import IGNORE
from tests.support.shards import write_corpus

T = 8


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
    folder = tmp_path_factory.mktemp("corpora")
    write_corpus(folder / "a", np.arange(2_000) % 500)
    write_corpus(folder / "b", 500 + np.arange(900) % 500)
    return [Source(name, SourceConfig(str(folder / name)), T) for name in ("a", "b")]


def order_over(sources: list[Source]) -> Order:
    stages = [Stage(0, {source.name: 1.0 for source in sources})]
    return Order([source.ordered() for source in sources], stages, seq_len=T, seed=3, lanes=4, span=2)


BATCH = BatchConfig(global_batch_size=8, micro_batch_size=2)


def stream_of(
    sources: list[Source], *, rank: int = 0, world_size: int = 1, step: int = 0, **data: object
) -> webdataset.DataPipeline:
    config = DataConfig(**{"prefetch_batches": 0, **data})  # type: ignore[arg-type]
    return build_stream(order_over(sources), sources, BATCH, World(rank, world_size), Position(step, 8 * step), config)


def items(sources: list[Source], count: int, **options: object) -> list[Item]:
    return list(islice(iter(stream_of(sources, **options)), count))  # type: ignore[arg-type]


def test_each_micro_batch_holds_the_sequences_that_the_order_names(sources: list[Source]) -> None:
    order, row = order_over(sources), np.empty((1, T + 1), np.int64)
    for number, item in enumerate(items(sources, 300)):  # beyond one planned stretch of 64 steps of 4 micro-batches
        assert item["samples"].tolist() == [2 * number, 2 * number + 1]
        expected = order(item["samples"])
        for place in range(2):
            assert item["source"][place] == expected.source[place]
            assert item["epoch"][place] == expected.epoch[place]
            sources[expected.source[place]].read(expected.sequence[place : place + 1], row)
            assert item["tokens"][place].tolist() == row[0].tolist()


def test_targets_are_the_inputs_one_place_on(sources: list[Source]) -> None:
    for item in items(sources, 20):
        assert item["inputs"].shape == item["targets"].shape == (2, T)
        assert item["inputs"].dtype == item["targets"].dtype == torch.int64
        assert torch.equal(item["inputs"][:, 1:], item["targets"][:, :-1])
        assert item["targets"][:, -1].tolist() == item["tokens"][:, -1].tolist()


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_together_read_each_global_batch_once(sources: list[Source], world_size: int) -> None:
    per_step = 4 // world_size
    ranks = [items(sources, 10 * per_step, rank=rank, world_size=world_size) for rank in range(world_size)]
    for step in range(10):
        together = [
            g
            for rank in ranks
            for item in rank[step * per_step : (step + 1) * per_step]
            for g in item["samples"].tolist()
        ]
        assert together == list(range(8 * step, 8 * step + 8))


@pytest.mark.parametrize("prefetch_batches", [0, 3])
def test_starting_in_the_middle_gives_what_follows_there(sources: list[Source], prefetch_batches: int) -> None:
    whole = items(sources, 24)
    later = items(sources, 12, step=3, prefetch_batches=prefetch_batches)
    for expected, found in zip(whole[12:], later, strict=True):
        assert torch.equal(expected["inputs"], found["inputs"])


def test_a_stage_can_be_added(sources: list[Source]) -> None:
    def count(items: Iterator[Item]) -> Iterator[Item]:
        for number, item in enumerate(items):
            yield {**item, "number": number}

    stream = stream_of(sources)
    stream.append(count)
    assert [item["number"] for item in islice(iter(stream), 3)] == [0, 1, 2]


# --- prefetch ---------------------------------------------------------------------------------------------------------


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def wait_for_no_thread() -> None:
    deadline = time.monotonic() + 10
    while prefetch_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert prefetch_threads() == []


def test_prefetch_keeps_items_and_order() -> None:
    assert list(prefetch(3)(iter(range(1, 50)))) == list(range(1, 50))
    wait_for_no_thread()


def test_prefetch_reads_ahead_as_far_as_told_and_no_further() -> None:
    read: list[int] = []
    enough = threading.Event()

    def numbers() -> Iterator[int]:
        for number in range(1, 100):
            read.append(number)
            if number == 5:
                enough.set()
            yield number

    ahead = prefetch(3)(numbers())
    assert next(ahead) == 1
    assert enough.wait(10)  # 1 is used, 2 3 4 are ready, 5 is in hand
    time.sleep(0.15)
    assert read == [1, 2, 3, 4, 5]
    ahead.close()
    wait_for_no_thread()


def test_without_depth_there_is_no_thread() -> None:
    ahead = prefetch(0)(iter([1, 2]))
    assert next(ahead) == 1
    assert prefetch_threads() == []


@pytest.mark.parametrize("taken", [1, 5])
def test_the_thread_ends_when_the_consumer_stops_early(sources: list[Source], taken: int) -> None:
    stream = iter(stream_of(sources, prefetch_batches=2))
    assert len(list(islice(stream, taken))) == taken
    assert len(prefetch_threads()) == 1
    stream.close()
    wait_for_no_thread()


def test_the_thread_ends_when_the_consumer_is_dropped() -> None:
    ahead = prefetch(1)(iter(range(1, 10_000)))
    next(ahead)
    del ahead
    wait_for_no_thread()


def test_an_error_while_reading_surfaces_after_the_items_before_it() -> None:
    def failing() -> Iterator[int]:
        yield 1
        yield 2
        raise DataError("shard is damaged")

    ahead = prefetch(4)(failing())
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(DataError, match="shard is damaged"):
        next(ahead)
    wait_for_no_thread()


def test_a_damaged_shard_surfaces_through_the_whole_stream(tmp_path: Path) -> None:
    write_corpus(tmp_path, 200)
    shard = tmp_path / "shard-000000.tar"
    data = bytearray(shard.read_bytes())
    data[data.index(np.arange(20, 30, dtype="<u2").tobytes())] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DataError, match=r"shard-000000\.tar"):
        items([Source("a", SourceConfig(str(tmp_path)), T)], 50, prefetch_batches=2)
    wait_for_no_thread()


# --- targets ----------------------------------------------------------------------------------------------------------


class Packed:
    """What `split_targets` asks of a source."""

    def __init__(self, layout: str) -> None:
        self.manifest = self
        self.layout, self.pad_id, self.eos_id = layout, 9 if layout == "packed" else -1, 2


def test_padding_of_a_packed_source_is_no_target_and_nothing_is_expected_after_it() -> None:
    tokens = np.array([[1, 5, 2, 9, 9, 1], [1, 5, 2, 9, 9, 1]])
    item = {"tokens": tokens, "source": np.array([0, 1])}
    (found,) = split_targets([Packed("packed"), Packed("stream")])(iter([item]))  # type: ignore[list-item]
    assert found["targets"].tolist() == [[5, 2, IGNORE, IGNORE, IGNORE], [5, 2, 9, 9, 1]]
    assert found["inputs"].tolist() == tokens[:, :-1].tolist()


def test_the_target_of_a_full_row_of_a_packed_source_belongs_to_another_row() -> None:
    item = {"tokens": np.array([[1, 5, 6, 7]]), "source": np.array([0])}
    (found,) = split_targets([Packed("packed")])(iter([item]))  # type: ignore[list-item]
    assert found["targets"].tolist() == [[5, 6, IGNORE]]


def test_documents_are_marked_where_asked_for(sources: list[Source]) -> None:
    (found,) = items(sources, 1, document_mask=True)
    ends = (found["inputs"] == sources[0].manifest.eos_id).cumsum(-1)
    assert found["documents"].shape == found["inputs"].shape
    assert torch.equal(found["documents"][:, 1:].long(), ends[:, :-1])
    assert "documents" not in items(sources, 1)[0]


def test_split_targets_of_a_single_token_sequence(sources: list[Source]) -> None:
    item = {"tokens": np.array([[5, 6], [7, 8]]), "source": np.array([0, 1])}
    (found,) = split_targets(sources)(iter([item]))
    assert (found["inputs"].tolist(), found["targets"].tolist()) == ([[5], [7]], [[6], [8]])
