"""Decisions of the training batch script, run by bash with stand-ins for SLURM's commands; tests/slurm has a real SLURM."""

import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from launch.slurm.cluster import Cluster, RequeueConfig
from pretrain.failure import describe_failure, failure_text, publish_once
from tests.support.batch_job import BatchJob


@pytest.fixture
def job(tmp_path: Path) -> BatchJob:
    return BatchJob(tmp_path, Cluster(nodes=2, signal_lead_s=30))


def test_a_run_that_is_done_ends(job: BatchJob) -> None:
    code, shown = job.go('begin; save 00000010; echo done >"$RUN/status"')
    assert (code, job.requeued) == (0, False), shown
    assert job.last == ["end", "10", "all steps are done"]


def test_one_that_stopped_and_saved_requeues_itself(job: BatchJob) -> None:
    code, shown = job.go('begin; save 00000010; echo unfinished >"$RUN/status"')
    assert (code, job.requeued) == (0, True), shown
    assert job.last == ["requeue", "10", "stopped and saved"]


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", "PREEMPTED", "UNKNOWN"])
def test_a_job_that_is_cancelled_or_preempted_is_not_brought_back(job: BatchJob, state: str) -> None:
    code, _ = job.go('begin; save 00000010; echo unfinished >"$RUN/status"', state=state)
    assert (code, job.requeued) == (0, False)
    assert job.last == ["end", "10", f"the job is {state}"]


def test_a_failed_training_ends_with_the_code_of_the_process_that_failed_first(job: BatchJob) -> None:
    message = 'echo "srun: error: n2: task 1: Exited with exit code 3" >&2; exit 143'
    code, _ = job.go(f'begin; save 00000010; echo failed >"$RUN/status"; {message}')
    assert (code, job.requeued) == (3, False)


@pytest.mark.parametrize("code", [1, 75, 137])
def test_a_crash_after_a_checkpoint_is_tried_again(job: BatchJob, code: int) -> None:
    ended, shown = job.go(f"begin; save 00000010; exit {code}")
    assert (ended, job.requeued) == (0, True), shown
    assert job.last == ["requeue", "10", f"a process ended with {code}: see {job.run}/logs/77-0"]


def failing(job: BatchJob, reason: str, attempt: int = 1, bad_node: str | None = None) -> str:
    """A line that writes RUN/failure.json as a training process does."""
    failure = replace(
        describe_failure(RuntimeError("x"), rank=0, step=1, attempt=attempt), reason=reason, bad_node=bad_node
    )
    publish_once(job.run / "a-failure", failure_text(failure))
    return 'mv "$RUN/a-failure" "$RUN/failure.json"'


def test_the_last_line_of_a_failed_job_is_the_reason(job: BatchJob) -> None:
    failure = failing(job, 'loss is "nan" at C:\\x, é')
    code, shown = job.go(f'begin; {failure}; echo failed >"$RUN/status"; exit 3')
    assert (code, job.requeued) == (3, False)
    assert job.last[2] == 'the training failed, and a restart would fail again: loss is "nan" at C:\\x, é'
    assert shown.splitlines()[-1].endswith('loss is "nan" at C:\\x, é')


def test_a_reason_of_an_earlier_start_is_not_repeated(job: BatchJob) -> None:
    job.go(f"begin; begin; {failing(job, 'old')}; save 00000010; exit 1")
    assert "old" not in job.last[2]


def test_bad_input_is_explained_by_the_rank_that_said_so(job: BatchJob) -> None:
    message = 'mkdir -p "$RUN/logs/77-0"; echo "error: no shards" >"$RUN/logs/77-0/rank-0000.log"; exit 2'
    assert job.go(message)[0] == 2
    assert job.last[2] == "invalid input: error: no shards"


def test_the_node_of_a_crash_is_avoided_by_the_next_start_and_the_crash_is_tried_again(job: BatchJob) -> None:
    failure = failing(job, "CUDA error", bad_node="n2")
    job.go(f'begin; {failure}; save 00000010; echo crashed >"$RUN/status"; exit 1')
    assert job.requeued and job.last == ["requeue", "10", "a process ended with 1: CUDA error"]
    assert "update JobId=77 ExcNodeList=n2" in (job.run / "scontrol.txt").read_text()


def test_ranks_that_said_nothing_leave_no_file(job: BatchJob) -> None:
    job.go('begin; touch "$RUN/logs/77-0/rank-0001.log"; echo line >"$RUN/logs/77-0/rank-0000.log"; exit 1')
    assert [path.name for path in (job.run / "logs" / "77-0").glob("rank-*")] == ["rank-0000.log"]


def test_a_file_system_without_locks_is_not_an_earlier_start(job: BatchJob) -> None:
    (job.run / ".lock").touch()
    (job.commands / "flock").write_text("#!/bin/sh\nexit 71\n")
    (job.commands / "flock").chmod(0o755)
    _, shown = job.go("begin; exit 1", restart=1)
    assert "no file locks on this file system" in shown and "earlier start" not in shown


def test_bad_input_is_not_tried_again(job: BatchJob) -> None:
    message = 'echo "srun: error: n1: task 0: Exited with exit code 2" >&2; exit 137'
    assert job.go(message)[0] == 2
    assert not job.requeued


def test_a_start_that_never_began_does_not_believe_the_status_of_an_earlier_one(job: BatchJob) -> None:
    (job.run / "status").write_text("done\n")
    (job.run / "attempt").write_text("4\n")
    _, shown = job.go("exit 1")
    assert job.requeued and "not begun" in shown


def test_starts_without_a_new_checkpoint_end_after_three(job: BatchJob) -> None:
    outcomes = [job.go("begin; exit 75", restart=number)[0] for number in range(3)]
    assert outcomes == [0, 0, 1]
    assert (job.run / "scontrol.txt").read_text().count("requeue 77") == 2
    assert job.last[2].startswith("3 starts in a row without a new checkpoint")
    assert job.go("begin; save 00000010", restart=3)[0] == 1  # also where SLURM has requeued it
    assert not (job.run / "checkpoints").exists()


def test_a_checkpoint_among_failures_starts_the_count_again(job: BatchJob) -> None:
    for number, body in enumerate(["exit 75", "exit 75", "save 00000010; exit 75", "exit 75", "exit 75"]):
        assert job.go(f"begin; {body}", restart=number)[0] == 0


def test_failures_of_another_job_do_not_count(job: BatchJob) -> None:
    line = "1\t76\t0\tstart\t0\tnodes n1\n"
    (job.run / "launch" / "history.tsv").write_text(line * 5)
    assert job.go("begin; exit 75")[0] == 0
    assert job.requeued


def test_restarts_have_a_limit(tmp_path: Path) -> None:
    job = BatchJob(tmp_path, Cluster(requeue=RequeueConfig(max_restarts=2)))
    body = 'begin; save 000000$SLURM_RESTART_COUNT; echo unfinished >"$RUN/status"'
    assert job.go(body, restart=2)[0] == 1
    assert not job.requeued and "max_restarts=2" in job.last[2]


def test_a_job_that_may_not_requeue_ends_with_the_code(tmp_path: Path) -> None:
    job = BatchJob(tmp_path, Cluster(requeue=RequeueConfig(enabled=False)))
    assert job.go("begin; save 00000010; exit 75")[0] == 75
    assert not job.requeued


@pytest.mark.parametrize("signal", ["USR1", "TERM"])
def test_a_signal_becomes_the_stop_file_for_as_long_as_the_training_lives(job: BatchJob, signal: str) -> None:
    """A first stop file is taken away, as a start takes one that is older than itself."""
    wait = 'while [ ! -e "$RUN/stop" ]; do sleep 0.1; done'
    process = job.begin(
        f'begin; touch "$RUN/ready"; {wait}; rm "$RUN/stop"; {wait}; cat "$RUN/stop" >"$RUN/asked"; rm "$RUN/stop"; '
        'save 00000010; echo unfinished >"$RUN/status"'
    )
    while not (job.run / "ready").exists():
        time.sleep(0.05)
    subprocess.run(["kill", f"-{signal}", str(process.pid)], check=True)
    shown, _ = process.communicate(timeout=120)
    assert (job.run / "asked").read_text() == f"{signal}\n", shown
    assert job.last == ["requeue", "10", f"stopped by {signal} and saved"]
    assert not (job.run / "stop").exists()


def test_a_stop_file_of_a_person_ends_the_run_for_good(job: BatchJob) -> None:
    code, _ = job.go('begin; touch "$RUN/stop"; sleep 3; rm "$RUN/stop"; save 00000010; echo unfinished >"$RUN/status"')
    assert (code, job.requeued) == (0, False)
    assert job.last[2].endswith("/stop")


def test_pretrain_stop_ends_the_run_for_good(job: BatchJob) -> None:
    code, _ = job.go('begin; touch "$RUN/launch/stopped"; save 00000010; echo unfinished >"$RUN/status"')
    assert (code, job.requeued) == (0, False)
    assert job.last == ["end", "10", "stopped by `pretrain stop`"]


def test_a_job_that_was_stopped_in_the_queue_does_not_begin(job: BatchJob) -> None:
    (job.run / "launch" / "stopped").touch()
    assert job.go('begin; touch "$RUN/began"', restart=1)[0] == 0
    assert not (job.run / "began").exists()


def test_a_stop_file_of_an_earlier_start_is_taken_away(job: BatchJob) -> None:
    (job.run / "stop").touch()
    job.go('[ ! -e "$RUN/stop" ] && begin && save 00000010 && echo done >"$RUN/status"')
    assert job.last[2] == "all steps are done"


def test_a_save_that_takes_too_long_does_not_end_the_run(job: BatchJob) -> None:
    process = job.begin('begin; touch "$RUN/ready"; exec sleep 100', SLURM_JOB_END_TIME=str(int(time.time()) + 17))
    while not (job.run / "ready").exists():
        time.sleep(0.05)
    subprocess.run(["kill", "-USR1", str(process.pid)], check=True)
    try:
        assert process.wait(60) == 0
    finally:
        assert process.stdout is not None
        process.stdout.close()
        subprocess.run(["pkill", "-P", str(process.pid)], check=False)
    assert job.requeued and "signal_lead_s is too short" in job.last[2]


def test_a_bad_node_is_avoided_by_the_next_start(tmp_path: Path) -> None:
    job = BatchJob(tmp_path, Cluster(node_check=True, exclude="n9"))
    check = 'printf "n2\\nn3\\n" >"$RUN/launch/exclude"; exit 75'
    assert job.go('begin; touch "$RUN/began"', NODE_CHECK=check)[0] == 0
    assert job.requeued and not (job.run / "began").exists()
    assert "update JobId=77 ExcNodeList=n9,n2,n3" in (job.run / "scontrol.txt").read_text()


def test_a_node_check_that_fails_ends_the_job(tmp_path: Path) -> None:
    job = BatchJob(tmp_path, Cluster(node_check=True))
    assert job.go('begin; touch "$RUN/began"', NODE_CHECK="exit 1")[0] == 1
    assert not job.requeued and not (job.run / "began").exists()


def test_processes_get_their_place_and_their_meeting_point(job: BatchJob) -> None:
    shown = '"$RANK $WORLD_SIZE $LOCAL_RANK $LOCAL_WORLD_SIZE $MASTER_ADDR $MASTER_PORT"'
    # The stand-in of srun runs the command from `sh` on, as one task would.
    body = (
        f'begin; while [ "$1" != sh ]; do shift; done; set -- "${{@:1:4}}" sh -c \'echo {shown}\'; "$@" >"$RUN/place"'
    )
    task = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}
    job.go(body, **task)
    assert (job.run / "place").read_text().split() == ["5", "8", "1", "1", "localhost", "10077"]
    (job.run / "srun.txt").unlink()
    job.go(body, restart=2, **task)
    assert (job.run / "place").read_text().split()[-1] == "10271"  # not that of a start that may still live
    assert "--kill-on-bad-exit=1 --wait=60" in (job.run / "srun.txt").read_text()
    assert f"--output={job.run}/logs/77-2/rank-%4t.log" in (job.run / "srun.txt").read_text()


def test_the_deadline_is_asked_for_where_slurm_does_not_tell(job: BatchJob) -> None:
    body = 'begin; echo "$SLURM_JOB_END_TIME" >"$RUN/end"'
    job.go(body, END="2030-01-02T03:04:05", TZ="UTC")
    assert (job.run / "end").read_text() == "1893553445\n"
    job.go(body, END="N/A")
    assert (job.run / "end").read_text() == "\n"
    job.go(body, END="2030-01-02T03:04:05", SLURM_JOB_END_TIME="123")
    assert (job.run / "end").read_text() == "123\n"


def test_a_line_of_setup_that_fails_ends_the_job(tmp_path: Path) -> None:
    job = BatchJob(tmp_path, Cluster(setup=("export A=1", "false A", "touch began")))
    code, shown = job.go('begin; touch "$RUN/began"')
    assert code == 1 and "setup failed: false A" in shown
    assert not (job.run / "began").exists()


def test_setup_may_use_variables_that_are_not_set(tmp_path: Path) -> None:
    job = BatchJob(tmp_path, Cluster(setup=('export A="$NEVER_SET.x"',)))
    job.go('begin; echo "$A" >"$RUN/a"')
    assert (job.run / "a").read_text() == ".x\n"
