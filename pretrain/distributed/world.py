"""Rank and world size, as the launcher exported them. Without torch: the first thing that a process reads."""

import os
from dataclasses import dataclass

from pretrain.errors import UserError

NAMES = {"rank": "RANK", "size": "WORLD_SIZE", "local_rank": "LOCAL_RANK", "local_size": "LOCAL_WORLD_SIZE"}


@dataclass(frozen=True)
class World:
    """Rank and size, globally and on this node; by default a single process."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @classmethod
    def from_environment(cls) -> "World":
        """Read RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE. Raises UserError if one is not a number."""
        values = {}
        for field, name in NAMES.items():
            text = os.environ.get(name, "")
            if text and not text.isdecimal():
                raise UserError(f"{name}={text!r} in the environment is not a number", hint="torchrun sets it")
            if text:
                values[field] = int(text)
        tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
        if "rank" not in values and tasks != "1":
            raise UserError(
                f"srun started {tasks} tasks, but RANK is not set: each would train alone",
                hint="export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID, or use torchrun",
            )
        return cls(**values)

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes the files shared by all ranks."""
        return self.rank == 0
