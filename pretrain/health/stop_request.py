"""Reasons to stop: signals and the stop file. A rank only notes them; all ranks stop together, at the next step.

Standard library only, so that the handlers stand before the heavy imports: a signal that arrives during these must not
kill the process half-way through joining a group.
"""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


class StopRequest:
    """Collects reasons to stop. A second interrupt from the keyboard ends the process at once."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.since = time.time()
        self._interrupted = False
        self.stop_file: Path | None = None
        self.deadline: float | None = None  # of the wall clock; `margin_s` before it, it is time to save
        self.margin_s = 60.0

    def install(self) -> "StopRequest":
        """Take over the signals of this process."""
        for number in SIGNALS:
            signal.signal(number, self._note)
        return self

    def wanted(self) -> bool:
        """Whether this rank has a reason to stop."""
        if self.reason is None and self.stop_file is not None:
            with suppress(FileNotFoundError):
                # The launcher writes there what it was asked by.
                self.reason = self.stop_file.read_text().strip() or f"stop file {self.stop_file}"
        if self.reason is None and self.deadline is not None and time.time() > self.deadline - self.margin_s:
            self.reason = "time limit"
        return self.reason is not None

    def set_deadline(self, time_limit_minutes: float | None) -> None:
        """So long after the start; under SLURM, no later than the end of the job, where it is known."""
        limits = [] if time_limit_minutes is None else [self.since + 60 * time_limit_minutes]
        job_end = os.environ.get("SLURM_JOB_END_TIME", "")
        limits += [float(job_end)] if job_end.isdecimal() else []
        self.deadline = min(limits, default=None)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._interrupted:
            raise KeyboardInterrupt
        self._interrupted |= number == signal.SIGINT
        self.reason = signal.Signals(number).name
