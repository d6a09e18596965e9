"""Verified blocks of a corpus: (shard, block) → ids of its payload.

    local    memory map of the shard; each block is checked on first access    a view, no copy
    remote   memory, else the node's disk cache, else a range request          block_memory.py, disk_cache.py, storage/store.py

The crc32 of the index and the vocabulary are checked before a token is read, so corruption on a disk or in transit is an
error and never another token. An index is read and checked when its shard is first accessed.
"""

import itertools
import threading
import weakref
import zlib
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain.data.blocks.block_memory import AHEAD, URGENT, BlockMemory, CachedBlock
from pretrain.data.blocks.disk_cache import ShardCache
from pretrain.errors import DataError
from pretrain.shards.format import read_index
from pretrain.shards.manifest import Manifest
from pretrain.storage.store import LocalStore, RemoteStore

Ids = NDArray[Any]  # of the manifest's dtype


class OpenShards(dict[int, Any]):
    """Open shards of one source; evicted by the shared `EvictionLimit`."""


class EvictionLimit:
    """At most `limit` values in all `OpenShards` of a process; first in, first evicted."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._added: deque[tuple[weakref.ref[OpenShards], int]] = deque()
        self._lock = threading.Lock()

    def keep(self, kept: OpenShards, shard: int, value: Any) -> Any:
        """Add a value to `kept`, evicting the oldest above the limit."""
        with self._lock:
            kept[shard] = value
            self._added.append((weakref.ref(kept), shard))
            while len(self._added) > self.limit:
                owner, number = self._added.popleft()
                found = owner()
                if found is not None:
                    found.pop(number, None)
        return value


MAPS = EvictionLimit(256)  # a map holds a file descriptor; the usual limit is 1,024 a process
INDEXES = EvictionLimit(4096)  # about 32 kB each
_NUMBERS = itertools.count()  # of the remote sources of this process


class LocalBlocks:
    """Blocks of a local folder, each checked once per process, on first access.

    A shard that is truncated while it is mapped ends the process with SIGBUS: replace files by renaming.
    """

    def __init__(self, store: LocalStore, manifest: Manifest) -> None:
        self.store, self.manifest = store, manifest
        self._opened = OpenShards()
        self._checked: dict[int, tuple[tuple[int, ...], bytearray]] = {}
        self._lock = threading.Lock()

    def pin(self, shards: Sequence[int], blocks: Sequence[int], *, urgent: bool = False) -> None:
        """Do nothing: the page cache decides."""

    def unpin(self, shards: Sequence[int], blocks: Sequence[int]) -> None:
        """Do nothing: the page cache decides."""

    def tokens(self, shard: int, block: int) -> Ids:
        """Ids of a block, in the manifest's dtype. Raises DataError if it is missing or corrupt."""
        opened = self._opened.get(shard)
        ids = None if opened is None else opened.ids.get(block)
        return self._first_access(shard, block) if ids is None else ids

    def _first_access(self, shard: int, block: int) -> Ids:
        with self._lock:
            opened: _MappedShard = self._opened.get(shard) or MAPS.keep(self._opened, shard, self._open(shard))
            offset, tokens, _, crc32 = opened.index[block].tolist()
            payload = opened.data[offset : offset + tokens * np.dtype(self.manifest.dtype).itemsize]
            if not opened.checked[block]:
                where = f"{self.store.address}/{self.manifest.shards[shard].name}"
                check_block(payload, crc32, self.manifest, f"{where}: block {block} at offset {offset}")
                opened.checked[block] = 1
            return opened.ids.setdefault(block, payload.view(self.manifest.dtype))

    def _open(self, shard: int) -> "_MappedShard":
        entry = self.manifest.shards[shard]
        path = self.store.folder / entry.name
        size = self.store.size(entry.name)
        if size != entry.bytes:
            raise DataError(
                f"{path}: {size} bytes, the manifest says {entry.bytes}",
                hint="copy it again, or encode the corpus again",
            )
        index = read_index(self.store, entry, self.manifest.dtype, block_tokens=self.manifest.block_tokens)
        try:
            data = np.memmap(path, np.uint8, "r", shape=(size,))
            found = path.stat()
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None
        file = found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
        # An evicted map may be opened again: blocks stay checked as long as the file is the same.
        if self._checked.get(shard, (None,))[0] != file:
            self._checked[shard] = file, bytearray(len(index))
        return _MappedShard(data, index, self._checked[shard][1])


class _MappedShard:
    def __init__(self, data: NDArray[np.uint8], index: NDArray[np.int64], checked: bytearray) -> None:
        self.data, self.index, self.checked = data, index, checked
        self.ids: dict[int, Ids] = {}


class RemoteBlocks:
    """Blocks of an object store. `tokens` needs them pinned; pinning ahead prefetches."""

    def __init__(self, store: RemoteStore, manifest: Manifest, memory: BlockMemory, cache: ShardCache | None) -> None:
        self.store, self.manifest, self.memory, self.cache = store, manifest, memory, cache
        # Not the shard's hash: a manifest could claim the hash of another shard, whose blocks are in memory too.
        self._number = next(_NUMBERS)
        self._largest = (manifest.block_tokens + 1) * np.dtype(manifest.dtype).itemsize
        self._indexes = OpenShards()
        # An index is requested once, even if many of its blocks are needed at the same time.
        self._locks = [threading.Lock() for _ in range(64)]

    def pin(self, shards: Sequence[int], blocks: Sequence[int], *, urgent: bool = False) -> None:
        """Fetch blocks and keep them until `unpin`; a block named twice is pinned twice."""
        for shard, block in zip(shards, blocks, strict=True):
            self.memory.pin(self._block(shard, block), URGENT if urgent else AHEAD)

    def unpin(self, shards: Sequence[int], blocks: Sequence[int]) -> None:
        """Undo a `pin` of the same blocks."""
        for shard, block in zip(shards, blocks, strict=True):
            self.memory.unpin(self._key(shard, block))

    def tokens(self, shard: int, block: int) -> Ids:
        """Ids of a pinned block, in the manifest's dtype. Raises DataError if it cannot be fetched intact."""
        return self.memory.get(self._block(shard, block))

    def _key(self, shard: int, block: int) -> tuple[int, int, int]:
        return self._number, shard, block

    def _block(self, shard: int, block: int) -> CachedBlock:
        return CachedBlock(self._key(shard, block), self._largest, lambda: self._fetch(shard, block))

    def _fetch(self, shard: int, block: int) -> Ids:
        index = self._index(shard)
        try:
            return self._read(shard, block, *index[block].tolist())
        except DataError as error:
            # An index has no hash of its own: if it arrived corrupt, no payload matches it.
            if not isinstance(error.__cause__, DataError):
                raise
            self._indexes.pop(shard, None)
            again = self._index(shard)
            if np.array_equal(again, index):
                raise
        return self._read(shard, block, *again[block].tolist())

    def _read(self, shard: int, block: int, offset: int, tokens: int, documents: int, crc32: int) -> Ids:
        entry = self.manifest.shards[shard]
        length = tokens * np.dtype(self.manifest.dtype).itemsize

        def parse(data: bytes) -> Ids:
            payload = np.frombuffer(data, np.uint8)
            check_block(
                payload, crc32, self.manifest, f"{self.store.address}/{entry.name}: block {block} at offset {offset}"
            )
            return payload.view(self.manifest.dtype)

        found: Ids | None = self.cache.read(entry.sha256, offset, length, parse) if self.cache else None
        if found is not None:
            return found
        ids: Ids = self.store.read_range(entry.name, offset, length, parse)
        if self.cache:
            self.cache.write(entry.sha256, offset, ids.tobytes())
        return ids

    def _index(self, shard: int) -> NDArray[np.int64]:
        with self._locks[shard % len(self._locks)]:
            index: NDArray[np.int64] | None = self._indexes.get(shard)
            if index is None:
                entry, block_tokens = self.manifest.shards[shard], self.manifest.block_tokens
                index = read_index(self.store, entry, self.manifest.dtype, block_tokens=block_tokens)
                INDEXES.keep(self._indexes, shard, index)
            return index


def check_block(payload: NDArray[np.uint8], crc32: int, manifest: Manifest, where: str) -> None:
    """Raise DataError unless a payload has this crc32 and only ids of the vocabulary."""
    hint = "`pretrain data verify` lists all corrupt blocks; copy the shard again, or encode the corpus again"
    if zlib.crc32(payload.data) != crc32:
        raise DataError(f"{where}: corrupt: its crc32 is not the one in the index", hint=hint)
    largest = int(payload.view(manifest.dtype).max())
    if largest >= manifest.vocab_size:
        raise DataError(f"{where}: holds id {largest}, and the vocabulary has {manifest.vocab_size}", hint=hint)
