"""Submission of a training job.

    1. read configuration and cluster file                               config, cluster_file.py
    2. check everything that would make the job fail, in one error       checks.py
    3. refuse if a job of this run is pending or running                 job.json and squeue
    4. write script, configuration and cluster file to RUN/launch        script.py
    5. sbatch, and record the job in job.json

Steps 3 to 5 run under a lock: one submission of a run at a time.
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from launch.slurm import commands as slurm
from launch.slurm.checks import find_problems
from launch.slurm.cluster import Cluster
from launch.slurm.cluster_file import load_cluster, resize, split_overrides
from launch.slurm.job_record import JobRecord, LaunchFolder
from launch.slurm.script import TrainJob, render_train
from pretrain.config.load import config_text, load_config
from pretrain.config.schema import Config
from pretrain.errors import ConfigError, UserError


@dataclass(frozen=True)
class Submission:
    """A training job before submission."""

    config: Config
    cluster: Cluster
    cluster_name: str
    run: Path

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.cluster.nodes * self.cluster.processes_per_node

    @property
    def folder(self) -> LaunchFolder:
        """RUN/launch."""
        return LaunchFolder(self.run / "launch")


def read(config: Path, overrides: Sequence[str], cluster: str, nodes: int | None) -> Submission:
    """Read configuration and cluster file. Raises ConfigError with all problems of both."""
    run_overrides, cluster_overrides = split_overrides(overrides)
    problems: list[str] = []
    loaded, site = None, None
    try:
        site = resize(load_cluster(cluster, cluster_overrides), nodes)
    except ConfigError as error:
        problems += [f"cluster: {problem}" for problem in error.problems]
    try:
        loaded = load_config(config, run_overrides).config
    except ConfigError as error:
        problems += error.problems
    if loaded is None or site is None:
        raise ConfigError(problems, source=f"{config}, {cluster}")
    if site.account is None and os.environ.get("SBATCH_ACCOUNT"):
        site = dataclasses.replace(site, account=os.environ["SBATCH_ACCOUNT"])
    run = Path(loaded.run.dir).absolute()
    bad = LaunchFolder(run / "launch").bad_nodes()
    if bad:
        site = dataclasses.replace(site, exclude=",".join(filter(None, (site.exclude, *bad))))
    return Submission(loaded, site, cluster, run)


def problems_of(submission: Submission) -> list[str]:
    """All reasons not to submit."""
    known = slurm.partitions() if slurm.installed() else None
    return find_problems(submission.config, submission.cluster, submission.run, known)


def script_of(submission: Submission, config: Path) -> str:
    """Batch script; `config` is the path that the processes will read."""
    job = TrainJob(run=submission.run, config=config, workdir=Path.cwd(), name=submission.run.name or "pretrain")
    return render_train(job, submission.cluster)


def submit(submission: Submission, prepare: Callable[[], object]) -> JobRecord:
    """Submit. `prepare` checks data and checkpoints, and raises UserError on a problem.

    Raises ConfigError with all problems, UserError if a job of this run is pending or running.
    """
    problems = problems_of(submission)
    if problems:
        raise ConfigError(problems, source=f"{submission.run.name} on {submission.cluster_name}")
    folder = submission.folder
    refuse_second_job(folder, submission.run)
    prepare()
    with folder.claim():
        refuse_second_job(folder, submission.run)
        script = folder.next_script()
        config = script.with_suffix(".yaml")
        config.write_text(config_text(submission.config))
        script.with_suffix(".cluster.yaml").write_text(cluster_text(submission.cluster))
        script.write_text(script_of(submission, config))
        (submission.run / "logs").mkdir(exist_ok=True)  # SLURM does not create it, and the job would fail without a log
        folder.stopped.unlink(missing_ok=True)
        job_id = slurm.submit(script)
        record = JobRecord(
            job_id=job_id,
            cluster=submission.cluster_name,
            submitted=time.time(),
            script=str(script),
            log=str(submission.run / "logs" / _log_name(submission, job_id)),
            world_size=submission.world_size,
            peak_tflops=submission.cluster.peak_tflops,
        )
        folder.write_record(record)
    return record


def refuse_beside_job(run: Path) -> None:
    """Raise UserError if a job of the run waits, starts or trains, and this process is none of that job's."""
    folder = LaunchFolder(run / "launch")
    record = folder.read_record()
    if record is not None and os.environ.get("SLURM_JOB_ID") != str(record.job_id) and slurm.installed():
        refuse_second_job(folder, run)


def refuse_second_job(folder: LaunchFolder, run: Path) -> None:
    """Raise UserError if the run's newest job has not ended: two jobs would keep superseding each other."""
    record = folder.read_record()
    if record is None:
        return
    job = slurm.find_job(record.job_id)
    if job is not None:
        raise UserError(
            f"run {run} has a job already: {record.job_id} is {job.state} ({job.reason})",
            hint=f"`pretrain stop {run}` ends it, `pretrain status {run}` shows its progress",
        )


def _log_name(submission: Submission, job_id: int) -> str:
    """Log file name with sbatch's patterns %x and %j filled in."""
    name = submission.cluster.job_name or submission.run.name
    return submission.cluster.log.replace("%x", name).replace("%j", str(job_id))


def cluster_text(cluster: Cluster) -> str:
    """All values as YAML; `load_cluster` reads back an equal Cluster."""
    # Through JSON, to turn tuples into lists.
    return str(OmegaConf.to_yaml(OmegaConf.create(json.loads(json.dumps(dataclasses.asdict(cluster))))))
