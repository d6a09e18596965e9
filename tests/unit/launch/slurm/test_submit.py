import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from launch.slurm.checks import find_problems, save_seconds
from launch.slurm.cluster import Cluster
from launch.slurm.commands import clean_environment
from launch.slurm.job_record import JobRecord, LaunchFolder
from launch.slurm.submit import refuse_beside_job
from launch.stop import stop_run
from pretrain.cli.main import cli
from pretrain.config.load import load_config
from pretrain.config.schema import BatchConfig, Config, DataConfig, ModelConfig, RunConfig, SourceConfig
from pretrain.errors import PretrainError, UserError
from tests.support.repository import ROOT
from tests.support.runs import make_run
from tests.support.slurm_stand_ins import StandIns, slurm

__all__ = ["slurm"]


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


@pytest.fixture
def config(tmp_path: Path) -> str:
    return str(make_run(tmp_path))


@pytest.fixture
def site(tmp_path: Path) -> str:
    path = tmp_path / "site.yaml"
    path.write_text('{nodes: 2, time: "1:00:00"}')
    return str(path)


def launch(config: str, site: str, *more: str) -> Result:
    return invoke("launch", "slurm", config, "--cluster", site, *more)


# --- what is found before ---------------------------------------------------------------------------------------------


def problems(cluster: Cluster, partitions: set[str] | None = None, **sections: Any) -> list[str]:
    config = Config(**{"data": DataConfig(train={"a": SourceConfig(path="s3://b/c")}), **sections})
    return find_problems(config, cluster, Path("/runs/a"), partitions)


def test_nothing_is_wrong_with_what_is_right() -> None:
    assert problems(Cluster(partition="main"), {"main"}, batch=BatchConfig(global_batch_size=8)) == []


@pytest.mark.parametrize(
    ("cluster", "sections", "part"),
    [
        (Cluster(nodes=3), {}, "3 processes"),
        (Cluster(account_required=True), {}, "SBATCH_ACCOUNT"),
        (Cluster(partition="main,loww"), {}, "did you mean low?"),
        (Cluster(), {"run": RunConfig(time_limit_minutes=90)}, "exceeds cluster.time"),
        (Cluster(), {"data": DataConfig()}, "data.train has no source"),
        (Cluster(), {"data": DataConfig(train={"a": SourceConfig(path="/no/such")})}, "no manifest.json"),
        (Cluster(), {"data": DataConfig(train={"a": SourceConfig(path="s3://a")}, tokenizer="/no")}, "not a file"),
        (Cluster(storage_gb_per_s=0.001), {"model": ModelConfig()}, "cluster.signal_lead_s="),
    ],
)
def test_each_reason_not_to_submit(cluster: Cluster, sections: dict[str, Any], part: str) -> None:
    found = problems(cluster, {"main", "low"}, **sections)
    assert any(part in problem for problem in found), found


def test_a_cluster_that_cannot_be_asked_says_nothing_against_a_partition() -> None:
    assert problems(Cluster(partition="anything"), None) == []


def test_a_time_limit_leaves_time_to_train_beside_load_and_save() -> None:
    cluster = Cluster(time="0:10:00", signal_lead_s=300, storage_gb_per_s=0.01)
    save = save_seconds(Config(), cluster)
    assert save < 300 < 600 < 300 + 2 * save
    (problem,) = problems(cluster)
    assert "no time to train" in problem


def test_a_save_is_shared_by_the_nodes() -> None:
    assert save_seconds(Config(), Cluster(nodes=4)) == save_seconds(Config(), Cluster()) / 4


@pytest.mark.parametrize("name", ["a%j", 'a"b', "a\nb", "a\\b"])
def test_a_run_folder_that_sbatch_would_misread_is_refused(name: str) -> None:
    config = Config(data=DataConfig(train={"a": SourceConfig(path="s3://b/c")}))
    (problem,) = find_problems(config, Cluster(), Path("/runs") / name, None)
    assert problem.startswith("run.dir=")


def test_problems_of_both_files_come_in_one_error(tmp_path: Path, config: str) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("partion: gpu")
    result = launch(config, str(bad), "run.sed=1")
    assert isinstance(result.exception, UserError) and result.exception.exit_code == 2
    assert "cluster: partion is not a known key" in str(result.exception) and "run.sed" in str(result.exception)


def test_problems_before_submission_come_in_one_error(slurm: StandIns, config: str, site: str) -> None:
    more = ("cluster.partition=mian", "cluster.nodes=3", "cluster.account_required=true", "data.tokenizer=/no")
    result = launch(config, site, *more)
    assert isinstance(result.exception, UserError) and result.exception.exit_code == 2
    assert str(result.exception).startswith("4 problems")
    assert slurm.calls("sbatch") == []


# --- submission -------------------------------------------------------------------------------------------------------


def test_a_job_gets_a_script_a_configuration_and_a_record(
    slurm: StandIns, tmp_path: Path, config: str, site: str
) -> None:
    result = launch(config, site, "run.seed=11", "cluster.comment=a b")
    assert result.exit_code == 0, result.exception
    folder = LaunchFolder(tmp_path / "run" / "launch")
    record = folder.read_record()
    assert record is not None and str(record.job_id) in result.stdout
    assert Path(record.script).read_text() == (slurm.folder / "submitted").read_text()
    assert load_config(Path(record.script).with_suffix(".yaml")).config.run.seed == 11
    assert yaml.safe_load(Path(record.script).with_suffix(".cluster.yaml").read_text())["comment"] == "a b"
    assert (record.world_size, record.cluster) == (2, site)
    assert record.log == f"{tmp_path}/run/logs/run-{record.job_id}.log"
    assert (tmp_path / "run" / "logs").is_dir()
    assert slurm.calls("sbatch") == [f"--parsable {record.script}"]


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "COMPLETING", "SUSPENDED"])
def test_a_second_launch_is_refused_and_names_the_job(
    slurm: StandIns, tmp_path: Path, config: str, site: str, state: str
) -> None:
    launch(config, site)
    record = LaunchFolder(tmp_path / "run" / "launch").read_record()
    assert record is not None
    slurm.queue(f"{record.job_id} {state} None")
    result = launch(config, site)
    assert isinstance(result.exception, UserError) and f"{record.job_id} is {state}" in str(result.exception)
    assert len(slurm.calls("sbatch")) == 1


@pytest.mark.parametrize("command", [["train"], ["launch", "local", "--nproc", "1"]])
def test_a_local_start_beside_a_queued_job_is_refused(
    slurm: StandIns, tmp_path: Path, config: str, site: str, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    launch(config, site)
    result = CliRunner().invoke(cli, [*command, config])
    assert isinstance(result.exception, UserError) and "is PENDING (Priority)" in str(result.exception)
    record = LaunchFolder(tmp_path / "run" / "launch").read_record()
    assert record is not None
    monkeypatch.setenv("SLURM_JOB_ID", str(record.job_id))
    refuse_beside_job(tmp_path / "run")


@pytest.mark.parametrize("line", [None, "CANCELLED", "COMPLETED", "TIMEOUT"])
def test_a_launch_after_the_end_of_a_job_keeps_what_the_first_was_made_of(
    slurm: StandIns, tmp_path: Path, config: str, site: str, line: str | None
) -> None:
    launch(config, site)
    folder = LaunchFolder(tmp_path / "run" / "launch")
    first = folder.read_record()
    assert first is not None
    slurm.queue(*([] if line is None else [f"{first.job_id} {line} None"]))
    folder.stopped.touch()
    result = launch(config, site)
    assert result.exit_code == 0, result.exception
    assert sorted(path.name for path in folder.path.glob("*.sbatch")) == ["job-001.sbatch", "job-002.sbatch"]
    assert not folder.stopped.exists()  # or the new job would not begin


def test_a_queue_that_does_not_answer_is_no_permission(slurm: StandIns, tmp_path: Path, config: str, site: str) -> None:
    launch(config, site)
    (slurm.folder / "down").touch()
    result = launch(config, site)
    assert result.exit_code != 0 and "Unable to contact" in str(result.exception)
    assert len(slurm.calls("sbatch")) == 1


def test_two_launches_at_once_submit_one_job(slurm: StandIns, tmp_path: Path, config: str, site: str) -> None:
    slow = slurm.folder / "sbatch"
    slow.write_text(slow.read_text().replace("\ncat", "\nsleep 2\ncat", 1))
    codes: list[int] = []
    threads = [threading.Thread(target=lambda: codes.append(launch_in_process(config, site))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == [0, 2]
    assert len(slurm.calls("sbatch")) == 1


def launch_in_process(config: str, site: str) -> int:
    command = [sys.executable, "-m", "pretrain.cli", "launch", "slurm", config, "--cluster", site]
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=False, timeout=120).returncode


def test_what_sbatch_says_reaches_the_user(slurm: StandIns, tmp_path: Path, config: str, site: str) -> None:
    (slurm.folder / "refuse").touch()
    result = launch(config, site)
    assert result.exit_code != 0 and "Invalid account" in str(result.exception)
    assert LaunchFolder(tmp_path / "run" / "launch").read_record() is None


def test_variables_that_would_override_the_script_do_not_reach_sbatch(
    slurm: StandIns, config: str, site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SBATCH_PARTITION", "other")
    monkeypatch.setenv("SLURM_NTASKS", "7")
    monkeypatch.setenv("SLURM_CONF", "/etc/x.conf")
    monkeypatch.setenv("SBATCH_ACCOUNT", "mine")
    launch(config, site)
    found = (slurm.folder / "environment").read_text().splitlines()
    names = {line.partition("=")[0] for line in found}
    assert not names & {"SBATCH_PARTITION", "SLURM_NTASKS", "SBATCH_ACCOUNT"}
    assert "SLURM_CONF=/etc/x.conf" in found
    assert "#SBATCH --account=mine" in (slurm.folder / "submitted").read_text()  # where it can be seen


def test_other_variables_stay() -> None:
    assert clean_environment({"PATH": "x", "SRUN_CPUS_PER_TASK": "1", "SLURMX": "y"}) == {"PATH": "x", "SLURMX": "y"}


def test_nodes_that_a_check_found_bad_are_excluded(slurm: StandIns, tmp_path: Path, config: str, site: str) -> None:
    folder = LaunchFolder(tmp_path / "run" / "launch")
    folder.path.mkdir(parents=True)
    folder.exclude.write_text("n7\nn8\n")
    launch(config, site, "cluster.exclude=n1")
    assert "#SBATCH --exclude=n1,n7,n8" in (slurm.folder / "submitted").read_text()


def test_data_are_looked_into_before_a_job_waits_for_days(
    slurm: StandIns, tmp_path: Path, config: str, site: str
) -> None:
    (tmp_path / "train" / "manifest.json").write_text("{}")
    result = launch(config, site)
    assert isinstance(result.exception, UserError)
    assert slurm.calls("sbatch") == []


# --- dry run ----------------------------------------------------------------------------------------------------------


def test_a_dry_run_prints_script_and_plan_and_writes_nothing(
    tmp_path: Path, site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    result = launch(
        str(ROOT / "configs/models/70b.yaml"),
        "example",
        "--nodes=128",
        "--dry-run",
        f"run.dir={tmp_path / 'run'}",
        "batch.global_batch_size=2048",
        "batch.micro_batch_size=1",
    )
    assert result.exit_code == 0, result.exception
    assert result.stdout.startswith("#!/bin/bash") and "#SBATCH --nodes=128" in result.stdout
    for text in (
        "128 nodes × 8 = 1024",
        "2 per process, 2 × 1",
        "68,976,648,192 parameters",
        "→ ZeRO-3",
        "does not fit",
    ):
        assert text in result.stderr
    assert "data.train has no source" in result.stderr
    assert not (tmp_path / "run").exists()


# --- records ----------------------------------------------------------------------------------------------------------


def test_damaged_records_are_an_error_and_torn_lines_are_not(tmp_path: Path) -> None:
    folder = LaunchFolder(tmp_path)
    folder.record.write_text("{")
    with pytest.raises(UserError, match="damaged"):
        folder.read_record()
    folder.history.write_text("1\t2\t0\tstart\t0\tnodes n1\n1\t2\t0\tend\t5\tall\n1\t2\t0\te")
    assert [event.what for event in folder.read_history()] == ["start", "end"]


# --- stop -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(slurm: StandIns, tmp_path: Path) -> Path:
    folder = LaunchFolder(tmp_path / "run" / "launch")
    folder.path.mkdir(parents=True)
    folder.write_record(JobRecord(5, "site", 0.0, str(folder.path / "job-001.sbatch"), "x", 2))
    return tmp_path / "run"


def test_a_running_job_is_asked_to_save_and_not_to_come_back(slurm: StandIns, run: Path) -> None:
    slurm.queue("5 RUNNING None")
    assert "saves" in stop_run(run)
    assert (run / "stop").exists() and (run / "launch" / "stopped").exists()
    assert slurm.calls("scancel") == ["--state=PENDING 5"]


def test_a_waiting_job_is_cancelled(slurm: StandIns, run: Path) -> None:
    slurm.queue("5 PENDING Priority")
    assert "was pending" in stop_run(run)
    assert slurm.calls("scancel") == ["--state=PENDING 5"]
    assert (run / "launch" / "stopped").exists() and not (run / "stop").exists()


def test_now_cancels(slurm: StandIns, run: Path) -> None:
    slurm.queue("5 RUNNING None")
    stop_run(run, now=True)
    assert slurm.calls("scancel") == ["5"]
    assert (run / "launch" / "stopped").exists() and not (run / "stop").exists()


def test_a_run_without_a_job_gets_a_stop_file_if_it_runs(slurm: StandIns, run: Path) -> None:
    (run / "status").write_text("running\n")
    stop_run(run)
    assert (run / "stop").exists()
    (run / "stop").unlink()
    (run / "status").write_text("unfinished\n")
    assert "not running" in stop_run(run)
    assert not (run / "stop").exists()
    with pytest.raises(UserError, match="no job"):
        stop_run(run, now=True)


def test_a_queue_that_does_not_answer_does_not_keep_a_run_from_stopping(slurm: StandIns, run: Path) -> None:
    (slurm.folder / "down").touch()
    assert "will not start" in stop_run(run)
    assert (run / "stop").exists() and (run / "launch" / "stopped").exists()
    with pytest.raises(PretrainError, match="Unable to contact"):
        stop_run(run, now=True)


def test_what_is_no_run_cannot_be_stopped(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        stop_run(tmp_path)


# --- tokenizing -------------------------------------------------------------------------------------------------------


def test_plan_array_and_merge_wait_for_each_other(slurm: StandIns, tmp_path: Path, site: str) -> None:
    arguments = ("--cluster", site, "--tasks=3", "--records", str(tmp_path / "records"), "--", "--input", "a b")
    result = invoke("launch", "slurm-encode", *arguments)
    assert result.exit_code == 0, result.exception
    plan, tasks, merge = slurm.calls("sbatch")
    numbers = [line.split()[-1] for line in result.stdout.splitlines()]
    assert plan == f"--parsable {tmp_path}/records/plan.sbatch"
    assert f"--dependency=afterok:{numbers[0]} --kill-on-invalid-dep=yes" in tasks
    assert f"--dependency=afterok:{numbers[1]}" in merge
