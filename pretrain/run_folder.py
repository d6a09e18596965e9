"""What a run is on disk, and how far it has come.

RUN/config.yaml                the resolved configuration of the last start
RUN/status                     running | unfinished (stopped, resumable) | done | failed
RUN/metrics.jsonl              one line an optimizer step
RUN/evaluations.jsonl          one line an evaluation
RUN/samples.jsonl              with eval.prompts, one line an evaluation: what the model writes behind them
RUN/audit.jsonl                with data.audit, one line a step: a digest of the sequences that it consumed
RUN/tensorboard/               the same, for TensorBoard
RUN/checkpoints/step-00000100/ complete checkpoints; checkpoint/layout.py
RUN/weights/step-00000100/     the same with the weights alone, for evaluation
RUN/attempt                    number of the newest start; an older one that still lives may not write any more
RUN/jumps.json                 batches that were jumped over after a rollback
RUN/heartbeats/                what each process is doing; heartbeat.py
RUN/logs/                      what was printed, and metrics that a resume replaced
"""

import fcntl
import json
import os
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, NamedTuple

from pretrain.errors import UserError
from pretrain.storage.files import publish_file

STATUSES = ("running", "unfinished", "done", "failed")


class SkippedRange(NamedTuple):
    """`samples` samples from `first` on are not read: something went wrong at `step`."""

    first: int
    samples: int
    step: int
    reason: str


@dataclass(frozen=True)
class Progress:
    """Everything that the trainer itself must remember: the order needs one integer, the schedule another."""

    step: int = 0
    samples: int = 0
    tokens: int = 0

    def advanced(self, samples: int, tokens: int) -> "Progress":
        """After one more step."""
        return Progress(self.step + 1, self.samples + samples, self.tokens + tokens)

    def jumped(self, jumps: Sequence[SkippedRange]) -> "Progress":
        """Behind whatever is to be jumped over from here."""
        progress = self
        for jump in sorted(jumps):
            if jump.first == progress.samples:
                progress = replace(progress, samples=jump.first + jump.samples)
        return progress

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
    def samples(self) -> Path:
        """One line an evaluation, with eval.prompts."""
        return self.path / "samples.jsonl"

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
    def weights(self) -> Path:
        """One folder a save of the weights alone."""
        return self.path / "weights"

    @property
    def jumps(self) -> Path:
        """What was jumped over."""
        return self.path / "jumps.json"

    @property
    def heartbeats(self) -> Path:
        """One file a process, while it lives."""
        return self.path / "heartbeats"

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

    def clean(self) -> None:
        """Remove small files that a killed process had not finished. For whoever holds the lock."""
        for folder in (self.path, self.heartbeats):
            for leftover in folder.glob(".*.tmp"):
                leftover.unlink(missing_ok=True)

    def attempt(self) -> int:
        """The newest start of this run; 0 where it never started."""
        try:
            return int((self.path / "attempt").read_text())
        except (FileNotFoundError, ValueError):
            return 0

    def begin_attempt(self) -> int:
        """The number of this start. From now on, what an earlier one saves is not published."""
        number = self.attempt() + 1
        publish_file(self.path / "attempt", f"{number}\n")
        return number

    def read_jumps(self) -> list[SkippedRange]:
        """What was jumped over until now. Raises UserError for a file that is not what `write_jumps` writes."""
        try:
            return [SkippedRange(**entry) for entry in json.loads(self.jumps.read_text())]
        except FileNotFoundError:
            return []
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{self.jumps} is damaged: {error}", hint="remove it to read those batches again"
            ) from error

    def write_jumps(self, jumps: Sequence[SkippedRange]) -> None:
        """Before the batches are jumped over: a kill must not bring them back."""
        publish_file(self.jumps, json.dumps([jump._asdict() for jump in jumps], indent=1) + "\n")

    def status(self) -> str | None:
        """The last status, None where the run never started."""
        try:
            return (self.path / "status").read_text().strip()
        except FileNotFoundError:
            return None

    def set_status(self, status: str) -> None:
        """Replace the status in one go, so that a reader never sees half a word."""
        assert status in STATUSES
        publish_file(self.path / "status", status + "\n")
