"""One task from its documents to its shards: everything that happens to a part of the corpus, by itself.

1. Documents are read part by part.                                                                  -> readers/
2. Those whose text came before, anywhere in the corpus, are left out.                         -> duplicates.py
3. Each is encoded: bos + ids + eos, or ids + eos where the tokenizer begins no text with a token.    -> fast.py
4. Windows of some 2^26 ids are shuffled.                                                         -> windows.py
5. In the layout "packed", documents are put together into bins.                    -> packing.py, write_bins.py
6. The ids are cut into blocks, in shards of this task.                                      -> write_shards.py
7. The receipt is written, and the task's folder gets its name.                -> receipts.py, work_folder.py

The bytes follow from the task, its number and `Encoding`: not from other tasks, nor from who runs it and when.
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
from tokenizer.corpus.readers import Task, read_part
from tokenizer.corpus.readers.open_file import show
from tokenizer.corpus.readers.rejections import Rejection
from tokenizer.corpus.rejection_log import DUPLICATE
from tokenizer.encoding.deduplicate import Known, known_of
from tokenizer.encoding.encode_options import Encoding
from tokenizer.encoding.receipts import Receipt, index_hashes
from tokenizer.encoding.shared_counts import SharedCounts, Watch
from tokenizer.encoding.shuffle import ShuffleWindow, window_seed
from tokenizer.encoding.work_folder import WorkFolder, task_name
from tokenizer.models.base import tokenizer_sha256
from tokenizer.models.fast import Encode, load_encoder


@dataclass(frozen=True)
class EncodeWorker:
    """Encodes tasks in whichever process it is sent to."""

    encoding: Encoding
    work: WorkFolder
    max_bad_documents: int

    def __call__(self, task: Task, board: SharedCounts, row: int) -> Receipt:
        """`run_task`, with what is known of duplicates."""
        known = known_of(self.work, task.number) if self.encoding.deduplicate else None
        encode = _encoder(self.encoding.tokenizer, self.encoding.tokenizer_sha256)
        return run_task(task, self.encoding, encode, self.work, Watch(board, row, self.max_bad_documents), known)


@lru_cache(maxsize=1)
def _encoder(tokenizer: Path, sha256: str) -> Encode:
    """Loaded once a process. Raises DataError if it is not the tokenizer that the run began with."""
    if tokenizer_sha256(tokenizer) != sha256:
        raise DataError(f"{tokenizer}: changed while the corpus was encoded", hint="--overwrite starts anew")
    return load_encoder(tokenizer).encode


def run_task(
    task: Task, encoding: Encoding, encode: Encode, work: WorkFolder, watch: Watch, known: Known | None = None
) -> Receipt:
    """Encode one task and commit it; its receipt, also where another process was faster.

    Raises StoppedError when all are to stop, with the problems of this task, and DataError for what cannot be read.
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
            for number, documents in enumerate(_windows(task, encoding, encode, window, watch, known)):
                for ids, lengths in documents.drain(window_seed(encoding.seed, task.number, number)):
                    writer.add(ids, lengths)
            shards = writer.finish() if watch.written else ()
        receipt = Receipt(
            job=work.digest,
            task=task.number,
            seen=watch.seen,
            documents=watch.written,
            text_bytes=watch.text_bytes,
            tokens=sum(shard.tokens for shard in shards) if bins is None else bins.tokens,
            padding_tokens=0 if bins is None else bins.padding_tokens,
            documents_cut=0 if bins is None else bins.documents_cut,
            shards=shards,
            index_sha256=index_hashes(folder, shards),
            problems=watch.problems,
        )
        work.commit_task(folder, receipt)
    watch.done()
    return receipt


def _windows(
    task: Task, encoding: Encoding, encode: Encode, window: ShuffleWindow, watch: Watch, known: Known | None
) -> Iterator[ShuffleWindow]:
    """The window, each time that it is full, and at the end."""
    repeated = iter(known.repeated.tolist() if known else ())
    following, number = next(repeated, None), 0
    for part in task.parts:
        for found in read_part(part, encoding.reading):
            if isinstance(found, Rejection):
                watch.reject(show(part.url), found)
                continue
            number += 1
            if number - 1 == following:
                following = next(repeated, None)
                watch.reject(show(part.url), Rejection(found.place, DUPLICATE, "its text came before"))
                continue
            ids = encode(found.text)
            window.add(encoding.bos_id, ids, encoding.eos_id)
            watch.count(found, len(ids) + 1 + (encoding.bos_id >= 0))
            if window.full:
                yield window
    if known is not None and known.documents != number:
        raise DataError(
            f"task {task.number}: had {known.documents} documents when duplicates were looked for, and has {number} now",
            hint="let the files rest, remove OUTPUT/tasks, and encode again",
        )
    if len(window):
        yield window
