"""AdamW with weight decay on matrices only.

Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization", https://arxiv.org/abs/1711.05101. Norm weights are not
decayed: pulling a gain towards zero regularizes nothing.
"""

import torch
from torch import nn

from pretrain.config.schema import OptimizerConfig


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups, matrices first. Under ZeRO-3 a parameter's own shape is empty and `ds_shape` is the true one."""
    decayed, kept = [], []
    for parameter in model.parameters():
        dimensions = len(getattr(parameter, "ds_shape", parameter.shape))
        (decayed if dimensions >= 2 else kept).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay, "name": "matrices"},
        {"params": kept, "weight_decay": 0.0, "name": "vectors"},
    ]


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """torch's fused AdamW; the learning rate is set at each step from the schedule."""
    return torch.optim.AdamW(
        parameter_groups(model, config.weight_decay),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )
