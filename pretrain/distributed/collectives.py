"""Process group: choosing the device, joining and leaving, and the collectives that the trainer needs."""

import os
from contextlib import nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from pretrain.distributed.joining import announced_wait
from pretrain.distributed.world import World
from pretrain.errors import UserError


def pick_device(wanted: str, local_rank: int, *, option: str = "engine.device=") -> torch.device:
    """The device of this process. Raises UserError if `option` requests CUDA and this process has no CUDA device."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(f"{option}cuda, but torch sees no CUDA device", hint=f"{option}cpu")
    if os.environ.get("SLURM_GPUS_PER_TASK") == "1" and torch.cuda.device_count() == 1:
        local_rank = 0  # SLURM shows each task its own GPU only, as number 0
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"local rank {local_rank} has no CUDA device: this machine has {torch.cuda.device_count()}",
            hint="start one process per device",
        )
    return torch.device("cuda", local_rank)


def start_group(world: World, device: torch.device, *, timeout_minutes: float = 30) -> None:
    """Join the process group: nccl on CUDA, gloo on CPU. Waits for the other ranks; alone, it opens no port."""
    alone = world.size == 1
    if alone:
        # DeepSpeed wants them set. What an earlier job left in the environment would be waited for.
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")
    # DeepSpeed reads these.
    os.environ.update(RANK=str(world.rank), WORLD_SIZE=str(world.size), LOCAL_RANK=str(world.local_rank))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with nullcontext() if alone else announced_wait(world, timeout_minutes):
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=dist.HashStore() if alone else None,
            rank=world.rank,
            world_size=world.size,
            timeout=timedelta(minutes=timeout_minutes),
            device_id=device if device.type == "cuda" else None,
        )


def end_group() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.barrier()  # to the others, a rank that leaves early looks like a failure
        dist.destroy_process_group()


LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")


def lost_peer(error: Exception) -> bool:
    """Whether a collective failed because another process ended, which reports the cause if there is one."""
    # gloo raises a plain RuntimeError with the system's message about the socket.
    return isinstance(error, dist.DistError) or any(words in str(error) for words in LOST)


def barrier() -> None:
    """Wait for all ranks."""
    dist.barrier()


def sum_over_ranks(values: list[float], device: torch.device) -> list[float]:
    """Element-wise sum in float64; one all-reduce."""
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.tolist()


def sum_integers_over_ranks(values: list[int], device: torch.device) -> list[int]:
    """Element-wise sum in int64, which wraps around on overflow; one all-reduce."""
    total = torch.tensor(values, dtype=torch.int64, device=device)
    dist.all_reduce(total)
    return total.tolist()


def from_main(value: Any) -> Any:
    """Broadcast rank 0's value. It is pickled."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_to_all(value: Any) -> list[Any]:
    """Values of all ranks, by rank. They are pickled."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
