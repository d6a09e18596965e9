"""Self-attention.

- Scaled dot-product attention ............ Vaswani et al. 2017, "Attention Is All You Need", https://arxiv.org/abs/1706.03762
- Multi-head attention .................... the same, section 3.2.2
- Grouped queries ......................... Ainslie et al. 2023, "GQA", https://arxiv.org/abs/2305.13245
- Normalized queries and keys ............. Henry et al. 2020, https://arxiv.org/abs/2010.04245; over one head as in Qwen3,
                                            over all as in OLMo 2, https://arxiv.org/abs/2501.00656
- Attention within documents only ......... Zhao et al. 2024, "Analysing the Impact of Sequence Composition on Language
                                            Model Pre-Training", https://arxiv.org/abs/2402.13991

`reference_attention` is the formula, written for readability. `fast_attention` is used in training. A test compares them.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.config.schema import ModelConfig
from pretrain.model.kv_cache import BlockKVCache
from pretrain.model.norms import build_qk_norm
from pretrain.model.positions import Rotation, rotate


def reference_attention(q_BHTC: Tensor, k_BKTC: Tensor, v_BKTC: Tensor, mask_B1TT: Tensor | None = None) -> Tensor:
    """Causal softmax(Q Kᵀ / √C + mask) V: (B, H, T, C). Materializes the (B, H, T, T) weights.

    Query head h attends to key head h // (H / K). `mask_B1TT` comes from `document_mask`.
    """
    v_BHTC = v_BKTC.repeat_interleave(q_BHTC.shape[1] // v_BKTC.shape[1], dim=1)
    return attention_weights(q_BHTC, k_BKTC, mask_B1TT) @ v_BHTC


def attention_weights(q_BHTC: Tensor, k_BKTC: Tensor, mask_B1TT: Tensor | None = None) -> Tensor:
    """Causal attention weights (B, H, T, N) of the last T of N positions; rows sum to 1. Softmax in fp32."""
    k_BHTC = k_BKTC.repeat_interleave(q_BHTC.shape[1] // k_BKTC.shape[1], dim=1)
    queries, keys = q_BHTC.shape[-2], k_BHTC.shape[-2]
    scores_BHTT = (q_BHTC @ k_BHTC.transpose(-2, -1)) / math.sqrt(q_BHTC.shape[-1])
    future_TT = torch.ones(queries, keys, dtype=torch.bool, device=q_BHTC.device).triu(diagonal=1 + keys - queries)
    scores_BHTT = scores_BHTT.float().masked_fill(future_TT, float("-inf"))
    if mask_B1TT is not None:
        scores_BHTT = scores_BHTT + mask_B1TT
    return scores_BHTT.softmax(dim=-1).to(q_BHTC.dtype)


def fast_attention(q_BHTC: Tensor, k_BKTC: Tensor, v_BKTC: Tensor, mask_B1TT: Tensor | None = None) -> Tensor:
    """`reference_attention` through torch's fused kernels, which never hold the (T, T) weights: (B, H, T, C).

    Without a mask, T is the number of keys or 1, for the last position.
    """
    grouped = q_BHTC.shape[1] != k_BKTC.shape[1]
    # is_causal aligns the mask to the top left: a single query would attend only to the first key.
    causal = mask_B1TT is None and q_BHTC.shape[-2] == k_BKTC.shape[-2]
    return F.scaled_dot_product_attention(
        q_BHTC, k_BKTC, v_BKTC, attn_mask=mask_B1TT, is_causal=causal, enable_gqa=grouped
    )


def document_mask(documents_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive causal mask within documents (B, 1, T, T): 0 if visible, else -inf. `dtype` is that of the activations.

    Computed once per forward, for all heads and blocks. Holds B · T² elements: 64 MiB in bf16 for 8 rows of 2,048 tokens,
    1 GiB for 8 rows of 8,192.
    """
    visible_BTT = (documents_BT[:, :, None] == documents_BT[:, None, :]).tril()
    # Not boolean: torch would convert it in each block, and keep each block's copy for backward.
    mask_BTT = torch.zeros(visible_BTT.shape, dtype=dtype, device=documents_BT.device)
    return mask_BTT.masked_fill_(~visible_BTT, float("-inf"))[:, None]


class MultiHeadAttention(nn.Module):
    """Grouped-query attention: H query heads share K key/value heads. K = H is multi-head, K = 1 multi-query."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_width = config.n_heads, config.n_kv_heads, config.head_width
        self.attend = fast_attention if config.attention == "sdpa" else reference_attention
        bias = config.attention_bias != "none"
        self.query = nn.Linear(config.d_model, self.n_heads * self.head_width, bias=bias)
        self.key = nn.Linear(config.d_model, self.n_kv_heads * self.head_width, bias=bias)
        self.value = nn.Linear(config.d_model, self.n_kv_heads * self.head_width, bias=bias)
        self.output = nn.Linear(self.n_heads * self.head_width, config.d_model, bias=config.attention_bias == "all")
        self.norm_heads_together = config.qk_norm == "full"
        self.query_norm = build_qk_norm(config, self.n_heads)
        self.key_norm = build_qk_norm(config, self.n_kv_heads)

    def forward(
        self,
        x_BTD: Tensor,
        rotation: Rotation | None,
        mask_B1TT: Tensor | None = None,
        cache: BlockKVCache | None = None,
    ) -> Tensor:
        """(B, T, D) → (B, T, D). `rotation` is applied to queries and keys; None without rotary positions.

        With a `cache`, T positions are appended to it, and queries attend to all that it holds.
        """
        q_BHTC, k_BKTC, v_BKTC = self.queries_keys_values(x_BTD, rotation)
        if cache is not None:
            k_BKTC, v_BKTC = cache.extend(k_BKTC, v_BKTC)
        mixed_BHTC = self.attend(q_BHTC, k_BKTC, v_BKTC, mask_B1TT)
        return self.output(mixed_BHTC.transpose(1, 2).flatten(-2))

    def queries_keys_values(self, x_BTD: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """(B, H, T, C), (B, K, T, C), (B, K, T, C): queries and keys normalized and rotated."""
        q_BHTC = self._heads(self.query(x_BTD), self.n_heads, self.query_norm)
        k_BKTC = self._heads(self.key(x_BTD), self.n_kv_heads, self.key_norm)
        v_BKTC = self._heads(self.value(x_BTD), self.n_kv_heads)
        if rotation is not None:
            q_BHTC, k_BKTC = rotate(q_BHTC, rotation), rotate(k_BKTC, rotation)
        return q_BHTC, k_BKTC, v_BKTC

    def _heads(self, x_BTE: Tensor, heads: int, norm: nn.Module | None = None) -> Tensor:
        if norm is not None and self.norm_heads_together:
            x_BTE = norm(x_BTE)
        x_BTHC = x_BTE.unflatten(-1, (heads, self.head_width))
        if norm is not None and not self.norm_heads_together:
            x_BTHC = norm(x_BTHC)
        return x_BTHC.transpose(1, 2)
