"""Beam search.

1. Each beam of a prompt proposes all tokens; the best 2 · beams candidates are considered.
2. Candidates among the best `beams` that end (a stop token, or the length limit) become hypotheses, scored by
   log-probability / tokens ** length_penalty. The best `beams` hypotheses are kept.
3. The best `beams` candidates that do not end continue.
4. A prompt is done when no continuing beam can beat the worst hypothesis kept, as estimated by `early_stopping`.

Follows `transformers.GenerationMixin._beam_search` (5.x) rule for rule; a test compares them. Length penalty: Wu et al. 2016,
section 7, https://arxiv.org/abs/1609.08144, in the simpler form of transformers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pretrain.generation.decode_loop import decode_step, prefill
from pretrain.generation.prompts import new_token_limit
from pretrain.model.logits_fn import LogitsFn

# True: done with `beams` hypotheses. False: unless the best beam scores higher at its present length.
# "never": unless it scores higher at the length that favors it most.
EarlyStopping = Literal[True, False, "never"]

# Initial score of all beams but the first, or all would start with the same tokens.
INACTIVE = -1e9


class BeamHypothesis(NamedTuple):
    """`tokens` are the new tokens, a stop token included; `score` is log-probability / len(tokens) ** length_penalty."""

    score: float
    tokens: list[int]


@dataclass
class _BeamState:
    """The search for one prompt."""

    limit: int
    scores_N: Tensor  # fp32 log-probabilities
    beams: list[list[int]]
    hypotheses: list[BeamHypothesis] = field(default_factory=list)


@torch.no_grad()
def beam_search(
    logits_fn: LogitsFn,
    prompts: Sequence[Sequence[int]],
    *,
    beams: int,
    max_new_tokens: int,
    stop_ids: frozenset[int],
    length_penalty: float = 1.0,
    early_stopping: EarlyStopping = False,
) -> list[list[BeamHypothesis]]:
    """`beams` hypotheses per prompt, best first. A length penalty above 0 favors long ones.

    Raises UserError like `new_token_limit`.
    """
    limits = [new_token_limit(logits_fn.config, prompt, max_new_tokens) for prompt in prompts]
    logits_BV, cache = prefill(logits_fn, prompts, max(limits))
    scores_N = torch.tensor([0.0] + [INACTIVE] * (beams - 1), device=logits_fn.device)
    states = [_BeamState(limit, scores_N, [[] for _ in range(beams)]) for limit in limits]
    running = states
    logits_BV = logits_BV.repeat_interleave(beams, dim=0)
    cache.select(torch.arange(len(prompts), device=logits_fn.device).repeat_interleave(beams))
    while True:
        rows, unfinished = [], []
        for i, state in enumerate(running):
            logits_NV = logits_BV[i * beams : (i + 1) * beams]
            parents = _extend(state, logits_NV, beams, stop_ids, length_penalty)
            if _can_improve(state, beams, length_penalty, early_stopping):
                rows += [i * beams + parent for parent in parents]
                unfinished.append(state)
        if not unfinished:
            return [state.hypotheses for state in states]
        running = unfinished
        cache.select(torch.tensor(rows, device=logits_fn.device))
        logits_BV = decode_step(logits_fn, [beam[-1] for state in running for beam in state.beams], cache)


def _extend(
    state: _BeamState, logits_NV: Tensor, beams: int, stop_ids: frozenset[int], length_penalty: float
) -> list[int]:
    """Steps 1 to 3. Returns the parent beam of each continuing beam."""
    candidates_NV = logits_NV.log_softmax(-1) + state.scores_N[:, None]
    vocab_size = logits_NV.shape[-1]
    count = min(max(2, 1 + len(stop_ids)) * beams, candidates_NV.numel())
    scores, positions = candidates_NV.flatten().topk(count)
    length = len(state.beams[0]) + 1
    normalized = (scores / length**length_penalty).tolist()
    continuing: list[tuple[int, int, int]] = []
    ended: list[BeamHypothesis] = []
    for rank, position in enumerate(positions.tolist()):
        parent, token = divmod(position, vocab_size)
        if token in stop_ids or length == state.limit:
            if rank < beams:
                ended.append(BeamHypothesis(normalized[rank], [*state.beams[parent], token]))
        elif len(continuing) < beams:
            continuing.append((rank, parent, token))
    state.hypotheses = sorted([*state.hypotheses, *ended], key=lambda hypothesis: -hypothesis.score)[:beams]
    state.scores_N = scores[[rank for rank, _, _ in continuing]]
    state.beams = [[*state.beams[parent], token] for _, parent, token in continuing]
    return [parent for _, parent, _ in continuing]


def _can_improve(state: _BeamState, beams: int, length_penalty: float, early_stopping: EarlyStopping) -> bool:
    """Step 4."""
    if not state.beams:
        return False
    if len(state.hypotheses) < beams:
        return True
    if early_stopping is True:
        return False
    longest = early_stopping == "never" and length_penalty > 0
    length = state.limit if longest else len(state.beams[0])
    return float(state.scores_N[0] / length**length_penalty) > state.hypotheses[-1].score
