"""Interface of decoding to a model: next-token logits, given a key/value cache."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pretrain.config.schema import ModelConfig
from pretrain.model.decoder import Decoder
from pretrain.model.kv_cache import KVCache


class LogitsFn(NamedTuple):
    """Next-token logits of a decoder, or of the engine of a running training.

    `logits` maps tokens (B, T) and the cache of the tokens before them to (B, 1, V), the logits of the last token. `dtype`
    is the activations' dtype.
    """

    logits: Callable[[Tensor, KVCache], Tensor]
    config: ModelConfig
    dtype: torch.dtype
    device: torch.device


def decoder_logits(model: Decoder) -> LogitsFn:
    """Logits of a decoder, on its device and in its dtype."""
    weight = model.embedding.tokens.weight
    return LogitsFn(lambda tokens_BT, cache: model(tokens_BT, cache=cache), model.config, weight.dtype, weight.device)


def without_padding(logits_fn: LogitsFn, size: int) -> LogitsFn:
    """The same with -inf for ids from `size` on: rows that pad the vocabulary, which no tokenizer can decode."""
    if size >= logits_fn.config.vocab_size:
        return logits_fn
    padding_V = torch.arange(logits_fn.config.vocab_size, device=logits_fn.device) >= size

    def logits(tokens_BT: Tensor, cache: KVCache) -> Tensor:
        return logits_fn.logits(tokens_BT, cache).masked_fill(padding_V, float("-inf"))

    return logits_fn._replace(logits=logits)
