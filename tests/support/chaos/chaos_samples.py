"""Samples that spoil the training: while one of them is in the batch, the weights are other ones."""

from types import ModuleType
from typing import Any

from sitecustomize import RANK, fault


@fault("pretrain.training.trainer")
def poison(trainer: ModuleType, sample: int, factor: float, rank: int = -1) -> None:
    """Multiply all weights before the step that reads this sample: `nan` for a loss that is not finite, 30 for a spike.

    At ZeRO stage 3 that is what each rank holds of them.
    """
    original = trainer.Trainer._step

    def step(self: Any, batches: Any, targets: int, started: float) -> Any:
        size = trainer.batch_size(self.progress.step, self.config.batch)
        if self.progress.samples <= sample < self.progress.samples + size and rank in (-1, RANK):
            for parameter in self.engine.model.parameters():
                getattr(parameter, "ds_tensor", parameter).data.mul_(factor)
        return original(self, batches, targets, started)

    trainer.Trainer._step = step
