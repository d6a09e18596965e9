"""Finished tasks become one corpus.

1. It is written down that shards leave the folders of their tasks (`tasks/merging`).
2. The shards get their numbers, in the order of the tasks, and are renamed into OUTPUT.
3. problems.jsonl, the table of shards and manifest.json are written, the manifest last: now the corpus is complete.
4. OUTPUT/tasks is removed.

Nothing is copied, and nothing is decided here but names and sums. Killed at any point, or run twice at the same time, it is
run again, and finds each shard at its old place or at its new one.
"""

from collections.abc import Iterator, Sequence

from pretrain.errors import DataError
from pretrain.shards.format import index_name
from pretrain.shards.manifest import (
    FORMAT,
    MANIFEST_NAME,
    PACKED,
    STREAM,
    Manifest,
    read_manifest,
    token_dtype,
    write_manifest,
)
from pretrain.shards.table import MOST_SHARDS, TABLE_NAME, ShardEntry, ShardTable, shard_name
from pretrain.shards.writer import PROBLEMS_NAME
from pretrain.storage.files import move_into_place, sync, write_synced
from tokenizer.corpus.rejection_log import Problems
from tokenizer.encoding.encode_options import Encoding
from tokenizer.encoding.receipts import Receipt
from tokenizer.encoding.work_folder import WorkFolder, task_name


def merge(work: WorkFolder, receipts: Sequence[Receipt], encoding: Encoding) -> Manifest:
    """Make a corpus of all tasks, whose `receipts` are in order; returns its manifest.

    Raises DataError for more bad documents than allowed, for a corpus without a document, and for shards that are gone.
    """
    problems = Problems()
    for receipt in receipts:
        problems.merge(receipt.problems)
    problems.check_limit(encoding.max_bad_documents)
    entries = [entry for entry, _, _ in _numbered(receipts)]
    if not entries:
        raise DataError(f"no document of the corpus can be used{problems.summary()}")
    if len(entries) > MOST_SHARDS:
        raise DataError(
            f"{len(entries)} shards, and a corpus has at most {MOST_SHARDS}", hint="larger --task-megabytes"
        )
    manifest = _manifest(receipts, entries, problems.counts, encoding)
    try:
        work.start_merging()
        _move_shards(work, receipts)
        _publish(work, manifest, problems)
    except FileNotFoundError:
        # Somebody else did the same, and removed the folder that we work in.
        if not (work.output / MANIFEST_NAME).exists() or read_manifest(work.output) != manifest:
            raise
    work.remove()
    return manifest


def _numbered(receipts: Sequence[Receipt]) -> Iterator[tuple[ShardEntry, int, str]]:
    """(the shard under its name in the corpus, its task, its name in the task) for every shard."""
    number = 0
    for receipt in receipts:
        for shard in receipt.shards:
            entry = ShardEntry(**{**vars(shard), "name": shard_name(number)})
            yield entry, receipt.task, shard.name
            number += 1


def _manifest(
    receipts: Sequence[Receipt], entries: Sequence[ShardEntry], skipped: dict[str, int], encoding: Encoding
) -> Manifest:
    packed = encoding.seq_len is not None
    written = [receipt for receipt in receipts if receipt.shards]
    return Manifest(
        format=FORMAT,
        dtype=token_dtype(encoding.vocab_size),
        vocab_size=encoding.vocab_size,
        # Where nothing begins a document but the end of the one before, that is what is said.
        bos_id=encoding.eos_id if encoding.bos_id < 0 else encoding.bos_id,
        eos_id=encoding.eos_id,
        tokenizer_sha256=encoding.tokenizer_sha256,
        sentencepiece_version=encoding.sentencepiece_version,
        block_tokens=encoding.block_tokens,
        layout=PACKED if packed else STREAM,
        packed_seq_len=encoding.seq_len or 0,
        pad_id=encoding.pad_id if packed else -1,
        shuffle_seed=encoding.seed,
        tokens=sum(receipt.tokens for receipt in written),
        # Each task ends with a padding id where the next one's first bin begins; the corpus has one at its end.
        padding_tokens=sum(receipt.padding_tokens for receipt in written) - (len(written) - 1) * packed,
        documents=sum(receipt.documents for receipt in written),
        documents_cut=sum(receipt.documents_cut for receipt in written),
        text_bytes=sum(receipt.text_bytes for receipt in written),
        skipped=skipped,
        shards=ShardTable.of(entries),
    )


def _move_shards(work: WorkFolder, receipts: Sequence[Receipt]) -> None:
    for entry, task, name in _numbered(receipts):
        folder = work.path / task_name(task)
        for old, new in ((index_name(name), index_name(entry.name)), (name, entry.name)):
            try:
                (folder / old).replace(work.output / new)
            except FileNotFoundError:
                if not (work.output / new).is_file():
                    raise DataError(
                        f"{folder / old}: is gone, and {work.output / new} is not there",
                        hint=work.how_to_begin_anew,
                    ) from None
        size = (work.output / entry.name).stat().st_size
        if size != entry.bytes:
            raise DataError(
                f"{work.output / entry.name}: {size} bytes, and its task wrote {entry.bytes}",
                hint=work.how_to_begin_anew,
            )
    sync(work.output)


def _publish(work: WorkFolder, manifest: Manifest, problems: Problems) -> None:
    """Write what describes the corpus in a folder of our own, and rename it into place, the manifest last."""
    with work.staging("merge") as folder:
        lines = problems.lines()
        if lines:
            write_synced(folder / PROBLEMS_NAME, lines.encode())
        write_manifest(folder, manifest)
        for name in (PROBLEMS_NAME, TABLE_NAME, MANIFEST_NAME):
            if name != PROBLEMS_NAME or lines:
                move_into_place(folder / name, work.output / name)
