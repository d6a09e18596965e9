"""Restart rules of a training on this machine. The batch script has the same rules."""

from pathlib import Path
from typing import NamedTuple


class StartOutcome(NamedTuple):
    """Outcome of one start of a run. `status` is None if it ended before claiming the run."""

    code: int
    status: str | None
    asked: bool  # by a signal or a stop file
    step_before: int  # of the newest checkpoint, at its start
    step_after: int


def reason_not_to_restart(ended: StartOutcome, restarts: int, max_restarts: int) -> str | None:
    """Reason not to restart, or None to restart."""
    if ended.code == 0 or ended.status == "done":
        return "it ended normally"
    if ended.asked:
        return "it was asked to stop"
    if ended.status == "failed":
        return "the training failed, and a restart would fail again"
    if restarts >= max_restarts:
        return f"--max-restarts={max_restarts} are used up"
    if ended.step_after <= ended.step_before:
        return f"no checkpoint was saved after step {ended.step_before}, so a restart would fail at the same step"
    return None


def newest_checkpoint(checkpoints: Path) -> tuple[int, float] | None:
    """(step, commit time) of the newest checkpoint. A folder gets its final name by rename, once complete."""
    found = []
    for path in checkpoints.glob("step-*"):
        number = path.name.removeprefix("step-")
        try:
            if number.isdecimal() and path.is_dir():
                found.append((int(number), path.stat().st_mtime))
        except FileNotFoundError:  # removed by retention meanwhile
            continue
    return max(found, default=None)


def newest_step(checkpoints: Path) -> int:
    """Step to resume from; 0: from scratch."""
    found = newest_checkpoint(checkpoints)
    return 0 if found is None else found[0]
