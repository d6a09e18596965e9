"""Runs tasks in a pool of worker processes.

1. Spawn the processes; each loads the tokenizer once.
2. Submit the largest tasks first, so that the run does not end with one process on a large task.
3. Tasks write their counts to shared memory (shared_counts.py); the parent shows progress and sums bad documents.
4. An error in a task, too many bad documents or Ctrl-C stops the other tasks at their next document.

A worker exits when its parent dies, even by kill -9. If a worker dies, only its unfinished tasks are lost.
"""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, get_context, parent_process
from typing import Any, NamedTuple, Protocol

import numpy as np

from pretrain.errors import PretrainError
from tokenizer.corpus.readers import CorpusTask
from tokenizer.corpus.rejection_log import RejectionLog
from tokenizer.encoding.shared_counts import EncodeProgress, SharedCounts, StoppedError

POLL_S = 0.2
_AHEAD = 2  # tasks submitted per process, so that none waits for the parent


class TaskResult(Protocol):
    """Result of a task."""

    @property
    def problems(self) -> RejectionLog:
        """Rejected documents of the task."""


class TaskWorker(Protocol):
    """Processes one task and updates its row of the shared counts. Pickled to the worker processes."""

    def __call__(self, task: CorpusTask, counts: SharedCounts, row: int) -> TaskResult:
        """Raises StoppedError, with the rejections so far, when `counts.stopping` is set."""


class PoolOutcome(NamedTuple):
    """Results by task number; for tasks that stopped early, their rejections so far."""

    results: dict[int, Any]
    stopped: dict[int, RejectionLog]


def run_in_pool(
    tasks: Sequence[CorpusTask],
    worker: TaskWorker,
    *,
    workers: int,
    max_bad: int,
    max_bad_files: int = 0,
    progress: Callable[[EncodeProgress], None] | None = None,
) -> PoolOutcome:
    """Run every task in `workers` processes, or in a thread of this one if `workers` is 1.

    Stops above `max_bad` bad documents or `max_bad_files` damaged files. Raises the error of a
    task, and PretrainError if a worker process dies.
    """
    counts = SharedCounts(len(tasks))
    sizes = np.array([task.text_bytes for task in tasks], np.int64)
    waiting = deque(sorted(range(len(tasks)), key=lambda row: -sizes[row]))
    outcome = PoolOutcome({}, {})
    workers = min(workers, len(tasks))
    if not workers:
        return outcome
    pool, submit, wake = _start_pool(worker, counts, workers)
    running: dict[Future[Any], CorpusTask] = {}
    damaged: set[str] = set()
    try:
        while running or (waiting and not counts.stopping):
            if waiting and not counts.stopping and len(running) < _AHEAD * workers:
                while waiting and len(running) < _AHEAD * workers:
                    row = waiting.popleft()
                    running[submit(tasks[row], row)] = tasks[row]
                wake()
            for future in wait(running, POLL_S, FIRST_COMPLETED).done:
                task = running.pop(future)
                try:
                    outcome.results[task.number] = future.result()
                    damaged.update(outcome.results[task.number].problems.damaged)
                except StoppedError as stopped:
                    outcome.stopped[task.number] = stopped.args[0]
            if outcome.stopped or counts.bad > max_bad or len(damaged) > max_bad_files:
                counts.stop()
            if progress is not None:
                progress(counts.progress(sizes))
    except BrokenProcessPool:
        numbers = ", ".join(str(tasks[row].number) for row in counts.unfinished())
        raise PretrainError(
            f"one of the {workers} encoding processes died{numbers and f'; unfinished tasks: {numbers}'}",
            hint="run the same command again to resume, with fewer --workers if memory ran out",
        ) from None
    finally:
        counts.stop()
        pool.shutdown(cancel_futures=True)
    return outcome


def _start_pool(
    worker: TaskWorker, counts: SharedCounts, workers: int
) -> tuple[Executor, Callable[[CorpusTask, int], "Future[TaskResult]"], Callable[[], Any]]:
    """The pool, a function to submit a task, and one to make the pool notice newly started processes."""
    if workers == 1:
        threads = ThreadPoolExecutor(1)
        return threads, lambda task, row: threads.submit(worker, task, counts, row), lambda: None
    # spawn: forking a process that has threads (torch, rich's progress bar) can deadlock.
    context = get_context("spawn")
    processes = ProcessPoolExecutor(workers, context, _start_process, (worker, counts.tasks, counts.memory))

    # Python's pool can start waiting before it knows a process that `submit` just started, and then misses its death until
    # another event (seen with 3.11.7). An empty task is such an event.
    def wake() -> None:
        processes.submit(_do_nothing)

    return processes, lambda task, row: processes.submit(_run_in_process, task, row), wake


def _do_nothing() -> None: ...


_process_state: tuple[TaskWorker, SharedCounts] | None = None  # set once in each worker process


def _start_process(worker: TaskWorker, tasks: int, memory: Any) -> None:
    global _process_state
    # Ctrl-C reaches the complete process group; the parent shuts the pool down.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _process_state = worker, SharedCounts(tasks, memory)


def _exit_with_parent() -> None:
    # A pool process without a parent would block forever: it holds the write end of its own task queue open.
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _run_in_process(task: CorpusTask, row: int) -> TaskResult:
    if _process_state is None:
        raise RuntimeError("the process was not started by _start_process")
    worker, counts = _process_state
    return worker(task, counts, row)
