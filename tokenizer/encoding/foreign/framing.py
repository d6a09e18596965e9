"""Turns tar members into framed documents: selects members with tokens, checks ids, strips padding, adds bos and eos."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import BinaryIO

import numpy as np

from pretrain.errors import DataError
from pretrain.shards.manifest import token_dtype
from tokenizer.corpus.readers.rejections import EMPTY, Rejection
from tokenizer.corpus.readers.tar_members import UnusableError, escape_name, read_members
from tokenizer.encoding.foreign.id_arrays import SUFFIXES, decode_ids

DOCUMENT, CHUNK = MEMBERS = ("document", "chunk")
MAX_SAMPLES = 1 << 21  # per tar: their hashes are kept in memory, about 100 bytes each


@dataclass(frozen=True, kw_only=True)
class FramingOptions:
    """Contents of tar members.

    A `member` is either a complete DOCUMENT, to which `bos_id` (if any) and `eos_id` are added where missing, or a CHUNK of
    a longer stream, which stays unchanged. Trailing `pad_id` are stripped first. `pattern` (fnmatch; default: SUFFIXES)
    selects the members with tokens, `field` the field of a JSON object.
    """

    vocab_size: int
    eos_id: int
    bos_id: int | None = None
    pad_id: int | None = None
    member: str = DOCUMENT
    pattern: str | None = None
    field: str | None = None


def check_framing(options: FramingOptions) -> None:
    """Raise DataError unless the special ids are in the vocabulary and `pad_id` differs from bos and eos."""
    if options.member not in MEMBERS:
        raise DataError(f"member={options.member!r} is not one of {', '.join(MEMBERS)}")
    for name in ("eos_id", "bos_id", "pad_id"):
        token = getattr(options, name)
        if token is not None and not 0 <= token < options.vocab_size:
            raise DataError(f"{name}={token} is not between 0 and vocab_size-1 = {options.vocab_size - 1}")
    if options.pad_id is not None and options.pad_id in (options.eos_id, options.bos_id):
        raise DataError(
            f"pad_id={options.pad_id} is also the eos or bos id, and would be stripped from documents",
            hint="leave out --pad-id: trailing eos ids are kept",
        )


def read_token_members(
    file: BinaryIO, place: str, options: FramingOptions, known_ids: int
) -> Iterator[np.ndarray | Rejection | None]:
    """The framed ids [N] of each member with tokens, in tar order; None for each other plain file.

    Ids must be below `known_ids`. Raises DataError if two members of one sample could hold its tokens.
    """
    seen: set[bytes] = set()
    previous = ""
    for member in read_members(file, place, lambda name: _holds_tokens(name, options.pattern)):
        if isinstance(member, Rejection):
            yield member
            continue
        if member.data is None:
            yield None
            continue
        sample = _sample(member.name)
        if sample == _sample(previous) and member.name != previous:
            raise DataError(
                f"{place}: both {escape_name(previous)} and {escape_name(member.name)} may hold the tokens of one sample",
                hint="select one with a pattern: --tokens-member '*.npy'",
            )
        previous = member.name
        where = f"{place}: {escape_name(member.name)}"
        # Not Python's hash(): it is seeded per process, so a collision would not be reproducible.
        digest = hashlib.blake2b(sample.encode("utf-8", "surrogateescape"), digest_size=16).digest()
        if digest in seen:
            yield Rejection(where, "repeated sample", "an earlier sample of the tar has this name")
            continue
        if len(seen) == MAX_SAMPLES:
            yield Rejection(where, "too many samples", f"over {MAX_SAMPLES} in one tar; its rest is not read")
            return
        seen.add(digest)
        try:
            ids = decode_ids(member.name, member.data, options.field)
            _check_range(ids, known_ids)
        except UnusableError as problem:
            yield Rejection(where, problem.reason, problem.detail)
            continue
        framed = frame(ids, options)
        yield framed if len(framed) else Rejection(where, EMPTY, "no ids")


def _holds_tokens(name: str, pattern: str | None) -> bool:
    return name.endswith(SUFFIXES) if pattern is None else fnmatchcase(name, pattern)


def _sample(name: str) -> str:
    """WebDataset's sample key: the path up to the first dot of its last component."""
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.partition('.')[0]}"


def _check_range(ids: np.ndarray, known_ids: int) -> None:
    # Checked in the stored type: a cast could wrap a wrong id into the vocabulary.
    if len(ids) and not (int(ids.min()) >= 0 and int(ids.max()) < known_ids):
        position = int(np.argmax((ids < 0) | (ids >= known_ids)))
        raise UnusableError(
            "id outside the vocabulary", f"{ids[position]} at position {position}, not between 0 and {known_ids - 1}"
        )


def frame(ids: np.ndarray, options: FramingOptions) -> np.ndarray:
    """Ids [N] in the shards' type: trailing padding stripped, bos and eos added to a document. Empty if only padding.

    Ids must be in the vocabulary.
    """
    if options.pad_id is not None:
        kept = np.flatnonzero(ids != options.pad_id)
        ids = ids[: kept[-1] + 1] if len(kept) else ids[:0]
    dtype = np.dtype(token_dtype(options.vocab_size))
    if options.member == CHUNK or not len(ids):
        return ids.astype(dtype)
    before = [] if options.bos_id in (None, ids[0]) else [options.bos_id]
    after = [] if ids[-1] == options.eos_id else [options.eos_id]
    return np.concatenate([np.array(before, dtype), ids.astype(dtype), np.array(after, dtype)])


def document_lengths(ids: np.ndarray, eos_id: int) -> np.ndarray:
    """Lengths (int64) of the documents that end in `ids`, eos included; ids after a chunk's last eos are not counted."""
    return np.diff(np.flatnonzero(ids == eos_id) + 1, prepend=0)
