"""The loop that makes tokens, for several prompts at once.

1. prompts are laid side by side so that they end together; what is missing in front is filling that nobody looks at
2. one forward reads all of them, and fills the cache
3. each forward after that reads the newest token of each row
4. a row that is over leaves the batch: the others no longer pay for it, and no position is beyond the context
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pretrain.generation.prompts import room
from pretrain.generation.sampling import Choose
from pretrain.model.kv_cache import KVCache
from pretrain.model.logits_fn import LogitsFn

# A row's new token → whether the row goes on.
Take = Callable[[int, int], bool]


def read_prompts(logits_fn: LogitsFn, prompts: Sequence[Sequence[int]], new_tokens: int) -> tuple[Tensor, KVCache]:
    """Logits (B, V) behind each prompt, and the cache with room for `new_tokens` more."""
    longest = max(map(len, prompts))
    missing = [longest - len(prompt) for prompt in prompts]
    filled = [[0] * count + list(prompt) for count, prompt in zip(missing, prompts, strict=True)]
    tokens_BT = torch.tensor(filled, device=logits_fn.device)
    # The last token that is made is never read.
    cache = KVCache(
        logits_fn.config,
        len(prompts),
        longest + new_tokens - 1,
        dtype=logits_fn.dtype,
        device=logits_fn.device,
        padding_B=torch.tensor(missing, device=logits_fn.device) if any(missing) else None,
    )
    return _last(logits_fn, tokens_BT, cache), cache


def read_tokens(logits_fn: LogitsFn, tokens: Sequence[int], cache: KVCache) -> Tensor:
    """Logits (B, V) behind one more token of each row."""
    return _last(logits_fn, torch.tensor(tokens, device=logits_fn.device)[:, None], cache)


def _last(logits_fn: LogitsFn, tokens_BT: Tensor, cache: KVCache) -> Tensor:
    return logits_fn.logits(tokens_BT, cache)[:, -1].float()


@torch.no_grad()
def generate(
    logits_fn: LogitsFn, prompts: Sequence[Sequence[int]], choose: Choose, take: Take, *, max_new_tokens: int
) -> None:
    """Hand `take(row, token)` the tokens of each row, in order, until it says no or there is no room (see `room`).

    Raises UserError as `room` does, before anything is computed.
    """
    limits = [room(logits_fn.config, prompt, max_new_tokens) for prompt in prompts]
    logits_BV, cache = read_prompts(logits_fn, prompts, max(limits))
    rows, made = list(range(len(prompts))), 0
    while True:
        chosen = choose(rows, logits_BV)
        made += 1
        going = [
            place
            for place, (row, token) in enumerate(zip(rows, chosen, strict=True))
            if take(row, token) and made < limits[row]
        ]
        if not going:
            return
        if len(going) < len(rows):
            cache.select(torch.tensor(going, device=logits_fn.device))
            rows = [rows[place] for place in going]
        logits_BV = read_tokens(logits_fn, [chosen[place] for place in going], cache)
