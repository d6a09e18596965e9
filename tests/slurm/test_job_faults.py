"""What happens to jobs, one thing a test: the run comes to its end, with the losses of a run that nothing happened to.

What SLURM does at each of these is in docs/decisions/0010-slurm.md.
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain.checkpoint.layout import list_steps
from tests.slurm.conftest import TOTAL
from tests.support.slurm_cluster import Cluster
from tests.support.slurm_runs import SlurmRun

Launch = Callable[..., SlurmRun]
Losses = dict[int, float]
# Saves only when it is told to: else a resume from the last multiple of four would look like a save.
ASKED = "checkpoint.every_steps=0"
IMPATIENT = "guard.watchdog_s=45"
isolated = pytest.mark.skipif(os.getuid() != 0, reason="nodes with a plug and a cable of their own need root")


def assert_undisturbed(run: SlurmRun, undisturbed: Losses, attempts: int) -> None:
    run.wait_done()
    assert run.losses == undisturbed
    assert run.attempt == attempts, run.describe()


def test_a_submitted_run_finishes(launch: Launch, undisturbed: Losses) -> None:
    run = launch()
    run.submit()
    assert_undisturbed(run, undisturbed, attempts=1)
    status = run.status()
    assert (status["why"], status["step"], status["checkpoint_step"]) == ("done", TOTAL, TOTAL)


def test_a_rank_that_is_killed_brings_the_run_back(launch: Launch, undisturbed: Losses) -> None:
    run = launch()
    run.submit()
    run.wait_for_step(10)
    os.kill(run.rank_process(1), signal.SIGKILL)
    assert_undisturbed(run, undisturbed, attempts=2)


def test_a_cancelled_job_saves_and_stays_cancelled(cluster: Cluster, launch: Launch, undisturbed: Losses) -> None:
    run = launch()
    run.submit(ASKED)
    run.wait_for_step(8)
    cluster.run("scancel", run.job)
    cluster.wait_for_state(run.job, "CANCELLED")
    assert run.word == "unfinished"
    assert list_steps(run.run / "checkpoints") == [max(run.losses)]
    time.sleep(10)  # longer than a requeued job waits
    assert cluster.state(run.job) == "CANCELLED" and run.attempt == 1
    run.submit(ASKED, "checkpoint.resume=must")
    assert_undisturbed(run, undisturbed, attempts=2)


@pytest.mark.rotates
def test_a_requeued_job_saves_and_goes_on(cluster: Cluster, launch: Launch, undisturbed: Losses) -> None:
    run = launch()
    run.submit(ASKED)
    run.wait_for_step(8)
    cluster.run("scontrol", "requeue", run.job)
    run.wait_for_attempt(2)
    assert len(list_steps(run.run / "checkpoints")) == 1
    assert_undisturbed(run, undisturbed, attempts=2)


@pytest.mark.rotates
def test_the_warning_before_the_limit_saves_and_requeues(cluster: Cluster, launch: Launch, undisturbed: Losses) -> None:
    """What `--signal=B:USR1@LEAD` sends, at a moment of our choice."""
    run = launch()
    run.submit(ASKED)
    run.wait_for_step(8)
    cluster.run("scancel", "--batch", "--signal=USR1", run.job)
    run.wait_for_attempt(2)
    assert len(list_steps(run.run / "checkpoints")) == 1
    assert_undisturbed(run, undisturbed, attempts=2)


@pytest.mark.rotates
def test_a_preempted_job_saves_within_its_grace_and_comes_back(
    cluster: Cluster, launch: Launch, undisturbed: Losses
) -> None:
    run = launch(partition="low")
    run.submit(ASKED)
    run.wait_for_step(8)
    urgent = cluster.submit(
        "--partition=high", "--nodes=3", "--cpus-per-task=4", "--output=/dev/null", "--wrap=sleep 3"
    )
    cluster.wait_for_state(urgent, "COMPLETED")
    run.wait_for_attempt(2)
    assert len(list_steps(run.run / "checkpoints")) == 1
    assert_undisturbed(run, undisturbed, attempts=2)


@isolated
@pytest.mark.rotates
@pytest.mark.parametrize("rank", [1, 0], ids=["another", "the-head"])
def test_a_node_without_power_is_replaced(rank: int, cluster: Cluster, launch: Launch, undisturbed: Losses) -> None:
    run = launch()
    run.submit()
    run.wait_for_step(10)
    lost = cluster.nodes_of(run.job)[rank]
    cluster.power_off(lost)
    run.wait_for_attempt(2)
    assert lost not in cluster.nodes_of(run.job)
    assert_undisturbed(run, undisturbed, attempts=2)


@isolated
@pytest.mark.slow
def test_a_node_without_network_is_replaced_and_writes_no_more(
    cluster: Cluster, launch: Launch, undisturbed: Losses
) -> None:
    """Its process lives on beside the new start and shares the disk with it; the cable comes back when all is done."""
    run = launch()
    run.submit()
    run.wait_for_step(10)
    lost = cluster.nodes_of(run.job)[1]
    outcast = run.rank_process(1)
    cluster.cut(lost)
    run.wait_for_attempt(2)
    assert b"pretrain.train" in cmdline(outcast), "meant to be alive beside the second start"
    assert_undisturbed(run, undisturbed, attempts=2)
    files = {path: path.stat().st_mtime_ns for path in run.run.rglob("*") if path.is_file()}
    cluster.heal(lost)
    cluster.wait_for(lambda: not cmdline(outcast), "the end of what was cut off")
    # It may say why it ends, in files of its own.
    changed = [path.relative_to(run.run) for path in files if path.stat().st_mtime_ns != files[path]]
    assert [path for path in changed if path.parts[0] not in ("logs", "heartbeats")] == []


@isolated
@pytest.mark.slow
def test_a_head_without_network_does_not_disturb_the_next_start_when_it_comes_back(
    cluster: Cluster, launch: Launch, undisturbed: Losses
) -> None:
    """It has the batch script, which is told to end only then, and the lock of the run, until its watchdog ends it."""
    run = launch()
    run.submit(IMPATIENT)
    run.wait_for_step(10)
    lost = cluster.nodes_of(run.job)[0]
    cluster.cut(lost)
    run.wait_for_attempt(2)
    cluster.heal(lost)
    assert_undisturbed(run, undisturbed, attempts=2)
    assert lost not in cluster.nodes_of(run.job)


def cmdline(pid: int) -> bytes:
    """Of a process of this host; empty where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""


@pytest.mark.rotates
def test_a_restart_of_the_controller_goes_unnoticed(cluster: Cluster, launch: Launch, undisturbed: Losses) -> None:
    """It is away while the run ends, which is when the batch script asks it."""
    run = launch()
    run.submit()
    run.wait_for_step(10)
    cluster.stop_controller()
    deadline = time.monotonic() + 600
    while run.word != "done" and time.monotonic() < deadline:
        time.sleep(0.2)
    cluster.start_controller()
    assert_undisturbed(run, undisturbed, attempts=1)


def test_a_run_has_one_job_at_a_time(cluster: Cluster, launch: Launch) -> None:
    """Whether it waits or runs; a start outside SLURM is refused as well."""
    run = launch()
    cluster.run("scontrol", "update", "NodeName=ALL", "State=DRAIN", "Reason=test")
    run.submit("schedule.total_steps=100000")
    second = run.try_submit("schedule.total_steps=100000")
    assert second.returncode == 2 and f"{run.job} is PENDING" in second.stderr and "hint" in second.stderr
    assert "waits in the queue" in run.status()["why"] and run.status()["step"] == 0
    cluster.run("scontrol", "update", "NodeName=ALL", "State=RESUME")
    run.wait_for_step(3)
    second = run.try_submit("schedule.total_steps=100000")
    assert second.returncode == 2 and f"{run.job} is RUNNING" in second.stderr
    assert len(cluster.run("squeue", "-h").splitlines()) == 1
    status = run.status()
    assert status["why"] == f"training, as job {run.job}" and status["status"] == "running"
    assert status["step"] >= 3 and status["total_steps"] == 100_000
    beside = run.pretrain("launch", "local", run.config, "--nproc", "1", f"run.dir={run.run}", check=False)
    assert beside.returncode == 2 and f"{run.job} is RUNNING" in beside.stderr
    run.pretrain("stop", run.run)
    cluster.wait_for_state(run.job, "COMPLETED")
    assert run.word == "unfinished" and run.attempt == 1
    status = run.status()
    assert status["status"] == "unfinished" and f"job {run.job} ended: stopped" in status["why"]


@pytest.mark.slow
@pytest.mark.parametrize("told_by", ["time limit", "USR1"])
def test_a_job_at_its_time_limit_saves_and_goes_on(told_by: str, launch: Launch, undisturbed: Losses) -> None:
    """By the trainer's own clock, with the warning sent as a signal that nobody minds, or by the warning."""
    lead = {"extra": ["--signal=B:URG@1"]} if told_by == "time limit" else {"signal_lead_s": 60}
    run = launch(time="0:03:00", slow_s=5, **lead)
    run.submit(ASKED)
    run.wait_for_attempt(2)
    assert len(list_steps(run.run / "checkpoints")) == 1
    assert max(run.losses) < TOTAL
    run.wait_done()
    assert run.losses == undisturbed
    assert f"({told_by})" in run.describe()
