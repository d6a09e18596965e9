"""Normalizations over the model width.

- LayerNorm ..... Ba et al. 2016, https://arxiv.org/abs/1607.06450 (a weight, no bias)
- RMSNorm ....... Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467

Statistics are taken in fp32. The weight is multiplied after the result is rounded back to the activations' dtype: this is
what transformers' Llama computes, and makes exports agree to the last bit.
"""

import torch
from torch import Tensor, nn

from pretrain.config.schema import ModelConfig


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) * weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(…, D) → (…, D), dtype kept."""
        x = x_BTD.float()
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * x.to(x_BTD.dtype)


class LayerNorm(nn.Module):
    """(x - mean(x)) / sqrt(var(x) + eps) * weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(…, D) → (…, D), dtype kept."""
        x = x_BTD.float()
        x = x - x.mean(-1, keepdim=True)
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * x.to(x_BTD.dtype)


def build_norm(config: ModelConfig) -> nn.Module:
    """The normalization that `model.norm` names."""
    norm = RMSNorm if config.norm == "rmsnorm" else LayerNorm
    return norm(config.d_model, config.norm_eps)
