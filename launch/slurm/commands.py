"""SLURM's commands, as functions. Everything works without accounting (slurmdbd): squeue, scontrol, sinfo, scancel, sbatch."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from pretrain.errors import PretrainError

PATIENCE_S = 60.0
# How to reach the controller. Other variables of SLURM are those of the job that we may be in, or would override the script.
_KEPT = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT", "SLURM_TIME_FORMAT"}
_GONE = ("Invalid job id", "Invalid job array id")


class SlurmError(PretrainError):
    """A command of SLURM failed, or there is none."""


class QueuedJob(NamedTuple):
    """A line of squeue. `reason` is SLURM's word for why it waits; `start` its guess, or when it began."""

    job_id: str
    state: str
    reason: str
    nodes: str
    start: str
    left: str


def installed() -> bool:
    """Whether this machine can talk to a cluster."""
    return shutil.which("squeue") is not None


def find_job(job_id: int) -> QueuedJob | None:
    """A job that is queued, running or ending; None once SLURM has let go of it. Raises SlurmError where it can't be asked."""
    try:
        lines = _run("squeue", "--noheader", f"--jobs={job_id}", "--format=%i|%T|%r|%N|%S|%L").splitlines()
    except SlurmError as error:
        if any(text in error.message for text in _GONE):
            return None
        raise
    jobs = [QueuedJob(*line.split("|")) for line in lines if line.count("|") == 5]
    return next((job for job in jobs if job.state not in _OVER), None)


# squeue shows them for a while after their end (MinJobAge), when asked for by their number.
_OVER = frozenset(
    "COMPLETED CANCELLED FAILED TIMEOUT NODE_FAIL PREEMPTED BOOT_FAIL DEADLINE OUT_OF_MEMORY REVOKED".split()
)


def job_end(job_id: int) -> str | None:
    """How a job ended, as long as SLURM's controller remembers it: `TIMEOUT, exit code 0:0`."""
    try:
        shown = _run("scontrol", "--oneliner", "show", "job", str(job_id))
    except SlurmError:
        return None
    fields = dict(re.findall(r"(\w+)=(\S+)", shown))
    state, code = fields.get("JobState"), fields.get("ExitCode")
    return None if state is None else f"{state}, exit code {code}"


def submit(script: Path, *, dependency: str | None = None) -> int:
    """Give a script to SLURM. Returns the job's number; raises SlurmError with what sbatch said."""
    waits = [] if dependency is None else [f"--dependency={dependency}", "--kill-on-invalid-dep=yes"]
    answer = _run("sbatch", "--parsable", *waits, str(script), environment=clean_environment(os.environ))
    number = answer.strip().splitlines()[-1].partition(";")[0] if answer.strip() else ""
    if not number.isdecimal():
        raise SlurmError(f"sbatch answered {answer.strip()!r} and no job number")
    return int(number)


def cancel(job_id: int, *, only_pending: bool = False) -> None:
    """scancel; with `only_pending`, a job that has begun meanwhile goes on."""
    _run("scancel", *(["--state=PENDING"] if only_pending else []), str(job_id))


def partitions() -> set[str] | None:
    """Names of all partitions; None where the cluster can't be asked, so that nothing is known against a name."""
    try:
        return {name.rstrip("*") for name in _run("sinfo", "--noheader", "--all", "--format=%P").split()}
    except SlurmError:
        return None


def allocated_nodes() -> list[str]:
    """Names of the nodes of the job that we are in. Raises SlurmError outside of one."""
    listed = os.environ.get("SLURM_JOB_NODELIST")
    if not listed:
        raise SlurmError("SLURM_JOB_NODELIST is not set", hint="inside of a job: salloc, or a batch script")
    return _run("scontrol", "show", "hostnames", listed).split()


def clean_environment(environment: "os._Environ[str] | dict[str, str]") -> dict[str, str]:
    """Without SBATCH_…, which would override the script unseen, and without what a job that submits another one has set."""
    ours = {name: value for name, value in environment.items() if not name.startswith(("SBATCH_", "SLURM_", "SRUN_"))}
    return ours | {name: environment[name] for name in _KEPT if name in environment}


def _run(*command: str, environment: dict[str, str] | None = None) -> str:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
            env=environment,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        raise SlurmError(
            f"{command[0]} is not here", hint="run this where SLURM's commands are, or --dry-run"
        ) from None
    except subprocess.TimeoutExpired:
        raise SlurmError(
            f"{command[0]} did not answer within {PATIENCE_S:.0f} s", hint="is the controller up? `sinfo`"
        ) from None
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise SlurmError(f"{command[0]}: {said}")
    return done.stdout
