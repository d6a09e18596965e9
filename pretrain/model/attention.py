"""Self-attention.

- Scaled dot-product attention ............ Vaswani et al. 2017, "Attention Is All You Need", https://arxiv.org/abs/1706.03762
- Multi-head attention .................... the same, section 3.2.2
- Grouped queries ......................... Ainslie et al. 2023, "GQA", https://arxiv.org/abs/2305.13245
- Attention within documents only ......... Zhao et al. 2024, "Analysing the Impact of Sequence Composition on Language
                                            Model Pre-Training", https://arxiv.org/abs/2402.13991

`reference_attention` is the formula, written to be read. `fast_attention` is what trains; a test holds the one against
the other.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.config.schema import ModelConfig
from pretrain.model.positions import Rotation, rotate


def reference_attention(q_BHTC: Tensor, k_BKTC: Tensor, v_BKTC: Tensor, mask_B1TT: Tensor | None = None) -> Tensor:
    """softmax(Q Kᵀ / √C + mask) V, each position looking at itself and what came before.

    Query head h reads key head h // (H / K). `mask_B1TT` is that of `document_mask`. Returns (B, H, T, C). Materializes the
    (B, H, T, T) weights.
    """
    heads_per_group = q_BHTC.shape[1] // k_BKTC.shape[1]
    k_BHTC = k_BKTC.repeat_interleave(heads_per_group, dim=1)
    v_BHTC = v_BKTC.repeat_interleave(heads_per_group, dim=1)
    return attention_weights(q_BHTC, k_BHTC, mask_B1TT) @ v_BHTC


def attention_weights(q_BHTC: Tensor, k_BHTC: Tensor, mask_B1TT: Tensor | None = None) -> Tensor:
    """Where each position looks: (B, H, T, T), rows sum to 1, nothing above the diagonal. Softmax in fp32."""
    length = q_BHTC.shape[-2]
    scores_BHTT = (q_BHTC @ k_BHTC.transpose(-2, -1)) / math.sqrt(q_BHTC.shape[-1])
    future_TT = torch.ones(length, length, dtype=torch.bool, device=q_BHTC.device).triu(diagonal=1)
    scores_BHTT = scores_BHTT.float().masked_fill(future_TT, float("-inf"))
    if mask_B1TT is not None:
        scores_BHTT = scores_BHTT + mask_B1TT
    return scores_BHTT.softmax(dim=-1).to(q_BHTC.dtype)


def fast_attention(q_BHTC: Tensor, k_BKTC: Tensor, v_BKTC: Tensor, mask_B1TT: Tensor | None = None) -> Tensor:
    """The same through torch's fused kernels: never holds the (T, T) weights. Returns (B, H, T, C)."""
    grouped = q_BHTC.shape[1] != k_BKTC.shape[1]
    return F.scaled_dot_product_attention(
        q_BHTC, k_BKTC, v_BKTC, attn_mask=mask_B1TT, is_causal=mask_B1TT is None, enable_gqa=grouped
    )


def document_mask(documents_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the scores: 0 in the same document and not in the future, -inf elsewhere. Returns (B, 1, T, T).

    It is made once a forward, for all heads and blocks, and holds B · T² numbers: 8 rows of 2,048 tokens take 64 MiB in
    bf16, 8 rows of 8,192 take 1 GiB. `dtype` is that of the activations.
    """
    visible_BTT = (documents_BT[:, :, None] == documents_BT[:, None, :]).tril()
    # Not booleans: torch would turn those into numbers in each block, and keep each block's copy for backward.
    mask_BTT = torch.zeros(visible_BTT.shape, dtype=dtype, device=documents_BT.device)
    return mask_BTT.masked_fill_(~visible_BTT, float("-inf"))[:, None]


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

    def forward(self, x_BTD: Tensor, rotation: Rotation | None, mask_B1TT: Tensor | None = None) -> Tensor:
        """(B, T, D) → (B, T, D). `rotation` turns queries and keys where positions are rotary."""
        q_BHTC = self._split(self.query(x_BTD), self.n_heads)
        k_BKTC = self._split(self.key(x_BTD), self.n_kv_heads)
        v_BKTC = self._split(self.value(x_BTD), self.n_kv_heads)
        if rotation is not None:
            q_BHTC, k_BKTC = rotate(q_BHTC, rotation), rotate(k_BKTC, rotation)
        mixed_BHTC = self.attend(q_BHTC, k_BKTC, v_BKTC, mask_B1TT)
        return self.output(mixed_BHTC.transpose(1, 2).flatten(-2))

    def _split(self, x: Tensor, heads: int) -> Tensor:
        return x.unflatten(-1, (heads, self.head_dim)).transpose(1, 2)
