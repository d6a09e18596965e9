from dataclasses import replace

import pytest

from pretrain.health.nodes.compare import compare_nodes
from pretrain.health.nodes.node_report import GIB, NodeReport

NODES = ("n1", "n2", "n3", "n4")
HEALTHY = {
    rank: NodeReport(node, {"torch": "2.13", "Python": "3.11"}, 2 * ["H100"], 512 * GIB, [], token="t")
    for rank, node in enumerate(NODES)
}
CLOCKS = {0: 0.0, 1: 0.2, 2: -0.3, 3: 0.1}


def findings(changed: dict[int, NodeReport | None], clocks: dict[int, float] | None = None) -> list[tuple[str, str]]:
    reports = {rank: report for rank, report in {**HEALTHY, **changed}.items() if report is not None}
    offsets = {rank: offset for rank, offset in {**CLOCKS, **(clocks or {})}.items() if rank in reports}
    return [tuple(finding) for finding in compare_nodes(NODES, reports, offsets, "t")]


def test_nodes_that_are_alike_are_fit() -> None:
    assert findings({}) == []


def test_a_node_that_does_not_come_is_named() -> None:
    ((node, text),) = findings({2: None})
    assert node == "n3" and "did not report" in text


def test_what_a_node_says_of_itself_is_found() -> None:
    assert findings({1: replace(HEALTHY[1], problems=["a", "b"])}) == [("n2", "a"), ("n2", "b")]


@pytest.mark.parametrize("token", [None, "that of an earlier start"])
def test_a_node_that_sees_another_run_folder_is_named(token: str | None) -> None:
    ((node, text),) = findings({3: replace(HEALTHY[3], token=token)})
    assert node == "n4" and "must be shared" in text


@pytest.mark.parametrize("rank", [0, 3])
def test_another_version_is_that_of_the_minority(rank: int) -> None:
    versions = {**HEALTHY[rank].versions, "torch": "2.12"}
    assert findings({rank: replace(HEALTHY[rank], versions=versions)}) == [
        (NODES[rank], "torch 2.12, 2.13 on the others")
    ]


def test_of_two_equal_parties_the_head_is_right() -> None:
    older = {rank: replace(HEALTHY[rank], versions={"torch": "2.12", "Python": "3.11"}) for rank in (1, 2)}
    assert {node for node, _ in findings(older)} == {"n2", "n3"}
    assert {node for node, _ in findings({0: replace(older[1], node="n1"), 1: older[1]})} == {"n3", "n4"}


def test_a_missing_device_is_found() -> None:
    assert findings({1: replace(HEALTHY[1], devices=["H100"])}) == [("n2", "devices: 1 × H100, 2 × H100 on the others")]
    assert findings({1: replace(HEALTHY[1], devices=[])}) == [("n2", "devices: none, 2 × H100 on the others")]


def test_a_lost_bank_of_memory_is_found() -> None:
    assert findings({3: replace(HEALTHY[3], memory=480 * GIB)}) == []
    ((node, text),) = findings({3: replace(HEALTHY[3], memory=448 * GIB)})
    assert node == "n4" and text == "448 GiB of memory, 512 on the others"


@pytest.mark.parametrize(("offset", "word"), [(8.0, "8 s ahead of"), (-8.0, "8 s behind")])
def test_a_clock_that_is_off_is_found(offset: float, word: str) -> None:
    ((node, text),) = findings({}, {2: offset})
    assert node == "n3" and word in text


def test_it_may_be_the_head_whose_clock_is_off() -> None:
    assert [node for node, _ in findings({}, {1: 60.1, 2: 60.0, 3: 59.9})] == ["n1"]
