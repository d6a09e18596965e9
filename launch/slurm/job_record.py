"""The launcher's files in a run folder.

RUN/launch/job.json           newest job: id, cluster, script, time of submission
RUN/launch/job-001.sbatch     script of the first submission, and its inputs:
RUN/launch/job-001.yaml         the complete configuration, which the job trains with
RUN/launch/job-001.cluster.yaml the cluster file with the overrides of the command line
RUN/launch/history.tsv        starts, signals and ends of jobs, written by the batch script
RUN/launch/stopped            written by `pretrain stop`: jobs of this run do not requeue
RUN/launch/exclude            bad nodes found by the node check, one per line
RUN/logs/JOB-START/           output of each rank of one start of a job
"""

import fcntl
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from pretrain.errors import UserError
from pretrain.storage.files import publish_file

_SCRIPT = re.compile(r"job-(\d+)\.sbatch")


@dataclass(frozen=True)
class JobRecord:
    """job.json: the newest job of a run. Times are seconds since 1970."""

    job_id: int
    cluster: str
    submitted: float
    script: str
    log: str
    world_size: int
    peak_tflops: float | None = None  # of one GPU


class JobEvent(NamedTuple):
    """A line of history.tsv. `what`: start, signal, requeue or end; `step`: of the newest checkpoint."""

    time: float
    job_id: int
    restart: int
    what: str
    step: int
    text: str


@dataclass(frozen=True)
class LaunchFolder:
    """RUN/launch."""

    path: Path

    @property
    def record(self) -> Path:
        """Record of the newest job."""
        return self.path / "job.json"

    @property
    def history(self) -> Path:
        """Log of job events."""
        return self.path / "history.tsv"

    @property
    def stopped(self) -> Path:
        """Marker that disables requeueing."""
        return self.path / "stopped"

    @property
    def exclude(self) -> Path:
        """List of bad nodes."""
        return self.path / "exclude"

    def next_script(self) -> Path:
        """Next free name: job-001.sbatch, …"""
        numbers = (_SCRIPT.fullmatch(path.name) for path in self.path.glob("job-*.sbatch"))
        return self.path / f"job-{max((int(match[1]) for match in numbers if match), default=0) + 1:03d}.sbatch"

    def read_record(self) -> JobRecord | None:
        """Newest job; None if none was submitted. Raises UserError if the file is corrupt."""
        try:
            return JobRecord(**json.loads(self.record.read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{self.record} is corrupt: {error}", hint="remove it once `squeue --me` shows no job of this run"
            ) from error

    def write_record(self, record: JobRecord) -> None:
        """Replace the file atomically."""
        publish_file(self.record, json.dumps(asdict(record), indent=1) + "\n")

    def read_history(self) -> list[JobEvent]:
        """All events, oldest first. Skips malformed lines: a batch script may be killed while writing."""
        try:
            lines = self.history.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return []
        return [event for event in map(_event, lines) if event is not None]

    def bad_nodes(self) -> list[str]:
        """Nodes excluded by the node check."""
        try:
            return self.exclude.read_text().split()
        except FileNotFoundError:
            return []

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Lock for one submission at a time. Raises UserError if another is in progress."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"run {self.path.parent} is being launched by another process") from None
            except OSError:  # file system without locks: Lustre without -o flock, some NFS
                pass
            yield


def _event(line: str) -> JobEvent | None:
    fields = line.split("\t")
    try:
        time, job_id, restart, what, step, text = fields
        return JobEvent(float(time), int(job_id), int(restart), what, int(step), text)
    except ValueError:
        return None
