import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from pretrain.errors import DataError, PretrainError
from tokenizer.corpus.readers import CorpusTask, Document, FilePart
from tokenizer.corpus.readers.rejections import Rejection
from tokenizer.corpus.rejection_log import RejectionLog
from tokenizer.encoding.shared_counts import EncodeProgress, SharedCounts, StoppedError, TaskCounter
from tokenizer.encoding.worker_pool import run_in_pool


def tasks_of(*sizes: int) -> list[CorpusTask]:
    return [
        CorpusTask(10 + number, 0, (FilePart("text", f"file {number}", 0, size, size, size),))
        for number, size in enumerate(sizes)
    ]


@dataclass
class Done:
    process: int
    order: float
    problems: RejectionLog = field(default_factory=RejectionLog)


@dataclass(frozen=True)
class Counting:
    """Counts a document for each byte of a task; `bad` tasks are all bad documents."""

    bad: tuple[int, ...] = ()
    limit: int = 1_000

    def __call__(self, task: CorpusTask, counts: SharedCounts, row: int) -> Done:
        counter = TaskCounter(counts, row, self.limit)
        order = time.monotonic()
        for _ in range(task.text_bytes):
            if task.number in self.bad:
                counter.reject("file", Rejection("place", "broken", f"task {task.number}"))
            else:
                counter.count(Document("place", "x", 1), 3)
        counter.done()
        return Done(os.getpid(), order, counter.problems)


@dataclass(frozen=True)
class Failing:
    how: Callable[[], None]

    def __call__(self, task: CorpusTask, counts: SharedCounts, row: int) -> Done:
        if task.number == 11:
            self.how()
        counter = TaskCounter(counts, row, 0)
        while True:  # until the others are told to stop
            counter.count(Document("place", "x", 1), 1)
            time.sleep(0.001)


def die() -> None:
    os._exit(9)


def refuse() -> None:
    raise DataError("task 11 cannot be read", hint="look at it")


@pytest.mark.parametrize("workers", [1, 2])
def test_every_task_is_done_once_and_counted(workers: int) -> None:
    seen: list[EncodeProgress] = []
    outcome = run_in_pool(tasks_of(5, 0, 30, 10), Counting(), workers=workers, max_bad=0, progress=seen.append)
    assert sorted(outcome.results) == [10, 11, 12, 13] and outcome.stopped == {}
    assert seen[-1] == EncodeProgress(45, 45, 135, 0, 4, 4, 1.0)
    inside = {result.process for result in outcome.results.values()} == {os.getpid()}
    assert inside == (workers == 1)


def test_the_largest_task_is_handed_out_first() -> None:
    results = run_in_pool(tasks_of(5, 1, 30, 10), Counting(), workers=1, max_bad=0).results
    assert sorted(results, key=lambda number: results[number].order) == [12, 13, 10, 11]


def test_no_task_is_no_process() -> None:
    assert run_in_pool([], Counting(), workers=3, max_bad=0) == ({}, {})


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_documents_of_all_tasks_together_end_the_run(workers: int) -> None:
    outcome = run_in_pool(tasks_of(*[6] * 40), Counting(bad=tuple(range(10, 50))), workers=workers, max_bad=11)
    found = RejectionLog()
    for problems in [*(result.problems for result in outcome.results.values()), *outcome.stopped.values()]:
        found.merge(problems)
    assert found.bad > 11
    assert len(outcome.results) < 40


def test_a_task_with_too_many_bad_documents_stops_by_itself() -> None:
    outcome = run_in_pool(tasks_of(1_000_000), Counting(bad=(10,), limit=7), workers=1, max_bad=7)
    assert outcome.stopped[10].bad == 8


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_a_task_stops_the_others(workers: int) -> None:
    with pytest.raises(DataError, match="task 11 cannot be read\n  hint: look at it"):
        run_in_pool(tasks_of(1, 2), Failing(refuse), workers=workers, max_bad=0)


def test_a_process_that_dies_is_an_error_that_names_the_tasks_and_not_a_hang() -> None:
    with pytest.raises(PretrainError, match=r"one of the 2 encoding processes died(; unfinished tasks: 10)?\n.*hint"):
        run_in_pool(tasks_of(1, 2), Failing(die), workers=2, max_bad=0)


def test_what_says_stop_is_seen_at_the_next_document() -> None:
    counts = SharedCounts(1)
    counter = TaskCounter(counts, 0, 5)
    counter.reject("file", Rejection("place", "broken", ""))
    counts.stop()
    with pytest.raises(StoppedError) as caught:
        counter.count(Document("place", "x", 1), 1)
    assert caught.value.args[0].bad == 1


def test_counts_in_shared_memory_are_those_of_another_board() -> None:
    counts = SharedCounts(3)
    counter = TaskCounter(SharedCounts(3, counts.memory), 1, 0)
    counter.count(Document("place", "abc", 3), 7)
    assert counts.unfinished() == [1] and counts.row(1).tolist() == [1, 3, 7, 0, 0]
    counter.done()
    assert counts.unfinished() == []
