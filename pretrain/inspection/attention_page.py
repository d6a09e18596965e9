"""Attention maps as an interactive HTML page: an overview of all heads, and one head in detail.

A map is stored as its lower triangle in row-major order, each weight as a little-endian uint16 in units of 1/65535. 12 layers
of 12 heads and 64 tokens take 0.8 MB. The statistics are computed from the fp32 weights.
"""

import base64
import math

import numpy as np
import torch
from torch import Tensor

from pretrain.errors import UserError
from pretrain.inspection.attention_maps import AttentionMaps, HeadStats, head_stats
from pretrain.report.numbers import format_megabytes
from pretrain.report.page import document, origin, resource

LARGEST_PAGE = 64_000_000  # bytes; browsers are slow with larger ones
UNIT = 65_535


def attention_page(maps: AttentionMaps, name: str) -> str:
    """The page of `maps`; `name` is the path of the weights. Raises UserError if it exceeds LARGEST_PAGE."""
    layers, heads, tokens, _ = maps.weights_LHTT.shape
    size = layers * heads * encoded_bytes(tokens)
    if size > LARGEST_PAGE:
        fits = next(n for n in range(tokens, 0, -1) if layers * heads * encoded_bytes(n) <= LARGEST_PAGE)
        raise UserError(
            f"{layers} × {heads} maps of {tokens} tokens take {format_megabytes(size, 0)}; the largest page has "
            f"{format_megabytes(LARGEST_PAGE, 0)}",
            hint=f"--max-tokens {fits}",
        )
    data = {
        "origin": origin(name, maps.step),
        "tokens": maps.tokens,
        "leftOut": maps.left_out,
        "layers": layers,
        "heads": heads,
        "maps": [[encode_triangle(weights_TT) for weights_TT in layer_HTT] for layer_HTT in maps.weights_LHTT],
        "figures": [
            [_json_stats(head_stats(weights_TT)) for weights_TT in layer_HTT] for layer_HTT in maps.weights_LHTT
        ],
        "means": [_json_stats(head_stats(layer_HTT.mean(0))) for layer_HTT in maps.weights_LHTT],
    }
    return document(
        "Attention maps",
        resource("pretrain.inspection", "attention.html"),
        style=resource("pretrain.inspection", "attention.css"),
        script=resource("pretrain.inspection", "attention.js"),
        data=data,
    )


def encoded_bytes(tokens: int) -> int:
    """Length of a map in base64 characters."""
    return math.ceil(tokens * (tokens + 1) * 2 / 6) * 4


def encode_triangle(weights_TT: Tensor) -> str:
    """The lower triangle in base64; the error of a weight is at most 1/131070."""
    rows, columns = torch.tril_indices(*weights_TT.shape)
    units = (weights_TT[rows, columns].double() * UNIT).round()
    return base64.b64encode(units.numpy().astype(np.dtype("<u2")).tobytes()).decode()


def _json_stats(values: HeadStats) -> list[float] | None:
    # JSON has no NaN.
    return None if math.isnan(values.entropy) else [round(value, 6) for value in values]
