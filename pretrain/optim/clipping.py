"""Gradient clipping by the global norm: Pascanu et al. 2013, section 3.2, https://arxiv.org/abs/1211.5063."""

from collections.abc import Iterable

import torch
from torch import Tensor

# Elements whose squares are summed in fp32. On a CPU the fp32 norm of 64 M elements is 0.5 % too small; of short rows, combined
# in fp64, it is exact to 1e-9 at the same speed. fp64 throughout takes ten times longer.
ROW = 256


@torch.no_grad()
def global_norm(tensors: Iterable[Tensor]) -> float:
    """The 2-norm of all elements."""
    norms = [norm for tensor in tensors for norm in _row_norms(tensor.reshape(-1))]
    return float(torch.linalg.vector_norm(torch.cat(norms), dtype=torch.float64))


def _row_norms(flat: Tensor) -> tuple[Tensor, Tensor]:
    whole = flat.numel() // ROW * ROW
    rows = torch.linalg.vector_norm(flat[:whole].view(-1, ROW), dim=1)
    return rows, torch.linalg.vector_norm(flat[whole:]).view(1)


@torch.no_grad()
def clip_gradients(parameters: Iterable[torch.nn.Parameter], max_norm: float) -> float:
    """Scale gradients to `max_norm` if their global norm exceeds it; 0: no clipping. Returns the norm before that."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = global_norm(gradients)
    if max_norm and norm > max_norm:
        torch._foreach_mul_(gradients, max_norm / norm)
    return norm
