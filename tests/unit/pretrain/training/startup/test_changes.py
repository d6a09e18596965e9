from dataclasses import replace

import pytest

from pretrain.config import Config
from pretrain.config.schema import DataConfig, OptimizerConfig, ScheduleConfig, SourceConfig
from pretrain.training.startup.changes import changed_values, learning_rate_jump

OLD = Config(
    optimizer=OptimizerConfig(lr=1e-4),
    schedule=ScheduleConfig(kind="cosine", total_steps=20, warmup_steps=2, final_lr_fraction=0.1),
)


def test_every_changed_value_is_a_line() -> None:
    new = replace(
        OLD,
        optimizer=replace(OLD.optimizer, lr=3e-4, beta2=0.9),
        data=DataConfig(train={"web": SourceConfig("w")}),
    )
    lines = changed_values(OLD, new)
    assert {"optimizer.lr: 0.0001 → 0.0003", "optimizer.beta2: 0.95 → 0.9", "data.train.web.path: not set → w"} < set(
        lines
    )
    assert changed_values(OLD, OLD) == []


@pytest.mark.parametrize(
    ("changes", "step", "jump"),
    [
        ({"lr": 3e-4}, 10, True),
        ({}, 10, False),
        ({"total_steps": 30}, 20, True),  # a cosine that was finished rises again
        ({"total_steps": 21}, 5, False),
        ({"lr": 3e-4}, 20, False),  # nothing is left to train
    ],
)
def test_a_jump_of_the_learning_rate_is_a_warning(changes: dict[str, float], step: int, jump: bool) -> None:
    schedule = replace(OLD.schedule, total_steps=int(changes.get("total_steps", 20)))
    new = replace(OLD, optimizer=replace(OLD.optimizer, lr=changes.get("lr", 1e-4)), schedule=schedule)
    said = learning_rate_jump(OLD, new, step)
    assert (said is not None) == jump
    assert said is None or said.startswith(f"warning: the learning rate jumps at step {step + 1}: ")
