"""AdamW: Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization", https://arxiv.org/abs/1711.05101."""

import torch
from torch import nn

from pretrain.config.schema import OptimizerConfig


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Matrices with weight decay; norm weights and biases without, as decaying a gain towards zero regularizes nothing."""
    matrices, vectors = [], []
    for parameter in model.parameters():
        # Under ZeRO-3 the shape of a partitioned parameter is (0,): `ds_shape` is the true one.
        dimensions = len(getattr(parameter, "ds_shape", parameter.shape))
        (matrices if dimensions >= 2 else vectors).append(parameter)
    return [
        {"params": matrices, "weight_decay": weight_decay, "name": "matrices"},
        {"params": vectors, "weight_decay": 0.0, "name": "vectors"},
    ]


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """torch's fused AdamW. The engine sets the learning rate at each step."""
    return torch.optim.AdamW(
        parameter_groups(model, config.weight_decay),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )
