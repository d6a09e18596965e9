"""Batched decoding with a KV cache.

1. Prompts are left-padded; padding is masked.
2. Prefill: one forward reads all prompts and fills the cache.
3. Each decode step reads the newest token of each row.
4. Finished rows leave the batch, so they cost nothing and no position exceeds the context.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pretrain.generation.prompts import new_token_limit
from pretrain.generation.sampling import Sampler
from pretrain.model.kv_cache import KVCache
from pretrain.model.logits_fn import LogitsFn

# (row, new token) → True to continue the row.
OnToken = Callable[[int, int], bool]


def prefill(logits_fn: LogitsFn, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> tuple[Tensor, KVCache]:
    """Logits (B, V) of the first new tokens, and a cache sized for `max_new_tokens` per row."""
    longest = max(map(len, prompts))
    padding = [longest - len(prompt) for prompt in prompts]
    padded = [[0] * count + list(prompt) for count, prompt in zip(padding, prompts, strict=True)]
    tokens_BT = torch.tensor(padded, device=logits_fn.device)
    cache = KVCache(
        logits_fn.config,
        len(prompts),
        longest + max_new_tokens - 1,  # the last new token is never read
        dtype=logits_fn.dtype,
        device=logits_fn.device,
        padding_B=torch.tensor(padding, device=logits_fn.device) if any(padding) else None,
    )
    return _last_logits(logits_fn, tokens_BT, cache), cache


def decode_step(logits_fn: LogitsFn, tokens: Sequence[int], cache: KVCache) -> Tensor:
    """Read one token per row. Returns the logits (B, V) of the next."""
    return _last_logits(logits_fn, torch.tensor(tokens, device=logits_fn.device)[:, None], cache)


def _last_logits(logits_fn: LogitsFn, tokens_BT: Tensor, cache: KVCache) -> Tensor:
    return logits_fn.logits(tokens_BT, cache)[:, -1].float()


@torch.no_grad()
def generate(
    logits_fn: LogitsFn, prompts: Sequence[Sequence[int]], sample: Sampler, on_token: OnToken, *, max_new_tokens: int
) -> None:
    """Call `on_token(row, token)` for each new token until it returns False or the row reaches `new_token_limit`.

    Raises UserError like `new_token_limit`, before anything is computed.
    """
    limits = [new_token_limit(logits_fn.config, prompt, max_new_tokens) for prompt in prompts]
    logits_BV, cache = prefill(logits_fn, prompts, max(limits))
    rows, new_tokens = list(range(len(prompts))), 0
    while True:
        tokens = sample(rows, logits_BV)
        new_tokens += 1
        kept = [
            i
            for i, (row, token) in enumerate(zip(rows, tokens, strict=True))
            if on_token(row, token) and new_tokens < limits[row]
        ]
        if not kept:
            return
        if len(kept) < len(rows):
            cache.select(torch.tensor(kept, device=logits_fn.device))
            rows = [rows[i] for i in kept]
        logits_BV = decode_step(logits_fn, [tokens[i] for i in kept], cache)
