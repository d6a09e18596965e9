"""Tasks shared among processes.

1. Processes are spawned, and load what they need once.
2. The largest tasks are handed out first, so that no process is alone with a large one at the end.
3. A task writes its counts where the parent reads them (board.py): it shows them, and adds up what is bad.
4. What ends the run (an error in a task, too many bad documents, Ctrl-C) makes the others stop at their next document.

A process whose parent is gone, by kill -9 too, ends by itself. One that dies takes its task with it, and no finished one.
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
from tokenizer.corpus.readers import Task
from tokenizer.corpus.rejection_log import Problems
from tokenizer.encoding.shared_counts import EncodeProgress, SharedCounts, StoppedError

POLL_S = 0.2
_AHEAD = 2  # tasks for each process that are handed out, so that none waits for the parent


class Result(Protocol):
    """What comes of a task."""

    @property
    def problems(self) -> Problems:
        """What was left out of it."""


class Worker(Protocol):
    """What is done with a task, which counts in its row of the board. It is sent to the processes."""

    def __call__(self, task: Task, board: SharedCounts, row: int) -> Result:
        """Raises StoppedError, with the problems until then, when the board says so."""


class Outcome(NamedTuple):
    """Results by task number; and of tasks that stopped because there was too much bad, what was found until then."""

    results: dict[int, Any]
    stopped: dict[int, Problems]


def run_all(
    tasks: Sequence[Task],
    worker: Worker,
    *,
    workers: int,
    max_bad: int,
    show: Callable[[EncodeProgress], None] | None = None,
) -> Outcome:
    """Do every task, in `workers` processes or, where one is enough, in a thread of this one.

    Stops when more than `max_bad` documents are bad. Raises what a task raises, and PretrainError where a process dies.
    """
    board = SharedCounts(len(tasks))
    sizes = np.array([task.text_bytes for task in tasks], np.int64)
    waiting = deque(sorted(range(len(tasks)), key=lambda row: -sizes[row]))
    outcome = Outcome({}, {})
    workers = min(workers, len(tasks))
    if not workers:
        return outcome
    pool, submit, look = _start_pool(worker, board, workers)
    running: dict[Future[Any], Task] = {}
    try:
        while running or (waiting and not board.stopping):
            if waiting and not board.stopping and len(running) < _AHEAD * workers:
                while waiting and len(running) < _AHEAD * workers:
                    row = waiting.popleft()
                    running[submit(tasks[row], row)] = tasks[row]
                look()
            for future in wait(running, POLL_S, FIRST_COMPLETED).done:
                task = running.pop(future)
                try:
                    outcome.results[task.number] = future.result()
                except StoppedError as stopped:
                    outcome.stopped[task.number] = stopped.args[0]
            if outcome.stopped or board.bad > max_bad:
                board.stop()
            if show is not None:
                show(board.progress(sizes))
    except BrokenProcessPool:
        numbers = ", ".join(str(tasks[row].number) for row in board.unfinished())
        raise PretrainError(
            f"one of the {workers} encoding processes died{numbers and f'; at work were tasks {numbers}'}",
            hint="the same command again goes on with what is not finished; with fewer --workers if memory ran out",
        ) from None
    finally:
        board.stop()
        pool.shutdown(cancel_futures=True)
    return outcome


def _start_pool(
    worker: Worker, board: SharedCounts, workers: int
) -> tuple[Executor, Callable[[Task, int], "Future[Result]"], Callable[[], Any]]:
    """The pool, how to submit a task to it, and what makes it look after processes that it has just started."""
    if workers == 1:
        threads = ThreadPoolExecutor(1)
        return threads, lambda task, row: threads.submit(worker, task, board, row), lambda: None
    # spawn: a fork of a process with threads (torch, rich's progress bar) may hang.
    context = get_context("spawn")
    processes = ProcessPoolExecutor(workers, context, _start_process, (worker, board.tasks, board.memory))

    # Python's pool may begin to wait before it knows the process that `submit` starts, and would not notice its death until
    # something else happens (seen with 3.11.7). Another task happens.
    def look() -> None:
        processes.submit(_nothing)

    return processes, lambda task, row: processes.submit(_run_in_process, task, row), look


def _nothing() -> None: ...


_mine: tuple[Worker, SharedCounts] | None = None


def _start_process(worker: Worker, tasks: int, memory: Any) -> None:
    global _mine
    # Ctrl-C reaches the whole process group; the parent ends the pool.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    _mine = worker, SharedCounts(tasks, memory)


def _end_with_the_parent() -> None:
    """A process of a pool would wait for its next task for ever: it holds the other end of the queue open itself."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _run_in_process(task: Task, row: int) -> Result:
    if _mine is None:
        raise RuntimeError("the process was not started by _start_process")
    worker, board = _mine
    return worker(task, board, row)
