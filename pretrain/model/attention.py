"""Self-attention.

- Scaled dot-product attention ............ Vaswani et al. 2017, "Attention Is All You Need", https://arxiv.org/abs/1706.03762
- Multi-head attention .................... the same, section 3.2.2
- Grouped queries ......................... Ainslie et al. 2023, "GQA", https://arxiv.org/abs/2305.13245

`reference_attention` is the formula, written to be read. `fast_attention` is what trains; a test holds the one against
the other.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.config.schema import ModelConfig
from pretrain.model.positions import Rotation, rotate


def reference_attention(q_BHTC: Tensor, k_BKTC: Tensor, v_BKTC: Tensor) -> Tensor:
    """softmax(Q Kᵀ / √C) V, each position looking at itself and what came before.

    Query head h reads key head h // (H / K). Returns (B, H, T, C). Materializes the (B, H, T, T) weights.
    """
    heads_per_group = q_BHTC.shape[1] // k_BKTC.shape[1]
    k_BHTC = k_BKTC.repeat_interleave(heads_per_group, dim=1)
    v_BHTC = v_BKTC.repeat_interleave(heads_per_group, dim=1)
    return attention_weights(q_BHTC, k_BHTC) @ v_BHTC


def attention_weights(q_BHTC: Tensor, k_BHTC: Tensor) -> Tensor:
    """Where each position looks: (B, H, T, T), rows sum to 1, nothing above the diagonal. Softmax in fp32."""
    length = q_BHTC.shape[-2]
    scores_BHTT = (q_BHTC @ k_BHTC.transpose(-2, -1)) / math.sqrt(q_BHTC.shape[-1])
    future_TT = torch.ones(length, length, dtype=torch.bool, device=q_BHTC.device).triu(diagonal=1)
    scores_BHTT = scores_BHTT.float().masked_fill(future_TT, float("-inf"))
    return scores_BHTT.softmax(dim=-1).to(q_BHTC.dtype)


def fast_attention(q_BHTC: Tensor, k_BKTC: Tensor, v_BKTC: Tensor) -> Tensor:
    """The same through torch's fused kernels: never holds the (T, T) weights. Returns (B, H, T, C)."""
    grouped = q_BHTC.shape[1] != k_BKTC.shape[1]
    return F.scaled_dot_product_attention(q_BHTC, k_BKTC, v_BKTC, is_causal=True, enable_gqa=grouped)


class MultiHeadAttention(nn.Module):
    """H query heads share K key and value heads; K = H is classic multi-head attention, K = 1 is multi-query."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, config.head_dim
        self.attend = fast_attention if config.attention == "sdpa" else reference_attention
        self.query = nn.Linear(config.d_model, config.n_heads * config.head_dim, bias=False)
        self.key = nn.Linear(config.d_model, config.n_kv_heads * config.head_dim, bias=False)
        self.value = nn.Linear(config.d_model, config.n_kv_heads * config.head_dim, bias=False)
        self.output = nn.Linear(config.n_heads * config.head_dim, config.d_model, bias=False)

    def forward(self, x_BTD: Tensor, rotation: Rotation | None) -> Tensor:
        """(B, T, D) → (B, T, D). `rotation` turns queries and keys where positions are rotary."""
        q_BHTC = self._split(self.query(x_BTD), self.n_heads)
        k_BKTC = self._split(self.key(x_BTD), self.n_kv_heads)
        v_BKTC = self._split(self.value(x_BTD), self.n_kv_heads)
        if rotation is not None:
            q_BHTC, k_BKTC = rotate(q_BHTC, rotation), rotate(k_BKTC, rotation)
        mixed_BHTC = self.attend(q_BHTC, k_BKTC, v_BKTC)
        return self.output(mixed_BHTC.transpose(1, 2).flatten(-2))

    def _split(self, x: Tensor, heads: int) -> Tensor:
        return x.unflatten(-1, (heads, self.head_dim)).transpose(1, 2)
