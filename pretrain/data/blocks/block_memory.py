"""Blocks of remote sources in memory, and the threads that fetch them.

pin      fetch a block unless it is there, and keep it
get      wait for its ids
unpin    once for each pin; then it may be evicted, least recently used first, above `limit_bytes`
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
URGENT, AHEAD = 0, 1  # a block that is read now is fetched before one that will be


class CachedBlock(NamedTuple):
    """A block in memory: (source, shard, block) numbers, size in bytes, and a function that fetches it."""

    key: Key
    size: int
    fetch: Callable[[], NDArray[Any]]


class _Entry:
    def __init__(self, size: int) -> None:
        self.size, self.pins = size, 0
        self.ids: Future[NDArray[Any]] = Future()


class BlockMemory:
    """Cache of fetched blocks, `limit_bytes` or all pinned ones; `connections` threads fetch. Thread-safe."""

    _of_process: ClassVar[weakref.WeakValueDictionary[tuple[int, int], "BlockMemory"]] = weakref.WeakValueDictionary()

    def __init__(self, limit_bytes: int, connections: int) -> None:
        self.limit_bytes, self.connections = limit_bytes, connections
        self._pinned: dict[Key, _Entry] = {}
        self._idle: OrderedDict[Key, _Entry] = OrderedDict()  # complete blocks, least recently used first
        self._pinned_bytes = self._idle_bytes = 0
        self._lock = threading.Lock()
        self._threads = 0
        self._numbers = itertools.count()
        self._requests: queue.PriorityQueue[Any] = queue.PriorityQueue()
        weakref.finalize(self, _stop, self._requests, connections).atexit = False

    @classmethod
    def of(cls, config: StoreConfig) -> "BlockMemory":
        """The instance that all sources of this process share, as long as one of them exists."""
        limits = config.memory_mib << 20, config.connections
        return cls._of_process.setdefault(limits, cls(*limits))

    @property
    def has_room(self) -> bool:
        """Whether more can be pinned within the limit."""
        return self._pinned_bytes < self.limit_bytes

    def pin(self, block: CachedBlock, priority: int = AHEAD) -> None:
        """Pin a block; request it unless it is there or in flight."""
        with self._lock:
            entry = self._pinned.get(block.key)
            if entry is None:
                entry = self._idle.pop(block.key, None)
                if entry is None:
                    entry = _Entry(block.size)
                    self._request(entry, block, priority)
                else:
                    self._idle_bytes -= entry.size
                self._pinned[block.key] = entry
                self._pinned_bytes += entry.size
                self._trim()
            entry.pins += 1

    def get(self, block: CachedBlock) -> NDArray[Any]:
        """Ids of a pinned block. Raises DataError if they cannot be fetched."""
        with self._lock:
            entry = self._pinned[block.key]
            if entry.ids.done() and entry.ids.exception() is not None:  # of a prefetch: retry now
                entry.ids = Future()
                self._request(entry, block, URGENT)
        return entry.ids.result()

    def unpin(self, key: Key) -> None:
        """Undo one `pin`."""
        with self._lock:
            entry = self._pinned[key]
            entry.pins -= 1
            if entry.pins:
                return
            del self._pinned[key]
            self._pinned_bytes -= entry.size
            # A request that has not begun is cancelled; the result of one in flight is dropped.
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
        while self._idle and self._pinned_bytes + self._idle_bytes > self.limit_bytes:
            _, entry = self._idle.popitem(last=False)
            self._idle_bytes -= entry.size


def _work(requests: queue.PriorityQueue[Any]) -> None:
    """Fetch until told to stop. A daemon thread that references only the queue keeps neither memory nor process alive."""
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
