"""Encoding a corpus into token shards.

1. `scan` references the documents.                                                                        -> corpus.py
2. Processes encode them in an order that a seed shuffles, and give them back in that order.               -> encoder.py
3. Where the layout is "packed", documents are put together into bins of one length.        -> packing.py, write_bins.py
4. One writer cuts the stream into blocks.                                                           -> write_shards.py
5. The manifest is written last.

So the bytes depend on the corpus, the tokenizer and the seed, never on the number of workers.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from pretrain.data.manifest import FORMAT, MANIFEST_NAME, PACKED, STREAM, Manifest, token_dtype, write_manifest
from pretrain.data.shard_table import ShardEntry, ShardTable
from pretrain.data.shards import BLOCK_TOKENS
from pretrain.errors import DataError, PretrainError
from tokenizer.corpus import MAX_DOCUMENT_BYTES, refuse_output_inside, scan
from tokenizer.encoder import EncodedBatch, encode_batches
from tokenizer.model import load_tokenizer, tokenizer_sha256
from tokenizer.rejections import RejectionLog
from tokenizer.write_bins import BinWriter, check_layout, check_padding
from tokenizer.write_shards import SHARD_BYTES, ShardWriter, clear_output


class Progress(NamedTuple):
    """How far an encoding is; `documents` counts those left out too."""

    documents: int
    total_documents: int
    text_bytes: int
    tokens: int


def encode_corpus(
    tokenizer: Path,
    inputs: Sequence[Path],
    output: Path,
    *,
    workers: int | None = None,
    text_field: str = "text",
    seed: int = 0,
    layout: str = STREAM,
    seq_len: int | None = None,
    max_bad_documents: int = 100,
    max_document_bytes: int = MAX_DOCUMENT_BYTES,
    overwrite: bool = False,
    block_tokens: int = BLOCK_TOKENS,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[Progress], None] | None = None,
) -> Manifest:
    """Write `inputs` as token shards to the folder `output`; returns the manifest, which is written last.

    `workers` are processes (default: one a usable core; 1 encodes in this process). `layout` "packed" needs `seq_len`, the
    ids of a bin: the sequence length of training. `progress` is called after each batch. Raises DataError for an unusable
    tokenizer or corpus, an output that is already complete, and more than `max_bad_documents` bad documents.
    """
    import sentencepiece

    model, sha256 = load_tokenizer(tokenizer), tokenizer_sha256(tokenizer)
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    if workers < 1:
        raise DataError(f"workers={workers}: at least 1 process is needed")
    if seed < 0:
        raise DataError(f"seed={seed} is negative")
    if block_tokens < 1:
        raise DataError(f"block_tokens={block_tokens} is less than 1")
    check_layout(layout, seq_len, block_tokens)
    if layout == PACKED:
        check_padding(tokenizer, model)
    if (output / MANIFEST_NAME).exists() and not overwrite:
        raise DataError(
            f"{output}: holds an encoded corpus already", hint="choose another --output, or add --overwrite"
        )
    if output.exists() and not output.is_dir():
        raise DataError(f"{output}: the output must be a folder, and this is a file")
    refuse_output_inside(inputs, output)
    corpus = scan(inputs, max_document_bytes=max_document_bytes)
    log = RejectionLog(max_bad_documents)
    log.add(corpus.rejections)

    batches = encode_batches(tokenizer, corpus, workers=workers, text_field=text_field, seed=seed)
    try:
        output.mkdir(parents=True, exist_ok=True)
        clear_output(output)
        with ShardWriter(
            output, vocab_size=model.get_piece_size(), block_tokens=block_tokens, shard_bytes=shard_bytes
        ) as shard_writer:
            bins = None if seq_len is None else BinWriter(shard_writer, seq_len=seq_len, pad_id=model.pad_id())
            shards, text_bytes = _write(batches, bins or shard_writer, log, len(corpus), progress)
        manifest = Manifest(
            format=FORMAT,
            dtype=token_dtype(model.get_piece_size()),
            vocab_size=model.get_piece_size(),
            bos_id=model.bos_id(),
            eos_id=model.eos_id(),
            tokenizer_sha256=sha256,
            sentencepiece_version=str(sentencepiece.__version__),
            block_tokens=block_tokens,
            layout=layout,
            shuffle_seed=seed,
            tokens=sum(shard.tokens for shard in shards),
            documents=sum(shard.documents for shard in shards),
            text_bytes=text_bytes,
            skipped=log.counts,
            shards=ShardTable.of(shards),
        )
        if bins is not None:
            manifest = replace(
                manifest,
                packed_seq_len=bins.seq_len,
                pad_id=bins.pad_id,
                tokens=bins.tokens,
                padding_tokens=bins.padding_tokens,
                documents_cut=bins.documents_cut,
            )
        write_manifest(output, manifest)
    except OSError as error:
        raise PretrainError(f"{output}: cannot be written: {error.strerror}") from error
    finally:
        batches.close()
    return manifest


def _write(
    batches: Iterator[EncodedBatch],
    writer: ShardWriter | BinWriter,
    log: RejectionLog,
    total_documents: int,
    progress: Callable[[Progress], None] | None,
) -> tuple[tuple[ShardEntry, ...], int]:
    """Write all batches; returns the shards and the UTF-8 bytes of the documents in them."""
    done = text_bytes = tokens = 0
    for batch in batches:
        log.add(batch.rejections)
        writer.add(batch.ids, batch.lengths)
        done += len(batch.lengths) + len(batch.rejections)
        text_bytes += batch.text_bytes
        tokens += len(batch.ids)
        if progress is not None:
            progress(Progress(done, total_documents, text_bytes, tokens))
    if not tokens:
        raise DataError(f"no document of the corpus can be used{log.summary()}")
    return writer.finish(), text_bytes
