"""Key/value cache: generating a token computes one position instead of all.

Its costs are analyzed in Pope et al. 2022, section 2, https://arxiv.org/abs/2211.05102.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pretrain.config.schema import ModelConfig


class KVCache:
    """Keys and values (B, K, capacity, C) per block; the first `length` positions are in use.

    Rows are left-padded: the first `padding_B[row]` positions are masked, and positions count from the first token.
    """

    def __init__(
        self,
        config: ModelConfig,
        rows: int,
        capacity: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        padding_B: Tensor | None = None,
    ) -> None:
        shape = (rows, config.n_kv_heads, capacity, config.head_width)
        self.keys = [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.n_layers)]
        self.values = [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.n_layers)]
        self.capacity, self.length, self.padding_B = capacity, 0, padding_B

    def positions(self, new: int) -> Tensor:
        """Positions of the next `new` tokens: (T,), or (B, T) with padding, whose own positions are 0.

        Raises ValueError if they exceed the capacity.
        """
        if self.length + new > self.capacity:
            raise ValueError(
                f"{new} tokens do not fit into a cache that holds {self.length} of {self.capacity} positions"
            )
        positions_T = torch.arange(self.length, self.length + new, device=self.keys[0].device)
        if self.padding_B is None:
            return positions_T
        return (positions_T - self.padding_B[:, None]).clamp_min(0)

    def mask(self, new: int) -> Tensor | None:
        """Additive mask of the next `new` tokens, (B or 1, 1, T, N); None if plain causal attention is right without it."""
        if self.padding_B is None and (new == 1 or self.length == 0):
            return None
        keys_N = torch.arange(self.length + new, device=self.keys[0].device)
        queries_T = keys_N[self.length :]
        visible_BTN = (keys_N <= queries_T[:, None])[None]
        if self.padding_B is not None:
            padding_B1 = self.padding_B[:, None]
            # Padding attends to padding: the softmax of a fully masked row is NaN.
            visible_BTN = visible_BTN & ((keys_N >= padding_B1)[:, None] == (queries_T >= padding_B1)[:, :, None])
        mask_BTN = torch.zeros(visible_BTN.shape, dtype=self.keys[0].dtype, device=visible_BTN.device)
        return mask_BTN.masked_fill_(~visible_BTN, float("-inf"))[:, None]

    def block(self, index: int) -> "BlockKVCache":
        """Cache of one block."""
        return BlockKVCache(self.keys[index], self.values[index], self.length)

    def advance(self, new: int) -> None:
        """Count `new` more positions as in use, once all blocks have added them."""
        self.length += new

    def select(self, rows_B: Tensor) -> None:
        """Keep these rows, in this order; a row may appear more than once. For beam search."""
        for tensors in (self.keys, self.values):
            for index, tensor in enumerate(tensors):
                # Copy only positions in use: beam search reorders at each token, and would spend most of its time here.
                tensors[index] = tensor.new_empty((len(rows_B), *tensor.shape[1:]))
                tensors[index][:, :, : self.length] = tensor[rows_B, :, : self.length]
        if self.padding_B is not None:
            self.padding_B = self.padding_B[rows_B]


class BlockKVCache(NamedTuple):
    """Keys and values of one block, and the number of positions in use."""

    keys_BKNC: Tensor
    values_BKNC: Tensor
    length: int

    def extend(self, k_BKTC: Tensor, v_BKTC: Tensor) -> tuple[Tensor, Tensor]:
        """Append T positions. Returns keys and values of all N positions then in use."""
        end = self.length + k_BKTC.shape[-2]
        self.keys_BKNC[:, :, self.length : end] = k_BKTC
        self.values_BKNC[:, :, self.length : end] = v_BKTC
        return self.keys_BKNC[:, :, :end], self.values_BKNC[:, :, :end]
