import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pretrain.generation.sampling import Sampling, greedy, next_token_probabilities, seeded_sampler

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


# --- rows -------------------------------------------------------------------------------------------------------------

ROWS = torch.randn(3, 12, generator=torch.Generator().manual_seed(0))


def test_greedy_takes_the_first_of_equals() -> None:
    assert greedy([0, 1], torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 0.0]])) == [1, 0]


def draws(rows: list[int], seeds: list[int], count: int = 30) -> list[list[int]]:
    sample = seeded_sampler(Sampling(1.0), seeds)
    return [sample(rows, ROWS[rows]) for _ in range(count)]


def test_what_a_row_draws_depends_on_its_own_seed_only() -> None:
    three = draws([0, 1, 2], [5, 6, 7])
    assert [row[1] for row in three] == [row[0] for row in draws([1], [0, 6])]
    assert [row[1] for row in three] == [row[1] for row in draws([0, 1], [8, 6])]
    assert [row[1] for row in three] != [row[1] for row in draws([0, 1], [5, 7])]


def test_a_row_draws_on_where_it_was_when_others_have_left() -> None:
    sample, alone = seeded_sampler(Sampling(1.0), [5, 6, 7]), seeded_sampler(Sampling(1.0), [0, 0, 7])
    found = [sample([0, 1, 2], ROWS)[2] for _ in range(5)] + [sample([2], ROWS[2:])[0] for _ in range(5)]
    assert found == [alone([2], ROWS[2:])[0] for _ in range(10)]


def test_the_generator_of_the_process_is_left_alone() -> None:
    torch.manual_seed(2)
    before = torch.get_rng_state()
    draws([0], [1])
    assert torch.equal(torch.get_rng_state(), before)


def test_temperature_zero_needs_no_generator() -> None:
    assert seeded_sampler(Sampling(0.0), [1, 2]) is greedy
