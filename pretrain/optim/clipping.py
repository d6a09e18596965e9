"""Gradient clipping by the global norm: Pascanu et al. 2013, section 3.2, https://arxiv.org/abs/1211.5063."""

from collections.abc import Iterable

import torch
from torch import nn


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> float:
    """Scale all gradients so that their global norm is at most `limit` (0: leave them); returns the norm before."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    # In float64: on a CPU torch sums squares in fp32, and 25 million of them came out 0.1 % too small.
    norms = torch.stack([torch.linalg.vector_norm(gradient, dtype=torch.float64) for gradient in gradients])
    norm = float(torch.linalg.vector_norm(norms))
    if 0 < limit < norm:
        torch._foreach_mul_(gradients, limit / (norm + 1e-6))
    return norm
