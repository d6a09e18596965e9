"""One decoder block, pre-norm: normalize, mix, add; normalize, transform, add.

Pre-norm: Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture", https://arxiv.org/abs/2002.04745
"""

from torch import Tensor, nn

from pretrain.config.schema import ModelConfig
from pretrain.model.attention import MultiHeadAttention
from pretrain.model.feed_forward import build_feed_forward
from pretrain.model.norms import build_norm
from pretrain.model.positions import Rotation


class Block(nn.Module):
    """Attention moves information between positions, the feed-forward network transforms it within each."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = build_norm(config)
        self.attention = MultiHeadAttention(config)
        self.feed_forward_norm = build_norm(config)
        self.feed_forward = build_feed_forward(config)

    def forward(self, x_BTD: Tensor, rotation: Rotation | None, mask_B1TT: Tensor | None = None) -> Tensor:
        """(B, T, D) → (B, T, D)."""
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), rotation, mask_B1TT)
        return x_BTD + self.feed_forward(self.feed_forward_norm(x_BTD))
