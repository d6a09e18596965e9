"""Positional embeddings.

- Sinusoidal .... Vaswani et al. 2017, section 3.5, https://arxiv.org/abs/1706.03762
- Learned ....... Gehring et al. 2017, "Convolutional Sequence to Sequence Learning", https://arxiv.org/abs/1705.03122
- Rotary ........ Su et al. 2021, "RoFormer", https://arxiv.org/abs/2104.09864, in the rotate-half layout of GPT-NeoX and
                  of transformers' Llama, so that exports need no permutation of weights; scaled for longer contexts
                  in rope_scaling.py

Positions count from the start of a row, (T,), or from the start of each document in it, (B, T).
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Rotation(NamedTuple):
    """Cosine and sine by position and rotated channel, in the dtype of the activations.

    (T, C) each, or (B, 1, T, C) if rows have their own positions. C is below the head width with `model.rope_fraction`.
    """

    cos_TC: Tensor
    sin_TC: Tensor


def positions_in_documents(documents_BT: Tensor) -> Tensor:
    """Position of each token in its document: (B, T) int64.

    Document numbers must not decrease along a row; those of `pretrain.data.documents` do not.
    """
    positions_T = torch.arange(documents_BT.shape[1], device=documents_BT.device)
    return positions_T - torch.searchsorted(documents_BT, documents_BT)  # the first equal element: the start


def frequencies(width: int, theta: float, device: torch.device) -> Tensor:
    """theta^(-2i / width) for i in 0 … width/2 - 1, in fp32."""
    return 1.0 / theta ** (torch.arange(0, width, 2, device=device, dtype=torch.float32) / width)


def sinusoidal(positions: Tensor, d_model: int) -> Tensor:
    """Sinusoids of geometrically decreasing frequency, sine in even and cosine in odd channels: (…, T) → (…, T, D) in fp32."""
    angles_TD2 = positions.float()[..., None] * frequencies(d_model, 10_000.0, positions.device)
    return torch.stack([angles_TD2.sin(), angles_TD2.cos()], dim=-1).flatten(-2)


def rotation(positions: Tensor, frequencies_C2: Tensor, dtype: torch.dtype, scale: float = 1.0) -> Rotation:
    """Rotation by position, (T,) or (B, T); channel i is paired with channel i + C/2. `scale` multiplies both: YaRN's.

    Angles are computed in fp32.
    """
    # Computed at each forward: a buffer would be rounded to bf16 with the weights, and T × C/2 sines cost next to nothing.
    if positions.dim() == 2:
        positions = positions[:, None]  # broadcast over heads
    angles_TC2 = positions.float()[..., None] * frequencies_C2
    angles_TC = torch.cat([angles_TC2, angles_TC2], dim=-1)
    return Rotation((angles_TC.cos() * scale).to(dtype), (angles_TC.sin() * scale).to(dtype))


def rotate(x_BHTC: Tensor, by: Rotation) -> Tensor:
    """Rotate each pair of channels by its position's angle: dot products then depend on distances only.

    Channels beyond the width of the rotation are unchanged.
    """
    width = by.cos_TC.shape[-1]
    rotated, rest = x_BHTC[..., :width], x_BHTC[..., width:]
    first, second = rotated.chunk(2, dim=-1)
    rotated = rotated * by.cos_TC + torch.cat([-second, first], dim=-1) * by.sin_TC
    return torch.cat([rotated, rest], dim=-1) if rest.shape[-1] else rotated
