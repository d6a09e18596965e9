"""Random initialization, as a pure function of (seed, parameter name, shape).

Matrices are normal with `init_std`. The two matrices of each block that write to the residual stream use
init_std / √(2 · n_layers), so that its variance does not grow with depth (Radford et al. 2019, GPT-2, section 2.3). Norm
weights are one, biases zero.

Each parameter has its own generator, seeded by its name: weights do not depend on the order of construction, the number of
ranks, or ZeRO's partitioning.
"""

import hashlib
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from pretrain.config.schema import ModelConfig

RESIDUAL_OUTPUTS = ("attention.output.weight", "feed_forward.down.weight")

Gather = Callable[[nn.Parameter], AbstractContextManager]


def init_weights(model: nn.Module, config: ModelConfig, seed: int, gather: Gather = lambda _: nullcontext()) -> None:
    """Initialize all parameters in place.

    `gather(parameter)` is a context that holds all elements of the parameter and keeps changes to them: for ZeRO-3.
    """
    for name, parameter in model.named_parameters():
        with gather(parameter), torch.no_grad():
            if parameter.numel():  # under ZeRO-3 only one rank holds the elements
                _fill(parameter, name, config, seed)


def _fill(parameter: nn.Parameter, name: str, config: ModelConfig, seed: int) -> None:
    if parameter.dim() == 1:
        parameter.fill_(0.0 if name.endswith(".bias") else 1.0)
        return
    std = config.init_std
    if name.endswith(RESIDUAL_OUTPUTS):
        std /= math.sqrt(2 * config.n_layers)
    # On the CPU in fp32 for every device and dtype, so that a run starts from the same weights everywhere.
    values = torch.empty(parameter.shape, dtype=torch.float32)
    values.normal_(0.0, std, generator=_generator(seed, name))
    parameter.copy_(values)


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)
