"""Writer of token shards (`pretrain/shards/format.py`). A kill never leaves half a corpus that looks complete.

1. `ShardWriter.add` takes complete documents and cuts the stream into blocks.
2. A full shard is closed: fsync, verification against its index, then index and tar are renamed into place.
3. The caller writes the manifest last: a folder without one holds leftovers, which the next run removes.
"""

import contextlib
import hashlib
import io
import mmap
import os
import tarfile
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pretrain.errors import DataError, PretrainError
from pretrain.shards.format import BLOCK_TOKENS, ENDS_MEMBER, TOKENS_MEMBER, block_key, index_name
from pretrain.shards.manifest import MANIFEST_NAME, token_dtype
from pretrain.shards.table import TABLE_NAME, ShardEntry, shard_name
from pretrain.storage.files import move_into_place, publish_file, sync

SHARD_BYTES = 256 << 20
MOST_BLOCKS = 1_000_000  # six digits in a key
PROBLEMS_NAME = "problems.jsonl"
ENCODING_NAME = "encoding.json"  # options and plan of the encoding, so that the same one again finds itself done
_TAR_RECORD = 512


class ShardWriter:
    """Cuts documents into blocks of `block_tokens`+1 ids and writes them to tars of about `shard_bytes` in `folder`.

    Use as a context manager; `finish` returns the entries for the manifest. An exception removes the open temporary
    file. The key of a block is made of the number of its shard and its number in that; with `task`, whose shards are
    numbered later, of the task's number and its number in that.
    """

    def __init__(
        self,
        folder: Path,
        *,
        vocab_size: int,
        block_tokens: int = BLOCK_TOKENS,
        shard_bytes: int = SHARD_BYTES,
        task: int | None = None,
    ) -> None:
        self.folder = folder
        self.task = task
        self.vocab_size = vocab_size
        self.block_tokens = block_tokens
        self.dtype = np.dtype(token_dtype(vocab_size))
        self.blocks_per_shard = max(1, shard_bytes // (block_tokens * self.dtype.itemsize))
        self.entries: list[ShardEntry] = []
        self._pending: list[np.ndarray] = []  # ids not yet in a block
        self._pending_ends: list[np.ndarray] = []  # int64, document ends counted from the first pending id
        self._pending_tokens = 0
        self._shard: _OpenShard | None = None
        self._closed_blocks = 0

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._shard is not None:
            self._shard.abandon()

    def add(self, ids: np.ndarray, lengths: np.ndarray) -> None:
        """Append complete documents: integer `ids` [N], and `lengths` [documents] that sum to N.

        In bins (`packed_writer.py`) `lengths` are from one document end to the next, padding between them included, and ids
        after the last end belong to none. Raises DataError for an id outside the vocabulary: a cast would wrap it into a
        valid one.
        """
        if not len(ids):
            return
        if ids.min() < 0 or ids.max() >= self.vocab_size:
            wrong = ids[(ids < 0) | (ids >= self.vocab_size)][0]
            raise DataError(f"token id {wrong} is not between 0 and vocab_size-1 = {self.vocab_size - 1}")
        self._pending.append(ids.astype(self.dtype))
        self._pending_ends.append(self._pending_tokens + np.cumsum(lengths, dtype=np.int64))
        self._pending_tokens += len(ids)
        # Strictly more than a block: the last block must have at least one target.
        if self._pending_tokens > self.block_tokens + 1:
            self._write_blocks(at_end=False)

    def finish(self) -> tuple[ShardEntry, ...]:
        """Write pending ids and close the last shard. Raises DataError if there was not a single target."""
        if self._pending_tokens < 2:
            raise DataError(f"the corpus has {self._pending_tokens} tokens; at least 2 are needed for one target")
        self._write_blocks(at_end=True)
        self._close_shard()
        return tuple(self.entries)

    def _write_blocks(self, *, at_end: bool) -> None:
        ids, ends = np.concatenate(self._pending), np.concatenate(self._pending_ends)
        start, T = 0, self.block_tokens
        while len(ids) - start > T + 1:
            stop = start + T
            self._write_block(ids[start : stop + 1], ends[(ends > start) & (ends <= stop)] - start)
            start = stop
        if at_end:
            self._write_block(ids[start:], ends[ends > start] - start)
        self._pending = [ids[start:]]
        self._pending_ends = [ends[ends > start] - start]
        self._pending_tokens = len(ids) - start

    def _write_block(self, ids: np.ndarray, ends: np.ndarray) -> None:
        if self._shard is None:
            self._shard = _OpenShard(self.folder, number=len(self.entries), itemsize=self.dtype.itemsize)
        block = len(self._shard.rows) + (0 if self.task is None else self._closed_blocks)
        if block >= MOST_BLOCKS:
            raise DataError(
                f"more than {MOST_BLOCKS} blocks of {self.block_tokens} tokens in one part of the corpus",
                hint="split the largest file of the corpus",
            )
        key = block_key(self._shard.number if self.task is None else self.task, block)
        self._shard.write(key, ids, ends.astype("<i4"))
        if len(self._shard.rows) == self.blocks_per_shard:
            self._close_shard()

    def _close_shard(self) -> None:
        if self._shard is not None:
            self.entries.append(self._shard.commit())
            self._closed_blocks += self.entries[-1].blocks
            self._shard = None


class _OpenShard:
    """One tar being written under a temporary name, and the rows of its index."""

    def __init__(self, folder: Path, *, number: int, itemsize: int) -> None:
        self.number = number
        self.itemsize = itemsize
        self.path = folder / shard_name(number)
        self.temporary = self.path.with_name(f"{self.path.name}.tmp")
        self.rows: list[tuple[int, int, int, int]] = []
        self.position = 0  # bytes written to the tar, headers and padding included
        self.file: BinaryIO = self.temporary.open("wb")
        # The bytes of webdataset's TarWriter (a test compares them), which would import torch in each process.
        self.tar = tarfile.TarFile(fileobj=self.file, mode="w", format=tarfile.USTAR_FORMAT)

    def write(self, key: str, ids: np.ndarray, ends: np.ndarray) -> None:
        """Append one block: the ends, then the tokens, sorted by name as webdataset does."""
        ends_file, ids_file = _npy(ends), _npy(ids)
        payload = ids.tobytes()
        for member, data in ((ENDS_MEMBER, ends_file), (TOKENS_MEMBER, ids_file)):
            header = tarfile.TarInfo(f"{key}.{member}")
            # No time and no user names: the same bytes on every machine.
            header.size, header.mode, header.mtime = len(data), 0o444, 0
            self.tar.addfile(header, io.BytesIO(data))
        ids_end = self.position + _member_size(ends_file) + _TAR_RECORD + len(ids_file)
        self.rows.append((ids_end - len(payload), len(ids), len(ends), zlib.crc32(payload)))
        self.position += _member_size(ends_file) + _member_size(ids_file)

    def commit(self) -> ShardEntry:
        """Close, verify and publish the shard."""
        self.tar.close()
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        index = np.array(self.rows, dtype="<i8")
        sha256 = _verify(self.temporary, index, itemsize=self.itemsize)
        publish_file(self.path.with_name(index_name(self.path.name)), _npy(index))
        move_into_place(self.temporary, self.path)
        return ShardEntry(
            name=self.path.name,
            bytes=self.path.stat().st_size,
            sha256=sha256,
            blocks=len(index),
            tokens=int((index[:, 1] - 1).sum()),
            documents=int(index[:, 2].sum()),
        )

    def abandon(self) -> None:
        """Remove the temporary file."""
        # The tar first: when collected, it would flush into a closed file. On a full disk that fails too.
        with contextlib.suppress(OSError):
            self.tar.close()
        with contextlib.suppress(OSError):
            self.file.close()
        self.temporary.unlink(missing_ok=True)


def clear_output(folder: Path, *, problems: bool = False) -> None:
    """Remove an earlier corpus, or leftovers of a killed run; the manifest first, so that a kill leaves no mixture.

    `problems.jsonl` and `encoding.json` are removed beside a manifest, or if the caller says that they are ours (`problems`).
    """
    if problems or (folder / MANIFEST_NAME).exists():
        for name in (PROBLEMS_NAME, ENCODING_NAME):
            (folder / name).unlink(missing_ok=True)
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    sync(folder)
    # The last two are those of earlier releases.
    rest = (TABLE_NAME, ".*.tmp", f"{TABLE_NAME}.tmp", f"{MANIFEST_NAME}.tmp")
    for pattern in ("shard-*.tar", "shard-*.idx.npy", "shard-*.tmp", *rest):
        for path in folder.glob(pattern):
            path.unlink()


def _verify(path: Path, index: np.ndarray, *, itemsize: int) -> str:
    """SHA-256 (hex) of a finished tar. Raises PretrainError unless each payload is at its offset in the index."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for block, (offset, tokens, _, crc32) in enumerate(index.tolist()):
            if zlib.crc32(data[offset : offset + tokens * itemsize]) != crc32:
                raise PretrainError(
                    f"{path}: block {block} is not at offset {offset} as it was written",
                    hint="check the disk; if it repeats, report it with the versions of Python and NumPy",
                )
        return hashlib.sha256(data).hexdigest()


def _npy(array: np.ndarray) -> bytes:
    """`array` as an npy file, version 1.0."""
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=(1, 0), allow_pickle=False)
    return file.getvalue()


def _member_size(data: bytes) -> int:
    """Size of a member in a tar: header, data, and zeros up to a full record."""
    return _TAR_RECORD + -(-len(data) // _TAR_RECORD) * _TAR_RECORD
