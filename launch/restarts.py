"""Whether a training that ended is started again on this machine, and from where. The batch script has the same rules."""

from pathlib import Path
from typing import NamedTuple


class StartOutcome(NamedTuple):
    """How one start of a run came to its end. `status` is None where it ended before it had claimed the run."""

    code: int
    status: str | None
    asked: bool  # by a signal or a stop file
    step_before: int  # of the newest checkpoint, at its start
    step_after: int


def reason_not_to_restart(ended: StartOutcome, restarts: int, max_restarts: int) -> str | None:
    """The reason to leave it, None to start again."""
    if ended.code == 0 or ended.status == "done":
        return "it ended in order"
    if ended.asked:
        return "it was asked to stop"
    if ended.status == "failed":
        return "the training failed, and would again"
    if restarts >= max_restarts:
        return f"--max-restarts={max_restarts} are used up"
    if ended.step_after <= ended.step_before:
        return f"no checkpoint after step {ended.step_before} was saved, so that it would end in the same place"
    return None


def newest_checkpoint(checkpoints: Path) -> tuple[int, float] | None:
    """(step, when it was committed) of the newest; a folder has its name only when it is complete."""
    found = []
    for path in checkpoints.glob("step-*"):
        number = path.name.removeprefix("step-")
        try:
            if number.isdecimal() and path.is_dir():
                found.append((int(number), path.stat().st_mtime))
        except FileNotFoundError:  # retention took it away meanwhile
            continue
    return max(found, default=None)


def newest_step(checkpoints: Path) -> int:
    """The step that a start would resume from; 0 from scratch."""
    found = newest_checkpoint(checkpoints)
    return 0 if found is None else found[0]
