"""Where each head of each layer looks while the model reads a text.

    1. text -> ids, as a document begins: [bos] + ids; no more than `max_tokens` of them
    2. one forward of the model, as it is trained and exported. Before each attention runs, its queries and keys are
       computed once more from the same input, and the formula itself gives the weights (model/attention.py)
    3. three figures of each head, from the fp32 weights

The figures: entropy of a row of weights in bits, the weight of the first token ("sink", Xiao et al. 2023, "Efficient
Streaming Language Models with Attention Sinks", https://arxiv.org/abs/2309.17453), and the weight of the token before
("previous-token heads", Elhage et al. 2021, https://transformer-circuits.pub/2021/framework/index.html). Each is a mean
over all queries but the first, which has no choice.
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
from tokenizer.models.base import load_tokenizer


class HeadStats(NamedTuple):
    """Bits, and two shares of 1; NaN for a text of one token."""

    entropy: float
    sink: float
    previous: float


@dataclass(frozen=True)
class AttentionMaps:
    """`weights_LHTT` are fp32: layer, head, query, key. `left_out` tokens of the text were beyond the limit."""

    step: int
    tokens: tuple[str, ...]
    left_out: int
    weights_LHTT: Tensor


def attention_maps(source: WeightSource, text: str, max_tokens: int) -> AttentionMaps:
    """Read `text` with the model of `source`.

    Raises UserError for a text that is no text, for weights without a tokenizer and for weights that give NaN, DataError
    for a tokenizer that does not belong to the model.
    """
    model = source.config.model
    kept = min(max_tokens, model.max_seq_len)
    ids, shown = _tokens(source, text, kept)
    tokens_1T = torch.tensor([ids[:kept]])
    weights_LHTT = capture_attention(load_decoder(source), tokens_1T)
    finite_L = torch.isfinite(weights_LHTT).flatten(1).all(-1)
    if not finite_L.all():
        raise UserError(
            f"the attention of layer {int((~finite_L).nonzero()[0])} of step {source.step} is not finite",
            hint="`pretrain inspect weights` names the matrices that hold NaN",
        )
    return AttentionMaps(source.step, tuple(shown), max(len(ids) - kept, 0), weights_LHTT)


def capture_attention(decoder: Decoder, tokens_1T: Tensor) -> Tensor:
    """Attention weights of every layer and head in one forward: (L, H, T, T) in fp32."""
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
    """The three figures of one map."""
    rows = weights_TT[1:].double()
    if not len(rows):
        return HeadStats(float("nan"), float("nan"), float("nan"))
    entropy = -torch.xlogy(rows, rows).sum(-1).mean() / torch.log(torch.tensor(2.0, dtype=torch.float64))
    return HeadStats(float(entropy), float(rows[:, 0].mean()), float(weights_TT.double().diagonal(-1).mean()))


def _tokens(source: WeightSource, text: str, kept: int) -> tuple[list[int], list[str]]:
    """Ids of a document that begins with `text`, and what is shown for each of the first `kept`."""
    if source.tokenizer is None:
        raise UserError(
            "the weights come without a tokenizer, so a text has no tokens",
            hint="train with data.tokenizer=DIR/tokenizer.model, or export with --tokenizer and inspect the export",
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the text is not valid UTF-8 from character {error.start} on") from None
    codec = load_tokenizer(source.tokenizer)
    ids = [token for token in (codec.bos_id(),) if token >= 0] + codec.encode(text)
    if not ids:
        raise UserError("the text has no tokens", hint="give at least one character")
    if max(ids) >= source.config.model.vocab_size:
        raise DataError(
            f"the tokenizer {source.tokenizer} gives the id {max(ids)}, the model has {source.config.model.vocab_size} rows"
        )
    return ids, token_labels(codec, ids[:kept])
