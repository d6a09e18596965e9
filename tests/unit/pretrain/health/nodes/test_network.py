import pytest

from pretrain.health.nodes.network import NetworkTimings, describe, ring, slow_nodes


@pytest.mark.parametrize("size", range(1, 40))
def test_the_ring_has_each_pair_of_neighbours_once_and_no_node_twice_in_a_round(size: int) -> None:
    rounds = ring(size)
    for pairs in rounds:
        used = [rank for pair in pairs for rank in pair]
        assert len(used) == len(set(used))
    found = sorted(pair for pairs in rounds for pair in pairs)
    expected = {tuple(sorted((rank, (rank + 1) % size))) for rank in range(size)} if size > 1 else set()
    assert found == sorted(expected)
    assert len(rounds) <= 3


@pytest.mark.parametrize("size", [3, 4, 5, 16])
@pytest.mark.parametrize("slow", [0, 1, 2])
def test_the_node_that_is_slow_with_both_neighbours_is_found(size: int, slow: int) -> None:
    pairs = {pair: 3.0 if slow in pair else 1.0 for pairs in ring(size) for pair in pairs}
    found = slow_nodes(pairs, size, 0.5)
    assert found == {slow: pytest.approx(1 / 3)}


def test_a_slow_cable_between_two_accuses_neither() -> None:
    pairs = {pair: 9.0 if pair == (1, 2) else 1.0 for pairs in ring(6) for pair in pairs}
    assert slow_nodes(pairs, 6, 0.5) == {}


def test_nobody_is_slow_where_all_are_or_where_two_are_all() -> None:
    assert slow_nodes({pair: 50.0 for pairs in ring(4) for pair in pairs}, 4, 0.5) == {}
    assert slow_nodes({(0, 1): 50.0}, 2, 0.5) == {}
    assert slow_nodes({}, 1, 0.5) == {}


def test_rates_are_those_of_the_wire() -> None:
    # 16 MiB in 0.01 s: an all-reduce over 4 nodes sends 1.5 times that, each exchange half of it.
    text = describe(NetworkTimings(2**24, 0.01, {(0, 1): 0.01, (1, 2): 0.02}), ["n1", "n2", "n3", "n4"])
    assert text == ("all-reduce of 16 MiB over 4 nodes at 20.1 Gbit/s; slowest neighbours n2 and n3, 3.4 Gbit/s")
