"""Exact deduplication of documents by text hash, in two passes whose result does not depend on which process runs them.

1. `HashWorker`, for each task: the first 16 bytes of the sha256 of each text, sorted in runs of about 4 million.
2. `find_repeated`, once, over all runs: of equal hashes, the first document in plan order is kept. Works through hash ranges
   that fit into memory, whatever the corpus size.
3. `load_duplicates`, before a task is encoded: the numbers of its documents to leave out.

    tasks/hashes-000003/0000.npy …    uint64 [3, documents]: high and low half of the hash, number in the task; by hash
    tasks/hashes-000003/found.json    number of documents; written last
    tasks/repeated/000003.npy         uint64 [documents], sorted

Among 10^12 documents, the chance that any two different texts share their 16 bytes is 10^-15.
"""

import json
import os
from array import array
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pretrain.errors import DataError
from pretrain.storage.files import write_synced
from tokenizer.corpus.readers import CorpusTask, ReadOptions, read_part
from tokenizer.corpus.readers.open_file import escape_url
from tokenizer.corpus.readers.rejections import Rejection
from tokenizer.corpus.rejection_log import RejectionLog
from tokenizer.encoding.shared_counts import SharedCounts, TaskCounter
from tokenizer.encoding.work_folder import WorkFolder

RUN_DOCUMENTS = 1 << 22
RANGE_DOCUMENTS = 1 << 22
REPEATED_NAME = "repeated"
_FOUND_NAME = "found.json"

Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class TaskDuplicates:
    """Duplicates in a task: its number of documents, and the sorted numbers of those that repeat an earlier one."""

    documents: int
    repeated: Hashes


@dataclass(frozen=True)
class HashedTask:
    """Result of the hash pass for a task: its number of documents, and its rejections."""

    documents: int
    problems: RejectionLog


@dataclass(frozen=True)
class HashWorker:
    """Hashes the documents of tasks, in any process."""

    reading: ReadOptions
    work: WorkFolder
    max_bad_documents: int
    max_bad_files: int = 0

    def __call__(self, task: CorpusTask, counts: SharedCounts, row: int) -> HashedTask:
        """Hash the documents of one task and commit the hashes."""
        counter = TaskCounter(counts, row, self.max_bad_documents, self.max_bad_files)
        with self.work.staging(hashes_name(task.number)) as folder:
            runs = _runs(task, self.reading, counter)
            for number, run in enumerate(runs):
                _save(folder / f"{number:04d}.npy", run)
            found = {"job": self.work.digest, "documents": counter.written}
            write_synced(folder / _FOUND_NAME, json.dumps(found).encode())
            self.work.commit(folder, hashes_name(task.number))
        counter.done()
        return HashedTask(counter.written, counter.problems)


def _runs(task: CorpusTask, options: ReadOptions, counter: TaskCounter) -> Iterator[Hashes]:
    hashes = bytearray()
    first = 0
    for part in task.parts:
        for found in read_part(part, options):
            if isinstance(found, Rejection):
                counter.reject(escape_url(part.url), found)
                continue
            hashes += sha256(found.text.encode()).digest()[:16]
            counter.count(found, 0)
            if len(hashes) == 16 * RUN_DOCUMENTS:
                yield _sorted_run(hashes, first)
                first, hashes = counter.written, bytearray()
    if hashes:
        yield _sorted_run(hashes, first)


def _sorted_run(hashes: bytearray, first: int) -> Hashes:
    halves = np.frombuffer(hashes, ">u8").astype(np.uint64).reshape(-1, 2)
    numbers = np.arange(first, first + len(halves), dtype=np.uint64)
    order = np.lexsort((numbers, halves[:, 1], halves[:, 0]))
    return np.stack([halves[order, 0], halves[order, 1], numbers[order]])


def hashed_documents(work: WorkFolder, task: int) -> int | None:
    """Number of documents hashed in a task; None if its hash pass is not finished."""
    try:
        found = json.loads((work.path / hashes_name(task) / _FOUND_NAME).read_bytes())
        return int(found["documents"]) if found["job"] == work.digest else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def find_repeated(work: WorkFolder, tasks: int) -> None:
    """Find the documents of all `tasks` tasks that repeat an earlier one, and commit their numbers. All must be hashed."""
    runs = [
        (task, path) for task in range(tasks) for path in sorted((work.path / hashes_name(task)).glob("[0-9]*.npy"))
    ]
    total = sum(hashed_documents(work, task) or 0 for task in range(tasks))
    bits = max(0, -(-total // RANGE_DOCUMENTS) - 1).bit_length()
    edges = np.arange(1, 1 << bits, dtype=np.uint64) << np.uint64(64 - bits)
    cuts = [np.concatenate([[0], np.searchsorted(_load(path)[0], edges), [-1]]) for _, path in runs]
    repeated: defaultdict[int, array[int]] = defaultdict(lambda: array("Q"))
    for place in range(1 << bits if runs else 0):
        for task, numbers in _repeated_in_range(runs, cuts, place):
            repeated[task].frombytes(numbers.tobytes())
    with work.staging(REPEATED_NAME) as folder:
        for task in range(tasks):
            _save(folder / f"{task:06d}.npy", np.sort(np.array(repeated[task], dtype=np.uint64)))
        work.commit(folder, REPEATED_NAME)


def _repeated_in_range(
    runs: list[tuple[int, Path]], cuts: list[NDArray[np.int64]], place: int
) -> Iterator[tuple[int, Hashes]]:
    """(task, numbers of its documents) of the repeated hashes in one range."""
    parts, tasks = [], []
    for (task, path), cut in zip(runs, cuts, strict=True):
        start, stop = int(cut[place]), int(cut[place + 1])
        hashes = _load(path)
        part = np.array(hashes[:, start : hashes.shape[1] if stop < 0 else stop])
        parts.append(part)
        tasks.append(np.full(part.shape[1], task, np.uint32))
    high, low, numbers = np.concatenate(parts, axis=1)
    task_of = np.concatenate(tasks)
    order = np.lexsort((numbers, task_of, low, high))
    same = (np.diff(high[order]) == 0) & (np.diff(low[order]) == 0)
    later = order[1:][same]
    later = later[np.argsort(task_of[later], kind="stable")]
    found, starts = np.unique(task_of[later], return_index=True)
    if len(later):
        yield from zip(found.tolist(), np.split(numbers[later], starts[1:]), strict=True)


def load_duplicates(work: WorkFolder, task: int) -> TaskDuplicates:
    """Duplicates of a task. Raises DataError if the result of the hash pass is missing."""
    documents, path = hashed_documents(work, task), work.path / REPEATED_NAME / f"{task:06d}.npy"
    if documents is None or not path.is_file():
        raise DataError(f"{work.path}: the deduplication result of task {task} is missing", hint=work.restart_hint)
    return TaskDuplicates(documents, np.load(path, allow_pickle=False))


def hashes_name(task: int) -> str:
    """Name of the folder with the hashes of a task."""
    return f"hashes-{task:06d}"


def _load(path: Path) -> Hashes:
    """A sorted run, memory-mapped."""
    hashes: Hashes = np.load(path, mmap_mode="r", allow_pickle=False)
    return hashes


def _save(path: Path, values: Hashes) -> None:
    with path.open("wb") as file:
        np.save(file, values, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
