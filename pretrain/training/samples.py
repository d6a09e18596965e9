"""Texts that a run makes while it trains, always from the same prompts, greedily: how it learns to write.

All ranks make the same texts with the same number of forwards, whether anybody reads them or not: under ZeRO-3 each forward
gathers the weights from all of them, and a rank that came to its end sooner would leave the others hanging. So no row ends
before its tokens are made, and what follows the end of a document is cut off afterwards.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from pretrain.generation.decode_loop import generate
from pretrain.generation.detokenize import CompletionBuilder
from pretrain.generation.sampling import greedy
from pretrain.model.kv_cache import KVCache
from pretrain.model.logits_fn import LogitsFn
from tokenizer.models.base import tokenizer_from_files


def make_samples(
    logits_fn: LogitsFn, prompts: Sequence[Sequence[int]], tokens: int, before_forward: Callable[[], None]
) -> list[list[int]]:
    """So many tokens behind each prompt, or as the context has room for. A collective; `before_forward` may raise."""
    made: list[list[int]] = [[] for _ in prompts]

    def logits(tokens_BT: Tensor, cache: KVCache) -> Tensor:
        before_forward()
        return logits_fn.logits(tokens_BT, cache)

    def take(row: int, token: int) -> bool:
        made[row].append(token)
        return True

    generate(logits_fn._replace(logits=logits), prompts, greedy, take, max_new_tokens=tokens)
    return made


def describe_samples(
    texts: Sequence[str],
    prompts: Sequence[Sequence[int]],
    made: Sequence[Sequence[int]],
    tokenizer: Mapping[str, bytes],
) -> list[dict[str, Any]]:
    """Of each prompt: it, the text behind it up to the end of the document, and whether that came (`ended`)."""
    codec = tokenizer_from_files(tokenizer)
    samples = []
    for text, prompt, tokens in zip(texts, prompts, made, strict=True):
        row = CompletionBuilder(codec, prompt, stop_ids=frozenset({codec.eos_id()}))
        for token in tokens:
            if not row.add(token):
                break
        row.finish()
        samples.append({"prompt": text, "text": row.text, "ended": row.stopped})
    return samples
