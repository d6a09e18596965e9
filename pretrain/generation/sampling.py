"""Sampling of the next token: greedy, temperature, top-k, top-p.

Top-p (nucleus) sampling: Holtzman et al. 2020, https://arxiv.org/abs/1904.09751
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Logits divided by a lower temperature overflow fp32; treat it as greedy.
MIN_TEMPERATURE = 1e-30
# (numbers of the unfinished rows, their logits (B, V) in fp32) → one token per row.
Sampler = Callable[[Sequence[int], Tensor], list[int]]


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters. temperature=0 is greedy; top_k=0 and top_p=1 keep all tokens."""

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0


def next_token_probabilities(logits_V: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities (V,) after temperature, then top-k, then top-p; at least one is positive."""
    if sampling.temperature < MIN_TEMPERATURE:
        return torch.nn.functional.one_hot(logits_V.argmax(), len(logits_V)).float()
    logits_V = (logits_V.float() - logits_V.max()) / sampling.temperature  # max 0, so that nothing overflows
    if 0 < sampling.top_k < len(logits_V):
        threshold = logits_V.topk(sampling.top_k).values[-1]
        logits_V = logits_V.masked_fill(logits_V < threshold, float("-inf"))
    probabilities_V = logits_V.softmax(-1)
    if sampling.top_p < 1:
        sorted_V, order_V = probabilities_V.sort(descending=True, stable=True)
        mass_before_V = sorted_V.cumsum(-1) - sorted_V  # 0 for the first, which is always kept
        probabilities_V = probabilities_V.index_fill(0, order_V[mass_before_V >= sampling.top_p], 0.0)
    return probabilities_V / probabilities_V.sum()


def greedy(rows: Sequence[int], logits_BV: Tensor) -> list[int]:
    """The most likely token of each row; the first of ties."""
    return logits_BV.argmax(-1).tolist()


def seeded_sampler(sampling: Sampling, seeds: Sequence[int]) -> Sampler:
    """Sample row i with its own generator, seeded with `seeds[i]`, so that a row does not depend on its batch.

    Draws on the CPU, whatever the device.
    """
    if sampling.temperature < MIN_TEMPERATURE:
        return greedy
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def sample(rows: Sequence[int], logits_BV: Tensor) -> list[int]:
        tokens = []
        for row, logits_V in zip(rows, logits_BV.cpu(), strict=True):
            probabilities_V = next_token_probabilities(logits_V, sampling)
            tokens.append(int(torch.multinomial(probabilities_V, 1, generator=generators[row])))
        return tokens

    return sample
