"""Process trees: listing the descendants of a process, and kill -9 of all of them."""

import time
from contextlib import suppress

import psutil

LONGEST_END_S = 60.0
_ENDED = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


def descendants(pid: int) -> list[int]:
    """PIDs of all processes below `pid`, in whatever session or group; empty if `pid` has ended."""
    return [process.pid for process in _tree(pid)[1:]]


def kill_tree(pid: int) -> None:
    """kill -9 `pid` and all its descendants; returns when they hold no file or lock any more, after 60 s at most."""
    doomed = _tree(pid)
    for process in doomed:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    # Not psutil.wait_procs: it reaps our children, and their Popen objects would then report exit code 0.
    deadline = time.monotonic() + LONGEST_END_S
    while any(map(_runs, doomed)) and time.monotonic() < deadline:
        time.sleep(0.01)


def _tree(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _runs(process: psutil.Process) -> bool:
    """Whether a killed process may still hold files: until its memory is freed, and its other threads finish their writes."""
    try:
        # A zombie that nobody has reaped yet holds nothing, but its other threads may still be in a system call.
        return bool(process.is_running() and (process.status() not in _ENDED or process.num_threads() > 1))
    except psutil.NoSuchProcess:
        return False
