"""Differences between the configuration that a checkpoint was trained with and the one that continues it."""

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from pretrain.config.schema import Config
from pretrain.optim.schedule import lr_fraction

NOTABLE = 0.03  # a longer schedule changes the learning rate of the next step a little, which is harmless


def changed_values(old: Config, new: Config) -> list[str]:
    """A line `key: old → new` for each value that differs."""
    before, after = (dict(_leaves(asdict(config))) for config in (old, new))
    missing = "not set"
    return [
        f"{key}: {before.get(key, missing)} → {after.get(key, missing)}"
        for key in dict.fromkeys([*before, *after])
        if before.get(key, missing) != after.get(key, missing)
    ]


def learning_rate_jump(old: Config, new: Config, step: int) -> str | None:
    """A warning if the step after `step` has another learning rate than the old configuration gives it."""
    before, after = (config.optimizer.lr * lr_fraction(step + 1, config.schedule) for config in (old, new))
    if step >= new.schedule.total_steps or math.isclose(before, after, rel_tol=NOTABLE):
        return None
    return f"warning: the learning rate jumps at step {step + 1}: {before:.2e} → {after:.2e}"


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
