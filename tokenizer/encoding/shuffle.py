"""Seeded shuffle of a task's documents, window by window, in bounded memory.

    documents as read               0 1 2 3 4 5 6 7 8 9 …
    windows                        |0 1 2 3|4 5 6|7 8 9 …       each about 2^26 ids (256 MiB of text), or 2^22 documents
    documents as written            2 0 3 1 6 4 5 9 7 8 …

A window ends with the document that fills it, so windows depend on the documents alone. Ids are held in their stored type:
128 MiB a window, or 256 MiB for a vocabulary over 65,536.
"""

from array import array
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pretrain.errors import DataError

WINDOW_IDS = 1 << 26
WINDOW_DOCUMENTS = 1 << 22
BATCH_IDS = 1 << 20  # approximate ids per batch that `drain` yields
_CHUNK_IDS = 1 << 20

Batch = tuple[NDArray[np.unsignedinteger], NDArray[np.int64]]


def shuffled(n: int, seed: int) -> NDArray[np.int64]:
    """A permutation of 0 … n-1 (int64 [n]): positions sorted by their splitmix64 hash (Steele et al. 2014).

    Our own hash, since NumPy does not promise the same shuffle across versions, and the shards' bytes depend on it.
    """
    keys = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    keys += np.uint64((seed * 0xD1342543DE82EF95 + 0x632BE59BD9B4E019) % 2**64)
    order: NDArray[np.int64] = np.argsort(_mixed(keys), kind="stable")
    return order


def window_seed(seed: int, task: int, window: int) -> int:
    """Seed of one window, 64 bits, hashed so that seeds of neighbouring windows are unrelated."""
    mixed = seed
    for number in (task, window):
        start = (mixed + (number + 1) * 0x9E3779B97F4A7C15) % 2**64
        mixed = int(_mixed(np.array([start], dtype=np.uint64))[0])
    return mixed


def _mixed(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        keys = (keys ^ (keys >> np.uint64(shift))) * np.uint64(factor)
    return keys ^ (keys >> np.uint64(31))


class ShuffleWindow:
    """Documents waiting to be shuffled. Each is contiguous in one chunk of ids."""

    def __init__(self, vocab_size: int, dtype: str) -> None:
        self.vocab_size, self.dtype = vocab_size, np.dtype(dtype)
        self._clear()

    def _clear(self) -> None:
        self.ids = 0
        self._chunks: list[NDArray[np.unsignedinteger]] = []
        self._room = 0  # free ids at the end of the last chunk
        self._chunk_of, self._starts, self._lengths = array("I"), array("Q"), array("Q")

    def __len__(self) -> int:
        return len(self._lengths)

    @property
    def full(self) -> bool:
        """Whether it must be drained before the next document is added."""
        return self.ids >= WINDOW_IDS or len(self) >= WINDOW_DOCUMENTS

    def add(self, bos_id: int, ids: NDArray[np.integer], eos_id: int) -> None:
        """Append the document bos + `ids` [N] + eos; no bos if `bos_id` is -1.

        Raises DataError for an id outside the vocabulary, which the cast to the stored type would wrap.
        """
        if len(ids) and (ids.min() < 0 or ids.max() >= self.vocab_size):
            wrong = ids[(ids < 0) | (ids >= self.vocab_size)][0]
            raise DataError(f"token id {wrong} is not between 0 and vocab_size-1 = {self.vocab_size - 1}")
        begins = int(bos_id >= 0)
        length = begins + len(ids) + 1
        if length > self._room:
            self._chunks.append(np.empty(max(_CHUNK_IDS, length), self.dtype))
            self._room = len(self._chunks[-1])
        chunk = self._chunks[-1]
        start = len(chunk) - self._room
        if begins:
            chunk[start] = bos_id
        chunk[start + begins : start + length - 1] = ids
        chunk[start + length - 1] = eos_id
        self._room -= length
        self.ids += length
        self._chunk_of.append(len(self._chunks) - 1)
        self._starts.append(start)
        self._lengths.append(length)

    def drain(self, seed: int) -> Iterator[Batch]:
        """Yields all documents, shuffled, in batches (ids [N], lengths [documents] that sum to N); empties the window."""
        waiting: list[NDArray[np.unsignedinteger]] = []
        size = 0
        for position in shuffled(len(self), seed).tolist():
            start, length = self._starts[position], self._lengths[position]
            waiting.append(self._chunks[self._chunk_of[position]][start : start + length])
            size += length
            if size >= BATCH_IDS:
                yield _joined(waiting)
                waiting, size = [], 0
        if waiting:
            yield _joined(waiting)
        self._clear()


def _joined(documents: list[NDArray[np.unsignedinteger]]) -> Batch:
    return np.concatenate(documents), np.array([len(document) for document in documents], np.int64)
