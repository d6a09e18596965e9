"""SLURM's commands as functions: squeue, scontrol, sinfo, scancel, sbatch. None needs accounting (slurmdbd)."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from pretrain.errors import PretrainError

COMMAND_TIMEOUT_S = 60.0
# Variables that locate the controller. Other SLURM variables belong to an enclosing job, or would override the script.
_KEPT = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT", "SLURM_TIME_FORMAT"}
_GONE = ("Invalid job id", "Invalid job array id")


class SlurmError(PretrainError):
    """A SLURM command failed or is not installed."""


class QueuedJob(NamedTuple):
    """A line of squeue. `reason`: why it is pending; `start`: actual or estimated start time."""

    job_id: str
    state: str
    reason: str
    nodes: str
    start: str
    left: str


def installed() -> bool:
    """Whether SLURM's commands are installed here."""
    return shutil.which("squeue") is not None


def find_job(job_id: int) -> QueuedJob | None:
    """A job that is pending, running or ending, else None. Raises SlurmError if squeue fails."""
    try:
        lines = _run("squeue", "--noheader", f"--jobs={job_id}", "--format=%i|%T|%r|%N|%S|%L").splitlines()
    except SlurmError as error:
        if any(text in error.message for text in _GONE):
            return None
        raise
    jobs = [QueuedJob(*line.split("|")) for line in lines if line.count("|") == 5]
    return next((job for job in jobs if job.state not in _OVER), None)


# squeue --jobs still shows a finished job for a while (MinJobAge).
_OVER = frozenset(
    "COMPLETED CANCELLED FAILED TIMEOUT NODE_FAIL PREEMPTED BOOT_FAIL DEADLINE OUT_OF_MEMORY REVOKED".split()
)


def job_end(job_id: int) -> str | None:
    """End state of a job, e.g. `TIMEOUT, exit code 0:0`; None once the controller has forgotten it."""
    try:
        shown = _run("scontrol", "--oneliner", "show", "job", str(job_id))
    except SlurmError:
        return None
    fields = dict(re.findall(r"(\w+)=(\S+)", shown))
    state, code = fields.get("JobState"), fields.get("ExitCode")
    return None if state is None else f"{state}, exit code {code}"


def submit(script: Path, *, dependency: str | None = None) -> int:
    """Submit a script. Returns the job ID; raises SlurmError with sbatch's message."""
    waits = [] if dependency is None else [f"--dependency={dependency}", "--kill-on-invalid-dep=yes"]
    answer = _run("sbatch", "--parsable", *waits, str(script), environment=clean_environment(os.environ))
    number = answer.strip().splitlines()[-1].partition(";")[0] if answer.strip() else ""
    if not number.isdecimal():
        raise SlurmError(f"sbatch answered {answer.strip()!r}, not a job ID")
    return int(number)


def cancel(job_id: int, *, only_pending: bool = False) -> None:
    """Cancel a job; with `only_pending`, a job that has started is left running."""
    _run("scancel", *(["--state=PENDING"] if only_pending else []), str(job_id))


def partitions() -> set[str] | None:
    """Names of all partitions; None if sinfo fails."""
    try:
        return {name.rstrip("*") for name in _run("sinfo", "--noheader", "--all", "--format=%P").split()}
    except SlurmError:
        return None


def allocated_nodes() -> list[str]:
    """Node names of the enclosing job. Raises SlurmError outside a job."""
    listed = os.environ.get("SLURM_JOB_NODELIST")
    if not listed:
        raise SlurmError("SLURM_JOB_NODELIST is not set", hint="run this inside a job: salloc, or a batch script")
    return _run("scontrol", "show", "hostnames", listed).split()


def clean_environment(environment: "os._Environ[str] | dict[str, str]") -> dict[str, str]:
    """Drop SBATCH_… variables, which would silently override the script, and those of an enclosing job."""
    ours = {name: value for name, value in environment.items() if not name.startswith(("SBATCH_", "SLURM_", "SRUN_"))}
    return ours | {name: environment[name] for name in _KEPT if name in environment}


def _run(*command: str, environment: dict[str, str] | None = None) -> str:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
            env=environment,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        raise SlurmError(
            f"{command[0]} is not installed", hint="run this on a machine with SLURM's commands, or use --dry-run"
        ) from None
    except subprocess.TimeoutExpired:
        raise SlurmError(
            f"{command[0]} did not answer within {COMMAND_TIMEOUT_S:.0f} s", hint="is the controller up? `sinfo`"
        ) from None
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise SlurmError(f"{command[0]}: {said}")
    return done.stdout
