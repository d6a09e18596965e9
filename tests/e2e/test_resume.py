"""Killed, stopped, resumed: the steps after are those of a run that nothing happened to."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from launch.processes import descendants
from pretrain.checkpoint.layout import list_steps
from tests.support.chaos_run import wait_until
from tests.support.processes import kill_all, losses, pretrain, start, train, wait_for_step
from tests.support.runs import make_run

TOTAL = 40


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    schedule = {"total_steps": TOTAL, "warmup_steps": 5}
    return make_run(tmp_path_factory.mktemp("resume"), schedule=schedule, checkpoint={"every_steps": 4})


@pytest.fixture(scope="module")
def undisturbed(config: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[int, float]]:
    """Losses of a whole run by ZeRO stage, of two processes."""
    found = {}
    for stage in (2, 3):
        folder = tmp_path_factory.mktemp(f"undisturbed-{stage}")
        train(config, 2, f"run.dir={folder}", f"engine.zero_stage={stage}")
        found[stage] = losses(folder / "metrics.jsonl")
    return found


@pytest.mark.parametrize("stage", [2, 3])
def test_kill_9_at_a_random_step_changes_no_loss(
    stage: int, config: Path, undisturbed: dict[int, dict[int, float]], tmp_path: Path
) -> None:
    overrides = (f"run.dir={tmp_path}", f"engine.zero_stage={stage}")
    step = random.randint(5, TOTAL - 5)
    process = start(config, 2, *overrides)
    wait_for_step(tmp_path / "metrics.jsonl", step, process)
    wait_until(lambda: list_steps(tmp_path / "checkpoints"), [process], "a checkpoint")
    time.sleep(random.random() / 50)  # not always at the same place within a step
    kill_all(process)
    killed_after, saved = max(losses(tmp_path / "metrics.jsonl")), list_steps(tmp_path / "checkpoints")
    assert saved and saved[-1] <= killed_after < TOTAL, f"meant to kill after step {step}"
    done = train(config, 2, *overrides)
    assert f"resumed at step {saved[-1]}" in done.stdout
    assert losses(tmp_path / "metrics.jsonl") == undisturbed[stage]


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)]
)
def test_a_signal_saves_and_ends_and_the_same_command_goes_on(
    number: signal.Signals, config: Path, undisturbed: dict[int, dict[int, float]], tmp_path: Path
) -> None:
    cold = number == signal.SIGTERM
    process = start(config, 2, f"run.dir={tmp_path}", "checkpoint.every_steps=0", cold=cold)
    wait_for_step(tmp_path / "metrics.jsonl", 6, process)
    process.send_signal(number)
    assert process.wait(60) == 0
    assert (tmp_path / "status").read_text() == "unfinished\n"
    last = max(losses(tmp_path / "metrics.jsonl"))
    assert list_steps(tmp_path / "checkpoints") == [last]
    assert last < TOTAL
    train(config, 2, f"run.dir={tmp_path}", "checkpoint.every_steps=0")
    assert losses(tmp_path / "metrics.jsonl") == undisturbed[2]
    assert (tmp_path / "status").read_text() == "done\n"


def test_a_single_process_saves_on_sigterm(config: Path, tmp_path: Path) -> None:
    from subprocess import Popen
    from sys import executable

    command = [executable, "-m", "pretrain.cli", "train", str(config), f"run.dir={tmp_path}"]
    process = Popen(command)
    wait_for_step(tmp_path / "metrics.jsonl", 3, process)
    process.terminate()
    assert process.wait(60) == 0
    assert (tmp_path / "status").read_text() == "unfinished\n"


@pytest.fixture(scope="module")
def interrupted(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run by stage 2 on two processes, killed after its checkpoint of step 10."""
    folder = tmp_path_factory.mktemp("interrupted")
    process = start(config, 2, f"run.dir={folder}", "checkpoint.every_steps=10")
    wait_until(lambda: list_steps(folder / "checkpoints"), [process], "a checkpoint")
    kill_all(process)
    return folder


@pytest.mark.parametrize(("stage", "nproc"), [(2, 1), (3, 2), (0, 1), (1, 2)])
def test_a_checkpoint_loads_at_another_stage_and_size(
    stage: int, nproc: int, config: Path, undisturbed: dict[int, dict[int, float]], interrupted: Path, tmp_path: Path
) -> None:
    shutil.copytree(interrupted, tmp_path, dirs_exist_ok=True)
    done = train(config, nproc, f"run.dir={tmp_path}", f"engine.zero_stage={stage}", "checkpoint.every_steps=10")
    assert "resumed at step " in done.stdout
    found = losses(tmp_path / "metrics.jsonl")
    assert set(found) == set(undisturbed[2])
    assert max(abs(found[step] - undisturbed[2][step]) for step in found) <= 1e-5


def test_a_damaged_checkpoint_is_passed_over_with_the_reason(config: Path, tmp_path: Path) -> None:
    short = ("schedule.total_steps=9", f"run.dir={tmp_path}")
    train(config, 1, *short)
    before = losses(tmp_path / "metrics.jsonl")
    newest = tmp_path / "checkpoints" / "step-00000009" / "rank-00000.safetensors"
    content = bytearray(newest.read_bytes())
    content[-5] ^= 1
    newest.write_bytes(content)
    done = pretrain("train", config, *short)
    assert done.returncode == 0, done.stderr
    assert "sha256" in done.stdout and "resumed at step 8" in done.stdout
    assert losses(tmp_path / "metrics.jsonl") == before


def test_what_a_resume_replaces_is_kept_in_the_logs(config: Path, tmp_path: Path) -> None:
    process = start(config, 1, f"run.dir={tmp_path}", "checkpoint.every_steps=5")
    wait_for_step(tmp_path / "metrics.jsonl", 8, process)
    kill_all(process)
    train(config, 1, f"run.dir={tmp_path}", "checkpoint.every_steps=5")
    (replaced,) = (tmp_path / "logs").glob("replaced-*-metrics.jsonl")
    final = losses(tmp_path / "metrics.jsonl")
    assert list(final) == list(range(1, TOTAL + 1))
    assert all(final[step] == loss for step, loss in losses(replaced).items())


@pytest.mark.parametrize("nproc", [1, 2])
def test_a_run_whose_only_checkpoint_is_damaged_does_not_start_from_scratch(
    nproc: int, config: Path, tmp_path: Path
) -> None:
    short = ("schedule.total_steps=6", f"run.dir={tmp_path}", "checkpoint.every_steps=0")
    train(config, 1, *short)
    weights = tmp_path / "checkpoints" / "step-00000006" / "rank-00000.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    before = losses(tmp_path / "metrics.jsonl")
    done = pretrain("launch", "local", config, "--nproc", str(nproc), *short)
    assert done.returncode != 0
    assert "no usable checkpoint among" in done.stderr and "sha256" in done.stderr
    assert losses(tmp_path / "metrics.jsonl") == before


def test_a_run_is_trained_by_one_launch_at_a_time(config: Path, tmp_path: Path) -> None:
    slow = (f"run.dir={tmp_path}", "schedule.total_steps=100000")
    process = start(config, 1, *slow)
    wait_for_step(tmp_path / "metrics.jsonl", 2, process)
    second = pretrain("launch", "local", config, "--nproc", "2", *slow)
    assert second.returncode == 2
    assert "is in use by process" in second.stderr and "hint" in second.stderr
    kill_all(process)  # the kernel gives the lock back, however its owner ended
    done = len(losses(tmp_path / "metrics.jsonl"))
    again = start(config, 1, *slow)
    wait_for_step(tmp_path / "metrics.jsonl", done + 5, again)
    kill_all(again)


def test_a_stop_file_saves_and_ends(config: Path, tmp_path: Path) -> None:
    process = start(config, 1, f"run.dir={tmp_path}", "schedule.total_steps=100000", "checkpoint.every_steps=0")
    wait_for_step(tmp_path / "metrics.jsonl", 2, process)
    (tmp_path / "stop").touch()
    assert process.wait(60) == 0
    assert list_steps(tmp_path / "checkpoints") == [max(losses(tmp_path / "metrics.jsonl"))]
    assert not (tmp_path / "stop").exists()


def test_a_second_ctrl_c_leaves_no_process_behind(config: Path, tmp_path: Path) -> None:
    """Workers that hang (here: are stopped) cannot save; torchrun's agent alone would leave them running."""
    process = start(config, 2, f"run.dir={tmp_path}", "schedule.total_steps=100000", cold=True)
    wait_for_step(tmp_path / "metrics.jsonl", 2, process)
    below = descendants(process.pid)
    workers = [pid for pid in below if b"pretrain.train" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    assert process.wait(30) != 0
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in below) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [pid for pid in below if Path(f"/proc/{pid}").exists()] == []


def test_a_loss_that_is_not_finite_ends_the_run_and_is_not_saved(config: Path, tmp_path: Path) -> None:
    wild = ("optimizer.lr=1e30", "optimizer.clip_grad_norm=0", "schedule.warmup_steps=0", "checkpoint.every_steps=1")
    done = pretrain("train", config, f"run.dir={tmp_path}", "engine.zero_stage=0", *wild)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "is nan" in done.stderr or "is inf" in done.stderr
    assert "hint: lower optimizer.lr" in done.stderr
    assert (tmp_path / "status").read_text() == "failed\n"
    saved = list_steps(tmp_path / "checkpoints")
    assert not saved or saved[-1] <= max(losses(tmp_path / "metrics.jsonl"))
