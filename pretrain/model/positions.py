"""Positional embeddings.

- Sinusoidal .... Vaswani et al. 2017, section 3.5, https://arxiv.org/abs/1706.03762
- Learned ....... Gehring et al. 2017, "Convolutional Sequence to Sequence Learning", https://arxiv.org/abs/1705.03122
- Rotary ........ Su et al. 2021, "RoFormer", https://arxiv.org/abs/2104.09864, in the rotate-half layout of GPT-NeoX and
                  of transformers' Llama, so that an export needs no permutation of weights; slowed for longer
                  contexts in long_context.py

Positions count from the start of a row, (T,), or from the start of each document in it, (B, T).

Angles are computed in fp32 from the positions at each forward: a buffer would be rounded to bf16 together with the
weights, and T × C/2 sines are nothing beside the blocks.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Rotation(NamedTuple):
    """Cosine and sine of each position and rotated channel, in the dtype of the activations.

    (T, C) each, or (B, 1, T, C) where each row has its own positions; narrower than a head where only a part of it turns.
    """

    cos_TC: Tensor
    sin_TC: Tensor


def positions_in_documents(documents_BT: Tensor) -> Tensor:
    """How far each position is from the start of its document in the row: (B, T) int64.

    A document is a run of equal numbers, and numbers grow along a row, as `pretrain.data.documents` makes them.
    """
    positions_T = torch.arange(documents_BT.shape[1], device=documents_BT.device)
    return positions_T - torch.searchsorted(documents_BT, documents_BT)  # finds the first that is equal: the start


def frequencies(width: int, theta: float, device: torch.device) -> Tensor:
    """theta^(-2i / width) for i in 0 … width/2 - 1, in fp32."""
    return 1.0 / theta ** (torch.arange(0, width, 2, device=device, dtype=torch.float32) / width)


def sinusoidal(positions: Tensor, d_model: int) -> Tensor:
    """Even channels sin, odd channels cos, of geometrically slower waves: (…, T) → (…, T, D) in fp32."""
    angles_TD2 = positions.float()[..., None] * frequencies(d_model, 10_000.0, positions.device)
    return torch.stack([angles_TD2.sin(), angles_TD2.cos()], dim=-1).flatten(-2)


def rotation(positions: Tensor, frequencies_C2: Tensor, dtype: torch.dtype, scale: float = 1.0) -> Rotation:
    """The rotation of each position, (T,) or (B, T); channel i is paired with channel i + C/2.

    `scale` lengthens queries and keys, as YaRN wants it.
    """
    if positions.dim() == 2:
        positions = positions[:, None]  # one for all heads of a row
    angles_TC2 = positions.float()[..., None] * frequencies_C2
    angles_TC = torch.cat([angles_TC2, angles_TC2], dim=-1)
    return Rotation((angles_TC.cos() * scale).to(dtype), (angles_TC.sin() * scale).to(dtype))


def rotate(x_BHTC: Tensor, by: Rotation) -> Tensor:
    """Turn each pair of channels by its position's angle. Dot products then depend on distances only.

    Channels beyond the rotation's width stay as they are.
    """
    width = by.cos_TC.shape[-1]
    turned, rest = x_BHTC[..., :width], x_BHTC[..., width:]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * by.cos_TC + torch.cat([-second, first], dim=-1) * by.sin_TC
    return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned
