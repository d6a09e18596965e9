"""Initial weights: a pure function of (seed, parameter name, shape).

Matrices are normal with `init_std`; the two matrices of each block that write into the residual stream get
init_std / √(2 · n_layers), so that the stream's variance does not grow with depth (Radford et al. 2019, GPT-2, section
2.3). Norm weights are one, biases zero.

Each parameter has its own generator, seeded by its name: the result does not depend on the order of construction, on the
number of ranks, or on how ZeRO partitions the parameters.
"""

import hashlib
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from pretrain.config.schema import ModelConfig

RESIDUAL_OUTPUTS = ("attention.output.weight", "feed_forward.down.weight")

Whole = Callable[[nn.Parameter], AbstractContextManager]


def init_weights(model: nn.Module, config: ModelConfig, seed: int, whole: Whole = lambda _: nullcontext()) -> None:
    """Fill every parameter in place.

    `whole(parameter)` is a context in which the parameter holds all its elements and changes to it are kept: ZeRO-3's
    gathering, or nothing.
    """
    for name, parameter in model.named_parameters():
        with whole(parameter), torch.no_grad():
            if parameter.numel():  # under ZeRO-3 only one rank holds the elements
                _fill(parameter, name, config, seed)


def _fill(parameter: nn.Parameter, name: str, config: ModelConfig, seed: int) -> None:
    if parameter.dim() == 1:
        parameter.fill_(0.0 if name.endswith(".bias") else 1.0)
        return
    std = config.init_std
    if name.endswith(RESIDUAL_OUTPUTS):
        std /= math.sqrt(2 * config.n_layers)
    # Drawn on the CPU in fp32 whatever the device and dtype are, so that a run starts from the same weights everywhere.
    values = torch.empty(parameter.shape, dtype=torch.float32)
    values.normal_(0.0, std, generator=_generator(seed, name))
    parameter.copy_(values)


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)
