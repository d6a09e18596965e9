"""One tokenized corpus, opened for reading: sequence number → tokens, by memory-mapped random access."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pretrain.config.schema import SourceConfig
from pretrain.data.manifest import Manifest, fingerprint, read_manifest
from pretrain.data.order import OrderedSource
from pretrain.data.shards import OFFSET, TOKENS, check_shards, read_index
from pretrain.errors import DataError


class Source:
    """Sequences 0 … N - 1 of `seq_len` tokens (+ 1, the last target), in the order in which they lie on disk.

    A sequence never crosses a block. A block of n tokens holds (n - 1) // seq_len of them; only a corpus' last block may
    have a remainder, which is not read (`dropped_tokens`).
    """

    def __init__(self, name: str, config: SourceConfig, seq_len: int) -> None:
        self.name, self.weight, self.seq_len = name, config.weight, seq_len
        self.folder = Path(config.path)
        self.manifest = _read_checked(name, self.folder, seq_len)
        self.dtype = np.dtype(self.manifest.dtype)
        indexes = [read_index(self.folder, entry, self.manifest.dtype) for entry in self.manifest.shards]
        rows = np.concatenate(indexes)
        self._shard = np.repeat(np.arange(len(indexes)), [len(index) for index in indexes])
        self._offset = rows[:, OFFSET]
        self._first = np.concatenate([[0], np.cumsum((rows[:, TOKENS] - 1) // seq_len)])
        self._maps: dict[int, np.memmap] = {}
        if len(self) == 0:
            raise DataError(
                f"data source {name} ({self.folder}) holds {self.manifest.tokens} tokens, fewer than one sequence of "
                f"data.seq_len={seq_len}",
                hint="a smaller data.seq_len, or a larger corpus",
            )

    def __len__(self) -> int:
        return int(self._first[-1])

    @property
    def dropped_tokens(self) -> int:
        """Targets at the end of the corpus that fill no whole sequence."""
        return self.manifest.tokens - len(self) * self.seq_len

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text per target, over the whole corpus."""
        return self.manifest.text_bytes / self.manifest.tokens

    def ordered(self) -> OrderedSource:
        """What the order needs to know."""
        return OrderedSource(self.name, self.weight, len(self), fingerprint(self.manifest))

    def place(self, sequence: int) -> tuple[str, int, int]:
        """Where a sequence lies: the shard's file name, the block's number in it, the row in the block."""
        block = self._block(sequence)
        shard = int(self._shard[block])
        first_block = int(np.searchsorted(self._shard, shard))
        return self.manifest.shards[shard].name, block - first_block, sequence - int(self._first[block])

    def _block(self, sequence: int) -> int:
        return int(np.searchsorted(self._first, sequence, side="right")) - 1

    def read(self, sequence: int, into: np.ndarray) -> None:
        """Copy the seq_len + 1 tokens of a sequence. Raises DataError for an id outside the vocabulary."""
        block = self._block(sequence)
        start = int(self._offset[block]) + (sequence - int(self._first[block])) * self.seq_len * self.dtype.itemsize
        stop = start + (self.seq_len + 1) * self.dtype.itemsize
        tokens = self._map(int(self._shard[block]))[start:stop].view(self.dtype)
        if int(tokens.max()) >= self.manifest.vocab_size:
            raise DataError(
                f"{self.folder}: sequence {sequence} holds id {int(tokens.max())}, and the vocabulary has "
                f"{self.manifest.vocab_size}",
                hint="the shard is damaged: encode the corpus again",
            )
        into[:] = tokens

    def _map(self, shard: int) -> np.memmap:
        if shard not in self._maps:
            self._maps[shard] = np.memmap(self.folder / self.manifest.shards[shard].name, np.uint8, "r")
        return self._maps[shard]


def open_sources(configs: Mapping[str, SourceConfig], seq_len: int) -> list[Source]:
    """Every source of a section, by name, so that the order does not depend on how the file lists them."""
    return [Source(name, configs[name], seq_len) for name in sorted(configs)]


def _read_checked(name: str, folder: Path, seq_len: int) -> Manifest:
    manifest = read_manifest(folder)
    check_shards(folder, manifest)
    if manifest.block_tokens % seq_len:
        divisors = [n for n in (128, 256, 512, 1024, 2048, 4096, 8192, 16384) if manifest.block_tokens % n == 0]
        raise DataError(
            f"data.seq_len={seq_len} does not divide the blocks of {manifest.block_tokens} tokens of source {name} ({folder})",
            hint=f"data.seq_len={min(divisors, key=lambda n: abs(n - seq_len), default=manifest.block_tokens)}",
        )
    return manifest
