"""Attention weights of all layers and heads for one text.

    1. text → ids, as a document starts: [bos] + ids, truncated to `max_tokens`
    2. one forward of the unchanged model. A hook before each attention recomputes queries and keys from the same input, and
       the attention weights from those (`model.attention.attention_weights`): fused kernels do not return them
    3. three statistics of each head, from the fp32 weights

Statistics, each a mean over all queries but the first, which has one key only: entropy of the attention weights in bits;
weight of the first token ("attention sink", Xiao et al. 2023, https://arxiv.org/abs/2309.17453); weight of the previous token
("previous-token heads", Elhage et al. 2021, https://transformer-circuits.pub/2021/framework/index.html).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pretrain.convert.files.weight_files import WeightSource
from pretrain.convert.weight_sources import load_decoder
from pretrain.errors import DataError, UserError
from pretrain.inspection.token_labels import token_labels
from pretrain.model.attention import attention_weights
from pretrain.model.decoder import Decoder
from tokenizer.models.open_tokenizer import load_tokenizer


class HeadStats(NamedTuple):
    """Entropy in bits, and two weights in [0, 1]; NaN for a text of one token."""

    entropy: float
    sink: float
    previous: float


@dataclass(frozen=True)
class AttentionMaps:
    """`weights_LHTT` (layer, head, query, key) are fp32. `left_out` tokens of the text were truncated."""

    step: int
    tokens: tuple[str, ...]
    left_out: int
    weights_LHTT: Tensor


def attention_maps(source: WeightSource, text: str, max_tokens: int) -> AttentionMaps:
    """Attention maps of `text`.

    Raises UserError if the text is not valid Unicode, the weights have no tokenizer, or an attention weight is NaN; DataError
    if the tokenizer does not match the model.
    """
    model = source.config.model
    kept = min(max_tokens, model.max_seq_len)
    ids, labels = _tokens(source, text, kept)
    tokens_1T = torch.tensor([ids[:kept]])
    weights_LHTT = capture_attention(load_decoder(source), tokens_1T)
    finite_L = torch.isfinite(weights_LHTT).flatten(1).all(-1)
    if not finite_L.all():
        raise UserError(
            f"the attention of layer {int((~finite_L).nonzero()[0])} of step {source.step} is not finite",
            hint="find the parameters with NaN: pretrain inspect weights",
        )
    return AttentionMaps(source.step, tuple(labels), max(len(ids) - kept, 0), weights_LHTT)


def capture_attention(decoder: Decoder, tokens_1T: Tensor) -> Tensor:
    """Attention weights (L, H, T, T) of one forward, in fp32."""
    captured: list[Tensor] = []

    def before(attention: nn.Module, arguments: tuple[Any, ...]) -> None:
        x_1TD, rotation, mask_11TT, _ = arguments
        q_1HTC, k_1KTC, _ = attention.queries_keys_values(x_1TD, rotation)
        captured.append(attention_weights(q_1HTC, k_1KTC, mask_11TT)[0].float())

    hooks = [block.attention.register_forward_pre_hook(before) for block in decoder.blocks]
    try:
        with torch.inference_mode():
            decoder(tokens_1T)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(captured)


def head_stats(weights_TT: Tensor) -> HeadStats:
    """The three statistics of one map."""
    rows = weights_TT[1:].double()
    if not len(rows):
        return HeadStats(float("nan"), float("nan"), float("nan"))
    entropy = -torch.xlogy(rows, rows).sum(-1).mean() / torch.log(torch.tensor(2.0, dtype=torch.float64))
    return HeadStats(float(entropy), float(rows[:, 0].mean()), float(weights_TT.double().diagonal(-1).mean()))


def _tokens(source: WeightSource, text: str, kept: int) -> tuple[list[int], list[str]]:
    """Ids of a document that starts with `text`, and labels of the first `kept`."""
    if source.tokenizer is None:
        raise UserError(
            "the weights were saved without a tokenizer",
            hint="train with data.tokenizer=DIR/tokenizer.model, or export with --tokenizer and inspect the export",
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the text is not valid UTF-8 from character {error.start} on") from None
    tokenizer = load_tokenizer(source.tokenizer)
    ids = [token for token in (tokenizer.bos_id(),) if token >= 0] + tokenizer.encode(text)
    if not ids:
        raise UserError("the text has no tokens", hint="give at least one character")
    if max(ids) >= source.config.model.vocab_size:
        raise DataError(
            f"the tokenizer {source.tokenizer} gives the id {max(ids)}; the embedding has {source.config.model.vocab_size} rows"
        )
    return ids, token_labels(tokenizer, ids[:kept])
