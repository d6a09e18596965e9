"""The point at which a run starts: one decision, made by rank 0, broadcast, and handed down.

preflight     every process, before the process group: is there an error that can be told already?   sizes only
attempt       rank 0, after it claimed the run: the decision                                         every byte hashed
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pretrain.checkpoint import layout
from pretrain.checkpoint.restore import check_fits, check_state
from pretrain.config.load import load_saved
from pretrain.errors import CheckpointError
from pretrain.run_folder import RunFolder
from pretrain.training.startup.changes import changed_values, learning_rate_jump
from pretrain.training.startup.init_weights import find_initial_weights
from pretrain.training.startup.opened_data import OpenedData

Log = Callable[[str], None]
# Looks for a checkpoint elsewhere; is given a log for the reasons why one cannot be used.
Recover = Callable[[Log], "ResumePoint | None"]


@dataclass(frozen=True)
class ResumePoint:
    """A checkpoint with its state, else initial weights, else random initialization at step 0."""

    checkpoint: Path | None = None
    state: dict[str, Any] | None = None  # of the checkpoint
    initial_weights: Path | None = None  # folder that run.init_from stands for; None with a checkpoint
    skipped: tuple[str, ...] = field(default=(), compare=False)  # why newer checkpoints were not used
    changes: tuple[str, ...] = field(default=(), compare=False)  # of the configuration since the checkpoint

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return 0 if self.state is None else int(self.state["step"])


def newest_checkpoint(checkpoints: Path, *, hashes: bool = True, skipped: Log = lambda _: None) -> ResumePoint | None:
    """The newest checkpoint in a folder that verifies; `skipped` receives the reason for each newer one."""
    found = layout.find_newest(checkpoints, hashes=hashes, skipped=skipped)
    return None if found is None else ResumePoint(*found)


def find_resume_point(data: OpenedData, *, hashes: bool, recover: Recover | None = None) -> ResumePoint:
    """The point to start from, checked against the configuration.

    Without `hashes`, files are compared by size. `recover` may bring a checkpoint from an object store to a run that has
    none; without it and with `checkpoint.upload`, a run without checkpoint is not judged.

    Raises CheckpointError if `checkpoint.resume` forbids what is there, if no checkpoint verifies (a run must not start
    again silently), and if a checkpoint or the initial weights do not fit the run.
    """
    config = data.config
    checkpoints = RunFolder(Path(config.run.dir)).checkpoints
    steps = layout.list_steps(checkpoints)
    if config.checkpoint.resume == "never" and steps:
        raise CheckpointError(
            f"checkpoint.resume=never, and {checkpoints} holds a checkpoint of step {steps[-1]}",
            hint="checkpoint.resume=auto, or a new run.dir",
        )
    reasons: list[str] = []
    point = newest_checkpoint(checkpoints, hashes=hashes, skipped=reasons.append)
    if point is None and recover is not None:
        point = recover(reasons.append)
    # Only after the run is claimed may the store be asked: until then, it may hold what is missing here.
    decidable = recover is not None or config.checkpoint.upload is None
    if point is None and decidable and (reasons or config.checkpoint.resume == "must"):
        count = f" among {len(reasons)}:" if reasons else ""
        raise CheckpointError(
            "\n  - ".join([f"{checkpoints} holds no usable checkpoint{count}", *reasons]),
            hint="remove the corrupt ones to start from scratch"
            if reasons
            else "checkpoint.resume=auto starts from scratch",
        )
    if point is None:
        data.order()  # raises DataError if a source would be read too often
        return ResumePoint(initial_weights=find_initial_weights(config, hashes=hashes) if decidable else None)
    assert point.checkpoint is not None and point.state is not None
    check_state(point.checkpoint, point.state)
    check_fits(point.checkpoint, point.state, config, data.order(point.state).description)
    old = load_saved(point.checkpoint / layout.CONFIG)
    jump = learning_rate_jump(old, config, point.step)
    changes = [f"changed since step {point.step}: {line}" for line in changed_values(old, config)]
    return ResumePoint(
        point.checkpoint, point.state, skipped=tuple(reasons), changes=(*changes, *([jump] if jump else []))
    )
