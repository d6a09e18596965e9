"""Feed-forward networks, applied to each position independently.

- ReLU .......... Vaswani et al. 2017, section 3.3, https://arxiv.org/abs/1706.03762
- GELU .......... Hendrycks & Gimpel 2016, https://arxiv.org/abs/1606.08415 (the exact form; `gelu_tanh` is the approximation)
- SwiGLU ........ Shazeer 2020, "GLU Variants Improve Transformer", https://arxiv.org/abs/2002.05202
"""

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.config.schema import ModelConfig

ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "gelu_tanh": partial(F.gelu, approximate="tanh")}


class FeedForward(nn.Module):
    """down(act(up(x))) with ReLU or GELU. (B, T, D) → (B, T, D)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.ffn]
        self.up = nn.Linear(config.d_model, config.d_ff, bias=config.ffn_bias)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=config.ffn_bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Apply to each position."""
        return self.down(self.activation(self.up(x_BTD)))


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)): gated, with a third matrix. (B, T, D) → (B, T, D)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.d_model, config.d_ff, bias=config.ffn_bias)
        self.up = nn.Linear(config.d_model, config.d_ff, bias=config.ffn_bias)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=config.ffn_bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Apply to each position."""
        return self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD))


def build_feed_forward(config: ModelConfig) -> nn.Module:
    """The network of `model.ffn`."""
    return SwiGLU(config) if config.ffn == "swiglu" else FeedForward(config)
