"""Documents from the members of a tar: which of them hold tokens, whose ids are allowed, and where documents end."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import BinaryIO

import numpy as np

from pretrain.errors import DataError
from pretrain.shards.manifest import token_dtype
from tokenizer.corpus.readers.rejections import EMPTY, Rejection
from tokenizer.corpus.readers.tar_members import UnusableError, read_members, show_name
from tokenizer.encoding.foreign.id_arrays import SUFFIXES, decode_ids

DOCUMENT, CHUNK = MEMBERS = ("document", "chunk")
MAX_SAMPLES = 1 << 21  # of a tar: what tells them apart is kept in memory, some 100 bytes each


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What members hold.

    A `member` is either a whole DOCUMENT, which gets `bos_id` (if any) before and `eos_id` after it where they are
    missing, or a CHUNK of a longer stream, which stays as it is. Trailing `pad_id` are taken off first. `pattern` (of
    fnmatch; default: SUFFIXES) says which members hold tokens, `field` which field of a JSON object.
    """

    vocab_size: int
    eos_id: int
    bos_id: int | None = None
    pad_id: int | None = None
    member: str = DOCUMENT
    pattern: str | None = None
    field: str | None = None


def check_reading(reading: Reading) -> None:
    """Raise DataError unless the ids are in the vocabulary, and padding can be told from the rest."""
    if reading.member not in MEMBERS:
        raise DataError(f"member={reading.member!r} is not one of {', '.join(MEMBERS)}")
    for name in ("eos_id", "bos_id", "pad_id"):
        token = getattr(reading, name)
        if token is not None and not 0 <= token < reading.vocab_size:
            raise DataError(f"{name}={token} is not between 0 and vocab_size-1 = {reading.vocab_size - 1}")
    if reading.pad_id is not None and reading.pad_id in (reading.eos_id, reading.bos_id):
        raise DataError(
            f"pad_id={reading.pad_id} marks documents too, and would be taken off them",
            hint="leave out --pad-id: trailing eos ids stay as they are",
        )


def read_documents(
    file: BinaryIO, place: str, reading: Reading, known_ids: int
) -> Iterator[np.ndarray | Rejection | None]:
    """The ids of each member that holds tokens, [N] framed, in the order of the tar; None for each other plain file.

    Ids must be below `known_ids`. Raises DataError where two members of one sample might hold its tokens.
    """
    seen: set[bytes] = set()
    previous = ""
    for member in read_members(file, place, lambda name: _holds_tokens(name, reading.pattern)):
        if isinstance(member, Rejection):
            yield member
            continue
        if member.data is None:
            yield None
            continue
        sample = _sample(member.name)
        if sample == _sample(previous) and member.name != previous:
            raise DataError(
                f"{place}: both {show_name(previous)} and {show_name(member.name)} may hold the tokens of one sample",
                hint="say which: --tokens-member '*.SUFFIX'",
            )
        previous = member.name
        where = f"{place}: {show_name(member.name)}"
        # Python's own hash differs from run to run.
        digest = hashlib.blake2b(sample.encode("utf-8", "surrogateescape"), digest_size=16).digest()
        if digest in seen:
            yield Rejection(where, "repeated sample", "the tar has one of this name before")
            continue
        if len(seen) == MAX_SAMPLES:
            yield Rejection(where, "too many samples", f"over {MAX_SAMPLES} in one tar; the rest of it is not read")
            return
        seen.add(digest)
        try:
            ids = decode_ids(member.name, member.data, reading.field)
            _check_range(ids, known_ids)
        except UnusableError as problem:
            yield Rejection(where, problem.reason, problem.detail)
            continue
        framed = frame(ids, reading)
        yield framed if len(framed) else Rejection(where, EMPTY, "no ids")


def _holds_tokens(name: str, pattern: str | None) -> bool:
    return name.endswith(SUFFIXES) if pattern is None else fnmatchcase(name, pattern)


def _sample(name: str) -> str:
    """WebDataset's key: the path up to the first dot of its last part."""
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.partition('.')[0]}"


def _check_range(ids: np.ndarray, known_ids: int) -> None:
    # In the type in which they are stored: a cast would turn an id that is wrong into one that is not.
    if len(ids) and not (int(ids.min()) >= 0 and int(ids.max()) < known_ids):
        position = int(np.argmax((ids < 0) | (ids >= known_ids)))
        raise UnusableError(
            "id outside the vocabulary", f"{ids[position]} at position {position}, not between 0 and {known_ids - 1}"
        )


def frame(ids: np.ndarray, reading: Reading) -> np.ndarray:
    """Ids in the type of the shards, [N], without padding at the end, and for a document with bos and eos; or none at all.

    Ids must be below the vocabulary's size.
    """
    if reading.pad_id is not None:
        kept = np.flatnonzero(ids != reading.pad_id)
        ids = ids[: kept[-1] + 1] if len(kept) else ids[:0]
    dtype = np.dtype(token_dtype(reading.vocab_size))
    if reading.member == CHUNK or not len(ids):
        return ids.astype(dtype)
    before = [] if reading.bos_id in (None, ids[0]) else [reading.bos_id]
    after = [] if ids[-1] == reading.eos_id else [reading.eos_id]
    return np.concatenate([np.array(before, dtype), ids.astype(dtype), np.array(after, dtype)])


def document_lengths(ids: np.ndarray, eos_id: int) -> np.ndarray:
    """Ids from one document end to the next, int64: after each eos; what follows the last eos of a chunk ends elsewhere."""
    return np.diff(np.flatnonzero(ids == eos_id) + 1, prepend=0)
