"""Merges finished tasks into one corpus.

1. Write the marker `tasks/merging`: from now on shards may have left their task folders.
2. Number the shards in task order and rename them into OUTPUT.
3. Write problems.jsonl, encoding.json, the shard table and manifest.json, the manifest last: it makes the corpus complete.
4. Remove OUTPUT/tasks.

No data is copied. After a kill at any point, or beside a concurrent merge, it can run again: each shard is found at its old
or its new place.
"""

from collections.abc import Iterator, Sequence

from pretrain.errors import DataError
from pretrain.shards.format import index_name
from pretrain.shards.manifest import FORMAT, MANIFEST_NAME, PACKED, STREAM, Manifest, token_dtype
from pretrain.shards.manifest_file import read_manifest, write_manifest
from pretrain.shards.table import MOST_SHARDS, TABLE_NAME, ShardEntry, ShardTable, shard_name
from pretrain.shards.writer import ENCODING_NAME, PROBLEMS_NAME
from pretrain.storage.files import move_into_place, sync, write_synced
from tokenizer.corpus.rejection_log import RejectionLog
from tokenizer.encoding.encode_options import Encoding
from tokenizer.encoding.receipts import Receipt
from tokenizer.encoding.work_folder import WorkFolder, job_text, task_name


def merge(work: WorkFolder, receipts: Sequence[Receipt], encoding: Encoding) -> Manifest:
    """Merge all tasks, by their `receipts` in order, into a corpus; returns its manifest.

    Raises DataError for more bad documents or files than allowed, a corpus without usable documents, or missing shards.
    """
    problems = RejectionLog()
    for receipt in receipts:
        problems.merge(receipt.problems)
    problems.check_limits(encoding.max_bad_documents, encoding.max_bad_files)
    entries = [entry for entry, _, _ in _numbered(receipts)]
    if not entries:
        raise DataError(
            f"no document of the corpus can be used{problems.summary()}",
            hint="hold out another share: --holdout 5%, say" if encoding.part else None,
        )
    if len(entries) > MOST_SHARDS:
        raise DataError(
            f"{len(entries)} shards, and a corpus has at most {MOST_SHARDS}",
            hint="encode again with a larger --task-megabytes",
        )
    manifest = _manifest(receipts, entries, problems.counts, encoding)
    try:
        work.start_merging()
        _move_shards(work, receipts)
        _publish(work, manifest, problems)
    except FileNotFoundError:
        # A concurrent merge may have finished first and removed the work folder.
        if not (work.output / MANIFEST_NAME).exists() or read_manifest(work.output) != manifest:
            raise
    work.remove()
    return manifest


def _numbered(receipts: Sequence[Receipt]) -> Iterator[tuple[ShardEntry, int, str]]:
    """(shard under its name in the corpus, task, name in the task) of every shard."""
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
        # Without bos, the preceding eos marks the start of a document.
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
        # Each task counts one padding id after its last bin; in the corpus the next task's first id takes its place.
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
                        f"{folder / old} and {work.output / new} are both missing",
                        hint=work.restart_hint,
                    ) from None
        size = (work.output / entry.name).stat().st_size
        if size != entry.bytes:
            raise DataError(
                f"{work.output / entry.name}: {size} bytes, and its task wrote {entry.bytes}",
                hint=work.restart_hint,
            )
    sync(work.output)


def _publish(work: WorkFolder, manifest: Manifest, problems: RejectionLog) -> None:
    """Write the files that describe the corpus to a staging folder, then rename them into place, the manifest last."""
    with work.staging("merge") as folder:
        lines = problems.lines()
        if lines:
            write_synced(folder / PROBLEMS_NAME, lines.encode())
        write_synced(folder / ENCODING_NAME, job_text(work.job))
        write_manifest(folder, manifest)
        for name in (PROBLEMS_NAME, ENCODING_NAME, TABLE_NAME, MANIFEST_NAME):
            if name != PROBLEMS_NAME or lines:
                move_into_place(folder / name, work.output / name)
