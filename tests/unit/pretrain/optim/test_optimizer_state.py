import pytest
import torch
from torch import nn

from pretrain.config.schema import OptimizerConfig
from pretrain.errors import UserError
from pretrain.optim.adamw import build_optimizer
from pretrain.optim.optimizer_state import check_state, state_names


class Declared(torch.optim.SGD):
    state_names = ("momentum_buffer",)


def after_a_step(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict:
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer.state[parameter]


def test_the_declared_names_are_those_that_adamw_really_keeps() -> None:
    model = nn.Linear(3, 2)
    optimizer = build_optimizer(model, OptimizerConfig())
    names = state_names(optimizer)
    assert names == ("exp_avg", "exp_avg_sq")
    check_state(names, after_a_step(optimizer, model.weight), 6)


def test_a_class_declares_its_state_itself() -> None:
    parameter = nn.Parameter(torch.ones(4))
    optimizer = Declared([parameter], momentum=0.9)
    check_state(state_names(optimizer), after_a_step(optimizer, parameter), 4)


@pytest.mark.parametrize(
    "optimizer",
    [
        torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0),
        torch.optim.AdamW([nn.Parameter(torch.ones(1))], amsgrad=True),
    ],
)
def test_undeclared_state_is_refused(optimizer: torch.optim.Optimizer) -> None:
    with pytest.raises(UserError, match=f"state of optimizer {type(optimizer).__name__} is not declared"):
        state_names(optimizer)


@pytest.mark.parametrize(
    ("state", "wrong"),
    [
        ({"step": torch.ones(()), "exp_avg": torch.ones(4)}, "exp_avg_sq"),
        ({"exp_avg": torch.ones(4), "exp_avg_sq": torch.ones(4), "momentum_buffer": torch.ones(4)}, "momentum_buffer"),
        ({"exp_avg": torch.ones(4), "exp_avg_sq": torch.ones(2)}, "exp_avg_sq"),
    ],
)
def test_state_other_than_declared_is_refused(state: dict, wrong: str) -> None:
    with pytest.raises(UserError, match=f"optimizer state {wrong} is not as declared"):
        check_state(("exp_avg", "exp_avg_sq"), state, 4)


def test_no_state_yet_is_right() -> None:
    """fp16 may have skipped every step so far."""
    check_state(("exp_avg", "exp_avg_sq"), {}, 4)
