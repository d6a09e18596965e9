"""Counts shared between worker processes: an array in shared memory, without locks or queues.

    row 0          stop flag
    row 1 + n      n-th task: documents, text bytes, tokens, bad documents, done flag

Only the process that runs a task writes its row, so no lock is needed and a killed process leaves none held.
"""

from multiprocessing.sharedctypes import RawArray
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokenizer.corpus.readers import Document
from tokenizer.corpus.readers.rejections import Rejection
from tokenizer.corpus.rejection_log import RejectionLog

COLUMNS = 5
DOCUMENTS, TEXT_BYTES, TOKENS, BAD, DONE = range(COLUMNS)


class StoppedError(Exception):
    """A task stopped early, with the run or for too many bad documents. Its argument is the task's `RejectionLog`."""


class EncodeProgress(NamedTuple):
    """Progress of an encoding. `documents` includes those left out; `problems` counts the bad ones.

    `share` is the part of all text that is done, from 0 to 1, by its estimated size.
    """

    documents: int
    text_bytes: int
    tokens: int
    problems: int
    tasks: int
    total_tasks: int
    share: float


class SharedCounts:
    """Counts of all tasks of a run. To share them, pass `memory` to another process's `SharedCounts`."""

    def __init__(self, tasks: int, memory: Any = None) -> None:
        self.tasks = tasks
        # RawArray is zeroed, and backed by an unlinked file that child processes inherit.
        self.memory = RawArray("q", COLUMNS * (tasks + 1)) if memory is None else memory
        self._rows: NDArray[np.int64] = np.frombuffer(self.memory, np.int64).reshape(tasks + 1, COLUMNS)

    def row(self, task: int) -> NDArray[np.int64]:
        """Counts of a task, written by the process that runs it."""
        found: NDArray[np.int64] = self._rows[1 + task]
        return found

    def stop(self) -> None:
        """Make all processes stop at their next document."""
        self._rows[0, 0] = 1

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return bool(self._rows[0, 0])

    @property
    def bad(self) -> int:
        """Bad documents of all tasks so far."""
        return int(self._rows[1:, BAD].sum())

    def unfinished(self) -> list[int]:
        """Tasks that are started but not done."""
        rows = self._rows[1:]
        return np.flatnonzero((rows[:, DOCUMENTS] > 0) & (rows[:, DONE] == 0)).tolist()

    def progress(self, text_bytes: NDArray[np.int64]) -> EncodeProgress:
        """Totals. `text_bytes` [tasks] is the estimated size of each task; a done task counts in full."""
        rows = self._rows[1:]
        done = rows[:, DONE] > 0
        read = np.where(done, text_bytes, np.minimum(rows[:, TEXT_BYTES], text_bytes)).sum()
        documents, text, tokens, bad, finished = rows.sum(axis=0).tolist()
        return EncodeProgress(
            documents, text, tokens, bad, finished, self.tasks, float(read / max(1, text_bytes.sum()))
        )


class TaskCounter:
    """Counts one task, in shared memory.

    Raises StoppedError when the run stops, or above `limit` bad documents or `max_bad_files` damaged files, which the
    parent process then reports.
    """

    def __init__(self, counts: SharedCounts, row: int, limit: int, max_bad_files: int = 0) -> None:
        self._counts, self._row, self._limit, self._max_bad_files = counts, counts.row(row), limit, max_bad_files
        self.problems = RejectionLog()
        self.seen = self.written = self.text_bytes = 0

    def count(self, document: Document, tokens: int) -> None:
        """Count a document that was encoded to `tokens` ids."""
        self.written += 1
        self.text_bytes += document.bytes
        self._row[TEXT_BYTES] = self.text_bytes
        self._row[TOKENS] += tokens
        self._count_seen()

    def reject(self, file: str, rejection: Rejection) -> None:
        """Count a document of `file` that is left out."""
        self.problems.add(file, rejection)
        self._row[BAD] = self.problems.bad
        self._count_seen()
        if self.problems.bad > self._limit or len(self.problems.damaged) > self._max_bad_files:
            raise StoppedError(self.problems)

    def done(self) -> None:
        """Mark the task as committed."""
        self._row[DONE] = 1

    def _count_seen(self) -> None:
        self.seen += 1
        self._row[DOCUMENTS] = self.seen
        if self._counts.stopping:
            raise StoppedError(self.problems)
