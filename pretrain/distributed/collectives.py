"""The processes of a run: who am I, starting the group, and the few collectives that the trainer itself needs."""

import os
import socket
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from pretrain.distributed.world import World
from pretrain.errors import UserError


def pick_device(wanted: str, local_rank: int, *, option: str = "engine.device=") -> torch.device:
    """The device of this process. Raises UserError where CUDA is wanted by `option` and there is none."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(f"{option}cuda, and torch sees no CUDA device", hint=f"{option}cpu")
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"local rank {local_rank} has no device of its own: this machine has {torch.cuda.device_count()}",
            hint="start as many processes as there are devices",
        )
    return torch.device("cuda", local_rank)


def start_group(world: World, device: torch.device, *, timeout_minutes: float = 30) -> None:
    """Join the process group: nccl on CUDA, gloo on CPU."""
    if "MASTER_ADDR" not in os.environ:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(_free_port()))
    os.environ.update(RANK=str(world.rank), WORLD_SIZE=str(world.size), LOCAL_RANK=str(world.local_rank))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        rank=world.rank,
        world_size=world.size,
        timeout=timedelta(minutes=timeout_minutes),
        device_id=device if device.type == "cuda" else None,
    )


def end_group() -> None:
    """Leave together: a rank that goes early looks like a failure to the others."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")


def lost_peer(error: Exception) -> bool:
    """Whether a collective failed because another process is gone: that one knows why, and may have ended in order."""
    # gloo raises a plain RuntimeError, with what the system says of a socket whose other end is gone.
    return isinstance(error, dist.DistError) or any(words in str(error) for words in GONE)


def barrier() -> None:
    """Wait for all ranks."""
    dist.barrier()


def sum_over_ranks(values: list[float], device: torch.device) -> list[float]:
    """Element-wise sum in float64; one small collective."""
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.tolist()


def sum_integers_over_ranks(values: list[int], device: torch.device) -> list[int]:
    """Element-wise sum of signed 64-bit integers, which wraps around."""
    total = torch.tensor(values, dtype=torch.int64, device=device)
    dist.all_reduce(total)
    return total.tolist()


def from_main(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_to_all(value: Any) -> list[Any]:
    """Every rank's value, by rank."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
