"""Normalizations over the model width.

- LayerNorm ..... Ba et al. 2016, https://arxiv.org/abs/1607.06450 (torch's kernel; optional bias)
- RMSNorm ....... Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467

Statistics are computed in fp32.
"""

import torch
import torch.nn.functional as F
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
        # Multiplied after rounding, as in transformers' Llama: exports agree bitwise.
        return self.weight * x.to(x_BTD.dtype)


class LayerNorm(nn.Module):
    """(x - mean(x)) / sqrt(var(x) + eps) * weight + bias."""

    def __init__(self, width: int, eps: float, *, bias: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(…, D) → (…, D), dtype kept."""
        return F.layer_norm(x_BTD, self.weight.shape, self.weight, self.bias, self.eps)


def build_norm(config: ModelConfig) -> nn.Module:
    """Normalization of a sub-layer, from `model.norm` and `model.norm_bias`."""
    if config.norm == "layernorm":
        return LayerNorm(config.d_model, config.norm_eps, bias=config.norm_bias)
    return RMSNorm(config.d_model, config.norm_eps)


def build_qk_norm(config: ModelConfig, heads: int) -> nn.Module | None:
    """Normalization of queries or keys, over each head or over all `heads`; None without `model.qk_norm`."""
    if config.qk_norm == "none":
        return None
    norm = RMSNorm if config.norm == "rmsnorm" else LayerNorm
    return norm(config.head_width * (heads if config.qk_norm == "full" else 1), config.norm_eps)
