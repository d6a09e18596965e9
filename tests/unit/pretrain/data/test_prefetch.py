from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pretrain.config.schema import SourceConfig
from pretrain.data import prefetch as ahead
from pretrain.data.blocks.block_memory import BlockMemory
from pretrain.data.prefetch import Item, fetch_ahead
from pretrain.data.source import Source
from pretrain.errors import DataError
from tests.support.shards import write_corpus
from tests.support.stores import FaultyStore, fails, upload
from tests.support.stores import memory_address_fixture as memory_address_fixture
from tests.support.stores import no_waits_fixture as no_waits_fixture

T = 8
BLOCK_BYTES = 65 * 2


@pytest.fixture
def sources(
    tmp_path: Path, memory_address: str, no_waits: None, monkeypatch: pytest.MonkeyPatch
) -> tuple[Source, Source]:
    """A corpus of 40 blocks of 8 sequences in a store, and one on a disk."""
    write_corpus(tmp_path / "remote", 40 * 64 + 1)
    write_corpus(tmp_path / "local", 500)
    upload(tmp_path / "remote", memory_address)
    monkeypatch.setattr("pretrain.storage.store.RemoteStore", FaultyStore)
    remote = Source("remote", SourceConfig(memory_address), T)
    return remote, Source("local", SourceConfig(str(tmp_path / "local")), T)


def limit(remote: Source, blocks: int) -> BlockMemory:
    remote._blocks.memory = BlockMemory(blocks * BLOCK_BYTES, connections=2)
    return remote._blocks.memory


def plan(sequences: np.ndarray, batch: int = 4, taken: list[int] | None = None) -> Iterator[Item]:
    """Items of remote sequences, and one of the local source in each."""
    for number, start in enumerate(range(0, len(sequences), batch)):
        if taken is not None:
            taken.append(number)
        numbers = np.concatenate([sequences[start : start + batch], [number % 60]])
        yield {"source": np.array([0] * batch + [1]), "sequence": numbers, "number": number}


def consume(sources: tuple[Source, Source], items: Iterator[Item]) -> list[list[list[int]]]:
    found = []
    for item in fetch_ahead(sources)(items):
        tokens = np.zeros((len(item["source"]), T + 1), np.int64)
        for number in (0, 1):
            rows = np.flatnonzero(item["source"] == number)
            sources[number].read(item["sequence"][rows], tokens, rows)
        found.append(tokens.tolist())
    return found


def payloads(remote: Source) -> list[tuple[str, int]]:
    return [(name, start) for name, start, _ in remote.store.requests if name.endswith(".tar")]


def test_sources_on_disks_need_nothing(sources: tuple[Source, Source]) -> None:
    items = plan(np.arange(8))
    assert fetch_ahead(sources[1:])(items) is items


@pytest.mark.parametrize("memory_blocks", [0, 1, 3, 20, 1000])
def test_items_come_in_order_with_their_tokens(sources: tuple[Source, Source], memory_blocks: int) -> None:
    memory = limit(sources[0], memory_blocks)
    sequences = np.random.default_rng(0).permutation(320)
    found = consume(sources, plan(sequences))
    for number, rows in enumerate(found):
        starts = [*(sequences[4 * number : 4 * number + 4] * T), number % 60 * T]
        assert rows == [[token % 1000 for token in range(start, start + T + 1)] for start in starts]
    assert len(found) == 80
    assert memory._pinned == {}


def test_a_block_is_fetched_once_while_its_sequences_are_planned(sources: tuple[Source, Source]) -> None:
    limit(sources[0], 8)
    # 5 lanes, each in a block of its own: 8 sequences a block, so each block serves 8 items.
    lanes = np.arange(5)[None, :] * 64 + np.arange(64)[:, None]
    consume(sources, plan(lanes.ravel(), batch=5))
    assert len(payloads(sources[0])) == len(set(payloads(sources[0]))) == 40


def test_the_window_is_as_long_as_memory_allows(sources: tuple[Source, Source]) -> None:
    taken: list[int] = []
    memory = limit(sources[0], 6)
    items = fetch_ahead(sources)(plan(np.arange(320), taken=taken))
    for _ in range(20):
        next(items)
        assert memory._pinned_bytes <= 6 * BLOCK_BYTES
    # 2 items a block: item 19 ends a block, 4 blocks follow whole, and the first item of the next one ends it.
    assert taken == list(range(20 + 2 * 4 + 1))
    items.close()
    assert memory._pinned == {}


def test_the_first_item_does_not_wait_for_a_whole_window(sources: tuple[Source, Source]) -> None:
    taken: list[int] = []
    limit(sources[0], 1000)
    next(fetch_ahead(sources)(plan(np.arange(320), taken=taken)))
    assert len(taken) == ahead.STRIDE


def test_an_endless_order_over_a_small_corpus_is_not_planned_for_ever(
    sources: tuple[Source, Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "LONGEST", 50)
    taken: list[int] = []
    limit(sources[0], 1000)
    items = fetch_ahead(sources)(plan(np.arange(100_000) % 16, taken=taken))
    for _ in range(100):
        next(items)
    assert len(taken) <= 100 + 10


def test_an_error_surfaces_at_the_item_that_needs_the_block(sources: tuple[Source, Source]) -> None:
    limit(sources[0], 1000)
    sources[0].store.always = lambda name, start: fails(OSError("gone")) if name == "shard-000002.tar" else None
    items, tokens = fetch_ahead(sources)(plan(np.arange(320))), np.zeros((4, T + 1), np.int64)
    for item in items:
        needed = any(sources[0].place(sequence)[0] == "shard-000002.tar" for sequence in item["sequence"][:4].tolist())
        if needed:
            break
        sources[0].read(item["sequence"][:4], tokens)
    assert item["number"] == 12  # 6 blocks of 8 sequences are in the shards before
    with pytest.raises(DataError, match=r"shard-000002\.tar"):
        sources[0].read(item["sequence"][:4], tokens)


def test_blocks_stay_until_the_item_was_used(sources: tuple[Source, Source]) -> None:
    limit(sources[0], 0)
    for item in fetch_ahead(sources)(plan(np.arange(64))):
        for _ in range(3):
            sources[0].read(item["sequence"][:4], np.zeros((4, T + 1), np.int64))
    assert len(payloads(sources[0])) == len(set(payloads(sources[0]))) * 2  # 2 items a block, and no memory in between


def test_it_can_be_left_at_any_time(sources: tuple[Source, Source]) -> None:
    memory = limit(sources[0], 10)
    for count in (0, 1, 7):
        items = fetch_ahead(sources)(plan(np.arange(320)))
        for _ in range(count):
            next(items)
        del items
        assert memory._pinned == {}
