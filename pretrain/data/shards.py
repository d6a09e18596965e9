"""The on-disk format that the writer (`tokenizer/write_shards.py`) and the reader share.

    FOLDER/
      manifest.json            counts, sizes, hashes; written last            -> pretrain/data/manifest.py
      shard-000000.tar         plain USTAR, readable by `tar` and `webdataset.WebDataset`
      shard-000000.idx.npy     int64 [blocks, 4], one row a block
      shard-000001.tar  …

    shard-000000.tar, one sample (KEY = shard and block number, six digits each) a block:

      | header 512 | KEY.doc.npy: header 128, int32 ends  | zeros to 512 |
      | header 512 | KEY.tok.npy: header 128, payload ... | zeros to 512 |      then the next block
                                              ^
      idx row:  (offset of the payload in the tar, n tokens, documents, crc32 of the payload)

    payload: n tokens of `dtype` (<u2 or <u4), n = T+1 (T = block_tokens) in each block but the last, where 2 <= n <=
    T+1

      stream   t0 t1 t2 … t(T-1) t(T) t(T+1) …
      block 0 [t0 ………………………… t(T)]                the last token of a block is the first of the next, so that
      block 1                   [t(T) t(T+1) …     no target is lost: n tokens are n-1 (input, target) pairs

    ends: the positions, exclusive and increasing, at which documents end inside the block: 1 … T (n in the last block),
    so each document is counted in exactly one block, and ends[i] is where the next document starts.

Nothing here trusts a file: no pickle, no extraction, and no allocation by a size that the file itself claims.
"""

from pathlib import Path
from typing import BinaryIO

import numpy as np

from pretrain.data.manifest import Manifest, ShardEntry
from pretrain.errors import DataError

BLOCK_TOKENS = 1 << 17
TOKENS_MEMBER = "tok.npy"
ENDS_MEMBER = "doc.npy"
INDEX_COLUMNS = 4
OFFSET, TOKENS, DOCUMENTS, CRC32 = range(INDEX_COLUMNS)

_INDEX_DTYPE = np.dtype("<i8")
_RECREATE = "encode the corpus again, or copy the folder again"


def shard_name(shard: int) -> str:
    """File name of the shard with this number."""
    return f"shard-{shard:06d}.tar"


def index_name(shard: str) -> str:
    """File name of the index that belongs to a shard's file name."""
    return f"{shard.removesuffix('.tar')}.idx.npy"


def block_key(shard: int, block: int) -> str:
    """WebDataset key of a block: unique in the corpus, and sorting as the stream does."""
    return f"{shard:06d}{block:06d}"


def read_index(folder: Path, entry: ShardEntry, dtype: str = "<u2") -> np.ndarray:
    """The index of one shard: int64 [blocks, 4], columns OFFSET (bytes), TOKENS, DOCUMENTS, CRC32.

    `dtype` is the manifest's. Every row is checked against the manifest's entry, so that a reader can use offsets as
    they are. Raises DataError with the first row that breaks a rule.
    """
    path = folder / index_name(entry.name)
    index = _read_index_array(path, entry.blocks)
    length = index[:, TOKENS] * np.dtype(dtype).itemsize
    previous_end = np.concatenate([[0], (index[:, OFFSET] + length)[:-1]])
    rules = [
        ("tokens of a block must be at least 2", index[:, TOKENS] >= 2),
        # Before any sum: a huge count must not wrap around int64 and pass as a small one.
        ("tokens of a block must fit the shard", index[:, TOKENS] <= entry.bytes),
        ("documents of a block must be between 0 and its tokens", _between(index[:, DOCUMENTS], 0, index[:, TOKENS])),
        ("crc32 must be between 0 and 2^32-1", _between(index[:, CRC32], 0, 0xFFFFFFFF)),
        (
            f"the payload must lie inside the shard's {entry.bytes} bytes",
            _between(index[:, OFFSET], 0, entry.bytes - length),
        ),
        ("payloads must not overlap, and come in order", index[:, OFFSET] >= previous_end),
    ]
    for rule, holds in rules:
        if not holds.all():
            row = int(np.argmin(holds))
            raise DataError(f"{path}: row {row} is {index[row].tolist()}: {rule}", hint=_RECREATE)
    for name, total in (("tokens", int((index[:, TOKENS] - 1).sum())), ("documents", int(index[:, DOCUMENTS].sum()))):
        if total != getattr(entry, name):
            raise DataError(f"{path}: holds {total} {name}, the manifest says {getattr(entry, name)}", hint=_RECREATE)
    return index


def _between(values: np.ndarray, low: int, high: int | np.ndarray) -> np.ndarray:
    return (values >= low) & (values <= high)


def _read_index_array(path: Path, blocks: int) -> np.ndarray:
    """The array of an index file, its header compared before a byte of data is read (np.load would allocate first)."""
    expected = f"{_INDEX_DTYPE.str} [{blocks}, {INDEX_COLUMNS}]"
    try:
        with path.open("rb") as file:
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError("unknown npy version")
            shape, fortran_order, dtype = _read_header(file)
            if (shape, fortran_order, dtype) != ((blocks, INDEX_COLUMNS), False, _INDEX_DTYPE):
                raise ValueError(f"found {dtype.str} {list(shape)}")
            size = blocks * INDEX_COLUMNS * _INDEX_DTYPE.itemsize
            # Before reading: a manifest and a header that both claim a huge index would be an allocation of that size.
            found = path.stat().st_size - file.tell()
            if found != size:
                raise ValueError(f"{found} bytes of data instead of {size}")
            data = file.read(size)
    except FileNotFoundError:
        raise DataError(f"{path}: no such index", hint=_RECREATE) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"{path}: not an index of {expected}: {error}", hint=_RECREATE) from None
    return np.frombuffer(data, _INDEX_DTYPE).astype(np.int64).reshape(blocks, INDEX_COLUMNS)


def _read_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order and dtype of a npy 1.0 header. Raises OSError, or ValueError for whatever is wrong with it."""
    try:
        return np.lib.format.read_array_header_1_0(file)
    except OSError:
        raise
    # NumPy parses the header as Python: damage surfaces as SyntaxError, TokenError and others, not only as ValueError.
    except Exception as error:
        raise ValueError(f"damaged header: {error}") from None


def check_shards(folder: Path, manifest: Manifest) -> None:
    """Verify that each shard and index of `manifest` is there with its size. Raises one DataError with all problems.

    Hashes are not computed: that takes reading everything.
    """
    problems = []
    for entry in manifest.shards:
        path = folder / entry.name
        if not path.is_file():
            problems.append(f"{entry.name}: missing")
        elif path.stat().st_size != entry.bytes:
            problems.append(f"{entry.name}: {path.stat().st_size} bytes, the manifest says {entry.bytes}")
        if not (folder / index_name(entry.name)).is_file():
            problems.append(f"{index_name(entry.name)}: missing")
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise DataError(f"{folder}: {len(problems)} files do not fit the manifest:\n{lines}", hint=_RECREATE)
