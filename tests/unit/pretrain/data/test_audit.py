from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from pretrain.data.audit import digest, sequence_sums


def batch(samples: list[int], tokens: np.ndarray) -> dict[str, Any]:
    rows = torch.from_numpy(tokens)
    return {"samples": np.array(samples), "inputs": rows[:, :-1], "targets": rows[:, 1:]}


TOKENS = np.random.default_rng(0).integers(0, 100, (12, 9))


def digest_of(parts: list[list[int]]) -> str:
    """The digest of 12 sequences that were shared out like this."""
    sums = [sequence_sums([batch(part, TOKENS[part])]) for part in parts]
    return digest([int(total) for total in np.array(sums, dtype=np.int64).sum(axis=0)])


@given(st.permutations(range(12)), st.integers(1, 11))
def test_who_read_which_sequence_does_not_matter(order: list[int], cut: int) -> None:
    assert digest_of([order[:cut], order[cut:]]) == digest_of([list(range(12))])


@given(st.integers(0, 11), st.integers(0, 8), st.integers(1, 50))
def test_any_other_token_changes_it(row: int, place: int, by: int) -> None:
    changed = TOKENS.copy()
    changed[row, place] += by
    everything = list(range(12))
    assert digest(sequence_sums([batch(everything, changed)])) != digest_of([everything])


def test_a_sequence_that_is_missing_or_doubled_or_another_one_changes_it() -> None:
    whole = digest_of([list(range(12))])
    assert digest_of([list(range(11))]) != whole
    assert digest_of([list(range(12)), [3]]) != whole
    swapped = batch([1, 0], TOKENS[:2])
    assert digest(sequence_sums([swapped])) != digest(sequence_sums([batch([0, 1], TOKENS[:2])]))


def test_a_target_that_was_taken_away_changes_it() -> None:
    one, other = batch([0], TOKENS[:1]), batch([0], TOKENS[:1])
    other["targets"] = other["targets"].clone()
    other["targets"][0, 2] = -100
    assert sequence_sums([one]) != sequence_sums([other])


def test_the_digest_never_changes() -> None:
    assert digest_of([list(range(12))]) == "40d9a32e437a1018e8a7f8251375b710"
