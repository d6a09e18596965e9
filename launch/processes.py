"""A process and everything below it, from /proc: what `kill -9` of a whole run takes."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

LONGEST_END_S = 60.0


def descendants(pid: int) -> list[int]:
    """All processes below `pid`, whatever session or group they moved to."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:  # it ended meanwhile
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found: list[int] = []
    waiting = [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def kill_tree(pid: int) -> None:
    """kill -9 of `pid` and of everything below it; returns when they hold no file or lock any more."""
    doomed = [pid, *descendants(pid)]
    for process in doomed:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    deadline = time.monotonic() + LONGEST_END_S
    while any(map(_runs, doomed)) and time.monotonic() < deadline:
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    """A killed process lives on until its memory is given back, and a thread of it until what it writes has been written."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        return state not in "ZX" or len(list(Path(f"/proc/{pid}/task").iterdir())) > 1
    except OSError:
        return False
