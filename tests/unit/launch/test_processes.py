import fcntl
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.processes import descendants, kill_tree

# A child in a session of its own holds a lock; its parent never reaps it.
CHILD = """
import fcntl, sys, time
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
time.sleep(600)
"""
PARENT = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], start_new_session=True)
time.sleep(600)
"""


@pytest.fixture
def parent(tmp_path: Path) -> "Iterator[subprocess.Popen[str]]":
    command = [sys.executable, "-c", PARENT, CHILD, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_killed_tree_has_released_its_locks_and_its_exit_code_is_still_known(
    parent: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    kill_tree(parent.pid)
    with (tmp_path / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert parent.wait(0) == -signal.SIGKILL


def test_a_zombie_that_nobody_reaps_does_not_delay_the_end(parent: "subprocess.Popen[str]") -> None:
    (below,) = descendants(parent.pid)
    kill_tree(below)
    assert descendants(parent.pid) == [below]  # unreaped
    kill_tree(parent.pid)


def test_a_process_that_has_ended_has_no_descendants(parent: "subprocess.Popen[str]") -> None:
    kill_tree(parent.pid)
    parent.wait()
    assert descendants(parent.pid) == []
    kill_tree(parent.pid)
