"""Small tokenized corpora, written as `pretrain tokenizer encode` writes them but without a tokenizer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.shards.manifest import FORMAT, PACKED, STREAM, Manifest, token_dtype
from pretrain.shards.manifest_file import write_manifest
from pretrain.shards.packed_writer import BinWriter
from pretrain.shards.table import ShardEntry, ShardTable
from pretrain.shards.writer import ShardWriter

BOS, EOS, PAD = 1, 2, 3


def write_corpus(
    folder: Path,
    tokens: int | Sequence[int],
    *,
    vocab_size: int = 1_000,
    block_tokens: int = 64,
    blocks_per_shard: int = 3,
    text_bytes: int | None = None,
    tokenizer_sha256: str = "0" * 64,
) -> np.ndarray:
    """Write a stream of ids (or so many ids that count upwards, so that a place can be told from its ids) to `folder`.

    Returns the stream. It is cut into documents of 50 ids.
    """
    stream = np.arange(tokens) % vocab_size if isinstance(tokens, int) else np.asarray(tokens)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = token_dtype(vocab_size)
    shard_bytes = blocks_per_shard * block_tokens * np.dtype(dtype).itemsize
    lengths = [len(part) for part in np.split(stream, range(50, len(stream), 50))]
    with ShardWriter(folder, vocab_size=vocab_size, block_tokens=block_tokens, shard_bytes=shard_bytes) as writer:
        writer.add(stream, np.array(lengths))
        shards = writer.finish()
    manifest = _describe(
        shards,
        vocab_size=vocab_size,
        tokenizer_sha256=tokenizer_sha256,
        block_tokens=block_tokens,
        tokens=sum(shard.tokens for shard in shards),
        text_bytes=4 * len(stream) if text_bytes is None else text_bytes,
    )
    write_manifest(folder, manifest)
    return stream


def write_packed_corpus(
    folder: Path,
    documents: Sequence[Sequence[int]],
    seq_len: int,
    *,
    vocab_size: int = 1_000,
    block_tokens: int = 64,
    blocks_per_shard: int = 3,
    tokenizer_sha256: str = "0" * 64,
) -> Manifest:
    """Write documents, given as ids without bos and eos, in bins of `seq_len` to `folder`; returns the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    shard_bytes = blocks_per_shard * block_tokens * np.dtype(token_dtype(vocab_size)).itemsize
    with ShardWriter(folder, vocab_size=vocab_size, block_tokens=block_tokens, shard_bytes=shard_bytes) as writer:
        bins = BinWriter(writer, seq_len=seq_len, pad_id=PAD)
        for document in documents:
            bins.add(np.array([BOS, *document, EOS]), np.array([len(document) + 2]))
        shards = bins.finish()
    manifest = _describe(
        shards,
        vocab_size=vocab_size,
        tokenizer_sha256=tokenizer_sha256,
        block_tokens=block_tokens,
        layout=PACKED,
        packed_seq_len=seq_len,
        pad_id=PAD,
        tokens=bins.tokens,
        padding_tokens=bins.padding_tokens,
        documents_cut=bins.documents_cut,
        text_bytes=4 * sum(map(len, documents)),
    )
    write_manifest(folder, manifest)
    return manifest


def _describe(shards: tuple[ShardEntry, ...], *, vocab_size: int, **fields: Any) -> Manifest:
    return Manifest(
        format=FORMAT,
        dtype=token_dtype(vocab_size),
        vocab_size=vocab_size,
        bos_id=BOS,
        eos_id=EOS,
        sentencepiece_version="0.2.1",
        shuffle_seed=0,
        documents=sum(shard.documents for shard in shards),
        skipped={},
        shards=ShardTable.of(shards),
        **{"layout": STREAM, **fields},
    )
