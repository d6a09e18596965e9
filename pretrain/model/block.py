"""Decoder block: attention mixes positions, the feed-forward network transforms each.

- pre-norm ...... x + f(norm(x)): Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture",
                  https://arxiv.org/abs/2002.04745
- post-norm ..... x + norm(f(x)): OLMo 2, section 3.3.1, https://arxiv.org/abs/2501.00656
"""

from torch import Tensor, nn

from pretrain.config.schema import ModelConfig
from pretrain.model.attention import MultiHeadAttention
from pretrain.model.feed_forward import build_feed_forward
from pretrain.model.kv_cache import BlockKVCache
from pretrain.model.norms import build_norm
from pretrain.model.positions import Rotation


class Block(nn.Module):
    """Attention and feed-forward sub-layers, each added to the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm_first = config.norm_position == "pre"
        self.attention_norm = build_norm(config)
        self.attention = MultiHeadAttention(config)
        self.feed_forward_norm = build_norm(config)
        self.feed_forward = build_feed_forward(config)

    def forward(
        self,
        x_BTD: Tensor,
        rotation: Rotation | None,
        mask_B1TT: Tensor | None = None,
        cache: BlockKVCache | None = None,
    ) -> Tensor:
        """(B, T, D) → (B, T, D)."""
        if self.norm_first:
            x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), rotation, mask_B1TT, cache)
            return x_BTD + self.feed_forward(self.feed_forward_norm(x_BTD))
        x_BTD = x_BTD + self.attention_norm(self.attention(x_BTD, rotation, mask_B1TT, cache))
        return x_BTD + self.feed_forward_norm(self.feed_forward(x_BTD))
