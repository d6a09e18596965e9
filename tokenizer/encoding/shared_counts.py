"""Counts that processes share while they work: numbers in memory that all of them map, without a lock or a queue.

    row 0          whether everybody is to stop
    row 1 + n      of the n-th task: documents, text bytes, tokens, bad documents, whether it is done

Only the process that runs a task writes its row. A killed process leaves nothing locked.
"""

from multiprocessing.sharedctypes import RawArray
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokenizer.corpus.readers import Document
from tokenizer.corpus.readers.rejections import Rejection
from tokenizer.corpus.rejection_log import Problems

COLUMNS = 5
DOCUMENTS, TEXT_BYTES, TOKENS, BAD, DONE = range(COLUMNS)


class StoppedError(Exception):
    """A task was given up, because all are to stop or because of what was left out of it: its one argument, `Problems`."""


class EncodeProgress(NamedTuple):
    """How far it is: `documents` counts those left out too, `problems` those of them that are bad.

    `share` is of all text, by a guess at its size, from 0 to 1.
    """

    documents: int
    text_bytes: int
    tokens: int
    problems: int
    tasks: int
    total_tasks: int
    share: float


class SharedCounts:
    """The counts of all tasks of a run. Send `memory` to another process, and make its `SharedCounts` of that."""

    def __init__(self, tasks: int, memory: Any = None) -> None:
        self.tasks = tasks
        # Zeros, in a file that has no name any more, which processes inherit.
        self.memory = RawArray("q", COLUMNS * (tasks + 1)) if memory is None else memory
        self._rows: NDArray[np.int64] = np.frombuffer(self.memory, np.int64).reshape(tasks + 1, COLUMNS)

    def row(self, task: int) -> NDArray[np.int64]:
        """The counts of a task, to be written by whoever runs it."""
        found: NDArray[np.int64] = self._rows[1 + task]
        return found

    def stop(self) -> None:
        """Have everybody stop at the next document."""
        self._rows[0, 0] = 1

    @property
    def stopping(self) -> bool:
        """Whether it is time to stop."""
        return bool(self._rows[0, 0])

    @property
    def bad(self) -> int:
        """Bad documents of all tasks until now."""
        return int(self._rows[1:, BAD].sum())

    def unfinished(self) -> list[int]:
        """Tasks that began and are not done."""
        rows = self._rows[1:]
        return np.flatnonzero((rows[:, DOCUMENTS] > 0) & (rows[:, DONE] == 0)).tolist()

    def progress(self, text_bytes: NDArray[np.int64]) -> EncodeProgress:
        """The sum. `text_bytes` [tasks] is a guess at the size of each task; one that is done counts as all of it."""
        rows = self._rows[1:]
        done = rows[:, DONE] > 0
        read = np.where(done, text_bytes, np.minimum(rows[:, TEXT_BYTES], text_bytes)).sum()
        documents, text, tokens, bad, finished = rows.sum(axis=0).tolist()
        return EncodeProgress(
            documents, text, tokens, bad, finished, self.tasks, float(read / max(1, text_bytes.sum()))
        )


class Watch:
    """Counts one task, where all can see it. Raises StoppedError when all are to stop, or when there is too much bad.

    `limit` is that of bad documents: what is above it, whoever started the processes reports.
    """

    def __init__(self, board: SharedCounts, row: int, limit: int) -> None:
        self._board, self._row, self._limit = board, board.row(row), limit
        self.problems = Problems()
        self.seen = self.written = self.text_bytes = 0

    def count(self, document: Document, tokens: int) -> None:
        """A document that was encoded."""
        self.written += 1
        self.text_bytes += document.bytes
        self._row[TEXT_BYTES] = self.text_bytes
        self._row[TOKENS] += tokens
        self._see()

    def reject(self, file: str, rejection: Rejection) -> None:
        """One that is left out."""
        self.problems.add(file, rejection)
        self._row[BAD] = self.problems.bad
        self._see()
        if self.problems.bad > self._limit:
            raise StoppedError(self.problems)

    def done(self) -> None:
        """The task is committed."""
        self._row[DONE] = 1

    def _see(self) -> None:
        self.seen += 1
        self._row[DOCUMENTS] = self.seen
        if self._board.stopping:
            raise StoppedError(self.problems)
