"""Rank and world size, as the launcher exported them. Without torch: the first thing that a process reads."""

import os
from dataclasses import dataclass

from pretrain.errors import UserError

NAMES = {"rank": "RANK", "size": "WORLD_SIZE", "local_rank": "LOCAL_RANK", "local_size": "LOCAL_WORLD_SIZE"}
# Several processes need all of these; a single one needs none, and takes no notice of the addresses.
TOGETHER = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class World:
    """Rank and size, globally and on this node; by default a single process."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @classmethod
    def from_environment(cls) -> "World":
        """Read RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE.

        Raises UserError if one is not a number, or if only some of those that belong together are set: the process would wait
        for ranks that nobody starts.
        """
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
        if "rank" not in values and "size" not in values:
            return cls()
        world = cls(**values)
        given = [f"{name}={os.environ[name]}" for name in TOGETHER if os.environ.get(name)]
        missing = [name for name in TOGETHER if not os.environ.get(name)]
        if missing and not ("rank" in values and values.get("size") == 1):
            raise UserError(
                f"the environment has {' '.join(given)} but no {', '.join(missing)}: several processes need all four, one "
                "process none",
                hint=f"for one process: unset {' '.join(name for name in TOGETHER if name not in missing)}. For several: "
                "pretrain launch local CONFIG --nproc N, or torchrun",
            )
        if world.rank >= world.size:
            raise UserError(f"RANK={world.rank} is not below WORLD_SIZE={world.size}", hint="ranks are numbered from 0")
        return world

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes the files shared by all ranks."""
        return self.rank == 0
