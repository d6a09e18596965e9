"""Attention maps as one HTML page to hover over: an overview of all heads, and one head at a time.

A map is stored as its lower triangle, row by row, each weight as a whole number of 1/65535 (two bytes, little end first);
12 layers of 12 heads and 64 tokens take 0.8 MB. Figures are those of the fp32 weights.
"""

import base64
import math

import numpy as np
import torch
from torch import Tensor

from pretrain.errors import UserError
from pretrain.inspection.attention_maps import AttentionMaps, HeadFigures, figures
from pretrain.report.page import document, origin, resource

LARGEST_PAGE = 64_000_000  # bytes; browsers become slow beyond
UNIT = 65_535


def attention_page(maps: AttentionMaps, name: str) -> str:
    """The page of `maps`, from weights called `name`. Raises UserError where it would be larger than LARGEST_PAGE."""
    layers, heads, tokens, _ = maps.weights_LHTT.shape
    size = layers * heads * encoded_bytes(tokens)
    if size > LARGEST_PAGE:
        most = next(n for n in range(tokens, 0, -1) if layers * heads * encoded_bytes(n) <= LARGEST_PAGE)
        raise UserError(
            f"{layers} × {heads} maps of {tokens} tokens would take {size / 1e6:.0f} MB, and a page may have "
            f"{LARGEST_PAGE / 1e6:.0f} MB",
            hint=f"--max-tokens {most}",
        )
    data = {
        "origin": origin(name, maps.step),
        "tokens": maps.tokens,
        "leftOut": maps.left_out,
        "layers": layers,
        "heads": heads,
        "maps": [[encode_triangle(weights_TT) for weights_TT in layer_HTT] for layer_HTT in maps.weights_LHTT],
        "figures": [[_plain(figures(weights_TT)) for weights_TT in layer_HTT] for layer_HTT in maps.weights_LHTT],
        "means": [_plain(figures(layer_HTT.mean(0))) for layer_HTT in maps.weights_LHTT],
    }
    return document(
        "Attention maps",
        resource("pretrain.inspection", "attention.html"),
        style=resource("pretrain.inspection", "attention.css"),
        script=resource("pretrain.inspection", "attention.js"),
        data=data,
    )


def encoded_bytes(tokens: int) -> int:
    """Length of a map in the page."""
    return math.ceil(tokens * (tokens + 1) * 2 / 6) * 4


def encode_triangle(weights_TT: Tensor) -> str:
    """The lower triangle in base64; each weight is at most 1/131070 off."""
    rows, columns = torch.tril_indices(*weights_TT.shape)
    units = (weights_TT[rows, columns].double() * UNIT).round()
    return base64.b64encode(units.numpy().astype(np.dtype("<u2")).tobytes()).decode()


def _plain(values: HeadFigures) -> list[float] | None:
    """JSON has no NaN."""
    return None if math.isnan(values.entropy) else [round(value, 6) for value in values]
