"""Continuations as text, by the loop or by the beam search."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from pretrain.generation.beam import EarlyStopping, beam_search
from pretrain.generation.decode_loop import generate
from pretrain.generation.detokenize import Continuation
from pretrain.generation.prompts import room
from pretrain.generation.sampling import Choose
from pretrain.model.logits_fn import LogitsFn
from tokenizer.models.base import Tokenizer


class Completion(NamedTuple):
    """The continuation of a prompt.

    `tokens` are all that were made, but for a stop token. `finish` is "stop" (a stop token or a stop text, neither of which
    is in `text`), "length" (all new tokens were made) or "context" (the model reads no longer sequences). `score` is that
    of a beam search.
    """

    text: str
    tokens: list[int]
    finish: str
    score: float | None = None


def complete(
    logits_fn: LogitsFn,
    codec: Tokenizer,
    prompts: Sequence[Sequence[int]],
    choose: Choose,
    *,
    max_new_tokens: int,
    stop_ids: frozenset[int],
    stop_texts: Sequence[str] = (),
    show: Callable[[str], None] = lambda _: None,
) -> list[Completion]:
    """Continue all prompts in one batch. `show` gets the text of the first one as it is made. Raises as `loop.room`."""
    made = [
        Continuation(codec, prompt, stop_ids=stop_ids, stop_texts=stop_texts, show=(lambda _: None) if number else show)
        for number, prompt in enumerate(prompts)
    ]
    generate(logits_fn, prompts, choose, lambda row, token: made[row].take(token), max_new_tokens=max_new_tokens)
    return [
        _completion(text, room(logits_fn.config, prompt, max_new_tokens) < max_new_tokens)
        for text, prompt in zip(made, prompts, strict=True)
    ]


def complete_by_beams(
    logits_fn: LogitsFn,
    codec: Tokenizer,
    prompts: Sequence[Sequence[int]],
    *,
    beams: int,
    max_new_tokens: int,
    stop_ids: frozenset[int],
    length_penalty: float = 1.0,
    early_stopping: EarlyStopping = False,
) -> list[list[Completion]]:
    """Of each prompt the `beams` best continuations, the best first. Raises as `loop.room`."""
    found = beam_search(
        logits_fn,
        prompts,
        beams=beams,
        max_new_tokens=max_new_tokens,
        stop_ids=stop_ids,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
    )
    results: list[list[Completion]] = []
    for prompt, kept in zip(prompts, found, strict=True):
        short = room(logits_fn.config, prompt, max_new_tokens) < max_new_tokens
        results.append([])
        for finished in kept:
            text = Continuation(codec, prompt, stop_ids=stop_ids)
            for token in finished.tokens:
                text.take(token)
            results[-1].append(_completion(text, short)._replace(score=finished.score))
    return results


def _completion(made: Continuation, short: bool) -> Completion:
    """`short`: the context had room for fewer tokens than were wanted."""
    made.close()
    finish = "stop" if made.stopped else "context" if short else "length"
    return Completion(made.text, made.tokens, finish)
