"""Encodes one task, from its documents to its shards.

1. Read documents, part by part.                                                             -> corpus/readers/
2. Leave out documents whose text occurs earlier, or that belong to the other part.          -> deduplicate.py, holdout.py
3. Encode each: bos + ids + eos, or ids + eos if the tokenizer has no bos. One whose characters the tokenizer does not have
   is left out.                                                          -> models/fast.py, models/round_trip.py
4. Shuffle in windows of about 2^26 ids.                                                          -> shuffle.py
5. Layout "packed": pack documents into bins.                       -> shards/packing.py, shards/packed_writer.py
6. Cut the ids into blocks, in shards of this task.                                          -> shards/writer.py
7. Write the receipt and commit the task's folder.                             -> receipts.py, work_folder.py

The output bytes depend on the task, its number and `Encoding` alone: not on other tasks, processes or time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pretrain.errors import DataError
from pretrain.shards.manifest import token_dtype
from pretrain.shards.packed_writer import BinWriter
from pretrain.shards.writer import ShardWriter
from tokenizer.corpus.readers import CorpusTask, read_part
from tokenizer.corpus.readers.open_file import escape_url
from tokenizer.corpus.readers.rejections import Rejection
from tokenizer.corpus.rejection_log import DUPLICATE, LOSSY
from tokenizer.encoding.deduplicate import TaskDuplicates, load_duplicates
from tokenizer.encoding.encode_options import Encoding
from tokenizer.encoding.holdout import left_out
from tokenizer.encoding.receipts import Receipt, hash_indexes
from tokenizer.encoding.shared_counts import SharedCounts, TaskCounter
from tokenizer.encoding.shuffle import ShuffleWindow, window_seed
from tokenizer.encoding.work_folder import WorkFolder, task_name
from tokenizer.models.base import tokenizer_sha256
from tokenizer.models.fast import TextEncoder, load_encoder


@dataclass(frozen=True)
class EncodeWorker:
    """Encodes tasks, in any process."""

    encoding: Encoding
    work: WorkFolder
    max_bad_documents: int

    def __call__(self, task: CorpusTask, counts: SharedCounts, row: int) -> Receipt:
        """`encode_task`, without the task's duplicates if the run deduplicates."""
        duplicates = load_duplicates(self.work, task.number) if self.encoding.deduplicate else None
        encoder = _load_encoder(self.encoding.tokenizer, self.encoding.tokenizer_sha256)
        counter = TaskCounter(counts, row, self.max_bad_documents, self.encoding.max_bad_files)
        return encode_task(task, self.encoding, encoder, self.work, counter, duplicates)


@lru_cache(maxsize=1)
def _load_encoder(tokenizer: Path, sha256: str) -> TextEncoder:
    """Loaded once per process. Raises DataError if the tokenizer changed since the run began."""
    if tokenizer_sha256(tokenizer) != sha256:
        raise DataError(
            f"{tokenizer}: changed while the corpus was encoded", hint="start from the beginning with --overwrite"
        )
    return load_encoder(tokenizer)


def encode_task(
    task: CorpusTask,
    encoding: Encoding,
    encoder: TextEncoder,
    work: WorkFolder,
    counter: TaskCounter,
    duplicates: TaskDuplicates | None = None,
) -> Receipt:
    """Encode and commit one task; returns its receipt, even if another process committed it first.

    Raises StoppedError, with the task's rejections, when the run stops, and DataError if the corpus cannot be read.
    """
    dtype = token_dtype(encoding.vocab_size)
    window = ShuffleWindow(encoding.vocab_size, dtype)
    with work.staging(task_name(task.number)) as folder:
        with ShardWriter(
            folder,
            vocab_size=encoding.vocab_size,
            block_tokens=encoding.block_tokens,
            shard_bytes=encoding.shard_bytes,
            task=task.number,
        ) as shard_writer:
            bins = (
                None
                if encoding.seq_len is None
                else BinWriter(shard_writer, seq_len=encoding.seq_len, pad_id=encoding.pad_id)
            )
            writer = bins or shard_writer
            for number, documents in enumerate(_windows(task, encoding, encoder, window, counter, duplicates)):
                for ids, lengths in documents.drain(window_seed(encoding.seed, task.number, number)):
                    writer.add(ids, lengths)
            shards = writer.finish() if counter.written else ()
        receipt = Receipt(
            job=work.digest,
            task=task.number,
            seen=counter.seen,
            documents=counter.written,
            text_bytes=counter.text_bytes,
            tokens=sum(shard.tokens for shard in shards) if bins is None else bins.tokens,
            padding_tokens=0 if bins is None else bins.padding_tokens,
            documents_cut=0 if bins is None else bins.documents_cut,
            shards=shards,
            index_sha256=hash_indexes(folder, shards),
            problems=counter.problems,
        )
        work.commit_task(folder, receipt)
    counter.done()
    return receipt


def _windows(
    task: CorpusTask,
    encoding: Encoding,
    encoder: TextEncoder,
    window: ShuffleWindow,
    counter: TaskCounter,
    duplicates: TaskDuplicates | None,
) -> Iterator[ShuffleWindow]:
    """Yields `window` each time it is full, and at the end; the caller drains it."""
    repeated = iter(duplicates.repeated.tolist() if duplicates else ())
    following, number = next(repeated, None), 0
    for part in task.parts:
        for found in read_part(part, encoding.reading):
            if isinstance(found, Rejection):
                counter.reject(escape_url(part.url), found)
                continue
            number += 1
            if number - 1 == following:
                following = next(repeated, None)
                counter.reject(escape_url(part.url), Rejection(found.place, DUPLICATE, "its text came before"))
                continue
            if reason := left_out(found.text, encoding.holdout, encoding.part):
                counter.reject(escape_url(part.url), Rejection(found.place, reason, "by the hash of its text"))
                continue
            ids = encoder.encode(found.text)
            if encoder.losses is not None and (lost := encoder.losses(found.text, ids.tolist())):
                counter.reject(escape_url(part.url), Rejection(found.place, LOSSY, lost))
                continue
            window.add(encoding.bos_id, ids, encoding.eos_id)
            counter.count(found, len(ids) + 1 + (encoding.bos_id >= 0))
            if window.full:
                yield window
    if duplicates is not None and duplicates.documents != number:
        raise DataError(
            f"task {task.number}: had {duplicates.documents} documents in the deduplication pass, and has {number} now",
            hint="when nothing writes to the corpus, remove OUTPUT/tasks and encode again",
        )
    if len(window):
        yield window
