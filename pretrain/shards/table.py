"""The table of shards, beside the manifest: one row of fixed width each.

A corpus of 10^13 tokens has 78,000 shards. Their table is read and checked in milliseconds; as JSON it took more than a
second. `shards.npy` is an npy file (version 1.0), which `numpy.load` opens:

    header, 192 bytes    the columns and the number of rows; always the same bytes for the same number
    row 0, 64 bytes      bytes, blocks, tokens, documents: int64 · sha256: 32 bytes
    row 1  …

The number of a row is the number of its shard, which gives the name. The file is not used before its sha256 matches the
manifest; its header is compared, never parsed.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain.errors import DataError

TABLE_NAME = "shards.npy"
MOST_SHARDS = 1_000_000  # six digits in a name

_COUNTS = ("bytes", "blocks", "tokens", "documents")
_COLUMNS: list[Any] = [*((name, "<i8") for name in _COUNTS), ("sha256", "|u1", (32,))]
_ROW = np.dtype(_COLUMNS)
_HEADER_BYTES = 192
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COPY = "copy the folder again, or encode the corpus again"


def shard_name(shard: int) -> str:
    """File name of the shard with this number."""
    return f"shard-{shard:06d}.tar"


@dataclass(frozen=True)
class ShardEntry:
    """One tar. `bytes` is its file size, `documents` the document ends in it.

    `tokens` is the sum of n-1 over its blocks of n ids, in both layouts: where sequences lie is computed from it.
    """

    name: str
    bytes: int
    sha256: str
    blocks: int
    tokens: int
    documents: int


@dataclass(frozen=True, eq=False)
class ShardTable:
    """All shards of a corpus: `ShardEntry` by number or in a loop, and columns as int64 arrays."""

    rows: NDArray[np.void]

    @classmethod
    def of(cls, entries: Iterable[ShardEntry]) -> "ShardTable":
        """Table of `entries`. Raises DataError for a wrong name or an invalid sha256."""
        found = list(entries)
        for number, entry in enumerate(found):
            if entry.name != shard_name(number):
                raise DataError(f"shard {number} is named {entry.name!r}, and must be named {shard_name(number)!r}")
            if not _SHA256.fullmatch(entry.sha256):
                raise DataError(f"{entry.name}: sha256={entry.sha256!r} is not 64 lower-case hexadecimal digits")
        rows = np.zeros(len(found), _ROW)
        for name in _COUNTS:
            rows[name] = [getattr(entry, name) for entry in found]
        rows["sha256"] = np.frombuffer(bytes.fromhex("".join(entry.sha256 for entry in found)), np.uint8).reshape(
            -1, 32
        )
        rows.flags.writeable = False
        return cls(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, shard: int) -> ShardEntry:
        number = range(len(self))[shard]
        return next(_entries(self.rows[number : number + 1], number))

    def __iter__(self) -> Iterator[ShardEntry]:
        return _entries(self.rows, 0)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ShardTable) and self.rows.tobytes() == other.rows.tobytes()

    @property
    def bytes(self) -> NDArray[np.int64]:
        """File size of each shard."""
        return self.rows["bytes"]

    @property
    def blocks(self) -> NDArray[np.int64]:
        """Blocks of each shard."""
        return self.rows["blocks"]

    @property
    def tokens(self) -> NDArray[np.int64]:
        """Pairs of neighbouring ids in each shard."""
        return self.rows["tokens"]

    @property
    def documents(self) -> NDArray[np.int64]:
        """Document ends in each shard."""
        return self.rows["documents"]

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over the columns that determine tokens and their locations; file sizes follow from these."""
        found = hashlib.sha256()
        for name in ("sha256", "blocks", "tokens", "documents"):
            found.update(np.ascontiguousarray(self.rows[name]).data)
        return found.hexdigest()


def _entries(rows: NDArray[np.void], first: int) -> Iterator[ShardEntry]:
    counts = zip(*(rows[name].tolist() for name in _COUNTS), strict=True)
    sha256 = rows["sha256"].tobytes().hex()
    for number, (size, blocks, tokens, documents) in enumerate(counts):
        name, digest = shard_name(first + number), sha256[64 * number : 64 * number + 64]
        yield ShardEntry(name, size, digest, blocks, tokens, documents)


def table_bytes(shards: int) -> int:
    """Size of the file for N shards."""
    return _HEADER_BYTES + shards * _ROW.itemsize


def table_file(table: ShardTable) -> bytes:
    """The bytes of `shards.npy`."""
    return _header(len(table)) + table.rows.tobytes()


def parse_table(data: bytes, shards: int, sha256: str, where: str) -> ShardTable:
    """The table in `data`, if it has N = `shards` rows and this sha256 (hex).

    Raises DataError otherwise; `where` opens the message. The values follow rules of their own (`manifest_rules.py`).
    """
    expected = table_bytes(shards)
    if len(data) != expected:
        raise DataError(f"{where}: {len(data)} bytes, and a table of {shards} shards has {expected}", hint=_COPY)
    if data[:_HEADER_BYTES] != _header(shards):
        raise DataError(f"{where}: its header is not that of a table of {shards} shards", hint=_COPY)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DataError(f"{where}: corrupt: its sha256 is not the one in the manifest", hint=_COPY)
    return ShardTable(np.frombuffer(data, _ROW, offset=_HEADER_BYTES))


def _header(shards: int) -> bytes:
    # Not NumPy's writer: its padding is unspecified, and the same corpus must have the same bytes.
    text = f"{{'descr': {_COLUMNS}, 'fortran_order': False, 'shape': ({shards},), }}"
    start = b"\x93NUMPY\x01\x00" + (_HEADER_BYTES - 10).to_bytes(2, "little")
    return start + text.encode().ljust(_HEADER_BYTES - 11) + b"\n"
