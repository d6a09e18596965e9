"""Documents whose text came before in the corpus, found in two passes that do not depend on who runs them.

1. `HashWorker`, for each task: 16 bytes of the sha256 of each document's text, sorted, in runs of some 4 million.
2. `find_repeated`, once, over all runs: a hash that occurs several times keeps the occurrence that comes first in the plan. It
   goes through the hashes in ranges that fit into memory, whatever their number.
3. `known_of`, when a task is encoded: the numbers of its documents that are left out.

    tasks/hashes-000003/0000.npy …    uint64 [3, documents]: high and low half of the hash, number in the task; by hash
    tasks/hashes-000003/found.json    how many documents, and what else was found; last
    tasks/repeated/000003.npy         uint64 [documents], sorted

Two different texts with the same 16 bytes: among 10^12 documents, the chance of one such pair is 10^-15.
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
from tokenizer.corpus.readers import ReadOptions, Task, read_part
from tokenizer.corpus.readers.open_file import show
from tokenizer.corpus.readers.rejections import Rejection
from tokenizer.corpus.rejection_log import Problems
from tokenizer.encoding.shared_counts import SharedCounts, Watch
from tokenizer.encoding.work_folder import WorkFolder

RUN_DOCUMENTS = 1 << 22
RANGE_DOCUMENTS = 1 << 22
REPEATED_NAME = "repeated"
_FOUND_NAME = "found.json"

Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Known:
    """What was found in a task: how many documents, and which of them repeat an earlier one (their numbers, sorted)."""

    documents: int
    repeated: Hashes


@dataclass(frozen=True)
class Hashed:
    """A task after the first pass: its documents, and what was left out."""

    documents: int
    problems: Problems


@dataclass(frozen=True)
class HashWorker:
    """The first pass over a task, in whichever process."""

    reading: ReadOptions
    work: WorkFolder
    max_bad_documents: int

    def __call__(self, task: Task, board: SharedCounts, row: int) -> Hashed:
        """Hash the documents of one task, and commit the hashes."""
        watch = Watch(board, row, self.max_bad_documents)
        with self.work.staging(hashes_name(task.number)) as folder:
            runs = _runs(task, self.reading, watch)
            for number, run in enumerate(runs):
                _save(folder / f"{number:04d}.npy", run)
            found = {"job": self.work.digest, "documents": watch.written}
            write_synced(folder / _FOUND_NAME, json.dumps(found).encode())
            self.work.commit(folder, hashes_name(task.number))
        watch.done()
        return Hashed(watch.written, watch.problems)


def _runs(task: Task, options: ReadOptions, watch: Watch) -> Iterator[Hashes]:
    hashes = bytearray()
    first = 0
    for part in task.parts:
        for found in read_part(part, options):
            if isinstance(found, Rejection):
                watch.reject(show(part.url), found)
                continue
            hashes += sha256(found.text.encode()).digest()[:16]
            watch.count(found, 0)
            if len(hashes) == 16 * RUN_DOCUMENTS:
                yield _sorted_run(hashes, first)
                first, hashes = watch.written, bytearray()
    if hashes:
        yield _sorted_run(hashes, first)


def _sorted_run(hashes: bytearray, first: int) -> Hashes:
    halves = np.frombuffer(hashes, ">u8").astype(np.uint64).reshape(-1, 2)
    numbers = np.arange(first, first + len(halves), dtype=np.uint64)
    order = np.lexsort((numbers, halves[:, 1], halves[:, 0]))
    return np.stack([halves[order, 0], halves[order, 1], numbers[order]])


def hashed_documents(work: WorkFolder, task: int) -> int | None:
    """How many documents the first pass found in a task; None where it is not finished."""
    try:
        found = json.loads((work.path / hashes_name(task) / _FOUND_NAME).read_bytes())
        return int(found["documents"]) if found["job"] == work.digest else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def find_repeated(work: WorkFolder, tasks: int) -> None:
    """Decide which documents of `tasks` tasks are left out, and commit that. Every task must be hashed."""
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
    """(task, numbers of its documents) for hashes of one range that came before."""
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


def known_of(work: WorkFolder, task: int) -> Known:
    """What the first pass says of a task. Raises DataError where it was removed."""
    documents, path = hashed_documents(work, task), work.path / REPEATED_NAME / f"{task:06d}.npy"
    if documents is None or not path.is_file():
        raise DataError(f"{work.path}: what is known of duplicates in task {task} is gone", hint=work.how_to_begin_anew)
    return Known(documents, np.load(path, allow_pickle=False))


def hashes_name(task: int) -> str:
    """Folder name of the hashes of a task."""
    return f"hashes-{task:06d}"


def _load(path: Path) -> Hashes:
    """A run, mapped: nothing is read until it is looked at."""
    hashes: Hashes = np.load(path, mmap_mode="r", allow_pickle=False)
    return hashes


def _save(path: Path, values: Hashes) -> None:
    with path.open("wb") as file:
        np.save(file, values, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
