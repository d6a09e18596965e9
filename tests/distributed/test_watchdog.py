"""Runs in which a process stops, hangs, is slow, or holds a wrong weight: named by the others, with real processes."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.processes import descendants
from pretrain.checkpoint.layout import list_steps
from pretrain.distributed.collectives import lost_peer
from pretrain.health.heartbeat import read_beats
from pretrain.health.watchdog import STALLED
from pretrain.training.metrics import read_lines
from tests.support.processes import kill_all, losses, start, start_ranks, train, wait_for_step
from tests.support.runs import make_run

TOTAL = 24
ALIVE = ("guard.watchdog_s=3",)
Processes = "list[subprocess.Popen[bytes]]"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    schedule = {"total_steps": TOTAL, "warmup_steps": 5}
    return make_run(tmp_path_factory.mktemp("watchdog"), schedule=schedule, checkpoint={"every_steps": 4})


@pytest.fixture(scope="module")
def undisturbed(config: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    folder = tmp_path_factory.mktemp("undisturbed")
    train(config, 2, f"run.dir={folder}")
    assert not list((folder / "heartbeats").iterdir()), "a process that ends in order takes its heartbeat along"
    return losses(folder / "metrics.jsonl")


@pytest.fixture
def ranks(config: Path, tmp_path: Path) -> Iterator[Processes]:  # type: ignore[valid-type]
    """Starts processes with faults; none outlives the test."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(nproc: int, *overrides: str, chaos: str) -> "list[subprocess.Popen[bytes]]":
        started.extend(
            start_ranks(config, nproc, f"run.dir={tmp_path / 'run'}", *overrides, logs=tmp_path, chaos=chaos)
        )
        return started

    yield begin
    for process in started:
        kill_all(process)


def test_a_stopped_process_is_named_by_the_others_and_the_same_command_goes_on(
    config: Path, undisturbed: dict[int, float], tmp_path: Path, ranks: Iterator
) -> None:
    first, second = ranks(2, *ALIVE, chaos="slow_step:seconds=0.1")
    run = tmp_path / "run"
    wait_for_step(run / "metrics.jsonl", 6, first)
    second.send_signal(signal.SIGSTOP)
    assert first.wait(60) == STALLED
    said = (tmp_path / "0.txt").read_text()
    assert f"at fault: rank 1 (process {second.pid} on " in said and "shows no sign of life since" in said
    assert "at fault: rank 0" not in said
    stacks = (run / "logs" / "watchdog-rank-00000.txt").read_text()
    assert " in all_reduce\n" in stacks or " in all_gather" in stacks or "_engine_run_backward" in stacks
    assert "not ended" in stacks  # torch's own record of the collective
    assert (run / "status").read_text() == "running\n"
    kill_all(second)
    saved = list_steps(run / "checkpoints")[-1]
    done = train(config, 2, f"run.dir={run}", *ALIVE)
    assert f"resumed at step {saved}" in done.stdout
    assert losses(run / "metrics.jsonl") == undisturbed


def test_a_process_that_hangs_in_its_own_code_is_named_with_the_line(tmp_path: Path, ranks: Iterator) -> None:
    first, second = ranks(2, *ALIVE, chaos="hang_in_data:rank=1,step=7")
    assert [first.wait(120), second.wait(60)] == [STALLED, STALLED]
    for rank in (0, 1):
        (verdict,) = (
            line for line in (tmp_path / f"{rank}.txt").read_text().splitlines() if line.startswith("  at fault:")
        )
        assert f"rank 1 (process {second.pid} on " in verdict and "is behind the others" in verdict
        assert "in phase 'data' of step 7, in late (chaos/sitecustomize.py:" in verdict
    assert (
        "no progress" in (tmp_path / "0.txt").read_text()
        and "phase 'agree' of step 7" in (tmp_path / "0.txt").read_text()
    )
    assert " in late\n" in (tmp_path / "run/logs/watchdog-rank-00001.txt").read_text()
    beats = read_beats(tmp_path / "run/heartbeats", 2)
    assert all(beat is not None and beat.ended and beat.attempt == 1 for beat in beats.values())
    assert (tmp_path / "run/status").read_text() == "running\n"


def test_a_run_whose_steps_are_longer_than_the_limit_is_left_alone_and_its_slow_process_named(
    tmp_path: Path, ranks: Iterator
) -> None:
    short = ("schedule.total_steps=4", "schedule.warmup_steps=1", "batch.global_batch_size=4")
    short += ("guard.watchdog_s=2", "guard.straggler_every_steps=4")
    first, second = ranks(2, *short, chaos="slow_step:rank=1,seconds=2.5 hang_in_data:rank=1,step=3,seconds=0.9")
    assert [first.wait(120), second.wait(60)] == [0, 0]
    assert "watchdog" not in (tmp_path / "0.txt").read_text() + (tmp_path / "1.txt").read_text()
    lines = read_lines(tmp_path / "run/metrics.jsonl")
    assert [line["step"] for line in lines if "slowest" in line] == [4]
    assert lines[-1]["slowest"]["rank"] == 1
    assert lines[-1]["slowest"]["own_seconds"] > 2.79 > lines[-1]["slowest"]["median_seconds"]
    whole_steps = sum(line["seconds"] for line in lines[1:]) / 3
    assert lines[-1]["slowest"]["own_seconds"] < whole_steps
    assert "step 4: rank 1 on " in (tmp_path / "run/logs/train.log").read_text()


@pytest.mark.parametrize("stage", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_flipped_bit_stops_all_processes_before_it_is_saved_and_is_named(
    stage: int, tmp_path: Path, ranks: Iterator
) -> None:
    """Stage 0 keeps the wrong weight; at stage 2 the next update would replace it, after it spoiled a gradient."""
    checked = ("guard.replicas_every_steps=4", "checkpoint.asynchronous=false")
    three = ("batch.global_batch_size=6", f"engine.zero_stage={stage}", *checked)
    name = "blocks.1.feed_forward.up.weight"
    processes = ranks(3, *three, chaos=f"flip_weight:rank=1,step=8,name={name}")
    assert [process.wait(120) for process in processes] == [3, 3, 3]
    said = (tmp_path / "0.txt").read_text()
    assert "error: step 8: rank 1 on " in said and f"differs from the majority in {name}\n" in said
    assert "error" not in (tmp_path / "1.txt").read_text()
    assert list_steps(tmp_path / "run/checkpoints") == [4]
    assert (tmp_path / "run/status").read_text() == "failed\n"


def test_a_run_that_lost_a_process_has_not_failed(tmp_path: Path, ranks: Iterator) -> None:
    """The other one only hears that a connection was closed."""
    first, second = ranks(2, *ALIVE, chaos="slow_step:seconds=0.1")
    wait_for_step(tmp_path / "run/metrics.jsonl", 3, first)
    second.kill()
    assert first.wait(60) == 1
    assert lost_peer(RuntimeError((tmp_path / "run/logs/train.log").read_text()))
    assert (tmp_path / "0.txt").read_text() == ""  # not the cause
    assert (tmp_path / "run/status").read_text() == "running\n"


@pytest.mark.slow
def test_the_launcher_ends_a_stopped_process_when_the_others_have_ended(config: Path, tmp_path: Path) -> None:
    process = start(config, 2, f"run.dir={tmp_path}", "schedule.total_steps=100000", *ALIVE, cold=True)
    wait_for_step(tmp_path / "metrics.jsonl", 6, process)
    below = descendants(process.pid)
    (stopped,) = (pid for pid in below if b"\0RANK=1\0" in b"\0" + Path(f"/proc/{pid}/environ").read_bytes())
    os.kill(stopped, signal.SIGSTOP)
    assert process.wait(120) != 0
    assert [pid for pid in below if Path(f"/proc/{pid}").exists()] == []
