"""Retention: which checkpoints are kept, and why, as a pure function of steps and validation losses."""

import json
import math
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from pretrain.checkpoint import layout
from pretrain.config.schema import CheckpointConfig


def reasons_to_keep(
    steps: Iterable[int], losses: Mapping[int, float], rules: CheckpointConfig, *, saved_step: int
) -> dict[int, list[str]]:
    """Rules that keep each step after a save at `saved_step`, oldest step first; a step without any is superseded.

    `last`: the newest `keep_last`. `every`: multiples of `keep_every_steps`. `best`: the `keep_best` with the lowest loss;
    of equal losses the newer.
    """
    # Later steps are corrupt, or a resume would not have skipped them: they must not displace good ones.
    steps = sorted(step for step in steps if step <= saved_step)
    judged = sorted((step for step in steps if step in losses), key=lambda step: (losses[step], -step))
    by_rule = {
        "last": set(steps[-rules.keep_last :]),
        "every": {step for step in steps if rules.keep_every_steps and step % rules.keep_every_steps == 0},
        "best": set(judged[: rules.keep_best]),
    }
    return {step: [reason for reason, chosen in by_rule.items() if step in chosen] for step in steps}


def prune(checkpoints: Path, rules: CheckpointConfig, *, saved_step: int, pinned: Collection[Path] = ()) -> None:
    """Delete superseded checkpoints except `pinned`. Raises OSError if that fails."""
    losses = local_losses(checkpoints) if rules.keep_best else {}
    for step, reasons in reasons_to_keep(layout.list_steps(checkpoints), losses, rules, saved_step=saved_step).items():
        folder = checkpoints / layout.checkpoint_name(step)
        if not reasons and folder not in pinned:
            layout.remove(folder)


def local_losses(checkpoints: Path) -> dict[int, float]:
    """Validation losses by step; corrupt and unevaluated checkpoints are left out."""
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
    """Loss measured at the checkpoint's own step, from its state.json; None if there is none or it is not finite."""
    loss = state.get("validation_loss") if isinstance(state, dict) else None
    return float(loss) if isinstance(loss, int | float) and math.isfinite(loss) else None
