"""Batched decoding with a cache against a plain loop without either."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pretrain.errors import UserError
from pretrain.generation.decode_loop import generate
from pretrain.generation.prompts import new_token_limit
from pretrain.generation.sampling import Sampler, Sampling, greedy, seeded_sampler
from pretrain.model.decoder import Decoder
from pretrain.model.kv_cache import KVCache
from pretrain.model.logits_fn import LogitsFn, decoder_logits
from tests.support.shapes import SHAPES, small_decoder

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], [12, 13, 14], [15] * 20]


@torch.no_grad()
def plain_greedy(model: Decoder, prompt: list[int], count: int) -> list[int]:
    """No cache, no batch: recomputes everything for each token, up to the end of the context."""
    ids = list(prompt)
    while len(ids) < min(len(prompt) + count, model.config.max_seq_len):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


def run(
    model: Decoder, prompts: list[list[int]], count: int, sample: Sampler = greedy, ends: tuple[int, ...] = ()
) -> list[list[int]]:
    made: list[list[int]] = [[] for _ in prompts]

    def on_token(row: int, token: int) -> bool:
        made[row].append(token)
        return token not in ends

    generate(decoder_logits(model), prompts, sample, on_token, max_new_tokens=count)
    return made


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_each_row_is_what_it_would_be_alone_and_without_a_cache(shape: dict) -> None:
    """Rows of 1 to 20 tokens in a context of 24: they end one after the other, the first after 4 tokens."""
    model = small_decoder(**shape)
    alone = [plain_greedy(model, prompt, 22) for prompt in PROMPTS]
    assert [len(made) for made in alone] == [21, 22, 17, 21, 4]
    assert run(model, PROMPTS, 22) == alone
    assert [run(model, [prompt], 22)[0] for prompt in PROMPTS] == alone
    assert len({tuple(made[:4]) for made in alone}) > 2  # not one token over and over


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 49), min_size=1, max_size=23), min_size=1, max_size=5),
    st.integers(1, 30),
    st.sets(st.integers(0, 49), max_size=10),
)
def test_rows_end_where_they_say_and_the_others_go_on(prompts: list[list[int]], count: int, ends: set[int]) -> None:
    expected = []
    for prompt in prompts:
        free = plain_greedy(MODEL, prompt, count)
        stop = next((place for place, token in enumerate(free) if token in ends), len(free) - 1)
        expected.append(free[: stop + 1])
    assert run(MODEL, prompts, count, ends=tuple(ends)) == expected


MODEL = small_decoder()


def test_a_sampled_row_does_not_depend_on_the_others() -> None:
    seeds = [3, 1, 4, 1, 5]
    together = run(MODEL, PROMPTS, 12, seeded_sampler(Sampling(1.0), seeds))
    for prompt, seed, made in zip(PROMPTS, seeds, together, strict=True):
        assert run(MODEL, [prompt], 12, seeded_sampler(Sampling(1.0), [seed])) == [made]
    assert run(MODEL, PROMPTS[:1], 12, seeded_sampler(Sampling(1.0), [4])) != together[:1]


def test_the_work_of_a_token_is_one_position_of_each_row_that_goes_on() -> None:
    seen: list[tuple[int, ...]] = []
    logits_fn = decoder_logits(MODEL)

    def counting(tokens_BT: Tensor, cache: KVCache) -> Tensor:
        seen.append(tuple(tokens_BT.shape))
        return logits_fn.logits(tokens_BT, cache)

    made = [0, 0]

    def on_token(row: int, token: int) -> bool:
        made[row] += 1
        return row == 0 or made[row] < 2

    generate(LogitsFn(counting, *logits_fn[1:]), [[1, 2, 3], [4]], greedy, on_token, max_new_tokens=4)
    assert seen == [(2, 3), (2, 1), (1, 1), (1, 1)]
    assert made == [4, 2]


def test_no_gradient_is_recorded() -> None:
    logits_fn = decoder_logits(MODEL)
    grads: list[bool] = []

    def logits(tokens_BT: Tensor, cache: KVCache) -> Tensor:
        found = logits_fn.logits(tokens_BT, cache)
        grads.append(found.requires_grad)
        return found

    generate(LogitsFn(logits, *logits_fn[1:]), [[1]], greedy, lambda row, token: True, max_new_tokens=2)
    assert grads == [False, False]


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ([], "has no tokens"),
        ([1] * 24, "24 tokens; at most 23 leave room for a new one in model.max_seq_len=24"),
        ([1, 50], "has the id 50, outside model.vocab_size=50"),
        ([-1], "has the id -1"),
    ],
)
def test_a_prompt_that_cannot_be_continued_is_refused_before_anything_runs(prompt: list[int], said: str) -> None:
    def untouched(row: int, token: int) -> bool:
        raise AssertionError

    with pytest.raises(UserError, match=said):
        generate(decoder_logits(MODEL), [[1], prompt], greedy, untouched, max_new_tokens=3)


def test_prompt_and_text_together_fit_the_context() -> None:
    assert [new_token_limit(MODEL.config, [1] * length, 10) for length in (1, 14, 15, 23)] == [10, 10, 9, 1]
