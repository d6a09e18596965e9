"""The meeting of the nodes, in threads of this process; tests/slurm has it on a cluster."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pretrain.config import load_config
from pretrain.errors import PretrainError
from pretrain.health.nodes.check_nodes import collect, requirements_of, send, to_exclude, write_exclude
from pretrain.health.nodes.compare import NodeFinding
from pretrain.health.nodes.node_report import NodeReport
from pretrain.health.nodes.slurm_step import SlurmStep

NODES = ("n1", "n2", "n3", "n4")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def report_of(node: str, torch: str = "2.13") -> NodeReport:
    return NodeReport(node, {"torch": torch}, [], 1, [], token="t")


def meet(
    reports: dict[int, NodeReport], wait_s: float = 30, disturb: Callable[[int], None] | None = None
) -> dict[int, list[NodeFinding]]:
    """What each node is told, by rank, where those of `reports` come to the head."""
    port = free_port()
    places = {rank: SlurmStep(NODES, rank, "127.0.0.1", port, "7-0") for rank in range(len(NODES))}
    told: dict[int, list[NodeFinding]] = {}

    def come(rank: int) -> None:
        told[rank] = send(places[rank], lambda: replace(reports[rank], clock=time.time()), 30)

    threads = [threading.Thread(target=come, args=(rank,)) for rank in reports if rank]
    if disturb is not None:
        threads.insert(0, threading.Thread(target=disturb, args=(port,)))
    for thread in threads:
        thread.start()
    told[0] = collect(places[0], reports[0], "t", wait_s)
    for thread in threads:
        thread.join(30)
    return told


def test_all_nodes_hear_that_all_are_fit() -> None:
    assert meet({rank: report_of(node) for rank, node in enumerate(NODES)}) == {0: [], 1: [], 2: [], 3: []}


def test_all_nodes_hear_who_is_at_fault() -> None:
    told = meet({rank: report_of(node, "2.12" if rank == 2 else "2.13") for rank, node in enumerate(NODES)})
    assert told == {rank: [NodeFinding("n3", "torch 2.12, 2.13 on the others")] for rank in range(4)}


def test_the_head_does_not_wait_for_ever_and_names_who_is_missing() -> None:
    told = meet({rank: report_of(NODES[rank]) for rank in (0, 1, 3)}, wait_s=1)
    assert set(told) == {0, 1, 3}
    assert {tuple(findings) for findings in told.values()} == {tuple(told[0])}
    assert [finding.node for finding in told[0]] == ["n3"]


def test_strangers_at_the_port_change_nothing() -> None:
    def disturb(port: int) -> None:
        for said in (b"GET / HTTP/1.1\r\n\r\n", report_of("n9").to_line(), report_of("n1", "0").to_line(), b""):
            for _ in range(3000):
                try:
                    with socket.create_connection(("127.0.0.1", port), timeout=5) as stranger:
                        stranger.sendall(said)
                    break
                except ConnectionRefusedError:
                    continue

    told = meet({rank: report_of(node) for rank, node in enumerate(NODES)}, disturb=disturb)
    assert told[0] == []


def test_a_node_without_a_head_says_so() -> None:
    place = SlurmStep(NODES, 1, "127.0.0.1", free_port(), "7-0")
    with pytest.raises(PretrainError, match=r"n2 cannot reach the head, 127\.0\.0\.1:\d+: .*refused"):
        send(place, lambda: report_of("n2"), 0.3)


def test_a_broken_torch_is_compared_before_it_is_imported() -> None:
    program = (
        "import sys, pretrain.health.nodes.check_nodes;"
        "raise SystemExit(sum(name in sys.modules for name in ('torch', 'deepspeed')))"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=120, check=False).returncode == 0


def test_a_run_needs_room_for_a_checkpoint(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        f"run: {{dir: {tmp_path}/run}}\ndata: {{store: {{cache_dir: /cache}}}}\nengine: {{device: cuda}}\n"
        "model: {vocab_size: 128, n_layers: 0x1, d_model: 32, n_heads: 2, n_kv_heads: 2, d_ff: 64}\n"
    )
    loaded = load_config(config).config
    needs = requirements_of(loaded, 2)
    assert needs.cuda and set(needs.free) == {f"{tmp_path}/run", "/cache"}
    assert needs.free[f"{tmp_path}/run"] == 2 * needs.memory > 12 * 128 * 32


@pytest.mark.parametrize(
    ("bad", "excluded"),
    [([], []), (["n2"], ["n2"]), (["n2", "n1", "n2"], ["n1", "n2"]), (["n1", "n2", "n3"], [])],
)
def test_no_more_than_half_of_the_nodes_are_left_out(bad: list[str], excluded: list[str]) -> None:
    assert to_exclude([NodeFinding(node, "") for node in bad], NODES) == excluded


def test_nodes_that_were_left_out_before_stay_out(tmp_path: Path) -> None:
    path = tmp_path / "exclude"
    write_exclude(path, ["n7"])
    write_exclude(path, ["n2", "n7"])
    assert path.read_text() == "n2\nn7\n"
    assert list(tmp_path.iterdir()) == [path]
