"""Stop requests: signals, the stop file, the time limit. A rank records them; all ranks stop together at the next step.

Standard library only, so that handlers are installed before the heavy imports: a signal that arrives in between must not
kill the process while it joins a process group.
"""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


class StopRequest:
    """Collects reasons to stop. A second Ctrl-C ends the process at once."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.since = time.time()
        self._interrupted = False
        self.stop_file: Path | None = None
        self.deadline: float | None = None  # wall clock; stop `margin_s` before it, to save in time
        self.margin_s = 60.0

    def install(self) -> "StopRequest":
        """Install the signal handlers."""
        for number in SIGNALS:
            signal.signal(number, self._note)
        return self

    def wanted(self) -> bool:
        """Whether this rank has a reason to stop."""
        if self.reason is None and self.stop_file is not None:
            with suppress(FileNotFoundError):
                # The launcher writes the name of the signal it received.
                self.reason = self.stop_file.read_text().strip() or f"stop file {self.stop_file}"
        if self.reason is None and self.deadline is not None and time.time() > self.deadline - self.margin_s:
            self.reason = "time limit"
        return self.reason is not None

    def set_deadline(self, time_limit_minutes: float | None) -> None:
        """Set the deadline from the time limit; under SLURM, no later than the end of the job, if known."""
        limits = [] if time_limit_minutes is None else [self.since + 60 * time_limit_minutes]
        job_end = os.environ.get("SLURM_JOB_END_TIME", "")
        limits += [float(job_end)] if job_end.isdecimal() else []
        self.deadline = min(limits, default=None)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._interrupted:
            raise KeyboardInterrupt
        self._interrupted |= number == signal.SIGINT
        if self.reason is None and (os.environ.get("RANK") or "0") == "0":
            # Not print: the signal may have come within one.
            again = "; Ctrl-C again ends it at once" if number == signal.SIGINT else ""
            os.write(2, f"{signal.Signals(number).name}: the run saves and ends after this step{again}\n".encode())
        self.reason = signal.Signals(number).name
