"""Network bandwidth between a job's nodes: one all-reduce over all, then pairwise exchanges around a ring.

An all-reduce is as slow as the slowest node, but does not identify it. A node that is slow with both of its neighbours is
the one.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.distributed as dist

from pretrain.distributed.collectives import end_group, pick_device, start_group
from pretrain.distributed.world import World
from pretrain.errors import PretrainError

MESSAGE_BYTES = {"cpu": 2**24, "cuda": 2**28}
REPEATS = 5
GIGABIT = 1e9 / 8


class NetworkTimings(NamedTuple):
    """Seconds, best of several repetitions, of the all-reduce and of each pair's exchange."""

    message_bytes: int
    all_reduce_s: float
    pairs: dict[tuple[int, int], float]


def measure_network(rank: int, size: int, device_name: str, timeout_s: float) -> NetworkTimings:
    """Join a process group of one process per node, and measure. MASTER_ADDR and MASTER_PORT must be set.

    Raises PretrainError if the network fails or an all-reduce gives wrong sums.
    """
    device = pick_device(device_name, 0)
    try:
        start_group(World(rank, size), device, timeout_minutes=timeout_s / 60)
        message = torch.empty(MESSAGE_BYTES[device.type] // 4, device=device)
        own = [_best(lambda: dist.all_reduce(message.fill_(rank + 1)), device.type)]
        wrong = int((message != size * (size + 1) / 2).sum())
        for pairs in ring(size):
            pair = next((pair for pair in pairs if rank in pair), None)
            dist.barrier()
            own.append(0.0 if pair is None else _best(partial(_exchange, message, sum(pair) - rank), device.type))
        table = torch.zeros(size, len(own), dtype=torch.float64, device=device)
        table[rank] = torch.tensor(own)
        dist.all_reduce(table)
        end_group()
    except (RuntimeError, ValueError) as error:
        raise PretrainError(f"the network failed during the bandwidth test: {error}") from error
    if wrong:
        raise PretrainError(f"an all-reduce gave {wrong} wrong sums on this node")
    seconds = table.tolist()
    pairs = {(a, b): max(seconds[a][n], seconds[b][n]) for n, round in enumerate(ring(size), 1) for a, b in round}
    return NetworkTimings(message.nbytes, max(row[0] for row in seconds), pairs)


def _best(do: Callable[[], object], device: str) -> float:
    taken = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        do()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - begun)
    return min(taken)


def _exchange(message: torch.Tensor, peer: int) -> None:
    """Exchange half of the message in each direction at once."""
    there, back = message.chunk(2)
    for work in dist.batch_isend_irecv([dist.P2POp(dist.isend, there, peer), dist.P2POp(dist.irecv, back, peer)]):
        work.wait()


def describe(measured: NetworkTimings, nodes: Sequence[str]) -> str:
    """Summary in one line."""
    # In an all-reduce each node sends and receives 2 (n - 1) / n of the message (nccl-tests: "bus bandwidth").
    rate = 2 * (len(nodes) - 1) / len(nodes) * measured.message_bytes / measured.all_reduce_s / GIGABIT
    text = f"all-reduce of {measured.message_bytes >> 20} MiB over {len(nodes)} nodes at {rate:.1f} Gbit/s"
    if measured.pairs:
        (a, b), taken = max(measured.pairs.items(), key=lambda item: item[1])
        text += (
            f"; slowest neighbours {nodes[a]} and {nodes[b]}, {measured.message_bytes / 2 / taken / GIGABIT:.1f} Gbit/s"
        )
    return text


def slow_nodes(pairs: Mapping[tuple[int, int], float], size: int, slow: float) -> dict[int, float]:
    """Ranks below `slow` times the median bandwidth with every neighbour, and their fraction of it.

    Finds nothing with two nodes, which cannot be told apart, or if all are slow.
    """
    best = {rank: min(taken for pair, taken in pairs.items() if rank in pair) for rank in range(size) if pairs}
    # Median over nodes, not pairs: with three or four nodes, a slow one is in half of the pairs or more.
    usual = statistics.median(best.values()) if best else 0.0
    return {rank: usual / taken for rank, taken in best.items() if usual < slow * taken}


def ring(size: int) -> list[list[tuple[int, int]]]:
    """Rounds of neighbour pairs: each pair once, no node twice in a round."""
    if size < 3:
        return [[(0, 1)]] if size == 2 else []
    steps = [(rank, rank + 1) for rank in range(size - 1)]
    closing = (0, size - 1)
    if size % 2 == 0:
        return [steps[::2], [*steps[1::2], closing]]
    return [steps[::2], steps[1::2], [closing]]
