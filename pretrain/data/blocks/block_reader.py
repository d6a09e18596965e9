"""Blocks of a corpus, checked: (shard, block) → the ids of its payload.

    local    the shard's memory map, each block checked at its first touch      a view, nothing is copied
    remote   memory, else the node's cache, else a range request to the store   memory.py, cache.py, store.py

A payload is held against the index's crc32 and against the vocabulary before anything reads a token of it, so that damage
on a disk or on the way is an error and never another token. An index is read and checked when its shard is first touched.
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
    """What a source keeps of its shards, until a `EvictionLimit` takes it."""


class EvictionLimit:
    """At most `limit` values in all `OpenShards` of a process; the one that came first goes first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._came: deque[tuple[weakref.ref[OpenShards], int]] = deque()
        self._lock = threading.Lock()

    def keep(self, kept: OpenShards, shard: int, value: Any) -> Any:
        """Put a value that `kept` does not have."""
        with self._lock:
            kept[shard] = value
            self._came.append((weakref.ref(kept), shard))
            while len(self._came) > self.limit:
                owner, number = self._came.popleft()
                found = owner()
                if found is not None:
                    found.pop(number, None)
        return value


MAPS = EvictionLimit(256)  # each holds a file descriptor, of which a process may often have 1,024
INDEXES = EvictionLimit(4096)  # some 32 kB each
_NUMBERS = itertools.count()  # of the remote sources of this process


class LocalBlocks:
    """Blocks of a folder. Each is checked once, at its first touch by this process.

    A shard that becomes shorter while it is mapped ends the process with SIGBUS: replace files by renaming.
    """

    def __init__(self, store: LocalStore, manifest: Manifest) -> None:
        self.store, self.manifest = store, manifest
        self._opened = OpenShards()
        self._checked: dict[int, tuple[tuple[int, ...], bytearray]] = {}
        self._lock = threading.Lock()

    def hold(self, shards: Sequence[int], blocks: Sequence[int], *, urgent: bool = False) -> None:
        """Nothing: the page cache decides."""

    def release(self, shards: Sequence[int], blocks: Sequence[int]) -> None:
        """Nothing: the page cache decides."""

    def tokens(self, shard: int, block: int) -> Ids:
        """The ids of a block, of the manifest's dtype. Raises DataError where it is missing or damaged."""
        opened = self._opened.get(shard)
        ids = None if opened is None else opened.ids.get(block)
        return self._first_touch(shard, block) if ids is None else ids

    def _first_touch(self, shard: int, block: int) -> Ids:
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
        # A map may go and come back: what was checked stays checked as long as the file is the same.
        if self._checked.get(shard, (None,))[0] != file:
            self._checked[shard] = file, bytearray(len(index))
        return _MappedShard(data, index, self._checked[shard][1])


class _MappedShard:
    def __init__(self, data: NDArray[np.uint8], index: NDArray[np.int64], checked: bytearray) -> None:
        self.data, self.index, self.checked = data, index, checked
        self.ids: dict[int, Ids] = {}


class RemoteBlocks:
    """Blocks of an object store. `tokens` wants them held; holding some that will be read later fetches them ahead."""

    def __init__(self, store: RemoteStore, manifest: Manifest, memory: BlockMemory, cache: ShardCache | None) -> None:
        self.store, self.manifest, self.memory, self.cache = store, manifest, memory, cache
        # Not the shard's hash: a manifest could claim that of another, whose blocks are in memory too.
        self._number = next(_NUMBERS)
        self._largest = (manifest.block_tokens + 1) * np.dtype(manifest.dtype).itemsize
        self._indexes = OpenShards()
        # One index is asked for once, however many of its blocks are wanted at the same time.
        self._locks = [threading.Lock() for _ in range(64)]

    def hold(self, shards: Sequence[int], blocks: Sequence[int], *, urgent: bool = False) -> None:
        """Have blocks fetched, and keep them until `release`; one that is named twice is held twice."""
        for shard, block in zip(shards, blocks, strict=True):
            self.memory.hold(self._block(shard, block), URGENT if urgent else AHEAD)

    def release(self, shards: Sequence[int], blocks: Sequence[int]) -> None:
        """Undo a `hold` of the same blocks."""
        for shard, block in zip(shards, blocks, strict=True):
            self.memory.release(self._key(shard, block))

    def tokens(self, shard: int, block: int) -> Ids:
        """The ids of a block that is held, of the manifest's dtype. Raises DataError where they cannot be had whole."""
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
            # An index has no hash of its own: if it came damaged, no payload fits it.
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
    """Raise DataError unless a payload has this crc32 and all its ids are in the vocabulary."""
    hint = "`pretrain data verify` lists all damage; copy the shard again, or encode the corpus again"
    if zlib.crc32(payload.data) != crc32:
        raise DataError(f"{where}: damaged: its crc32 is not the index's", hint=hint)
    largest = int(payload.view(manifest.dtype).max())
    if largest >= manifest.vocab_size:
        raise DataError(f"{where}: holds id {largest}, and the vocabulary has {manifest.vocab_size}", hint=hint)
