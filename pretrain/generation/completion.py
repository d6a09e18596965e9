"""Completions as text, by sampling or by beam search."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from pretrain.generation.beam import EarlyStopping, beam_search
from pretrain.generation.decode_loop import generate
from pretrain.generation.detokenize import CompletionBuilder
from pretrain.generation.prompts import new_token_limit
from pretrain.generation.sampling import Sampler
from pretrain.model.logits_fn import LogitsFn, without_padding
from tokenizer.models.base import Tokenizer


class Completion(NamedTuple):
    """The continuation of a prompt.

    `tokens` are all new tokens except a stop token. `finish` is "stop" (a stop token, or a stop text, which `text` excludes),
    "length" (max_new_tokens) or "context" (the model's context is full). `score` is set by beam search.
    """

    text: str
    tokens: list[int]
    finish: str
    score: float | None = None


def complete(
    logits_fn: LogitsFn,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    sample: Sampler,
    *,
    max_new_tokens: int,
    stop_ids: frozenset[int],
    stop_texts: Sequence[str] = (),
    on_text: Callable[[str], None] = lambda _: None,
) -> list[Completion]:
    """Complete all prompts in one batch. `on_text` gets the text of the first one piece by piece.

    Raises UserError like `new_token_limit`.
    """
    builders = [
        CompletionBuilder(
            tokenizer, prompt, stop_ids=stop_ids, stop_texts=stop_texts, on_text=(lambda _: None) if row else on_text
        )
        for row, prompt in enumerate(prompts)
    ]
    logits_fn = without_padding(logits_fn, tokenizer.vocab_size())
    generate(logits_fn, prompts, sample, lambda row, token: builders[row].add(token), max_new_tokens=max_new_tokens)
    return [
        _completion(builder, new_token_limit(logits_fn.config, prompt, max_new_tokens) < max_new_tokens)
        for builder, prompt in zip(builders, prompts, strict=True)
    ]


def complete_by_beams(
    logits_fn: LogitsFn,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    *,
    beams: int,
    max_new_tokens: int,
    stop_ids: frozenset[int],
    length_penalty: float = 1.0,
    early_stopping: EarlyStopping = False,
) -> list[list[Completion]]:
    """The `beams` best completions of each prompt, best first. Raises UserError like `new_token_limit`."""
    found = beam_search(
        without_padding(logits_fn, tokenizer.vocab_size()),
        prompts,
        beams=beams,
        max_new_tokens=max_new_tokens,
        stop_ids=stop_ids,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
    )
    results: list[list[Completion]] = []
    for prompt, hypotheses in zip(prompts, found, strict=True):
        truncated = new_token_limit(logits_fn.config, prompt, max_new_tokens) < max_new_tokens
        results.append([])
        for hypothesis in hypotheses:
            builder = CompletionBuilder(tokenizer, prompt, stop_ids=stop_ids)
            for token in hypothesis.tokens:
                builder.add(token)
            results[-1].append(_completion(builder, truncated)._replace(score=hypothesis.score))
    return results


def _completion(builder: CompletionBuilder, truncated: bool) -> Completion:
    """`truncated`: the context allows fewer than max_new_tokens."""
    builder.finish()
    finish = "stop" if builder.stopped else "context" if truncated else "length"
    return Completion(builder.text, builder.tokens, finish)
