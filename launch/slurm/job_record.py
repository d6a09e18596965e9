"""What the launcher keeps in a run's folder.

RUN/launch/job.json           the newest job: id, cluster, script, when submitted
RUN/launch/job-001.sbatch     the script of the first submission, and what it was made of:
RUN/launch/job-001.yaml         the run's whole configuration, which the job trains with
RUN/launch/job-001.cluster.yaml the cluster file with what was changed on the command line
RUN/launch/history.tsv        starts, signals and ends of jobs, by the batch script
RUN/launch/stopped            `pretrain stop` was asked: no job of this run requeues itself
RUN/launch/exclude            nodes that the node check found bad, one a line
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


class Event(NamedTuple):
    """A line of history.tsv. `what` is start, signal, requeue or end; `step` is that of the newest checkpoint."""

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
        """The newest job."""
        return self.path / "job.json"

    @property
    def history(self) -> Path:
        """Starts and ends."""
        return self.path / "history.tsv"

    @property
    def stopped(self) -> Path:
        """Keeps a job from requeueing itself."""
        return self.path / "stopped"

    @property
    def exclude(self) -> Path:
        """Bad nodes."""
        return self.path / "exclude"

    def next_script(self) -> Path:
        """job-001.sbatch, or the one after the last."""
        numbers = (_SCRIPT.fullmatch(path.name) for path in self.path.glob("job-*.sbatch"))
        return self.path / f"job-{max((int(match[1]) for match in numbers if match), default=0) + 1:03d}.sbatch"

    def read_record(self) -> JobRecord | None:
        """The newest job, None where none was submitted. Raises UserError for a file that is not what we write."""
        try:
            return JobRecord(**json.loads(self.record.read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{self.record} is damaged: {error}", hint="remove it, after `squeue --me` shows no job of this run"
            ) from error

    def write_record(self, record: JobRecord) -> None:
        """Replace it in one go."""
        publish_file(self.record, json.dumps(asdict(record), indent=1) + "\n")

    def read_history(self) -> list[Event]:
        """All events, the oldest first; a line that is no event is left out: a batch script may be killed while it writes."""
        try:
            lines = self.history.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return []
        return [event for event in map(_event, lines) if event is not None]

    def bad_nodes(self) -> list[str]:
        """What the node check wrote down."""
        try:
            return self.exclude.read_text().split()
        except FileNotFoundError:
            return []

    @contextmanager
    def claim(self) -> Iterator[None]:
        """One submission of a run at a time. Raises UserError where another one is going on."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"run {self.path.parent} is being launched by another process") from None
            except OSError:  # no locks here: Lustre without -o flock, some NFS
                pass
            yield


def _event(line: str) -> Event | None:
    fields = line.split("\t")
    try:
        time, job_id, restart, what, step, text = fields
        return Event(float(time), int(job_id), int(restart), what, int(step), text)
    except ValueError:
        return None
