"""Which checkpoints a run keeps, and why: a pure function of their steps and validation losses."""

import json
import math
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from pretrain.checkpoint import layout
from pretrain.config.schema import CheckpointConfig


def kept(
    steps: Iterable[int], losses: Mapping[int, float], rules: CheckpointConfig, *, saved_step: int
) -> dict[int, list[str]]:
    """By step, oldest first, the rules that keep it after a save at `saved_step`; none of them: it is superseded.

    `last` are the newest `keep_last`, `every` multiples of `keep_every_steps`, and `best` the `keep_best` with the lowest
    loss, of those that have one; of equal losses the newer. Steps after the one just saved are left out, neither counted
    nor touched: a resume has passed them over as damaged, and they must not push out what is good.
    """
    steps = sorted(step for step in steps if step <= saved_step)
    judged = sorted((step for step in steps if step in losses), key=lambda step: (losses[step], -step))
    holds = {
        "last": set(steps[-rules.keep_last :]),
        "every": {step for step in steps if rules.keep_every_steps and step % rules.keep_every_steps == 0},
        "best": set(judged[: rules.keep_best]),
    }
    return {step: [reason for reason, held in holds.items() if step in held] for step in steps}


def prune(checkpoints: Path, rules: CheckpointConfig, *, saved_step: int, spared: Collection[Path] = ()) -> None:
    """Delete what is superseded, but for `spared`. Raises OSError where that fails."""
    losses = local_losses(checkpoints) if rules.keep_best else {}
    for step, reasons in kept(layout.list_steps(checkpoints), losses, rules, saved_step=saved_step).items():
        folder = checkpoints / layout.checkpoint_name(step)
        if not reasons and folder not in spared:
            layout.remove(folder)


def local_losses(checkpoints: Path) -> dict[int, float]:
    """The validation losses of all checkpoints that have one; a damaged one has none."""
    losses = {}
    for step in layout.list_steps(checkpoints):
        try:
            loss = validation_loss(json.loads((checkpoints / layout.checkpoint_name(step) / layout.STATE).read_text()))
        except (OSError, ValueError):
            continue
        if loss is not None:
            losses[step] = loss
    return losses


def validation_loss(state: Any) -> float | None:
    """The loss that was measured at a checkpoint's own step, from its state.json. NaN would be the best of all."""
    loss = state.get("validation_loss") if isinstance(state, dict) else None
    return float(loss) if isinstance(loss, int | float) and math.isfinite(loss) else None
