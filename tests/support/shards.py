"""Small tokenized corpora, written as `pretrain tokenizer encode` writes them but without a tokenizer."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pretrain.data.manifest import FORMAT, Manifest, token_dtype, write_manifest
from tokenizer.write_shards import ShardWriter

BOS, EOS = 1, 2


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
    manifest = Manifest(
        format=FORMAT,
        dtype=dtype,
        vocab_size=vocab_size,
        bos_id=BOS,
        eos_id=EOS,
        tokenizer_sha256=tokenizer_sha256,
        sentencepiece_version="0.2.1",
        block_tokens=block_tokens,
        layout="stream",
        shuffle_seed=0,
        tokens=sum(shard.tokens for shard in shards),
        documents=sum(shard.documents for shard in shards),
        text_bytes=4 * len(stream) if text_bytes is None else text_bytes,
        skipped={},
        shards=shards,
    )
    write_manifest(folder, manifest)
    return stream
