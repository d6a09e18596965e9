"""Rewrites WebDataset tars of tokens from other tools as token shards.

1. `find_tars` lists the tars.                                                        -> tars.py
2. `read_members` yields the plain files of a tar and rejects unusable ones.          -> corpus/readers/tar_members.py
3. `decode_ids` decodes the ids in one.                                               -> id_arrays.py
4. `frame` makes documents: strips padding, adds bos and eos.                         -> framing.py
5. `ShardWriter` cuts the stream into blocks; the manifest is written last.           -> shards/writer.py

The tokens are rewritten, not indexed in place: gzip has no random access, a sequence can span several members, and verified
data should be covered by a hash.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pretrain.errors import DataError, PretrainError
from pretrain.shards.format import BLOCK_TOKENS
from pretrain.shards.manifest import FORMAT, STREAM, Manifest, token_dtype
from pretrain.shards.manifest_file import write_manifest
from pretrain.shards.table import ShardEntry, ShardTable
from pretrain.shards.writer import SHARD_BYTES, ShardWriter, clear_output
from tokenizer.corpus.readers.rejections import Rejection
from tokenizer.corpus.rejection_log import RejectionLog
from tokenizer.encoding.foreign.framing import FramingOptions, check_framing, document_lengths, read_token_members
from tokenizer.encoding.foreign.id_arrays import SUFFIXES
from tokenizer.encoding.foreign.tars import check_output, find_tars
from tokenizer.encoding.foreign.text_bytes import bytes_per_id
from tokenizer.models.base import tokenizer_sha256

UNKNOWN = "unknown"
UNKNOWN_TOKENIZER = "0" * 64


class RewriteProgress(NamedTuple):
    """Progress of a rewrite: bytes read of the tars, and ids found."""

    bytes: int
    total_bytes: int
    tokens: int


class RewriteResult(NamedTuple):
    """The manifest, members written as tokens, and `other_members`: plain files without tokens."""

    manifest: Manifest
    members: int
    other_members: int


def index_foreign(
    sources: Sequence[str],
    output: Path,
    framing: FramingOptions,
    *,
    tokenizer: Path | None = None,
    max_bad_members: int = 0,
    overwrite: bool = False,
    block_tokens: int = BLOCK_TOKENS,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[RewriteProgress], None] | None = None,
) -> RewriteResult:
    """Write the tokens in `sources` (tars, folders, globs), in order, as shards to the folder `output`.

    With a `tokenizer`, ids are checked against its vocabulary and text_bytes is counted; without, text_bytes is 0. The
    same tars give the same bytes. Raises DataError for unusable options or sources and for more than `max_bad_members`
    bad members; `output` then holds no shards.
    """
    check_framing(framing)
    tars = find_tars(sources)
    check_output(sources, tars, output, overwrite=overwrite)
    id_bytes = None if tokenizer is None else bytes_per_id(tokenizer, framing)
    sha256 = UNKNOWN_TOKENIZER if tokenizer is None else tokenizer_sha256(tokenizer)
    rewriting = _Rewriter(framing, id_bytes, max_bad_members, progress)
    try:
        output.mkdir(parents=True, exist_ok=True)
        clear_output(output)
        try:
            with ShardWriter(
                output, vocab_size=framing.vocab_size, block_tokens=block_tokens, shard_bytes=shard_bytes
            ) as writer:
                shards = rewriting.write(tars, writer)
            manifest = Manifest(
                format=FORMAT,
                dtype=token_dtype(framing.vocab_size),
                vocab_size=framing.vocab_size,
                bos_id=framing.eos_id if framing.bos_id is None else framing.bos_id,
                eos_id=framing.eos_id,
                tokenizer_sha256=sha256,
                sentencepiece_version=UNKNOWN,
                block_tokens=block_tokens,
                layout=STREAM,
                shuffle_seed=0,
                tokens=sum(shard.tokens for shard in shards),
                documents=sum(shard.documents for shard in shards),
                text_bytes=rewriting.text_bytes,
                skipped=rewriting.log.counts,
                shards=ShardTable.of(shards),
            )
            write_manifest(output, manifest)
        except BaseException:
            clear_output(output)
            raise
    except OSError as error:
        raise PretrainError(f"{output}: cannot be written: {error.strerror}") from error
    return RewriteResult(manifest, rewriting.members, rewriting.other_members)


class _Rewriter:
    """One pass over all tars, with its counts."""

    def __init__(
        self,
        framing: FramingOptions,
        id_bytes: np.ndarray | None,
        max_bad_members: int,
        progress: Callable[[RewriteProgress], None] | None,
    ) -> None:
        self.framing, self.id_bytes = framing, id_bytes
        self.max_bad_members, self.progress = max_bad_members, progress
        self.log = RejectionLog()
        self.members = self.other_members = self.tokens = self.text_bytes = 0

    def write(self, tars: Sequence[Path], writer: ShardWriter) -> tuple[ShardEntry, ...]:
        total, done = sum(tar.stat().st_size for tar in tars), 0
        for tar in tars:
            for position, found in self._read(tar):
                if found is None:
                    self.other_members += 1
                elif isinstance(found, Rejection):
                    self._reject(tar, found)
                else:
                    self._write(found, writer)
                if self.progress is not None:
                    self.progress(RewriteProgress(done + position, total, self.tokens))
            done += tar.stat().st_size
        if not self.tokens:
            raise DataError(
                f"no member of {len(tars)} tars holds tokens: {self.other_members} have other names{self.log.summary()}",
                hint=f"--tokens-member PATTERN; the default is {', '.join(f'*{suffix}' for suffix in SUFFIXES)}",
            )
        return writer.finish()

    def _read(self, tar: Path) -> Iterator[tuple[int, np.ndarray | Rejection | None]]:
        known_ids = self.framing.vocab_size if self.id_bytes is None else len(self.id_bytes)
        try:
            with tar.open("rb") as file:
                for found in read_token_members(file, str(tar), self.framing, known_ids):
                    yield file.tell(), found
        except OSError as error:
            raise DataError(f"{tar}: cannot be read: {error.strerror}") from None

    def _reject(self, tar: Path, rejection: Rejection) -> None:
        self.log.add(str(tar), rejection)
        if self.log.unusable > self.max_bad_members:
            raise DataError(
                f"more than max_bad_members={self.max_bad_members} members cannot be used{self.log.summary()}",
                hint="fetch the tars again, or allow more with --max-bad-members",
            )

    def _write(self, ids: np.ndarray, writer: ShardWriter) -> None:
        writer.add(ids, document_lengths(ids, self.framing.eos_id))
        self.members += 1
        self.tokens += len(ids)
        if self.id_bytes is not None:
            self.text_bytes += int(self.id_bytes[ids].sum())
