"""Verification of shards against their manifest, byte by byte: `pretrain data verify`.

    the folder   manifest intact                                                      manifest.py
    each shard   size, sha256, index                                                  format.py
    each block   headers of its two members, document ends, crc32, ids

A shard is streamed once. Nothing is allocated by a size that it claims.
"""

import hashlib
import itertools
import re
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed

import numpy as np

from pretrain.errors import DataError
from pretrain.shards.format import ENDS_MEMBER, TOKENS_MEMBER, check_npy_header, read_index
from pretrain.shards.manifest import Manifest
from pretrain.shards.table import ShardEntry
from pretrain.storage.store import Store

PIECE = 4 << 20  # bytes of a request; a multiple of the size of an id
RECORD = 512  # of a tar
LARGEST_HEADERS = 1 << 16  # bytes before a payload, without the document ends


def verify_shards(store: Store, manifest: Manifest, *, workers: int) -> Iterator[tuple[str, list[str]]]:
    """(shard, problems) as each shard is done, in any order. Threads suffice: hashing releases the GIL."""
    pool = ThreadPoolExecutor(workers)
    try:
        running = {pool.submit(verify_shard, store, entry, manifest): entry.name for entry in manifest.shards}
        for done in as_completed(running):
            yield running.pop(done), done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def verify_shard(store: Store, entry: ShardEntry, manifest: Manifest) -> list[str]:
    """Problems of one shard; empty if it is intact."""
    where = f"{store.address}/{entry.name}"
    try:
        size = store.size(entry.name)
        if size != entry.bytes:
            return [f"{where}: {size} bytes, the manifest says {entry.bytes}"]
        shard = _Reader(store, entry)
        problems = []
        try:
            index = read_index(store, entry, manifest.dtype, block_tokens=manifest.block_tokens)
        except DataError as error:
            problems.append(error.message)
        else:
            problems += [f"{where}: {problem}" for problem in _block_problems(shard, index, manifest)]
        if any(piece.strip(b"\0") for piece in shard.pieces(size - shard.position)) and not problems:
            problems.append(f"{where}: data after the last block")
    except DataError as error:
        return [error.message]
    if shard.sha256.hexdigest() != entry.sha256:
        problems.append(f"{where}: its sha256 is not the one in the manifest")
    return problems


class _Reader:
    """A shard as a stream of pieces; `sha256` covers the bytes read so far."""

    def __init__(self, store: Store, entry: ShardEntry) -> None:
        self.store, self.entry, self.position, self.sha256 = store, entry, 0, hashlib.sha256()
        self._ahead = memoryview(b"")

    def pieces(self, length: int) -> Iterator[bytes]:
        """The next `length` bytes."""
        end = self.position + length
        while self.position < end:
            if not self._ahead:
                size = min(PIECE, self.entry.bytes - self.position)
                data = self.store.read_range(self.entry.name, self.position, size)
                self.sha256.update(data)
                self._ahead = memoryview(data)
            part, self._ahead = self._ahead[: end - self.position], self._ahead[end - self.position :]
            self.position += len(part)
            yield bytes(part)

    def read(self, length: int) -> bytes:
        """The next `length` bytes at once."""
        return b"".join(self.pieces(length))


def _block_problems(shard: _Reader, index: np.ndarray, manifest: Manifest) -> Iterator[str]:
    dtype, before = np.dtype(manifest.dtype), ""
    for block, (offset, tokens, documents, crc32) in enumerate(index.tolist()):
        named = f"block {block} at offset {offset}"
        start, size = shard.position, offset - shard.position
        if size > LARGEST_HEADERS + 4 * documents:
            yield f"{named}: {size} bytes lie before its tokens, more than headers and document ends can take"
            for _ in shard.pieces(size):
                pass
        else:
            try:
                key = _check_headers(shard.read(size), start, tokens, documents, dtype)
                if key <= before:
                    raise ValueError(f"its key {key!r} does not come after {before!r}")
                before = key
            except ValueError as error:
                yield f"{named}: {error}"
        found, largest = 0, 0
        for start in range(0, tokens * dtype.itemsize, PIECE):
            piece = shard.read(min(PIECE, tokens * dtype.itemsize - start))
            found, largest = zlib.crc32(piece, found), max(largest, int(np.frombuffer(piece, dtype).max()))
        if found != crc32:
            yield f"{named}: its crc32 is not the one in the index"
        if largest >= manifest.vocab_size:
            yield f"{named}: holds id {largest}, and the vocabulary has {manifest.vocab_size}"


def _check_headers(data: bytes, position: int, tokens: int, documents: int, dtype: np.dtype) -> str:
    """Key of a block, from the bytes before its payload: padding, the member of document ends, the header of the tokens.

    `position` is the offset of `data` in the shard. Raises ValueError if something disagrees with the index.
    """
    start = -position % RECORD
    if data[:start].strip(b"\0"):
        raise ValueError("the padding before it is not empty")
    ends_key, size = _parse_member(data[start : start + RECORD], ENDS_MEMBER)
    body = data[start + RECORD : start + RECORD + size]
    if len(body) != size or check_npy_header(body, np.dtype("<i4"), (documents,)) + 4 * documents != size:
        raise ValueError(
            f"member {ends_key}.{ENDS_MEMBER} has {size} bytes, which do not fit {documents} document ends"
        )
    ends = np.frombuffer(body, "<i4", offset=size - 4 * documents)
    if any(b <= a for a, b in itertools.pairwise([0, *ends.tolist()])) or (ends > tokens).any():
        raise ValueError(f"the document ends are not increasing positions from 1 to {tokens}")
    start += RECORD + size + -size % RECORD
    key, size = _parse_member(data[start : start + RECORD], TOKENS_MEMBER)
    header = check_npy_header(data[start + RECORD :], dtype, (tokens,))
    if header + tokens * dtype.itemsize != size or start + RECORD + header != len(data):
        raise ValueError(
            f"member {key}.{TOKENS_MEMBER} of {size} bytes does not hold {tokens} tokens where the index says"
        )
    if key != ends_key:
        raise ValueError(f"its members have two keys, {ends_key!r} and {key!r}")
    return key


def _parse_member(header: bytes, expected: str) -> tuple[str, int]:
    """Key and size of a member, from its tar header. Raises ValueError for all but a plain file named KEY.`expected`."""
    if len(header) != RECORD or header[257:263] != b"ustar\0":
        raise ValueError(f"no tar header in the place of that of its .{expected}")
    found, size = (re.fullmatch(rb"[ 0]*([0-7]+)[ \0]*", header[place]) for place in (slice(148, 156), slice(124, 136)))
    if not found or int(found[1], 8) != sum(header) - sum(header[148:156]) + 8 * ord(" "):
        raise ValueError(f"the checksum of the tar header of its .{expected} is wrong")
    name = header[:100].rstrip(b"\0").decode("ascii", errors="backslashreplace")
    if header[156:157] not in (b"0", b"\0") or header[345:500].strip(b"\0") or not size:
        raise ValueError(f"member {name!r} is not a plain file")
    key, _, member = name.partition(".")
    if member != expected:
        raise ValueError(f"member {name!r} in the place of one named .{expected}")
    return key, int(size[1], 8)
