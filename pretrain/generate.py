"""Text from a checkpoint: greedy, temperature, top-k and top-p.

Top-p (nucleus) sampling: Holtzman et al. 2020, https://arxiv.org/abs/1904.09751
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pretrain.model.decoder import Decoder


class TextCodec(Protocol):
    """What is needed of a SentencePieceProcessor."""

    def encode(self, text: str) -> list[int]: ...  # noqa: D102
    def decode(self, ids: list[int]) -> str: ...  # noqa: D102
    def bos_id(self) -> int: ...  # noqa: D102
    def eos_id(self) -> int: ...  # noqa: D102


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. temperature 0 takes the likeliest; top_k 0 and top_p 1 cut nothing."""

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0


def next_token_probabilities(logits_V: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities (V,) after temperature, then top-k, then top-p; never empty."""
    if sampling.temperature == 0:
        return torch.nn.functional.one_hot(logits_V.argmax(), len(logits_V)).float()
    logits_V = (logits_V.float() - logits_V.max()) / sampling.temperature  # the largest stays finite at any temperature
    if 0 < sampling.top_k < len(logits_V):
        threshold = logits_V.topk(sampling.top_k).values[-1]
        logits_V = logits_V.masked_fill(logits_V < threshold, float("-inf"))
    probabilities_V = logits_V.softmax(-1)
    if sampling.top_p < 1:
        ordered, places = probabilities_V.sort(descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered  # the first token stays whatever its probability
        probabilities_V = probabilities_V.index_fill(0, places[before >= sampling.top_p], 0.0)
    return probabilities_V / probabilities_V.sum()


@torch.no_grad()
def generate_ids(
    model: Decoder, prompt: list[int], max_new_tokens: int, sampling: Sampling, eos_id: int, seed: int
) -> Iterator[int]:
    """New token ids until eos or the limit. The model sees at most its `max_seq_len` last tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = list(prompt)
    for _ in range(max_new_tokens):
        context_BT = torch.tensor([ids[-model.config.max_seq_len :]])
        probabilities = next_token_probabilities(model(context_BT)[0, -1], sampling)
        token = int(torch.multinomial(probabilities, 1, generator=generator))
        if token == eos_id:
            return
        ids.append(token)
        yield token


def generate_text(
    model: Decoder, tokenizer: TextCodec, text: str, max_new_tokens: int, sampling: Sampling, seed: int
) -> Iterator[str]:
    """`text` and its continuation, piece by piece as they are made."""
    prompt = [tokenizer.bos_id(), *tokenizer.encode(text)]
    yield text
    made: list[int] = []
    shown = ""
    for token in generate_ids(model, prompt, max_new_tokens, sampling, tokenizer.eos_id(), seed):
        made.append(token)
        decoded = tokenizer.decode(made)
        # A character of several byte pieces is � until its last piece arrives.
        if not decoded.endswith("\N{REPLACEMENT CHARACTER}"):
            yield decoded[len(shown) :]
            shown = decoded
    yield tokenizer.decode(made)[len(shown) :]
