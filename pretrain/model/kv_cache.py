"""Keys and values of the tokens that were read: to generate a token then takes one position's work, not that of all.

The idea is as old as decoders; Pope et al. 2022, section 2, https://arxiv.org/abs/2211.05102, counts what it saves.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pretrain.config.schema import ModelConfig


class KVCache:
    """Of each block, keys and values (B, K, capacity, C), of which the first `length` positions are in use.

    Rows of a batch end together and may begin apart: the first `padding_B[row]` positions of a row are filling, which no
    token looks at. Positions count from where the row begins.
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
        """Of the next `new` tokens: (T,), or (B, T) where rows begin apart; 0 for filling.

        Raises ValueError where there is no room for them.
        """
        if self.length + new > self.capacity:
            raise ValueError(f"a cache of {self.capacity} positions holds {self.length}, and {new} more are to be read")
        positions_T = torch.arange(self.length, self.length + new, device=self.keys[0].device)
        if self.padding_B is None:
            return positions_T
        return (positions_T - self.padding_B[:, None]).clamp_min(0)

    def mask(self, new: int) -> Tensor | None:
        """What is added to the scores of the next `new` tokens, (B or 1, 1, T, N); None where attention knows by itself."""
        if self.padding_B is None and (new == 1 or self.length == 0):
            return None
        keys_N = torch.arange(self.length + new, device=self.keys[0].device)
        queries_T = keys_N[self.length :]
        visible_BTN = (keys_N <= queries_T[:, None])[None]
        if self.padding_B is not None:
            filling = self.padding_B[:, None]
            # Filling looks at filling: a position that sees nothing has no softmax.
            visible_BTN = visible_BTN & ((keys_N >= filling)[:, None] == (queries_T >= filling)[:, :, None])
        mask_BTN = torch.zeros(visible_BTN.shape, dtype=self.keys[0].dtype, device=visible_BTN.device)
        return mask_BTN.masked_fill_(~visible_BTN, float("-inf"))[:, None]

    def block(self, index: int) -> "BlockKVCache":
        """The part of one block."""
        return BlockKVCache(self.keys[index], self.values[index], self.length)

    def advance(self, new: int) -> None:
        """All blocks have read `new` more tokens."""
        self.length += new

    def select(self, rows_B: Tensor) -> None:
        """Go on with these rows, in this order; a row may be taken more than once."""
        for tensors in (self.keys, self.values):
            for index, tensor in enumerate(tensors):
                # What is not in use yet is not copied: a search that reorders its rows at each token would do little else.
                tensors[index] = tensor.new_empty((len(rows_B), *tensor.shape[1:]))
                tensors[index][:, :, : self.length] = tensor[rows_B, :, : self.length]
        if self.padding_B is not None:
            self.padding_B = self.padding_B[rows_B]


class BlockKVCache(NamedTuple):
    """Keys and values of one block, and how many positions of them are in use."""

    keys_BKNC: Tensor
    values_BKNC: Tensor
    length: int

    def extend(self, k_BKTC: Tensor, v_BKTC: Tensor) -> tuple[Tensor, Tensor]:
        """Add T positions; returns those of all N that are in use then."""
        end = self.length + k_BKTC.shape[-2]
        self.keys_BKNC[:, :, self.length : end] = k_BKTC
        self.values_BKNC[:, :, self.length : end] = v_BKTC
        return self.keys_BKNC[:, :, :end], self.values_BKNC[:, :, :end]
