"""From a configuration and a cluster file to a job in the queue.

    1. read both, and what is wrong with either                          config, cluster.py
    2. everything that would make the job fail, in one error             checks.py
    3. no other job of this run is queued or running                     job.json and squeue
    4. script, configuration and cluster file are written to RUN/launch  script.py
    5. sbatch, and the answer into job.json

A run has one submission at a time: the third step and the fifth are under one lock.
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
    """What is to be submitted."""

    config: Config
    cluster: Cluster
    cluster_name: str
    run: Path

    @property
    def world_size(self) -> int:
        """Processes."""
        return self.cluster.nodes * self.cluster.processes_per_node

    @property
    def folder(self) -> LaunchFolder:
        """RUN/launch."""
        return LaunchFolder(self.run / "launch")


def read(config: Path, overrides: Sequence[str], cluster: str, nodes: int | None) -> Submission:
    """Configuration and cluster file. Raises UserError with every problem of both."""
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
    """Reasons not to submit."""
    known = slurm.partitions() if slurm.installed() else None
    return find_problems(submission.config, submission.cluster, submission.run, known)


def script_of(submission: Submission, config: Path) -> str:
    """The batch script; `config` is what the processes will read."""
    job = TrainJob(run=submission.run, config=config, workdir=Path.cwd(), name=submission.run.name or "pretrain")
    return render_train(job, submission.cluster)


def submit(submission: Submission, prepare: Callable[[], object]) -> JobRecord:
    """Submit. `prepare` looks into data and checkpoints, and raises UserError for what is wrong there.

    Raises ConfigError with all problems, UserError where a job of this run is still in the queue.
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
        (submission.run / "logs").mkdir(exist_ok=True)  # SLURM makes no folders, and a job without a log fails unseen
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


def refuse_second_job(folder: LaunchFolder, run: Path) -> None:
    """Raise UserError where the newest job of the run has not ended. Two of them would take turns at fencing each other."""
    record = folder.read_record()
    if record is None:
        return
    job = slurm.find_job(record.job_id)
    if job is not None:
        raise UserError(
            f"run {run} has a job already: {record.job_id} is {job.state} ({job.reason})",
            hint=f"`pretrain stop {run}` ends it, and `pretrain status {run}` shows how far it is",
        )


def _log_name(submission: Submission, job_id: int) -> str:
    """With the patterns of sbatch that can be known here."""
    name = submission.cluster.job_name or submission.run.name
    return submission.cluster.log.replace("%x", name).replace("%j", str(job_id))


def cluster_text(cluster: Cluster) -> str:
    """Every value as YAML; `load_cluster` of such a file gives an equal Cluster."""
    # Through JSON, which knows lists and no tuples.
    return str(OmegaConf.to_yaml(OmegaConf.create(json.loads(json.dumps(dataclasses.asdict(cluster))))))
