import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.data.permute import hash64, permute

KEYS = st.integers(0, 2**64 - 1).map(np.uint64)


def splitmix64(seed: int, count: int) -> list[int]:
    """The published generator, in Python's own integers: https://prng.di.unimi.it/splitmix64.c"""
    mask, out = 2**64 - 1, []
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) & mask
        z = ((seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        out.append(z ^ (z >> 31))
    return out


@given(st.integers(0, 2**63 - 1))
def test_hash_of_one_value_is_the_first_output_of_splitmix64(value: int) -> None:
    assert [int(hash64(value))] == splitmix64(value, 1)


def test_hash_of_several_values_tells_their_order_and_number() -> None:
    hashes = [int(hash64(*values)) for values in [(), (0,), (0, 0), (1, 2), (2, 1), (1, 2, 0), (3,)]]
    assert len(set(hashes)) == len(hashes)


def test_hash_of_arrays_is_the_hash_of_each_element() -> None:
    epochs = np.arange(5)
    assert hash64(7, 9, epochs).tolist() == [int(hash64(7, 9, epoch)) for epoch in range(5)]


@given(size=st.one_of(st.integers(1, 70), st.integers(71, 5_000)), key=KEYS)
def test_every_index_lands_on_a_place_of_its_own(size: int, key: np.uint64) -> None:
    assert np.array_equal(np.sort(permute(np.arange(size), size, key)), np.arange(size))


@pytest.mark.parametrize("size", [2**k + offset for k in (1, 2, 3, 6, 7, 10, 16) for offset in (-1, 0, 1)])
def test_sizes_beside_powers_of_two_are_permuted(size: int) -> None:
    assert len(np.unique(permute(np.arange(size), size, 12345))) == size


def test_a_size_beyond_any_table_is_permuted() -> None:
    size = 10**15 + 37
    index = np.concatenate([np.arange(10_000), size - 1 - np.arange(10_000)])
    places = permute(index, size, 99)
    assert len(np.unique(places)) == len(index)
    assert places.min() >= 0
    assert places.max() < size
    assert np.histogram(places, bins=10, range=(0, size))[0].min() > 1_700


def test_one_call_equals_many_calls_each_with_its_own_key() -> None:
    keys = hash64(np.arange(100))
    together = permute(np.arange(100) % 37, 37, keys)
    assert together.tolist() == [int(permute(i % 37, 37, keys[i])) for i in range(100)]


def test_keys_give_unrelated_permutations() -> None:
    first, second = permute(np.arange(10_000), 10_000, hash64(1)), permute(np.arange(10_000), 10_000, hash64(2))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.05
    assert abs(np.corrcoef(first, np.arange(10_000))[0, 1]) < 0.05
    assert (first == second).sum() < 10


def test_neighbours_do_not_stay_neighbours() -> None:
    places = permute(np.arange(10_000), 10_000, hash64(1))
    assert (np.abs(np.diff(places)) == 1).sum() < 10


def test_every_place_is_reached_about_as_often_over_keys() -> None:
    """Index 0 of 12, over 12,000 keys: each place 1,000 ± 5 standard deviations."""
    counts = np.bincount(permute(0, 12, hash64(np.arange(12_000))), minlength=12)
    assert np.abs(counts - 1_000).max() < 5 * np.sqrt(1_000)


def test_permutations_never_change() -> None:
    """A change here changes what every resumed run reads."""
    places = np.concatenate([permute(np.arange(size), size, hash64(0, size)) for size in (1, 2, 3, 100, 4_097)])
    digest = hashlib.sha256(places.astype("<i8").tobytes()).hexdigest()
    assert digest == "b26b791a8864f9c39a0f0b5ad3eea0bc30809cc2a7af96aadff79cde31572a26"
