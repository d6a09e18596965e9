"""The language model: token embedding → blocks → norm → head.

Implements
- decoder blocks, pre-norm or post-norm ................... block.py
- self-attention, multi-head and grouped-query ............ attention.py
- attention within documents, optionally .................. attention.py
- key/value cache for generation .......................... kv_cache.py
- rotary, learned and sinusoidal positions ................ positions.py
- RoPE scaling for longer contexts ........................ rope_scaling.py
- ReLU, GELU and SwiGLU feed-forward networks ............. feed_forward.py
- RMSNorm and LayerNorm ................................... norms.py
- initialization scaled by depth .......................... init.py
- tied or untied embeddings (Press & Wolf 2017, https://arxiv.org/abs/1608.05859)
- activation checkpointing (Chen et al. 2016, https://arxiv.org/abs/1604.06174)

Shape legend, for all files of this package: B batch, T time, D model width, H query heads, K key/value heads, C head width,
F feed-forward width, V vocabulary.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pretrain.config.schema import ModelConfig
from pretrain.model.attention import document_mask
from pretrain.model.block import Block
from pretrain.model.kv_cache import KVCache
from pretrain.model.loss import LossSums, chunked_cross_entropy
from pretrain.model.norms import build_norm
from pretrain.model.positions import Rotation, positions_in_documents, rotation, sinusoidal
from pretrain.model.rope_scaling import rope_frequencies


class Embedding(nn.Module):
    """Token embedding, plus learned or sinusoidal positions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.kind = config.positions
        self.tokens = _uninitialized_table(config.vocab_size, config.d_model)
        if config.positions == "learned":
            self.positions = _uninitialized_table(config.max_seq_len, config.d_model)

    def forward(self, tokens_BT: Tensor, positions: Tensor) -> Tensor:
        """(B, T) → (B, T, D). Positions are (T,), or (B, T) if they count from the start of each document."""
        x_BTD = self.tokens(tokens_BT)
        if self.kind == "learned":
            return x_BTD + self.positions(positions)
        if self.kind == "sinusoidal":
            return x_BTD + sinusoidal(positions, x_BTD.shape[-1]).to(x_BTD.dtype)
        return x_BTD


def _uninitialized_table(rows: int, width: int) -> nn.Embedding:
    # nn.Embedding draws normal numbers, which on the meta device imports torch's compiler: 2.5 CPU seconds of each `generate`.
    return nn.Embedding.from_pretrained(torch.empty(rows, width), freeze=False)


class Head(nn.Linear):
    """Language-model head: hidden states → logits, or → loss without materializing the logits.

    The loss is computed in this module because ZeRO-3 gathers parameters only while their own module runs.
    """

    def forward(
        self,
        x_BTD: Tensor,
        targets_BT: Tensor | None = None,
        z_loss_weight: float = 0.0,
        chunk_tokens: int = 2048,
    ) -> Tensor | LossSums:
        """(B, T, D) → logits (B, T, V), or with `targets_BT` the summed loss."""
        if targets_BT is None:
            return super().forward(x_BTD)
        return chunked_cross_entropy(x_BTD, self.weight, targets_BT, z_loss_weight, chunk_tokens)


class Decoder(nn.Module):
    """A causal language model. `activation_checkpoint_every=n` recomputes every n-th block in backward."""

    def __init__(self, config: ModelConfig, *, activation_checkpoint_every: int = 0) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpoint_every = activation_checkpoint_every
        self.embedding = Embedding(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.final_norm = build_norm(config)
        self.head = Head(config.d_model, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.tokens.weight

    def forward(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor | None = None,
        z_loss_weight: float = 0.0,
        chunk_tokens: int = 2048,
        documents_BT: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor | LossSums:
        """Logits (B, T, V), or with `targets_BT` the summed loss. T must not exceed `max_seq_len`.

        With `documents_BT` (document number of each position, from `pretrain.data.documents`), each document is computed
        as if it were alone: attention stays within it, and its positions start at 0.

        With a `cache`, the tokens follow those in it, and only the last token's logits are computed: (B, 1, V).
        """
        if cache is not None:
            positions, mask_B1TT = cache.positions(tokens_BT.shape[1]), cache.mask(tokens_BT.shape[1])
        elif documents_BT is None:
            positions, mask_B1TT = torch.arange(tokens_BT.shape[1], device=tokens_BT.device), None
        else:
            positions = positions_in_documents(documents_BT)
            mask_B1TT = document_mask(documents_BT, self.embedding.tokens.weight.dtype)
        x_BTD = self.embedding(tokens_BT, positions)
        turn = self._rotation(positions, x_BTD.dtype)
        for index, block in enumerate(self.blocks):
            run = partial(checkpoint, block, use_reentrant=False) if self._recomputes(index) else block
            x_BTD = run(x_BTD, turn, mask_B1TT, None if cache is None else cache.block(index))
        if cache is not None:
            cache.advance(tokens_BT.shape[1])
            x_BTD = x_BTD[:, -1:]
        return self.head(self.final_norm(x_BTD), targets_BT, z_loss_weight, chunk_tokens)

    def _rotation(self, positions: Tensor, dtype: torch.dtype) -> Rotation | None:
        if self.config.positions != "rope":
            return None
        frequencies_C2, scale = rope_frequencies(self.config, positions.device)
        return rotation(positions, frequencies_C2, dtype, scale)

    def _recomputes(self, index: int) -> bool:
        every = self.activation_checkpoint_every
        return self.training and every > 0 and index % every == 0
