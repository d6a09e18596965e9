"""The on-disk format of token shards, shared by the writer (`pretrain/shards/writer.py`) and the readers.

    FOLDER/
      manifest.json            contents of the folder; written last           -> pretrain/shards/manifest.py
      shards.npy               size, counts and hash of each shard            -> pretrain/shards/table.py
      shard-000000.tar         plain USTAR, readable by `tar` and `webdataset.WebDataset`
      shard-000000.idx.npy     int64 [blocks, 4], one row a block
      shard-000001.tar  …

    shard-000000.tar, one sample a block (KEY: twelve digits, unique in the corpus, and sorting as the stream does):

      | header 512 | KEY.doc.npy: header 128, int32 ends  | zeros to 512 |
      | header 512 | KEY.tok.npy: header 128, payload ... | zeros to 512 |      then the next block
                                              ^
      idx row:  (offset of the payload in the tar, n tokens, documents, crc32 of the payload)

    payload: n tokens of `dtype` (<u2 or <u4), n = T+1 (T = block_tokens) in each block but the last of a shard, where
    2 <= n <= T+1

      stream   t0 t1 t2 … t(T-1) t(T) t(T+1) …
      block 0 [t0 ………………………… t(T)]                the last token of a block is the first of the next, so that
      block 1                   [t(T) t(T+1) …     no target is lost: n tokens are n-1 (input, target) pairs.
                                                 Where a task of the encoding begins, a block begins with a document

    ends: the positions, exclusive and increasing, at which documents end inside the block: 1 … T (n in the last block),
    so each document is counted in exactly one block, and ends[i] is where the next document starts.

No file is trusted: no pickle, no extraction, and no allocation by a size that a file claims.
"""

import io

import numpy as np

from pretrain.errors import DataError
from pretrain.shards.manifest import Manifest
from pretrain.shards.table import ShardEntry
from pretrain.storage.store import Store

BLOCK_TOKENS = 1 << 17
TOKENS_MEMBER = "tok.npy"
ENDS_MEMBER = "doc.npy"
INDEX_COLUMNS = 4
LARGEST_INDEX = 64 << 20  # bytes of rows: two million blocks in one shard
OFFSET, TOKENS, DOCUMENTS, CRC32 = range(INDEX_COLUMNS)

_INDEX_DTYPE = np.dtype("<i8")
_LARGEST_HEADER = 10 + (1 << 16)  # bytes before the data in the npy format, version 1.0
SHOWN_PROBLEMS = 20

_RECREATE = "encode the corpus again, or copy the folder again"


def index_name(shard: str) -> str:
    """File name of the index that belongs to a shard's file name."""
    return f"{shard.removesuffix('.tar')}.idx.npy"


def block_key(part: int, block: int) -> str:
    """WebDataset key of a block: number of its shard, or of the task that wrote it, and its number in that."""
    return f"{part:06d}{block:06d}"


def read_index(store: Store, entry: ShardEntry, dtype: str = "<u2", *, block_tokens: int | None = None) -> np.ndarray:
    """The index of one shard, checked as `parse_index` does."""
    name = index_name(entry.name)

    def parse(data: bytes) -> np.ndarray:
        return parse_index(data, entry, dtype, block_tokens=block_tokens, where=f"{store.address}/{name}")

    index: np.ndarray = store.read_file(name, index_limit(entry), parse)
    return index


def index_limit(entry: ShardEntry) -> int:
    """Largest size of an index in bytes. Raises DataError for more blocks than a reader would hold in memory."""
    size = entry.blocks * INDEX_COLUMNS * _INDEX_DTYPE.itemsize
    if size > LARGEST_INDEX:
        raise DataError(
            f"{entry.name}: {entry.blocks} blocks, and an index of more than {LARGEST_INDEX >> 20} MiB is not read",
            hint="write more and smaller shards",
        )
    return size + _LARGEST_HEADER


def parse_index(
    data: bytes, entry: ShardEntry, dtype: str, *, block_tokens: int | None = None, where: str
) -> np.ndarray:
    """The index in `data`: int64 [blocks, 4], columns OFFSET (bytes), TOKENS, DOCUMENTS, CRC32.

    `dtype` and `block_tokens` are the manifest's; with the latter, every block but the last must be full. Each row is checked
    against the manifest's entry, so that a reader can use offsets unchecked. Raises DataError with the first row that
    breaks a rule; `where` opens the message.
    """
    index = _parse_array(data, entry.blocks, where)
    tokens, last = index[:, TOKENS], np.arange(len(index)) == len(index) - 1
    length = tokens * np.dtype(dtype).itemsize
    previous_end = np.concatenate([[0], (index[:, OFFSET] + length)[:-1]])
    rules = [
        ("tokens of a block must be at least 2", tokens >= 2),
        # Before any sum: a huge count must not wrap around int64 and pass as a small one.
        ("tokens of a block must fit the shard", tokens <= entry.bytes),
        ("documents of a block must be between 0 and its tokens", _between(index[:, DOCUMENTS], 0, tokens)),
        ("crc32 must be between 0 and 2^32-1", _between(index[:, CRC32], 0, 0xFFFFFFFF)),
        (
            f"the payload must lie inside the shard's {entry.bytes} bytes",
            _between(index[:, OFFSET], 0, entry.bytes - length),
        ),
        ("payloads must not overlap, and come in order", index[:, OFFSET] >= previous_end),
    ]
    if block_tokens is not None:
        full = (tokens == block_tokens + 1) | (last & (tokens <= block_tokens))
        rules.append((f"a block must have {block_tokens} tokens and one, and only the last of a shard fewer", full))
    for rule, holds in rules:
        if not holds.all():
            row = int(np.argmin(holds))
            raise DataError(f"{where}: row {row} is {index[row].tolist()}: {rule}", hint=_RECREATE)
    for name, total in (("tokens", int((tokens - 1).sum())), ("documents", int(index[:, DOCUMENTS].sum()))):
        if total != getattr(entry, name):
            raise DataError(f"{where}: holds {total} {name}, the manifest says {getattr(entry, name)}", hint=_RECREATE)
    return index


def _between(values: np.ndarray, low: int, high: int | np.ndarray) -> np.ndarray:
    return (values >= low) & (values <= high)


def _parse_array(data: bytes, blocks: int, where: str) -> np.ndarray:
    """The array of an index file; its header and size are compared first."""
    try:
        start = check_npy_header(data, _INDEX_DTYPE, (blocks, INDEX_COLUMNS))
        size = blocks * INDEX_COLUMNS * _INDEX_DTYPE.itemsize
        if len(data) - start != size:
            raise ValueError(f"{len(data) - start} bytes of data instead of {size}")
    except ValueError as error:
        expected = f"{_INDEX_DTYPE.str} [{blocks}, {INDEX_COLUMNS}]"
        raise DataError(f"{where}: not an index of {expected}: {error}", hint=_RECREATE) from None
    return np.frombuffer(data, _INDEX_DTYPE, offset=start).astype(np.int64).reshape(blocks, INDEX_COLUMNS)


def check_npy_header(data: bytes, dtype: np.dtype, shape: tuple[int, ...]) -> int:
    """Bytes before the array in an npy file (version 1.0). Raises ValueError unless it holds this type and shape."""
    file = io.BytesIO(data)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("unknown npy version")
    try:
        found = np.lib.format.read_array_header_1_0(file)
    # NumPy parses the header as Python: corruption surfaces as SyntaxError, TokenError and others, not only as ValueError.
    except Exception as error:
        raise ValueError(f"corrupt header: {error}") from None
    if found != (shape, False, dtype):
        raise ValueError(f"found {found[2].str} {list(found[0])}")
    return file.tell()


def check_folder(store: Store, manifest: Manifest, *, thorough: bool) -> None:
    """Compare a listing of the folder with `manifest`: all shards and indexes must exist. Raises one DataError.

    Sizes are compared if the listing has them, or if `thorough`; hashes are not, which would read everything. A store that
    cannot be listed passes.
    """
    found = store.list_names(sizes=thorough)
    if found is None:
        return
    problems = []
    for entry in manifest.shards:
        size = found.get(entry.name)
        if entry.name not in found:
            problems.append(f"{entry.name}: missing")
        elif size is not None and size != entry.bytes:
            problems.append(f"{entry.name}: {size} bytes, the manifest says {entry.bytes}")
        if index_name(entry.name) not in found:
            problems.append(f"{index_name(entry.name)}: missing")
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems[:SHOWN_PROBLEMS])
        more = f"\n  - and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
        raise DataError(
            f"{store.address}: {len(problems)} files do not fit the manifest:\n{lines}{more}", hint=_RECREATE
        )
