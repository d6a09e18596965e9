"""StallTimer as arithmetic; the watchdog itself in small processes without torch, since it ends them."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pretrain.distributed.world import World
from pretrain.health.heartbeat import read_beats
from pretrain.health.watchdog import SLOW_LIMIT_S, STALLED, CurrentPhase, StallTimer, Watchdog
from pretrain.run_folder import RunFolder
from tests.support.repository import ROOT

LIMIT = 10.0


def patience(*phases: str, limit_s: float = LIMIT) -> StallTimer:
    """After phases that were finished at once."""
    found = StallTimer(limit_s, tick_s=1.0)
    found.finished |= {"start", *phases}
    return found


def ticks_until_alarm(found: StallTimer, phase: str, *, progress: int = 1, at_most: int = 4000) -> int | None:
    now = CurrentPhase(progress, phase, 5, 0.0)
    return next((tick for tick in range(at_most) if found.tick(now, 1.0)), None)


def test_a_known_phase_may_last_the_limit_and_no_longer() -> None:
    assert ticks_until_alarm(patience("agree"), "agree") == LIMIT + 1


def test_a_phase_that_was_never_finished_may_take_long() -> None:
    assert ticks_until_alarm(patience("agree"), "evaluate") == SLOW_LIMIT_S + 1


@pytest.mark.parametrize("phase", ["load", "save"])
def test_what_waits_for_storage_may_take_long_every_time(phase: str) -> None:
    assert ticks_until_alarm(patience(phase), phase) == SLOW_LIMIT_S + 1


def test_long_is_at_least_twice_the_limit() -> None:
    assert ticks_until_alarm(patience(limit_s=SLOW_LIMIT_S), "evaluate") == 2 * SLOW_LIMIT_S + 1


def test_a_phase_that_often_outlasts_the_limit_gets_three_times_its_longest() -> None:
    found = patience("update", "agree")
    found._longest["update"] = 30.0
    assert ticks_until_alarm(found, "update") == 91
    assert ticks_until_alarm(found, "agree", progress=2) == LIMIT + 1


def test_the_longest_is_learned_while_it_is_first_allowed() -> None:
    found = patience("data")
    for _ in range(40):
        assert not found.tick(CurrentPhase(1, "update", 5, 0.0), 1.0)
    found.finished.add("update")
    assert not found.tick(CurrentPhase(2, "data", 6, 0.0), 1.0)
    assert ticks_until_alarm(found, "update", progress=3) == 3 * 40 + 1


def test_progress_starts_the_count_again() -> None:
    found = patience("agree")
    for progress in range(100):
        assert not any(found.tick(CurrentPhase(progress, "agree", 5, 0.0), 1.0) for _ in range(9))


def test_time_in_which_this_process_was_stopped_does_not_count() -> None:
    found = patience("agree")
    found.tick(CurrentPhase(1, "agree", 5, 0.0), 1.0)
    assert not found.tick(CurrentPhase(1, "agree", 5, 0.0), 1e6)
    assert ticks_until_alarm(found, "agree") == LIMIT - 2


# --- a process that hangs ---------------------------------------------------------------------------------------------

PROGRAM = """
import sys, time
from pathlib import Path
from pretrain.run_folder import RunFolder
from pretrain.health.watchdog import Watchdog
from pretrain.distributed.world import World

def work(watchdog, steps):
    for step in range(1, steps + 1):
        for phase in ("data", "agree"):
            watchdog.at(phase, step)
            time.sleep(0.02)

def hang():
    time.sleep(100)

def until_the_alarm():
    while not list(Path(sys.argv[1]).glob("logs/watchdog-*")):
        time.sleep(0.02)

with Watchdog(float(sys.argv[3]), RunFolder(Path(sys.argv[1])), World(int(sys.argv[2]), 2)) as watchdog:
    watchdog.attempt = 1
    exec(sys.argv[4])
print("after")
"""


def begin(folder: Path, rank: int, program: str, limit_s: float = 1.0) -> "subprocess.Popen[str]":
    """A rank of two, whose main thread runs `program`."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), str(rank), str(limit_s), program],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_of_two_that_wait_the_one_that_is_behind_is_named_by_both(tmp_path: Path) -> None:
    ranks = [begin(tmp_path, 0, "work(watchdog, 5); hang()"), begin(tmp_path, 1, "work(watchdog, 3); hang()")]
    for rank, process in enumerate(ranks):
        _, said = process.communicate(timeout=30)
        assert process.returncode == STALLED
        assert f"rank 1 (process {ranks[1].pid} on " in said and "in phase 'agree' of step 3, in hang (" in said
        assert "at fault: rank 0" not in said
        stacks = (tmp_path / "logs" / f"watchdog-rank-{rank:05d}.txt").read_text()
        assert " in hang\n" in stacks and "at fault: rank 1" in stacks
    assert all(beat is not None and beat.ended for beat in read_beats(tmp_path / "heartbeats", 2).values())


def test_one_that_is_stopped_is_named_and_left_alone_when_it_goes_on(tmp_path: Path) -> None:
    stopped = begin(tmp_path, 1, "work(watchdog, 1000)", limit_s=2.0)
    waiting = begin(tmp_path, 0, "work(watchdog, 50); hang()", limit_s=1.0)
    while (beat := read_beats(tmp_path / "heartbeats", 2)[1]) is None or beat.step < 3:
        time.sleep(0.05)
    stopped.send_signal(signal.SIGSTOP)
    _, said = waiting.communicate(timeout=30)
    assert waiting.returncode == STALLED
    assert f"at fault: rank 1 (process {stopped.pid} on " in said and "shows no sign of life" in said
    stopped.send_signal(signal.SIGCONT)  # after longer than its own limit
    time.sleep(1.5)
    assert stopped.poll() is None
    stopped.kill()
    assert "watchdog" not in stopped.communicate()[1]


def test_one_that_moves_again_while_it_is_looked_at_goes_on(tmp_path: Path) -> None:
    process = begin(tmp_path, 0, "work(watchdog, 5); until_the_alarm(); work(watchdog, 5)")
    shown, said = process.communicate(timeout=30)
    assert (process.returncode, shown) == (0, "after\n")
    assert "has made no progress" in said and "makes progress again" in said and "at fault" not in said
    assert not (tmp_path / "heartbeats" / "rank-00000.json").exists()


def test_an_error_while_a_verdict_is_made_waits_for_it(tmp_path: Path) -> None:
    """A rank whose collective breaks because another has just been ended."""
    process = begin(tmp_path, 0, "work(watchdog, 5); until_the_alarm(); raise RuntimeError('closed by peer')")
    _, said = process.communicate(timeout=30)
    assert process.returncode == STALLED
    assert "at fault: rank 1 has no heartbeat" in said


def test_an_error_without_a_verdict_is_not_held_up(tmp_path: Path) -> None:
    process = begin(tmp_path, 0, "work(watchdog, 5); raise RuntimeError('of its own')", limit_s=60.0)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 1 and said.endswith("RuntimeError: of its own\n")


def test_where_nothing_can_be_written_the_process_ends_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file in the way")
    process = begin(tmp_path / "run", 0, "work(watchdog, 5); hang()")
    _, said = process.communicate(timeout=30)
    assert process.returncode == STALLED
    assert " in hang\n" in said and "heartbeats cannot be written here" in said


def test_a_limit_of_0_watches_nothing(tmp_path: Path) -> None:
    process = begin(tmp_path, 0, "work(watchdog, 1); time.sleep(1.5)", limit_s=0.0)
    shown, said = process.communicate(timeout=30)
    assert (process.returncode, shown, said) == (0, "after\n", "")
    assert list(tmp_path.iterdir()) == []


def test_the_heartbeat_says_where_the_process_is(tmp_path: Path) -> None:
    with Watchdog(2.0, RunFolder(tmp_path), World(3, 8)) as watchdog:
        watchdog.attempt = 4
        watchdog.at("data", 17)
        path = tmp_path / "heartbeats" / "rank-00003.json"
        deadline = time.monotonic() + 20
        while not path.exists() or json.loads(path.read_text())["step"] != 17:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        found = json.loads(path.read_text())
    assert (found["rank"], found["phase"], found["attempt"], found["place"]) == (3, "data", 4, None)
    assert not path.exists()


def test_many_ranks_beat_less_often(tmp_path: Path) -> None:
    ticks = [
        Watchdog(limit, RunFolder(tmp_path), World(0, size)).tick_s for limit, size in ((4, 2), (1800, 8), (1800, 4096))
    ]
    assert ticks == [0.4, 5.0, 40.96]
