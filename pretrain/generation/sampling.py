"""How the next token is drawn: greedy, temperature, top-k and top-p.

Top-p (nucleus) sampling: Holtzman et al. 2020, https://arxiv.org/abs/1904.09751
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

COLDEST = 1e-30  # below it, fp32 has no room for the quotient, and greedy is what remains
# Numbers of the rows that still go on, and their logits (B, V) in fp32 → a token for each.
Choose = Callable[[Sequence[int], Tensor], list[int]]


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. temperature 0 takes the likeliest; top_k 0 and top_p 1 cut nothing."""

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0


def next_token_probabilities(logits_V: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities (V,) after temperature, then top-k, then top-p; never empty."""
    if sampling.temperature < COLDEST:
        return torch.nn.functional.one_hot(logits_V.argmax(), len(logits_V)).float()
    logits_V = (logits_V.float() - logits_V.max()) / sampling.temperature  # the largest becomes 0: nothing overflows
    if 0 < sampling.top_k < len(logits_V):
        threshold = logits_V.topk(sampling.top_k).values[-1]
        logits_V = logits_V.masked_fill(logits_V < threshold, float("-inf"))
    probabilities_V = logits_V.softmax(-1)
    if sampling.top_p < 1:
        ordered, places = probabilities_V.sort(descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered  # the first token stays whatever its probability
        probabilities_V = probabilities_V.index_fill(0, places[before >= sampling.top_p], 0.0)
    return probabilities_V / probabilities_V.sum()


def greedy(rows: Sequence[int], logits_BV: Tensor) -> list[int]:
    """The likeliest token of each row; the first of equals."""
    return logits_BV.argmax(-1).tolist()


def sampler(sampling: Sampling, seeds: Sequence[int]) -> Choose:
    """Draws the tokens of row i with a generator of its own, seeded with `seeds[i]`: the other rows do not matter to it.

    The draws are made on the CPU whatever the device is.
    """
    if sampling.temperature < COLDEST:
        return greedy
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def choose(rows: Sequence[int], logits_BV: Tensor) -> list[int]:
        drawn = []
        for row, logits_V in zip(rows, logits_BV.cpu(), strict=True):
            probabilities_V = next_token_probabilities(logits_V, sampling)
            drawn.append(int(torch.multinomial(probabilities_V, 1, generator=generators[row])))
        return drawn

    return choose
