"""What a run is on disk, and how far it has come.

RUN/config.yaml                the resolved configuration of the last start
RUN/status                     running | unfinished (stopped, resumable) | done | failed
RUN/metrics.jsonl              one line an optimizer step
RUN/evaluations.jsonl          one line an evaluation
RUN/audit.jsonl                with data.audit, one line a step: a digest of the sequences that it consumed
RUN/tensorboard/               the same, for TensorBoard
RUN/checkpoints/step-00000100/ complete checkpoints; checkpoint/layout.py
RUN/logs/                      what was printed, and metrics that a resume replaced
"""

import fcntl
import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from pretrain.errors import UserError

STATUSES = ("running", "unfinished", "done", "failed")


@dataclass(frozen=True)
class Progress:
    """Everything that the trainer itself must remember: the order needs one integer, the schedule another."""

    step: int = 0
    samples: int = 0
    tokens: int = 0

    def advanced(self, samples: int, tokens: int) -> "Progress":
        """After one more step."""
        return Progress(self.step + 1, self.samples + samples, self.tokens + tokens)

    def to_json(self) -> dict[str, int]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Progress":
        """From what `to_json` gave."""
        return cls(int(values["step"]), int(values["samples"]), int(values["tokens"]))


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One line a step."""
        return self.path / "metrics.jsonl"

    @property
    def evaluations(self) -> Path:
        """One line an evaluation."""
        return self.path / "evaluations.jsonl"

    @property
    def audit(self) -> Path:
        """One line a step, with `data.audit`."""
        return self.path / "audit.jsonl"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """One folder a checkpoint."""
        return self.path / "checkpoints"

    @property
    def logs(self) -> Path:
        """Text logs."""
        return self.path / "logs"

    @property
    def stop_file(self) -> Path:
        """A run whose stop file appears saves and ends."""
        return self.path / "stop"

    def make(self) -> None:
        """Create what is missing. Raises UserError where a file is in the way or the place cannot be written."""
        try:
            for folder in (self.path, self.checkpoints, self.logs):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"run folder {self.path} cannot be made: {error.strerror}", hint="run.dir=DIR") from error

    def claim(self) -> IO[str]:
        """Keep others out of this run until the returned file is closed or the process dies, however it dies.

        Two trainings of one run would delete each other's checkpoints. Raises UserError where another one is at work. (The
        lock is the kernel's: across machines it holds where the file system carries flock.)
        """
        lock = self._lock(fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        return lock

    def check_free(self) -> None:
        """Raise UserError where another process has claimed the run. Ranks that ask at once don't disturb each other."""
        if self.path.is_dir():
            self._lock(fcntl.LOCK_SH).close()

    def _lock(self, kind: int) -> IO[str]:
        try:
            lock = (self.path / ".lock").open("a+")
        except OSError as error:
            raise UserError(
                f"run folder {self.path} cannot be written: {error.strerror}", hint="run.dir=DIR"
            ) from error
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip() or "another process"
            lock.close()
            raise UserError(
                f"run folder {self.path} is in use by {owner}",
                hint=f"`touch {self.stop_file}` makes it save and end; another run.dir starts another run",
            ) from None
        except OSError as error:  # Lustre without -o flock, some NFS
            if kind == fcntl.LOCK_EX:
                print(
                    f"{self.path}: no locks here ({error.strerror}); a second launch would not be noticed", flush=True
                )
        return lock

    def status(self) -> str | None:
        """The last status, None where the run never started."""
        try:
            return (self.path / "status").read_text().strip()
        except FileNotFoundError:
            return None

    def set_status(self, status: str) -> None:
        """Replace the status in one go, so that a reader never sees half a word."""
        assert status in STATUSES
        temporary = self.path / ".status.tmp"
        temporary.write_text(status + "\n")
        temporary.replace(self.path / "status")
