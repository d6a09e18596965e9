"""From references of documents to ids, in worker processes and yet in one order.

1. A seed shuffles the references.
2. Batches of references, about 1 MB each, go to worker processes in that order.
3. A worker reads, checks and encodes: each document becomes bos + ids + eos.
4. Results come back in the order of the batches.
"""

import signal
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pretrain.errors import PretrainError
from tokenizer.corpus import Corpus, Document, read_text, shuffled
from tokenizer.cutting import cut
from tokenizer.model import can_cut, load_tokenizer
from tokenizer.rejections import Rejection

BATCH_BYTES = 1 << 20
BATCH_DOCUMENTS = 1024
# Words whose ids a process remembers, some 300 bytes each, and the longest of them in characters.
REMEMBERED_WORDS = 1 << 18
LONGEST_REMEMBERED = 32
# Enough that no worker waits for the writer, few enough that a slow disk does not fill the memory with results.
BATCHES_IN_FLIGHT = 4


class EncodedBatch(NamedTuple):
    """Documents of a batch, in order: `ids` int32 [tokens], `lengths` int64 [documents], and what was left out."""

    ids: np.ndarray
    lengths: np.ndarray
    text_bytes: int
    rejections: list[Rejection]


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
