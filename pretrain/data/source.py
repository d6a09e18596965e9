"""One tokenized corpus: sequence numbers → tokens, by random access to verified blocks.

    sequences 0 … N - 1     numbered in their order on disk
      → shard, block, row   arithmetic on the manifest's counts: in a shard every block but the last is full
      → ids of the block    blocks/block_reader.py, which reads a shard's index on first access
      → a row of the batch  a copy

Opening reads only the manifest and its table of shards, whatever the size of the corpus.
"""

from collections.abc import Mapping
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pretrain.config.schema import SourceConfig, StoreConfig
from pretrain.data.blocks.block_memory import BlockMemory
from pretrain.data.blocks.block_reader import LocalBlocks, RemoteBlocks
from pretrain.data.blocks.disk_cache import ShardCache
from pretrain.data.order import OrderedSource
from pretrain.errors import DataError, Together
from pretrain.shards.format import check_folder
from pretrain.shards.manifest import Manifest, fingerprint, last_blocks, unread_targets
from pretrain.shards.manifest_file import load_manifest
from pretrain.storage.store import LocalStore, Store, open_store

MANY_SHARDS = 4096

Place = NDArray[np.int64]
Pinned = tuple[list[int], list[int]]  # shards and blocks


class Source:
    """Sequences 0 … N - 1 of `seq_len` tokens (+ 1, the last target), in their order on disk.

    A sequence never crosses a block. A block of n tokens holds (n - 1) // seq_len of them; only a shard's last block may
    have a remainder, its tail. Training does not read tails (`dropped_tokens`); evaluation does (`read_tail`).
    """

    def __init__(self, name: str, config: SourceConfig, seq_len: int, store: StoreConfig | None = None) -> None:
        self.name, self.weight, self.seq_len = name, config.weight, seq_len
        self.store = open_store(config.path, store)
        self.address = self.folder = self.store.address
        self.manifest = load_manifest(self.store)
        self._check_seq_len()
        self._rows = self.manifest.block_tokens // seq_len  # sequences of a full block
        self._first = self._first_sequences()
        self._blocks = _open_blocks(self.store, self.manifest, store or StoreConfig())
        if len(self) == 0:
            raise DataError(
                f"data source {name} ({self.folder}) holds {self.manifest.tokens} tokens, fewer than one sequence of "
                f"data.seq_len={seq_len}",
                hint="use a smaller data.seq_len, or a larger corpus",
            )

    def __len__(self) -> int:
        return int(self._first[-1])

    @property
    def dropped_tokens(self) -> int:
        """Targets at the ends of shards that do not fill a sequence."""
        return unread_targets(self.manifest, self.seq_len)

    @cached_property
    def tails(self) -> NDArray[np.int64]:
        """Numbers of the shards that have a tail."""
        return np.flatnonzero(last_blocks(self.manifest) % self.seq_len)

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text per target, over the whole corpus."""
        return self.manifest.text_bytes / self.manifest.tokens

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the manifest, computed once: a manifest can have many shards."""
        return fingerprint(self.manifest)

    def ordered(self) -> OrderedSource:
        """The facts that the order depends on."""
        return OrderedSource(self.name, len(self), self.fingerprint)

    def check_shards(self) -> None:
        """Raise DataError with the shards and indexes that are missing from the folder or have the wrong size.

        One request to an object store. On a disk, sizes are not compared for very many shards: each takes a stat, and a
        shard's size is checked on first access anyway.
        """
        check_folder(self.store, self.manifest, thorough=len(self.manifest.shards) <= MANY_SHARDS)

    def place(self, sequence: int) -> tuple[str, int, int]:
        """Location of a sequence: shard file name, block number in it, row in the block."""
        shard, block, row = (int(part[0]) for part in self._locate(np.array([sequence])))
        return self.manifest.shards[shard].name, block, row

    def read(
        self, sequences: NDArray[np.int64], into: NDArray[np.int64], rows: NDArray[np.int64] | None = None
    ) -> None:
        """Copy the seq_len + 1 tokens of sequences[i] to row rows[i] of `into` (m, seq_len + 1); rows default to 0 … n - 1.

        Raises DataError if a block that holds one of them is missing or corrupt.
        """
        shards, blocks, starts = (part.tolist() for part in self._locate(sequences))
        tokens, length, seq_len = self._blocks.tokens, self.seq_len + 1, self.seq_len
        targets = range(len(shards)) if rows is None else rows.tolist()
        self._blocks.pin(shards, blocks, urgent=True)
        try:
            for shard, block, row, target in zip(shards, blocks, starts, targets, strict=True):
                start = row * seq_len
                into[target] = tokens(shard, block)[start : start + length]
        finally:
            self._blocks.unpin(shards, blocks)

    def read_tail(self, tail: int, into: NDArray[np.int64]) -> int:
        """Copy tail number `tail` to the beginning of `into`; returns its number of targets, one less than its tokens."""
        shard = int(self.tails[tail])
        block = int(self.manifest.shards.blocks[shard]) - 1
        self._blocks.pin([shard], [block], urgent=True)
        try:
            tokens = self._blocks.tokens(shard, block)
            targets = (len(tokens) - 1) % self.seq_len
            into[: targets + 1] = tokens[len(tokens) - 1 - targets :]
        finally:
            self._blocks.unpin([shard], [block])
        return targets

    @property
    def memory(self) -> BlockMemory | None:
        """Memory cache of fetched blocks; None for a corpus on a disk."""
        return self._blocks.memory if isinstance(self._blocks, RemoteBlocks) else None

    def pin(self, sequences: NDArray[np.int64]) -> Pinned:
        """Fetch the blocks of these sequences and keep them until `unpin` is called with the result."""
        shards, blocks, _ = (part.tolist() for part in self._locate(sequences))
        self._blocks.pin(shards, blocks)
        return shards, blocks

    def unpin(self, pinned: Pinned) -> None:
        """Undo a `pin`."""
        self._blocks.unpin(*pinned)

    def _locate(self, sequences: NDArray[np.int64]) -> tuple[Place, Place, Place]:
        """Shard, block in the shard, and row in the block of each sequence."""
        shard = np.searchsorted(self._first, sequences, side="right") - 1
        block, row = np.divmod(sequences - self._first[shard], self._rows)
        return shard, block, row

    def _first_sequences(self) -> NDArray[np.int64]:
        """Number of the first sequence of each shard, then the number of sequences."""
        full = self.manifest.shards.blocks - 1
        return np.concatenate([[0], np.cumsum(full * self._rows + last_blocks(self.manifest) // self.seq_len)])

    def _check_seq_len(self) -> None:
        block_tokens, packed = self.manifest.block_tokens, self.manifest.packed_seq_len
        if self.manifest.layout == "packed" and packed != self.seq_len:
            raise DataError(
                f"data.seq_len={self.seq_len}, and source {self.name} ({self.folder}) was packed for sequences of {packed}",
                hint=f"data.seq_len={packed}, or encode it again with --seq-len {self.seq_len}",
            )
        if block_tokens % self.seq_len:
            divisors = [n for n in (128, 256, 512, 1024, 2048, 4096, 8192, 16384) if block_tokens % n == 0]
            nearest = min(divisors, key=lambda n: abs(n - self.seq_len), default=block_tokens)
            raise DataError(
                f"data.seq_len={self.seq_len} does not divide the blocks of {block_tokens} tokens of source {self.name} "
                f"({self.folder})",
                hint=f"data.seq_len={nearest}",
            )


def open_sources(configs: Mapping[str, SourceConfig], seq_len: int, store: StoreConfig | None = None) -> list[Source]:
    """All sources of a section, sorted by name, so that the order does not depend on how the file lists them."""
    found, together = [], Together()
    for name in sorted(configs):
        with together.check():
            found.append(Source(name, configs[name], seq_len, store))
        if "://" in configs[name].path:
            together.raise_all()  # at once: a store that is down would be waited for once for each source
    together.raise_all()
    return found


def _open_blocks(store: Store, manifest: Manifest, config: StoreConfig) -> LocalBlocks | RemoteBlocks:
    if isinstance(store, LocalStore):
        return LocalBlocks(store, manifest)
    return RemoteBlocks(store, manifest, BlockMemory.of(config), ShardCache.of(config))
