"""Beam search: the likeliest continuations that `beams` parallel searches find.

1. each of a prompt's beams offers all tokens; the best 2 · beams of these candidates are looked at
2. of the best `beams` of them, those that end here (a stop token, or no room) are finished. A finished one is judged by
   its log-probability / tokens ** length_penalty, and the best `beams` finished ones are kept
3. the best `beams` candidates that do not end go on
4. a prompt is over when what goes on cannot better the worst that is kept, by an estimate that `early_stopping` chooses

This is the search of `transformers.GenerationMixin._beam_search` (5.x), rule for rule, and a test holds it against that.
Length penalty: Wu et al. 2016, section 7, https://arxiv.org/abs/1609.08144, in the simpler form of transformers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pretrain.generation.decode_loop import read_prompts, read_tokens
from pretrain.generation.prompts import room
from pretrain.model.logits_fn import LogitsFn

# True: over when `beams` are finished. False: or when the best that goes on scores less, at its present length.
# "never": the same at the length that suits it best.
EarlyStopping = Literal[True, False, "never"]

# Beams that are not yet: of the first step only one counts, or all would find the same.
NOT_YET = -1e9


class Finished(NamedTuple):
    """New tokens, with the stop token if there is one, and log-probability / tokens ** length_penalty."""

    score: float
    tokens: list[int]


@dataclass
class _Search:
    """One prompt's."""

    limit: int
    scores_N: Tensor  # fp32, as the logits
    beams: list[list[int]]
    finished: list[Finished] = field(default_factory=list)


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
) -> list[list[Finished]]:
    """Of each prompt, `beams` continuations, the best first. A length penalty above 0 favours long ones.

    Raises UserError as `loop.room` does.
    """
    limits = [room(logits_fn.config, prompt, max_new_tokens) for prompt in prompts]
    logits_BV, cache = read_prompts(logits_fn, prompts, max(limits))
    start_N = torch.tensor([0.0] + [NOT_YET] * (beams - 1), device=logits_fn.device)
    searches = [_Search(limit, start_N, [[] for _ in range(beams)]) for limit in limits]
    running = searches
    logits_BV = logits_BV.repeat_interleave(beams, dim=0)
    cache.select(torch.arange(len(prompts), device=logits_fn.device).repeat_interleave(beams))
    while True:
        parents, going = [], []
        for place, search in enumerate(running):
            logits_NV = logits_BV[place * beams : (place + 1) * beams]
            chosen = _extend(search, logits_NV, beams, stop_ids, length_penalty, early_stopping)
            if _goes_on(search, beams, length_penalty, early_stopping):
                parents += [place * beams + parent for parent in chosen]
                going.append(search)
        if not going:
            return [search.finished for search in searches]
        running = going
        cache.select(torch.tensor(parents, device=logits_fn.device))
        logits_BV = read_tokens(logits_fn, [beam[-1] for search in running for beam in search.beams], cache)


def _extend(
    search: _Search,
    logits_NV: Tensor,
    beams: int,
    stop_ids: frozenset[int],
    length_penalty: float,
    early_stopping: EarlyStopping,
) -> list[int]:
    """Steps 1 to 3. Returns the beams that those come from that go on."""
    candidates_NV = logits_NV.log_softmax(-1) + search.scores_N[:, None]
    vocab_size = logits_NV.shape[-1]
    count = min(max(2, 1 + len(stop_ids)) * beams, candidates_NV.numel())
    scores, places = candidates_NV.flatten().topk(count)
    length = len(search.beams[0]) + 1
    judged = (scores / length**length_penalty).tolist()
    going: list[tuple[int, int, int]] = []
    ended: list[Finished] = []
    for rank, place in enumerate(places.tolist()):
        parent, token = divmod(place, vocab_size)
        if token in stop_ids or length == search.limit:
            if rank < beams:
                ended.append(Finished(judged[rank], [*search.beams[parent], token]))
        elif len(going) < beams:
            going.append((rank, parent, token))
    search.finished = sorted([*search.finished, *ended], key=lambda found: -found.score)[:beams]
    parents = [parent for _, parent, _ in going]
    search.scores_N = scores[[rank for rank, _, _ in going]]
    search.beams = [[*search.beams[parent], token] for _, parent, token in going]
    return parents


def _goes_on(search: _Search, beams: int, length_penalty: float, early_stopping: EarlyStopping) -> bool:
    """Step 4."""
    if not search.beams:
        return False
    if len(search.finished) < beams:
        return True
    if early_stopping is True:
        return False
    longest = early_stopping == "never" and length_penalty > 0
    length = search.limit if longest else len(search.beams[0])
    return float(search.scores_N[0] / length**length_penalty) > search.finished[-1].score
