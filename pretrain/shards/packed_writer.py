"""Writer of layout "packed": documents are packed window by window (`packing.py`), and the bins written as shards."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pretrain.errors import DataError
from pretrain.shards.manifest import PACKED, STREAM
from pretrain.shards.packing import Counts, pack_window
from pretrain.shards.table import ShardEntry
from pretrain.shards.writer import ShardWriter

WINDOW_TOKENS = 1 << 20


class BinWriter:
    """Packs documents into bins of `seq_len` ids and writes them with a `ShardWriter`.

    Windows depend on the documents alone, not on the batches in which they arrive. `tokens`, `padding_tokens` and
    `documents_cut` are the manifest's, complete after `finish`.
    """

    def __init__(self, shards: ShardWriter, *, seq_len: int, pad_id: int) -> None:
        self.shards, self.seq_len, self.pad_id = shards, seq_len, pad_id
        self.tokens = self.padding_tokens = self.documents_cut = 0
        self._ids: NDArray[np.integer] = np.empty(0, dtype=np.int64)
        self._lengths = np.empty(0, dtype=np.int64)

    def add(self, ids: NDArray[np.integer], lengths: Counts) -> None:
        """Append complete documents: integer `ids` [N], and `lengths` [documents] that sum to N.

        Raises DataError for a padding id in a document, which would not be trained on.
        """
        if (ids == self.pad_id).any():
            raise DataError(
                f"token id {self.pad_id} is the padding id of the tokenizer, and a document holds it",
                hint="train a tokenizer with `pretrain tokenizer train`, or use --layout stream",
            )
        self._ids = np.concatenate([self._ids, ids]) if len(self._ids) else ids
        self._lengths = np.concatenate([self._lengths, lengths])
        while len(self._ids) >= WINDOW_TOKENS:
            ends = np.cumsum(self._lengths)
            self._write(1 + int(np.searchsorted(ends, WINDOW_TOKENS)), keep_emptiest=True)

    def finish(self) -> tuple[ShardEntry, ...]:
        """Write pending documents and a final padding id, which makes the last bin a sequence; close the last shard."""
        if len(self._lengths):
            self._write(len(self._lengths), keep_emptiest=False)
        if self.tokens:
            self.shards.add(np.array([self.pad_id]), np.empty(0, dtype=np.int64))
            self.padding_tokens += 1
        return self.shards.finish()

    def _write(self, documents: int, *, keep_emptiest: bool) -> None:
        """Pack the first `documents` pending documents, and write the bins."""
        lengths = self._lengths[:documents]
        stop = int(lengths.sum())
        window = pack_window(self._ids[:stop], lengths, self.seq_len, self.pad_id, keep_emptiest=keep_emptiest)
        self.shards.add(window.ids, np.diff(window.ends, prepend=0))
        self.tokens += len(window.ids) - window.padding - len(window.ids) // self.seq_len
        self.padding_tokens += window.padding
        self.documents_cut += window.cut
        self._ids = np.concatenate([window.kept_ids, self._ids[stop:]])
        self._lengths = np.concatenate([window.kept_lengths, self._lengths[documents:]])


def check_layout(layout: str, seq_len: int | None, block_tokens: int) -> None:
    """Raise DataError unless `layout` and `seq_len` belong together, and a block holds whole bins."""
    if layout not in (STREAM, PACKED):
        raise DataError(f"layout={layout!r} is not one of {STREAM}, {PACKED}")
    if layout == STREAM and seq_len is not None:
        raise DataError(
            f"seq_len={seq_len} has no meaning in layout {STREAM!r}, which any data.seq_len can read",
            hint=f"omit --seq-len, or add --layout {PACKED}",
        )
    if layout == STREAM:
        return
    if seq_len is None:
        raise DataError(
            f"layout {PACKED!r} needs the length of its bins",
            hint="--seq-len N, where N is data.seq_len of the training",
        )
    if seq_len < 2 or block_tokens % seq_len:
        divisors = [n for n in (128 << i for i in range(11)) if block_tokens % n == 0]
        nearest = min(divisors, key=lambda n: abs(n - seq_len), default=block_tokens)
        raise DataError(
            f"seq_len={seq_len} is less than 2, or does not divide the blocks of {block_tokens} tokens",
            hint=f"--seq-len {nearest}",
        )


def check_padding(tokenizer: Path, *, pad_id: int, bos_id: int, eos_id: int) -> None:
    """Raise DataError unless the tokenizer has an id for padding alone (-1: none)."""
    if pad_id < 0 or pad_id in (bos_id, eos_id):
        rule = "has no padding id" if pad_id < 0 else f"pads with id {pad_id}, which also marks the documents"
        raise DataError(
            f"{tokenizer}: {rule}, and layout {PACKED!r} must tell padding from text",
            hint="use --layout stream, or train one with `pretrain tokenizer train`",
        )
