"""Training with an optimizer that is not AdamW, but declares its state."""

import json
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import nn

from pretrain.checkpoint import layout
from pretrain.checkpoint.restore import load_checkpoint
from pretrain.config.schema import OptimizerConfig
from pretrain.distributed import engine as engines
from pretrain.distributed.engine import Engine
from pretrain.distributed.world import World
from pretrain.errors import CheckpointError
from tests.support.elastic import CPU, SAVED, Setup, make_config, save, train


class Momentum(torch.optim.SGD):
    """SGD with momentum."""

    state_names = ("momentum_buffer",)


def momentum(model: nn.Module, config: OptimizerConfig) -> Momentum:
    """Stands in for `build_optimizer`."""
    return Momentum(model.parameters(), lr=config.lr, momentum=0.9)


def resume_with_momentum(world: World, root: Path, stage: int) -> None:
    """Save after SAVED steps, load into a new engine, train both on; AdamW refuses the checkpoint.

    Writes losses.json: those before the save, after the load, and without interruption.
    """
    config = make_config(Setup(stage, 1, deepspeed={"zero_allow_untested_optimizer": True}))
    further = range(SAVED + 1, 2 * SAVED + 1)
    with patch.object(engines, "build_optimizer", momentum):
        first = Engine(config, world, CPU)
        before = train(first, world, range(1, SAVED + 1))
        folder = save(first, world, root, SAVED)
        uninterrupted = train(first, world, further)
        first.close()
        second = Engine(config, world, CPU)
        load_checkpoint(folder, layout.verify(folder), second, world)
        after = train(second, world, further)
        second.close()
    (root / "losses.json").write_text(json.dumps([before, after, uninterrupted]))
    adam = Engine(config, world, CPU)
    with pytest.raises(
        CheckpointError, match="holds optimizer state momentum_buffer; the optimizer of this run has exp_avg"
    ):
        load_checkpoint(folder, layout.verify(folder), adam, world)
    adam.close()
