from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pretrain.config.schema import ModelConfig
from pretrain.generate import Sampling, generate_ids, generate_text, next_token_probabilities
from pretrain.model.decoder import Decoder
from pretrain.model.init import init_weights

LOGITS = st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=20).map(torch.tensor)
TEMPERATURES = st.floats(0.01, 10)


@given(LOGITS, st.integers(0, 25), st.floats(0, 1, exclude_min=True))
def test_temperature_zero_takes_the_likeliest_whatever_else_is_set(logits: Tensor, top_k: int, top_p: float) -> None:
    probabilities = next_token_probabilities(logits, Sampling(0.0, top_k, top_p))
    assert probabilities.sum() == 1
    assert logits[probabilities.argmax()] == logits.max()


@given(LOGITS, TEMPERATURES)
def test_without_cuts_it_is_the_softmax(logits: Tensor, temperature: float) -> None:
    torch.testing.assert_close(
        next_token_probabilities(logits, Sampling(temperature)),
        (logits / temperature).softmax(-1),
        atol=1e-6,
        rtol=1e-5,
    )


@given(LOGITS, st.integers(0, 25), st.floats(1e-6, 1), TEMPERATURES)
def test_probabilities_are_never_empty_and_sum_to_one(
    logits: Tensor, top_k: int, top_p: float, temperature: float
) -> None:
    probabilities = next_token_probabilities(logits, Sampling(temperature, top_k, top_p))
    assert probabilities.isfinite().all()
    assert (probabilities >= 0).all()
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-5)
    assert logits[probabilities > 0].max() >= logits.max() - 1e-3  # one of those that are equal after rounding


@given(st.permutations(range(12)), st.integers(1, 12))
def test_top_k_keeps_the_k_likeliest_in_their_proportions(order: list[int], k: int) -> None:
    logits = torch.tensor(order, dtype=torch.float32)
    probabilities = next_token_probabilities(logits, Sampling(1.0, k))
    kept = logits >= 12 - k
    assert torch.equal(probabilities > 0, kept)
    torch.testing.assert_close(probabilities[kept], logits[kept].softmax(-1))


def test_top_k_keeps_ties_at_the_edge() -> None:
    probabilities = next_token_probabilities(torch.tensor([2.0, 1.0, 1.0, 0.0]), Sampling(1.0, 2))
    assert (probabilities > 0).tolist() == [True, True, True, False]


@given(LOGITS, st.floats(0.01, 0.99))
def test_the_nucleus_is_the_smallest_set_that_reaches_top_p(logits: Tensor, top_p: float) -> None:
    whole = logits.softmax(-1)
    kept = next_token_probabilities(logits, Sampling(1.0, 0, top_p)) > 0
    inside = whole[kept]
    assert inside.sum() >= top_p - 1e-5
    assert inside.sum() - inside.min() < top_p + 1e-5  # one fewer would not reach it
    if (~kept).any():
        assert whole[~kept].max() <= inside.min()


def test_the_nucleus_is_never_empty() -> None:
    probabilities = next_token_probabilities(torch.tensor([0.0, 5.0, 1.0]), Sampling(1.0, 0, 1e-30))
    assert probabilities.tolist() == [0.0, 1.0, 0.0]


def test_top_k_comes_before_top_p() -> None:
    logits = torch.log(torch.tensor([0.4, 0.3, 0.2, 0.1]))
    # Of the two likeliest, renormalized, the first alone holds 4/7 > 0.55.
    assert (next_token_probabilities(logits, Sampling(1.0, 2, 0.55)) > 0).tolist() == [True, False, False, False]


def test_a_low_temperature_sharpens_and_a_high_one_flattens() -> None:
    logits = torch.tensor([1.0, 2.0, 3.0])
    cold, warm, hot = (next_token_probabilities(logits, Sampling(t))[2].item() for t in (0.5, 1.0, 2.0))
    assert cold > warm > hot > 1 / 3


# --- sequences --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> Decoder:
    config = ModelConfig(50, 2, 16, 2, 1, 24, max_seq_len=8, init_std=0.4)
    model = Decoder(config).eval()
    init_weights(model, config, seed=0)
    return model


def ids(
    model: Decoder, count: int = 20, seed: int = 0, eos_id: int = -1, prompt: Any = (1, 2), **sampling: Any
) -> list[int]:
    return list(generate_ids(model, list(prompt), count, Sampling(**sampling), eos_id, seed))


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**40))
def test_the_same_seed_gives_the_same_tokens_and_the_global_generator_is_left_alone(model: Decoder, seed: int) -> None:
    torch.manual_seed(1)
    first = ids(model, seed=seed)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert ids(model, seed=seed) == first
    assert torch.equal(torch.get_rng_state(), before)


def test_other_seeds_give_other_tokens_and_greedy_does_not_care(model: Decoder) -> None:
    assert len({tuple(ids(model, seed=seed, temperature=1.0)) for seed in range(5)}) == 5
    assert len({tuple(ids(model, seed=seed, temperature=0.0)) for seed in range(5)}) == 1


def test_greedy_takes_the_likeliest_of_the_last_window(model: Decoder) -> None:
    made = [1, 2, *ids(model, temperature=0.0)]
    assert len(made) == 22
    for place in range(2, 22):
        logits = model(torch.tensor([made[max(0, place - 8) : place]]))[0, -1]
        assert made[place] == int(logits.argmax())


def test_it_ends_before_eos(model: Decoder) -> None:
    free = ids(model, temperature=1.0, seed=3)
    eos = free[7]
    assert ids(model, temperature=1.0, seed=3, eos_id=eos) == free[: free.index(eos)]


def test_no_gradient_is_recorded(model: Decoder) -> None:
    ids(model, count=2)
    assert all(parameter.grad is None for parameter in model.parameters())


class Bytes:
    """A codec of single bytes: characters of several bytes come in pieces."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")

    def bos_id(self) -> int:
        return 0

    def eos_id(self) -> int:
        return 255


def test_text_comes_in_whole_characters(monkeypatch: pytest.MonkeyPatch, model: Decoder) -> None:
    monkeypatch.setattr("pretrain.generate.generate_ids", lambda *_: iter("aé漢😀z".encode()))
    parts = list(generate_text(model, Bytes(), "Say: ", 100, Sampling(), 0))
    assert "".join(parts) == "Say: aé漢😀z"
    assert [part for part in parts if part] == ["Say: ", "a", "é", "漢", "😀", "z"]


def test_text_that_ends_in_half_a_character_is_still_shown(monkeypatch: pytest.MonkeyPatch, model: Decoder) -> None:
    monkeypatch.setattr("pretrain.generate.generate_ids", lambda *_: iter(b"a\xf0\x9f"))
    assert "".join(generate_text(model, Bytes(), "", 100, Sampling(), 0)) == "a\N{REPLACEMENT CHARACTER}"


def test_the_prompt_is_framed_by_bos(monkeypatch: pytest.MonkeyPatch, model: Decoder) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("pretrain.generate.generate_ids", lambda *arguments: seen.append(arguments) or iter(()))
    list(generate_text(model, Bytes(), "hi", 7, Sampling(), 5))
    ((_, prompt, count, _, eos, seed),) = seen
    assert (prompt, count, eos, seed) == ([0, *b"hi"], 7, 255, 5)
