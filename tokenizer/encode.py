"""Encoding a corpus into token shards.

1. `scan` references the documents; a seed shuffles the references.
2. Batches of references, about 1 MB each, go to worker processes in that order.
3. A worker reads, checks and encodes: each document becomes bos + ids + eos.
4. Results come back in the order of the batches, and one writer cuts the stream into blocks. So the bytes depend on the
   corpus, the tokenizer and the seed, never on the number of workers.
5. The manifest is written last.
"""

import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pretrain.data.manifest import FORMAT, MANIFEST_NAME, Manifest, ShardEntry, token_dtype, write_manifest
from pretrain.data.shards import BLOCK_TOKENS
from pretrain.errors import DataError, PretrainError
from tokenizer.corpus import MAX_DOCUMENT_BYTES, Corpus, Document, read_text, refuse_output_inside, scan, shuffled
from tokenizer.cutting import cut
from tokenizer.model import can_cut, load_tokenizer, tokenizer_sha256
from tokenizer.rejections import Rejection, RejectionLog
from tokenizer.write_shards import SHARD_BYTES, ShardWriter, clear_output

BATCH_BYTES = 1 << 20
BATCH_DOCUMENTS = 1024
# Words whose ids a process remembers, some 300 bytes each, and the longest of them in characters.
REMEMBERED_WORDS = 1 << 18
LONGEST_REMEMBERED = 32
# Enough that no worker waits for the writer, few enough that a slow disk does not fill the memory with results.
BATCHES_IN_FLIGHT = 4


class Progress(NamedTuple):
    """How far an encoding is; `documents` counts those left out too."""

    documents: int
    total_documents: int
    text_bytes: int
    tokens: int


class EncodedBatch(NamedTuple):
    """Documents of a batch, in order: `ids` int32 [tokens], `lengths` int64 [documents], and what was left out."""

    ids: np.ndarray
    lengths: np.ndarray
    text_bytes: int
    rejections: list[Rejection]


def encode_corpus(
    tokenizer: Path,
    inputs: Sequence[Path],
    output: Path,
    *,
    workers: int | None = None,
    text_field: str = "text",
    seed: int = 0,
    max_bad_documents: int = 100,
    max_document_bytes: int = MAX_DOCUMENT_BYTES,
    overwrite: bool = False,
    block_tokens: int = BLOCK_TOKENS,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[Progress], None] | None = None,
) -> Manifest:
    """Write `inputs` as token shards to the folder `output`; returns the manifest, which is written last.

    `workers` are processes (default: one a usable core; 1 encodes in this process). `progress` is called after each
    batch. Raises DataError for an unusable tokenizer or corpus, an output that is already complete, and more than
    `max_bad_documents` bad documents.
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
        ) as writer:
            shards, text_bytes = _write(batches, writer, log, len(corpus), progress)
        manifest = Manifest(
            format=FORMAT,
            dtype=token_dtype(model.get_piece_size()),
            vocab_size=model.get_piece_size(),
            bos_id=model.bos_id(),
            eos_id=model.eos_id(),
            tokenizer_sha256=sha256,
            sentencepiece_version=str(sentencepiece.__version__),
            block_tokens=block_tokens,
            layout="stream",
            shuffle_seed=seed,
            tokens=sum(shard.tokens for shard in shards),
            documents=sum(shard.documents for shard in shards),
            text_bytes=text_bytes,
            skipped=log.counts,
            shards=shards,
        )
        write_manifest(output, manifest)
    except OSError as error:
        raise PretrainError(f"{output}: cannot be written: {error.strerror}") from error
    finally:
        batches.close()
    return manifest


def _write(
    batches: Iterator[EncodedBatch],
    writer: ShardWriter,
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


def batched(corpus: Corpus, seed: int) -> Iterator[list[Document]]:
    """The shuffled references, in batches of about BATCH_BYTES."""
    batch: list[Document] = []
    size = 0
    for position in shuffled(len(corpus), seed):
        document = corpus.document(position)
        batch.append(document)
        size += document.length
        if size >= BATCH_BYTES or len(batch) >= BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def encode_batches(
    tokenizer: Path, corpus: Corpus, *, workers: int, text_field: str, seed: int
) -> Generator[EncodedBatch, None, None]:
    """The whole corpus, encoded by `workers` processes, in the order of `batched`. Close it to end the processes."""
    if workers == 1:
        encoder = Encoder(tokenizer, text_field)
        yield from (encoder(batch) for batch in batched(corpus, seed))
        return
    # spawn: a fork of a process with threads (torch, rich's progress bar) may hang.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (tokenizer, text_field))
    pending: deque[Future[EncodedBatch]] = deque()
    try:
        for batch in batched(corpus, seed):
            pending.append(pool.submit(_encode_in_worker, batch))
            if len(pending) == BATCHES_IN_FLIGHT * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise PretrainError(
            f"one of the {workers} encoding processes died",
            hint="it may have been killed for want of memory: try fewer --workers",
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


class Encoder:
    """Reads, checks and encodes batches of documents with one model, on one thread."""

    def __init__(self, tokenizer: Path, text_field: str) -> None:
        self.model = load_tokenizer(tokenizer)
        self.cuttable = can_cut(self.model)
        self.text_field = text_field
        self._ids_of_word: dict[str, list[int]] = {}

    def __call__(self, batch: Sequence[Document]) -> EncodedBatch:
        """Encode `batch`, each document framed by bos and eos."""
        ids: list[int] = []
        lengths: list[int] = []
        rejections: list[Rejection] = []
        text_bytes = 0
        for document in batch:
            text = read_text(document, text_field=self.text_field)
            if isinstance(text, Rejection):
                rejections.append(text)
                continue
            start = len(ids)
            ids.append(self.model.bos_id())
            ids += self.encode_text(text)
            ids.append(self.model.eos_id())
            lengths.append(len(ids) - start)
            text_bytes += len(text.encode())
        return EncodedBatch(np.array(ids, np.int32), np.array(lengths, np.int64), text_bytes, rejections)

    def encode_text(self, text: str) -> list[int]:
        """The ids that SentencePiece gives `text`, without bos and eos.

        Where cutting keeps the ids, word by word: one call on 6 MB took three times as long, and most words come again.
        """
        if not self.cuttable:
            return list(self.model.encode(text))
        ids: list[int] = []
        for word in cut(text, 1):
            known = self._ids_of_word.get(word)
            if known is None:
                known = self.model.encode(word)
                if len(word) <= LONGEST_REMEMBERED and len(self._ids_of_word) < REMEMBERED_WORDS:
                    self._ids_of_word[word] = known
            ids += known
        return ids


_encoder: Encoder | None = None


def _start_worker(tokenizer: Path, text_field: str) -> None:
    global _encoder
    # Ctrl-C reaches the whole process group; the parent ends the pool.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _encoder = Encoder(tokenizer, text_field)


def _encode_in_worker(batch: Sequence[Document]) -> EncodedBatch:
    if _encoder is None:
        raise RuntimeError("the worker was not started by _start_worker")
    return _encoder(batch)
