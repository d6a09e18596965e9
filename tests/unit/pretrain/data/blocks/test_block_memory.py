import gc
import threading
import weakref
from collections.abc import Callable

import numpy as np
import pytest

from pretrain.config.schema import StoreConfig
from pretrain.data.blocks.block_memory import AHEAD, URGENT, BlockMemory, CachedBlock
from pretrain.errors import DataError


class Store:
    """Numbers as blocks of 10 bytes; counts what is fetched, and holds everything back until `open` is set."""

    def __init__(self) -> None:
        self.fetched: list[int] = []
        self.broken: set[int] = set()
        self.open = threading.Event()
        self.open.set()

    def block(self, number: int) -> CachedBlock:
        return CachedBlock((0, 0, number), 10, lambda: self.fetch(number))

    def fetch(self, number: int) -> np.ndarray:
        self.open.wait(60)
        self.fetched.append(number)
        if number in self.broken:
            raise DataError(f"block {number} is gone")
        return np.full(5, number)


@pytest.fixture
def store() -> Store:
    return Store()


def read(memory: BlockMemory, store: Store, *numbers: int) -> list[int]:
    """Hold, get and release; what the blocks said."""
    for number in numbers:
        memory.pin(store.block(number))
    found = [int(memory.get(store.block(number))[0]) for number in numbers]
    for number in numbers:
        memory.unpin(store.block(number).key)
    return found


def used(memory: BlockMemory) -> int:
    return memory._pinned_bytes + memory._idle_bytes


def test_a_block_is_fetched_once_while_there_is_room(store: Store) -> None:
    memory = BlockMemory(100, connections=2)
    assert read(memory, store, 1, 2, 1) == [1, 2, 1]
    assert read(memory, store, 2, 1) == [2, 1]
    assert sorted(store.fetched) == [1, 2]
    assert used(memory) == 20


def test_the_block_used_longest_ago_goes_first(store: Store) -> None:
    memory = BlockMemory(30, connections=1)
    for number in (1, 2, 3, 1, 4):  # 4 takes the room of 2
        read(memory, store, number)
    store.fetched.clear()
    for number in (1, 3, 4):
        read(memory, store, number)
    assert store.fetched == []
    read(memory, store, 2)
    assert store.fetched == [2]
    assert used(memory) == 30


def test_held_blocks_stay_whatever_the_limit(store: Store) -> None:
    memory = BlockMemory(20, connections=2)
    assert memory.has_room
    for number in range(5):
        memory.pin(store.block(number))
    assert not memory.has_room
    assert [int(memory.get(store.block(number))[0]) for number in range(5)] == list(range(5))
    read(memory, store, 9)
    assert [int(memory.get(store.block(number))[0]) for number in range(5)] == list(range(5))
    assert sorted(store.fetched) == [0, 1, 2, 3, 4, 9]
    for number in range(5):
        memory.unpin(store.block(number).key)
    assert memory.has_room
    assert used(memory) == 20


def test_a_block_held_twice_stays_until_it_is_released_twice(store: Store) -> None:
    memory = BlockMemory(0, connections=1)
    memory.pin(store.block(1))
    memory.pin(store.block(1))
    memory.unpin(store.block(1).key)
    assert int(memory.get(store.block(1))[0]) == 1
    assert not memory.has_room
    memory.unpin(store.block(1).key)
    assert used(memory) == 0
    assert store.fetched == [1]


def test_blocks_come_in_the_order_of_need_and_what_is_read_now_first(store: Store) -> None:
    memory = BlockMemory(1000, connections=1)
    store.open.clear()
    for number in (1, 2, 3):
        memory.pin(store.block(number), AHEAD)
    while memory._requests.qsize() == 3:  # until 1 is on its way
        pass
    memory.pin(store.block(9), URGENT)
    store.open.set()
    for number in (1, 2, 3, 9):
        memory.get(store.block(number))
    assert store.fetched == [1, 9, 2, 3]


def test_an_error_surfaces_when_the_block_is_needed_and_only_then(store: Store) -> None:
    memory = BlockMemory(1000, connections=1)
    store.broken = {2}
    for number in (1, 2, 3):
        memory.pin(store.block(number))
    assert int(memory.get(store.block(1))[0]) == 1
    assert int(memory.get(store.block(3))[0]) == 3
    with pytest.raises(DataError, match="block 2 is gone"):
        memory.get(store.block(2))
    for number in (1, 2, 3):
        memory.unpin(store.block(number).key)
    assert used(memory) == 20  # a failure is not kept
    store.broken.clear()
    assert read(memory, store, 2) == [2]


def test_a_block_that_failed_ahead_is_asked_for_again_when_it_is_needed(store: Store) -> None:
    memory = BlockMemory(1000, connections=1)
    store.broken = {2}
    memory.pin(store.block(2))
    memory.pin(store.block(3))
    memory.get(store.block(3))  # 2 has failed by now
    store.broken.clear()
    assert int(memory.get(store.block(2))[0]) == 2
    assert store.fetched == [2, 3, 2]


def test_what_nobody_wants_any_more_is_not_fetched(store: Store) -> None:
    memory = BlockMemory(1000, connections=1)
    store.open.clear()
    for number in (1, 2, 3):
        memory.pin(store.block(number))
    while memory._requests.qsize() == 3:
        pass
    for number in (1, 2):
        memory.unpin(store.block(number).key)
    store.open.set()
    memory.get(store.block(3))
    assert store.fetched == [1, 3]
    assert read(memory, store, 2) == [2]


@pytest.mark.parametrize("connections", [1, 3])
def test_no_more_requests_at_a_time_than_connections(connections: int) -> None:
    memory, running, most, lock = BlockMemory(1000, connections), 0, 0, threading.Lock()
    full = threading.Event()

    def fetch() -> np.ndarray:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            if running == connections:
                full.set()
        full.wait(60)
        with lock:
            running -= 1
        return np.zeros(1)

    blocks = [CachedBlock((0, 0, number), 1, fetch) for number in range(12)]
    for block in blocks:
        memory.pin(block)
    for block in blocks:
        memory.get(block)
    assert most == connections


def test_many_threads_share_it(store: Store) -> None:
    memory, wrong = BlockMemory(60, connections=4), []

    def run(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(200):
            wanted = rng.integers(0, 20, 3).tolist()
            if read(memory, store, *wanted) != wanted:
                wrong.append(wanted)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert memory._pinned == {}
    assert memory._pinned_bytes == 0
    assert used(memory) <= 60


def wait_for(condition: Callable[[], bool]) -> bool:
    for _ in range(1000):
        if condition():
            return True
        threading.Event().wait(0.01)
    return False


def test_sources_of_a_process_share_one_as_long_as_any_lives() -> None:
    config = StoreConfig(memory_mib=3, connections=2)
    one = BlockMemory.of(config)
    assert BlockMemory.of(StoreConfig(memory_mib=3, connections=2, attempts=9)) is one
    assert BlockMemory.of(StoreConfig(memory_mib=4, connections=2)) is not one
    assert one.limit_bytes == 3 << 20
    gone = weakref.ref(one)
    del one
    gc.collect()
    assert gone() is None


def test_its_threads_end_with_it(store: Store) -> None:
    before = set(threading.enumerate())
    memory = BlockMemory(1000, connections=3)
    read(memory, store, *range(8))
    started = set(threading.enumerate()) - before
    assert 1 <= len(started) <= 3
    del memory
    gc.collect()
    assert wait_for(lambda: not any(thread.is_alive() for thread in started))
