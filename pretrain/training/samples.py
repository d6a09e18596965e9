"""Samples during training: greedy completions of fixed prompts.

All ranks run the same number of forwards: under ZeRO-3 each forward gathers weights from all ranks, and a rank that ended
sooner would leave the others hanging. So every row generates all its tokens; text after the end of a document is cut off
afterwards.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from pretrain.generation.decode_loop import generate
from pretrain.generation.detokenize import Continuation
from pretrain.generation.sampling import greedy
from pretrain.model.kv_cache import KVCache
from pretrain.model.logits_fn import LogitsFn
from tokenizer.models.base import tokenizer_from_files


def make_samples(
    logits_fn: LogitsFn, prompts: Sequence[Sequence[int]], tokens: int, before_forward: Callable[[], None]
) -> list[list[int]]:
    """Up to `tokens` tokens after each prompt, as the context allows. A collective; `before_forward` may raise."""
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
    """For each prompt: `prompt`, `text` up to the end of the document, and `ended`, whether the model ended it."""
    codec = tokenizer_from_files(tokenizer)
    samples = []
    for text, prompt, tokens in zip(texts, prompts, made, strict=True):
        row = Continuation(codec, prompt, stop_ids=frozenset({codec.eos_id()}))
        for token in tokens:
            if not row.take(token):
                break
        row.close()
        samples.append({"prompt": text, "text": row.text, "ended": row.stopped})
    return samples
