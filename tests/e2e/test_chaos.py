"""Killed, cut off, disks that are full or fail: a run goes on as if nothing had happened, or ends and says why.

Hundreds of kills more: `make chaos`.
"""

import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pretrain.checkpoint.layout import list_steps, verify
from pretrain.run_folder import RunFolder
from tests.support.chaos_run import (
    Death,
    deaths,
    differences,
    disturbed,
    leftovers,
    undisturbed,
    wait_until,
)
from tests.support.checkpoints import flip_a_bit
from tests.support.prefork import Prefork, prefork_fixture  # noqa: F401
from tests.support.processes import kill_all, losses, start_ranks
from tests.support.runs import make_run

TOTAL = 40
Start = Callable[..., "list[subprocess.Popen[bytes]]"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chaos")
    return make_run(
        folder,
        schedule={"total_steps": TOTAL, "warmup_steps": 5},
        checkpoint={"every_steps": 4, "keep_last": 2, "weights_every_steps": 10},
        eval={"every_steps": 10, "max_sequences": 8},
        engine={"zero_stage": 2, "precision": "fp32", "device": "cpu", "threads_per_process": 1},
        data={
            "train": {"a": {"path": str(folder / "train")}},
            "valid": {"b": {"path": str(folder / "valid")}},
            **{"seq_len": 32, "lanes": 8, "span": 4, "audit": True},
        },
    )


@pytest.fixture(scope="module")
def model(config: Path, prefork: Prefork, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The undisturbed run of one rank at stage 2."""
    return undisturbed(config, 1, tmp_path_factory.mktemp("undisturbed") / "run", prefork=prefork)


@pytest.fixture
def start(config: Path, prefork: Prefork, tmp_path: Path) -> Iterator[Start]:
    """Starts one rank of the run with faults; no process outlives the test."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(*overrides: str, chaos: str = "", nproc: int = 1) -> "list[subprocess.Popen[bytes]]":
        logs = tmp_path / f"logs-{len(started)}"
        where = f"run.dir={tmp_path / 'run'}"
        found = start_ranks(config, nproc, where, *overrides, logs=logs, chaos=chaos, prefork=prefork)
        started.extend(found)
        return found

    yield begin
    for process in started:
        if process.poll() is None:
            kill_all(process)


def test_kills_at_named_points_change_nothing(config: Path, model: RunFolder, prefork: Prefork, tmp_path: Path) -> None:
    draw = random.Random(0)
    # The sixth commit is that of the weights of step 20, whose whole checkpoint is the seventh.
    points = [Death("replacing,name=status"), Death("committed", count=6), Death("writing", count=9), Death("pruning")]
    story = disturbed(*(config, 2, 1, tmp_path / "run", iter(points)), kills=4, draw=draw, prefork=prefork, damage=0)
    assert story.kills == 4
    assert story.problems + differences(RunFolder(tmp_path / "run"), model) == []


def test_the_death_of_one_of_two_ranks_changes_nothing(config: Path, prefork: Prefork, tmp_path: Path) -> None:
    """The other one is left to notice it. Each time the newest checkpoint is damaged too."""
    draw = random.Random(0)
    other = undisturbed(config, 2, tmp_path / "undisturbed", "engine.zero_stage=3", prefork=prefork)
    points = [Death("snapshot", rank=1, count=3, alone=True), Death("commit", count=2, alone=True)]
    story = disturbed(*(config, 3, 2, tmp_path / "run", iter(points)), kills=2, draw=draw, prefork=prefork, damage=1)
    assert [life.noticed for life in story.lives] == [True, True, None]
    assert [life.damaged for life in story.lives] == [True, True, False]
    assert story.problems + differences(RunFolder(tmp_path / "run"), other) == []


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "ranks"), [(0, 1), (1, 1), (3, 1), (0, 2), (1, 2), (2, 2), (3, 2)])
def test_kills_anywhere_change_nothing(stage: int, ranks: int, config: Path, prefork: Prefork, tmp_path: Path) -> None:
    draw = random.Random(f"{stage} {ranks}")
    other = undisturbed(config, ranks, tmp_path / "undisturbed", f"engine.zero_stage={stage}", prefork=prefork)
    story = disturbed(
        *(config, stage, ranks, tmp_path / "run", deaths(draw, ranks)), kills=8, draw=draw, prefork=prefork
    )
    assert story.problems + differences(RunFolder(tmp_path / "run"), other) == []


@pytest.mark.parametrize("point", ["forward:count=34", "manifest:count=3"])
def test_an_older_attempt_that_still_lives_publishes_nothing(
    point: str, config: Path, model: RunFolder, start: Start, tmp_path: Path
) -> None:
    """A node that was cut off comes back: its lock is gone, and another attempt is at work. Stopped in the middle of a
    step, or when nothing but the rename of a checkpoint is left to do.
    """
    run = RunFolder(tmp_path / "run")
    (old,) = start(chaos=f"kill_at_{point},number={int(signal.SIGSTOP)}")
    wait_until(lambda: _state(old.pid) == "T", [old], "the older attempt is stopped")
    reached = max(losses(run.metrics))
    (run.path / ".lock").unlink()
    (new,) = start(chaos="slow_step:seconds=0.02")
    wait_until(lambda: max(losses(run.metrics), default=0) > reached + 5, [new], "the newer attempt trains")
    old.send_signal(signal.SIGCONT)
    assert old.wait(60) == 3
    # Either the trainer or the thread that commits a checkpoint finds it first; they name the other attempt differently.
    assert "exiting without saving" in (tmp_path / "logs-0" / "0.txt").read_text()
    assert run.status() == "running"
    assert new.wait(120) == 0
    assert differences(run, model) == []


def test_a_signal_ends_an_evaluation_half_way_and_it_is_made_up_for(
    model: RunFolder, start: Start, tmp_path: Path
) -> None:
    """An evaluation is four batches here, and there are five: the second batch of the first, the second and the last."""
    run = RunFolder(tmp_path / "run")
    for batch, step in ((2, 0), (4 + 2, 10), (3 * 4 + 2, TOTAL)):
        (process,) = start(chaos=f"kill_at_evaluate:count={batch},number={int(signal.SIGTERM)}")
        assert process.wait(120) == 0
        assert f"validation at step {step} was cut short" in log(run)
        assert log(run).splitlines()[-1].endswith(f"unfinished at step {step} (SIGTERM); the same command resumes it")
        assert run.status() == "unfinished"
    (process,) = start()
    assert process.wait(120) == 0
    assert differences(run, model) == []


def test_a_run_that_cannot_begin_says_so_in_its_status(start: Start, tmp_path: Path) -> None:
    """No size shows this damage, so it is found after the run has been claimed."""
    run = RunFolder(tmp_path / "run")
    (process,) = start("schedule.total_steps=8")
    assert process.wait(120) == 0 and run.status() == "done"
    for weights in run.checkpoints.glob("*/rank-00000.safetensors"):
        flip_a_bit(weights)
    (process,) = start()
    assert process.wait(120) == 2
    assert "holds no usable checkpoint" in (tmp_path / "logs-1" / "0.txt").read_text()
    assert run.status() == "failed"


def test_a_full_disk_costs_checkpoints_and_not_the_run(
    model: RunFolder, start: Start, small_disk: Path, tmp_path: Path
) -> None:
    run, ballast = RunFolder(tmp_path / "run"), small_disk / "ballast"
    (process,) = start("checkpoint.keep_last=1", "checkpoint.weights_every_steps=0", chaos="slow_step:seconds=0.02")
    wait_until(lambda: list_steps(small_disk), [process], "a first checkpoint")
    fill(ballast)
    wait_until(lambda: "No space left on device" in log(run), [process], "a save that fails")
    (kept,) = list_steps(small_disk)
    verify(small_disk / f"step-{kept:08d}")
    assert (
        f"could not be saved: rank 0: OSError: [Errno 28] No space left on device; the newest checkpoint is of step {kept}"
        in log(run)
    )
    assert not list(small_disk.glob(".*"))
    ballast.unlink()
    wait_until(lambda: list_steps(small_disk)[-1] > kept, [process], "a save when there is room")
    assert process.wait(120) == 0
    assert losses(run.metrics) == losses(model.metrics)
    assert list_steps(small_disk) == [TOTAL] and leftovers(run) == []


def test_a_disk_that_is_full_at_the_end_fails_the_run_and_leaves_the_older_checkpoint(
    model: RunFolder, start: Start, small_disk: Path, tmp_path: Path
) -> None:
    run, ballast = RunFolder(tmp_path / "run"), small_disk / "ballast"
    small = ("checkpoint.keep_last=1", "checkpoint.weights_every_steps=0")
    (process,) = start(*small, chaos="slow_step:seconds=0.02")
    wait_until(lambda: list_steps(small_disk), [process], "a first checkpoint")
    fill(ballast)
    assert process.wait(120) == 3
    assert "the last checkpoint could not be saved" in (tmp_path / "logs-0" / "0.txt").read_text()
    assert run.status() == "failed"
    (kept,) = list_steps(small_disk)
    verify(small_disk / f"step-{kept:08d}")
    ballast.unlink()
    (again,) = start(*small)
    assert again.wait(120) == 0
    assert losses(run.metrics) == losses(model.metrics) and run.status() == "done"


@pytest.mark.parametrize("nproc", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_disk_that_fails_to_flush_costs_the_checkpoints_of_that_time(
    nproc: int, start: Start, tmp_path: Path
) -> None:
    """On one rank: none may count as saved."""
    run = RunFolder(tmp_path / "run")
    processes = start(nproc=nproc, chaos=f"failing_flush:step=8,until=16,rank={nproc - 1}")
    assert [process.wait(120) for process in processes] == [0] * nproc
    failed = [line for line in log(run).splitlines() if "could not be saved" in line]
    assert [int(line.split("step ")[1].split()[0]) for line in failed] == [8, 10, 12, 16]
    assert all(f"rank {nproc - 1}: OSError: [Errno 5]" in line for line in failed)
    assert all(line.endswith("the newest checkpoint is of step 4") for line in failed)
    assert list_steps(run.checkpoints) == [36, 40] and leftovers(run) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """2 MiB for the checkpoints of the run: three of them at a time."""
    place = tmp_path / "run" / "checkpoints"
    place.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(place)], check=False)
    if os.geteuid() != 0 or mounted.returncode != 0:
        pytest.skip("mounting a small file system takes root")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(ballast: Path) -> None:
    """Take all the room that is left."""
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return


def log(run: RunFolder) -> str:
    path = run.logs / "train.log"
    return path.read_text() if path.exists() else ""


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
