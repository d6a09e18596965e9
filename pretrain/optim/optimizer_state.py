"""State of an optimizer by name: the tensors, of the parameter's size, that a checkpoint holds beside the weights."""

from collections.abc import Mapping
from typing import Any

import torch

from pretrain.errors import UserError

STATE = {torch.optim.AdamW: ("exp_avg", "exp_avg_sq")}
STEP = "step"  # a scalar, saved as the number of updates


def state_names(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """Names of its state tensors: of a class in STATE, or its attribute `state_names`. Raises UserError if undeclared."""
    names = STATE.get(type(optimizer), getattr(optimizer, "state_names", None))
    # Options may add to it, as amsgrad does.
    if names is None or any(group.get("amsgrad") for group in optimizer.param_groups):
        raise UserError(
            f"the state of optimizer {type(optimizer).__name__} is not declared, so a checkpoint would lose it",
            hint="declare it: `state_names` of the class, or STATE in pretrain/optim/optimizer_state.py",
        )
    return tuple(names)


def check_state(names: tuple[str, ...], state: Mapping[str, Any], numel: int) -> None:
    """Raise UserError if the state of a parameter of `numel` elements is not what the optimizer declares."""
    found = {key for key, value in state.items() if key != STEP and torch.is_tensor(value)}
    wrong = found ^ set(names) | {key for key in found & set(names) if state[key].numel() != numel}
    if state and wrong:
        raise UserError(
            f"optimizer state {', '.join(sorted(wrong))} is not as declared: {', '.join(names)}, of the parameter's size",
            hint="correct its declaration, `state_names` or STATE in pretrain/optim/optimizer_state.py",
        )
