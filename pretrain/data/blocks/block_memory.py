"""Blocks of remote sources in memory, and the threads that fetch them.

hold     the block is fetched if it is not there, and stays
get      its ids, waiting for them
release  as often as held: then it may go, least recently used first, when there is more than `limit_bytes`
"""

import itertools
import queue
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, ClassVar, NamedTuple

from numpy.typing import NDArray

from pretrain.config.schema import StoreConfig

Key = tuple[int, int, int]
URGENT, AHEAD = 0, 1  # what is read now is fetched before what will be read


class CachedBlock(NamedTuple):
    """A block as the memory knows it: source, shard and block by number, its bytes, and how to get it."""

    key: Key
    size: int
    fetch: Callable[[], NDArray[Any]]


class _Entry:
    def __init__(self, size: int) -> None:
        self.size, self.holds = size, 0
        self.ids: Future[NDArray[Any]] = Future()


class BlockMemory:
    """At most `limit_bytes` of blocks, or as many as are held; fetched by `connections` threads. Safe to share by threads."""

    _of_process: ClassVar[weakref.WeakValueDictionary[tuple[int, int], "BlockMemory"]] = weakref.WeakValueDictionary()

    def __init__(self, limit_bytes: int, connections: int) -> None:
        self.limit_bytes, self.connections = limit_bytes, connections
        self._held: dict[Key, _Entry] = {}
        self._idle: OrderedDict[Key, _Entry] = OrderedDict()  # whole blocks, least recently used first
        self._held_bytes = self._idle_bytes = 0
        self._lock = threading.Lock()
        self._threads = 0
        self._numbers = itertools.count()
        self._requests: queue.PriorityQueue[Any] = queue.PriorityQueue()
        weakref.finalize(self, _stop, self._requests, connections).atexit = False

    @classmethod
    def of(cls, config: StoreConfig) -> "BlockMemory":
        """The one that all sources of this process share, as long as any of them lives."""
        limits = config.memory_mib << 20, config.connections
        return cls._of_process.setdefault(limits, cls(*limits))

    @property
    def has_room(self) -> bool:
        """Whether more can be held within the limit."""
        return self._held_bytes < self.limit_bytes

    def hold(self, block: CachedBlock, priority: int = AHEAD) -> None:
        """Keep a block, and have it fetched if it is neither there nor on its way."""
        with self._lock:
            entry = self._held.get(block.key)
            if entry is None:
                entry = self._idle.pop(block.key, None)
                if entry is None:
                    entry = _Entry(block.size)
                    self._request(entry, block, priority)
                else:
                    self._idle_bytes -= entry.size
                self._held[block.key] = entry
                self._held_bytes += entry.size
                self._trim()
            entry.holds += 1

    def get(self, block: CachedBlock) -> NDArray[Any]:
        """The ids of a block that is held. Raises DataError where they cannot be had."""
        with self._lock:
            entry = self._held[block.key]
            if entry.ids.done() and entry.ids.exception() is not None:  # while nobody needed it: the store may be back
                entry.ids = Future()
                self._request(entry, block, URGENT)
        return entry.ids.result()

    def release(self, key: Key) -> None:
        """Undo one `hold`."""
        with self._lock:
            entry = self._held[key]
            entry.holds -= 1
            if entry.holds:
                return
            del self._held[key]
            self._held_bytes -= entry.size
            # What has not begun is not fetched any more; what is on its way arrives for nobody.
            if not entry.ids.cancel() and entry.ids.done() and entry.ids.exception() is None:
                self._idle[key] = entry
                self._idle_bytes += entry.size
                self._trim()

    def _request(self, entry: _Entry, block: CachedBlock, priority: int) -> None:
        self._requests.put((priority, next(self._numbers), entry.ids, block.fetch))
        if self._threads < self.connections:
            self._threads += 1
            threading.Thread(target=_work, args=(self._requests,), name="fetch-block", daemon=True).start()

    def _trim(self) -> None:
        while self._idle and self._held_bytes + self._idle_bytes > self.limit_bytes:
            _, entry = self._idle.popitem(last=False)
            self._idle_bytes -= entry.size


def _work(requests: queue.PriorityQueue[Any]) -> None:
    """Fetch until told to stop. A daemon thread that knows the queue alone: it keeps no memory and no process alive."""
    while (request := requests.get())[2] is not None:
        _, _, ids, fetch = request
        if ids.set_running_or_notify_cancel():
            try:
                ids.set_result(fetch())
            except BaseException as error:
                ids.set_exception(error)
        del request, ids, fetch


def _stop(requests: queue.PriorityQueue[Any], threads: int) -> None:
    for number in range(threads):
        requests.put((-1, number, None, None))
