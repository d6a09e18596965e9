import json
import os
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from launch.slurm.job_record import JobRecord, LaunchFolder
from launch.status import find_runs, read_status, read_tail
from pretrain.cli.main import cli
from pretrain.cli.views.run_status import format_flops, render, rows, watch
from pretrain.config.load import save_config
from pretrain.config.schema import Config, ScheduleConfig
from pretrain.errors import TrainingError, UserError
from pretrain.failure import describe_failure, record_failure
from pretrain.run_folder import RunFolder
from tests.support.repository import ROOT
from tests.support.slurm_stand_ins import StandIns, slurm

__all__ = ["slurm"]
NOW = 2_000_000_000.0


def line(step: int, seconds: float = 2.0) -> str:
    values = {"step": step, "loss": 3.5, "tokens_per_second": 1000 / seconds, "seconds": seconds}
    return json.dumps({**values, "model_flops_per_second": 4e12 / seconds}) + "\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "launch").mkdir(parents=True)
    (folder / "logs").mkdir()
    save_config(Config(schedule=ScheduleConfig(total_steps=100)), folder / "config.yaml")
    (folder / "metrics.jsonl").write_text("".join(line(step) for step in range(1, 41)))
    os.utime(folder / "metrics.jsonl", (NOW - 3, NOW - 3))
    for step in (20, 40):
        (folder / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
        os.utime(folder / "checkpoints" / f"step-{step:08d}", (NOW - 100 + step, NOW - 100 + step))
    (folder / "checkpoints" / ".staging-step-00000060-1").mkdir()
    (folder / "status").write_text("running\n")
    (folder / "attempt").write_text("2\n")
    (folder / "logs" / "train.log").write_text("".join(f"line {number}\n" for number in range(20)))
    return folder


def submitted(run: Path, *history: str, peak: float | None = None) -> None:
    folder = LaunchFolder(run / "launch")
    folder.write_record(JobRecord(5, "site", NOW, str(folder.path / "job-001.sbatch"), "x", 2, peak))
    folder.history.write_text("".join(f"{entry}\n" for entry in history))


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_step_speed_time_left_and_checkpoint(run: Path) -> None:
    status = read_status(run, NOW)
    assert (status.step, status.total_steps, status.attempt, status.loss) == (40, 100, 2, 3.5)
    assert (status.tokens_per_second, status.model_tflops_per_second, status.mfu) == (500, 2, None)
    assert status.seconds_left == 120
    assert (status.checkpoint_step, status.checkpoint_age_s) == (40, 60)
    assert status.log == [f"line {number}" for number in range(15, 20)]


def test_speed_is_that_of_the_last_steps_weighed_by_their_time(run: Path) -> None:
    lines = (
        [line(step, 100.0) for step in range(1, 21)] + [line(step, 1.0) for step in range(21, 40)] + [line(40, 21.0)]
    )
    (run / "metrics.jsonl").write_text("".join(lines))
    assert read_status(run, NOW).tokens_per_second == pytest.approx(20 * 1000 / 40)


def test_mfu_is_of_all_gpus_where_their_peak_is_known(run: Path, slurm: StandIns) -> None:
    submitted(run, peak=10)
    assert read_status(run, NOW).mfu == pytest.approx(2 / (10 * 2))


def test_a_line_that_is_being_written_is_left_out(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "lo')
    assert read_status(run, NOW).step == 40


def test_of_a_long_file_only_the_end_is_read(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text("".join(line(step) for step in range(10_000)))
    assert [values["step"] for values in read_tail(path)] == list(range(9_980, 10_000))


@pytest.mark.parametrize("damage", [b'{"step": 41, "lo\n', b"\0" * 64 + b"\n"])
def test_a_damaged_line_does_not_cost_the_status(run: Path, damage: bytes) -> None:
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(damage)
    assert read_status(run, NOW).step == 40


def test_a_configuration_of_another_version_costs_only_the_total(run: Path) -> None:
    (run / "config.yaml").write_text("of_a_later_version: 1")
    status = read_status(run, NOW)
    assert status.total_steps is None and status.step == 40


# --- why --------------------------------------------------------------------------------------------------------------


def test_a_run_without_a_scheduler_trains_or_was_killed(run: Path) -> None:
    assert read_status(run, NOW).why == "training"
    assert "killed" in read_status(run, NOW + 400).why
    for status, why in (("done", "done"), ("failed", "failed"), ("unfinished", "the same command resumes it")):
        (run / "status").write_text(status)
        assert why in read_status(run, NOW).why


def test_a_slow_run_is_not_taken_for_dead(run: Path) -> None:
    (run / "metrics.jsonl").write_text("".join(line(step, 60.0) for step in range(1, 41)))
    os.utime(run / "metrics.jsonl", (NOW - 400, NOW - 400))
    assert read_status(run, NOW).why == "training"


def test_a_job_that_waits_says_for_what_and_why_it_is_there_again(run: Path, slurm: StandIns) -> None:
    submitted(run, "1\t5\t0\tstart\t0\tnodes n1", "2\t5\t0\trequeue\t40\tstopped by USR1 and saved")
    slurm.queue("5 PENDING BeginTime")
    status = read_status(run, NOW)
    waits = "BeginTime (SLURM lets a requeued job wait for two minutes)"
    assert status.why == f"job 5 waits in the queue: {waits}, after: stopped by USR1 and saved"
    assert status.job is not None and status.job["restart"] == 0


def test_a_job_that_runs(run: Path, slurm: StandIns) -> None:
    submitted(run, "1\t5\t3\tstart\t0\tnodes n1")
    slurm.queue("5 RUNNING None")
    status = read_status(run, NOW)
    assert status.why == "training, as job 5"
    assert status.job is not None and (status.job["restart"], status.job["nodes"]) == (3, "n[1-2]")
    assert "finished no step for 403 s" in read_status(run, NOW + 400).why
    (run / "status").write_text("unfinished\n")
    assert "training not yet" in read_status(run, NOW).why


def test_a_job_that_ended_says_what_its_script_said_last(run: Path, slurm: StandIns) -> None:
    late = "3\t4\t0\tend\t9\tof an earlier job, on a node that came back"
    submitted(run, "2\t5\t0\tend\t40\tthe training failed, and a restart would fail again", late)
    assert read_status(run, NOW).why == "job 5 ended: the training failed, and a restart would fail again"


def test_a_job_that_was_killed_without_a_word_is_explained_by_the_controller(run: Path, slurm: StandIns) -> None:
    submitted(run, "1\t5\t0\tstart\t0\tnodes n1")
    assert read_status(run, NOW).why == "job 5 is gone: TIMEOUT, exit code 0:15"


def test_the_log_that_was_written_last_is_shown(run: Path, slurm: StandIns) -> None:
    folder, log = LaunchFolder(run / "launch"), run / "logs" / "run-5.log"
    folder.write_record(JobRecord(5, "site", NOW, str(folder.path / "job-001.sbatch"), str(log), 2))
    assert read_status(run, NOW).log[-1] == "line 19"
    log.write_text("this line of cluster.setup failed\n")
    os.utime(log, (NOW, NOW))
    assert read_status(run, NOW).log == ["this line of cluster.setup failed"]


def test_a_queue_that_does_not_answer_is_no_reason_to_know_nothing(run: Path, slurm: StandIns) -> None:
    submitted(run)
    (slurm.folder / "down").touch()
    status = read_status(run, NOW)
    assert "unknown" in status.why and status.step == 40


def test_a_machine_without_slurm_shows_the_rest(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted(run)
    monkeypatch.setenv("PATH", "/nonexistent")
    status = read_status(run, NOW)
    assert "squeue is not installed" in status.why and status.step == 40
    (run / "status").write_text("done\n")
    assert read_status(run, NOW).why == "done"


def test_a_job_that_was_submitted_and_has_not_begun(tmp_path: Path, slurm: StandIns) -> None:
    submitted_run = tmp_path / "new"
    (submitted_run / "launch").mkdir(parents=True)
    submitted(submitted_run)
    save_config(
        Config(schedule=ScheduleConfig(total_steps=7, warmup_steps=1)), submitted_run / "launch" / "job-001.yaml"
    )
    slurm.queue("5 PENDING Resources")
    status = read_status(submitted_run, NOW)
    assert (status.status, status.step, status.total_steps, status.loss) == (None, 0, 7, None)
    assert "Resources" in status.why


# --- commands ---------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        read_status(tmp_path)
    with pytest.raises(UserError, match="has no run"):
        find_runs(tmp_path)


def test_without_a_name_all_runs_are_shown(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    run.rename(tmp_path / "runs" / "b")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, ["status", "--json"])
    assert [json.loads(text)["run"] for text in result.stdout.splitlines()] == ["runs/b"]


def test_a_person_sees_it_all(run: Path, slurm: StandIns) -> None:
    submitted(run, peak=10)
    slurm.queue("5 RUNNING None")
    console = Console(width=200, record=True, file=StringIO())
    console.print(render([read_status(run, NOW)]))
    shown = console.export_text()
    for text in (
        "training, as job 5",
        "40 of 100, loss 3.5000",
        "500 tokens/s",
        "2 model TFLOP/s, MFU 10.0%",
        "2:00 left",
    ):
        assert text in shown
    assert "step 40, 1:00 ago" in shown and "| line 19" in shown


@pytest.mark.parametrize("state", ["done", "failed", "crashed", "unfinished"])
def test_a_run_that_ended_has_no_time_left(run: Path, state: str) -> None:
    (run / "status").write_text(state)
    assert read_status(run, NOW).seconds_left is None


def test_the_reason_of_a_failure_is_shown_until_the_next_start(run: Path) -> None:
    error = TrainingError("step 7: loss is nan", hint="lower optimizer.lr")
    record_failure(RunFolder(run), describe_failure(error, rank=3, step=7, attempt=2))
    status = read_status(run, NOW)
    assert status.why.startswith("failed: step 7: loss is nan (rank 3 on ") and status.failure is not None
    assert ("hint", "lower optimizer.lr") in [*rows(status)]
    (run / "attempt").write_text("4\n")
    (run / "status").write_text("running\n")
    assert read_status(run, NOW).why == "training"


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("5 PENDING PartitionTimeLimit", "never starts"),
        ("5 PENDING None", "SLURM has not looked at it yet"),
        ("5 PENDING ANewCode", "waits in the queue: ANewCode"),
        ("5 COMPLETING None", "is being cleaned up by SLURM"),
    ],
)
def test_codes_of_slurm_are_put_into_words(line: str, part: str, run: Path, slurm: StandIns) -> None:
    submitted(run)
    slurm.queue(line)
    status = read_status(run, NOW)
    assert part in status.why
    assert "None" not in " ".join(text for _, text in rows(status))


@pytest.mark.parametrize(
    ("tflops", "shown"),
    [(2000, "2 model PFLOP/s"), (2, "2 model TFLOP/s"), (0.00758, "7.58 model GFLOP/s"), (1e-6, "1 model MFLOP/s")],
)
def test_a_speed_has_a_unit_in_which_it_can_be_read(tflops: float, shown: str) -> None:
    assert format_flops(tflops) == shown


def test_watching_ends_with_the_run(run: Path) -> None:
    (run / "status").write_text("done\n")
    watch([run], Console(file=StringIO()))


def test_status_loads_nothing_heavy(run: Path) -> None:
    program = (
        "import sys\nfrom pretrain.cli.main import cli\ncli(['status', sys.argv[1]], standalone_mode=False)\n"
        "print(sorted({'torch', 'numpy', 'deepspeed'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(run)], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.splitlines()[-1] == "[]"
