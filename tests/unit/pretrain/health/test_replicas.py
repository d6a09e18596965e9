import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.config import Config
from pretrain.config.check import find_conflicts
from pretrain.config.schema import EngineConfig, GuardConfig
from pretrain.health.replicas import CHUNK, differences, hash_bits

HOSTS = ["a", "b", "c"]


def value(tensor: torch.Tensor) -> int:
    return int(hash_bits(tensor))


@settings(max_examples=30)
@given(st.integers(0, 2 * CHUNK + 6), st.integers(0, 31))
def test_every_single_bit_changes_the_hash(index: int, bit: int) -> None:
    tensor = torch.zeros(2 * CHUNK + 7)
    before = value(tensor)
    assert not tensor.any()  # reading must not write
    tensor.view(torch.int32)[index] ^= (1 << bit) - (1 << 32 if bit == 31 else 0)
    assert value(tensor) != before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_each_precision_is_hashed_by_its_bits(dtype: torch.dtype) -> None:
    tensor = torch.randn(50, 20).to(dtype)
    assert value(tensor) == value(tensor.clone())
    assert value(torch.zeros(3, dtype=dtype)) != value(-torch.zeros(3, dtype=dtype))
    tensor[49, 19] = float("nan")
    assert value(tensor) == value(tensor.clone())


def test_places_count() -> None:
    tensor = torch.randn(CHUNK + 100)
    assert value(tensor) != value(tensor.flip(0))
    swapped = tensor.clone()
    swapped[0], swapped[CHUNK] = tensor[CHUNK], tensor[0]  # the same place of two chunks
    assert value(swapped) != value(tensor)


def test_the_number_of_threads_does_not_matter() -> None:
    tensor = torch.randn(CHUNK + 12345)
    threads = torch.get_num_threads()
    found = set()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.add(value(tensor))
    torch.set_num_threads(threads)
    assert len(found) == 1


def test_a_stretch_of_a_larger_tensor_is_hashed_like_its_copy() -> None:
    flat = torch.randn(1000, dtype=torch.bfloat16)
    assert value(flat.narrow(0, 3, 501)) == value(flat.narrow(0, 3, 501).clone())


def test_the_hash_stays_what_it_is() -> None:
    """Ranks of one run have the same version; a change would still go unnoticed by all other tests."""
    assert value(torch.arange(6, dtype=torch.float32)) == 2799621851723071488


def test_a_parameter_on_which_a_minority_differs_names_its_ranks() -> None:
    assert differences(["x", "y", "z"], [[1, 2, 3], [1, 9, 8], [1, 2, 3]], HOSTS) == [
        "rank 1 on b differs from the majority in y, z"
    ]
    assert differences(["x", "y"], [[7, 2], [1, 9], [1, 2]], HOSTS) == [
        "rank 0 on a differs from the majority in x",
        "rank 1 on b differs from the majority in y",
    ]


def test_without_a_majority_nobody_is_accused() -> None:
    expected = ["the ranks differ in y, without a majority"]
    assert differences(["x", "y"], [[1, 2], [1, 3]], HOSTS) == expected
    assert differences(["x", "y"], [[1, 2], [1, 3], [1, 4]], HOSTS) == expected


def test_equal_weights_differ_in_nothing() -> None:
    assert differences(["x"], [[5], [5], [5]], HOSTS) == []


def test_of_many_parameters_some_are_shown() -> None:
    names = [f"p{number}" for number in range(7)]
    (sentence,) = differences(names, [[1] * 7, [2] * 7, [1] * 7], HOSTS)
    assert sentence.endswith("in p0, p1, p2, p3 and 3 more")


@pytest.mark.parametrize(("stage", "every", "problems"), [(2, 50, 0), (3, 0, 0), (3, 50, 1)])
def test_stage_3_has_no_copies_to_compare(stage: int, every: int, problems: int) -> None:
    config = Config(engine=EngineConfig(zero_stage=stage), guard=GuardConfig(replicas_every_steps=every))
    found = [problem for problem in find_conflicts(config) if "replicas" in problem]
    assert len(found) == problems
    assert all(
        "guard.replicas_every_steps=50 with engine.zero_stage=3" in problem and "hint" in problem for problem in found
    )
