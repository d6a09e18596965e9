"""The folder of a run, and its progress.

RUN/config.yaml                the resolved configuration of the last start
RUN/configs/attempt-1.yaml     the same of each start
RUN/status                     running | unfinished (stopped, resumable) | done | failed | crashed
RUN/failure.json               why the newest start failed or crashed; failure.py
RUN/metrics.jsonl              one line an optimizer step
RUN/evaluations.jsonl          one line an evaluation
RUN/samples.jsonl              with eval.prompts, one line an evaluation: completions of the prompts
RUN/audit.jsonl                with data.audit, one line a step: a digest of the sequences that it consumed
RUN/tensorboard/               the same, for TensorBoard
RUN/checkpoints/step-00000100/ complete checkpoints; checkpoint/layout.py
RUN/weights/step-00000100/     the weights alone, for evaluation
RUN/attempt                    number of the newest start; an older one that is still alive must not write any more
RUN/jumps.json                 samples that are skipped after a rollback
RUN/heartbeats/                state of each process; health/heartbeat.py
RUN/logs/                      console output, and metrics that a resume replaced
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

STATUSES = ("running", "unfinished", "done", "failed", "crashed")


class SkippedRange(NamedTuple):
    """`samples` samples from `first` on are not read, because of `reason` at `step`."""

    first: int
    samples: int
    step: int
    reason: str

    @property
    def span(self) -> tuple[int, int]:
        """First sample, number of samples."""
        return self.first, self.samples


@dataclass(frozen=True)
class Progress:
    """Progress of training: the data order needs `samples`, the schedule `step`."""

    step: int = 0
    samples: int = 0
    tokens: int = 0

    def advanced(self, samples: int, tokens: int) -> "Progress":
        """Progress after one more step, which ended at `samples` and had so many tokens."""
        return Progress(self.step + 1, samples, self.tokens + tokens)

    def after_skipped(self, skipped: Sequence[SkippedRange]) -> "Progress":
        """Progress after the ranges that hold the next sample."""
        progress = self
        for gap in sorted(skipped):
            if gap.first <= progress.samples < gap.first + gap.samples:
                progress = replace(progress, samples=gap.first + gap.samples)
        return progress

    def to_json(self) -> dict[str, int]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Progress":
        """Inverse of `to_json`."""
        return cls(int(values["step"]), int(values["samples"]), int(values["tokens"]))


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    def config_of(self, attempt: int) -> Path:
        """The resolved configuration of a start."""
        return self.path / "configs" / f"attempt-{attempt}.yaml"

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
    def skipped(self) -> Path:
        """Samples skipped after rollbacks."""
        return self.path / "jumps.json"

    @property
    def failure(self) -> Path:
        """Why the newest start failed."""
        return self.path / "failure.json"

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
        """Create missing folders. Raises UserError if that fails."""
        try:
            for folder in (self.path, self.checkpoints, self.logs, self.path / "configs"):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"run folder {self.path} cannot be created: {error.strerror}", hint="run.dir=DIR"
            ) from error

    def claim(self) -> IO[str]:
        """Lock the run until the returned file is closed or the process dies.

        Two trainings of one run would delete each other's checkpoints. The lock is flock's: it holds across machines if the
        file system supports that. Raises UserError if another process holds it.
        """
        lock = self._lock(fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        return lock

    def check_free(self) -> None:
        """Raise UserError if another process has claimed the run. Ranks may ask at the same time."""
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
                hint=f"`touch {self.stop_file}` makes it save and exit; a new run.dir starts another run",
            ) from None
        except OSError as error:  # Lustre without -o flock, some NFS
            if kind == fcntl.LOCK_EX:
                print(
                    f"{self.path}: no file locks here ({error.strerror}); a second launch would not be noticed",
                    flush=True,
                )
        return lock

    def clean(self) -> None:
        """Remove temporary files of killed processes. Only for the holder of the lock."""
        for folder in (self.path, self.heartbeats, self.path / "configs"):
            for leftover in folder.glob(".*.tmp"):
                leftover.unlink(missing_ok=True)

    def attempt(self) -> int:
        """Number of the newest start; 0 if there was none."""
        try:
            return int((self.path / "attempt").read_text())
        except (FileNotFoundError, ValueError):
            return 0

    def begin_attempt(self) -> int:
        """Begin a start and return its number. From now on, earlier ones publish nothing."""
        number = self.attempt() + 1
        publish_file(self.path / "attempt", f"{number}\n")
        return number

    def read_skipped(self) -> list[SkippedRange]:
        """Samples skipped so far. Raises UserError for a corrupt file."""
        try:
            return [SkippedRange(**entry) for entry in json.loads(self.skipped.read_text())]
        except FileNotFoundError:
            return []
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{self.skipped} is corrupt: {error}",
                hint="remove it: the newest checkpoint holds earlier ranges",
            ) from error

    def write_skipped(self, skipped: Sequence[SkippedRange]) -> None:
        """Write all skipped ranges; call it before a range is skipped, so that a kill does not bring it back."""
        publish_file(self.skipped, json.dumps([gap._asdict() for gap in skipped], indent=1) + "\n")

    def status(self) -> str | None:
        """The last status; None if the run never started."""
        try:
            return (self.path / "status").read_text().strip()
        except FileNotFoundError:
            return None

    def set_status(self, status: str) -> None:
        """Replace the status atomically."""
        assert status in STATUSES
        publish_file(self.path / "status", status + "\n")


def parse_lines(data: bytes) -> tuple[list[dict[str, Any]], int]:
    """Entries of metrics.jsonl and its like, and the number of damaged lines: cut off by a crash, or zeros of a lost block.

    A last line without its end is none of them: it is being written, or a kill cut it off.
    """
    entries, damaged = [], 0
    for line in data.split(b"\n")[:-1]:
        try:
            entry = json.loads(line.decode())
        except ValueError:
            entry = None
        if isinstance(entry, dict) and type(entry.get("step")) is int:
            entries.append(entry)
        else:
            damaged += 1
    return entries, damaged
