"""One training process: `python -m pretrain.train CONFIG [key=value …]`, under torchrun or alone.

Checks come first and need no torch; then the signal handlers; then the heavy imports; then the process group.
"""

import os
import random
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from pretrain.config import Config, load_config
from pretrain.distributed.process_exit import leave
from pretrain.distributed.world import World
from pretrain.errors import PretrainError, UserError
from pretrain.health.stop_request import StopRequest
from pretrain.health.watchdog import Watchdog
from pretrain.run_folder import RunFolder
from pretrain.training.startup.preflight import OpenedData, prepare


def train(config: Config, data: OpenedData, world: World, stop: StopRequest, watchdog: Watchdog) -> str:
    """Train in this process. Returns the final status."""
    import numpy as np
    import torch

    from pretrain.distributed.collectives import end_group, pick_device, start_group

    device = pick_device(config.engine.device, world.local_rank)
    if device.type == "cpu" and config.engine.precision == "fp16":
        raise UserError("engine.precision=fp16 is not supported on CPU", hint="engine.precision=bf16")
    _configure_torch(config, world.local_size)
    # Longer than the watchdog's limit: its report says more than a timeout does.
    start_group(world, device, timeout_minutes=max(45, 3 * config.guard.watchdog_s / 60))

    from pretrain.training.trainer import Trainer

    for seed in (random.seed, np.random.seed, torch.manual_seed):  # what checkpoint/rng_state.py keeps
        seed(config.run.seed + world.rank)
    trainer = Trainer(config, world, device, data, stop, watchdog)
    try:
        status = trainer.run()
    except PretrainError as error:
        if error.everywhere:
            end_group()  # a rank that left first would break the collective in which the others are told
        raise
    trainer.engine.close()
    end_group()
    return status


def _configure_torch(config: Config, local_size: int) -> None:
    import torch

    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(config.engine.threads_per_process or max(1, cores // local_size))
    if config.run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # What torch.use_deterministic_algorithms(True) does, without the compiler that it imports to set a flag there.
        torch._C._set_deterministic_algorithms(True, warn_only=False)
        if config.engine.compile:
            torch.use_deterministic_algorithms(True)
        # Left on, every torch.empty is filled with NaN: DeepSpeed's gigabyte buckets made a step eight times as long.
        torch.utils.deterministic.fill_uninitialized_memory = False


def main(arguments: Sequence[str]) -> None:
    """Train, then exit with the code that errors.py gives the error."""
    if not arguments or arguments[0].startswith("-"):
        print("usage: python -m pretrain.train CONFIG [key=value …]", file=sys.stderr)
        leave(0 if arguments[:1] in (["-h"], ["--help"]) else 2)
    stop = StopRequest().install()
    world = World()  # until it is known, each process speaks
    try:
        world = World.from_environment()
        config = load_config(arguments[0], arguments[1:]).config
        data = prepare(config, world.size, is_main=world.is_main)
    except PretrainError as error:  # the same on every rank
        if world.is_main:
            print(f"error: {error}", file=sys.stderr)
        leave(error.exit_code)
    stop.set_deadline(config.run.time_limit_minutes)
    try:
        with Watchdog(config.guard.watchdog_s, RunFolder(Path(config.run.dir)), world) as watchdog:
            train(config, data, world, stop, watchdog)
    except PretrainError as error:
        if world.is_main or not error.everywhere:
            print(
                f"error{f' on rank {world.rank}' if world.size > 1 and not error.everywhere else ''}: {error}",
                file=sys.stderr,
            )
        leave(error.exit_code)
    except KeyboardInterrupt:
        leave(130)
    except Exception:
        traceback.print_exc()
        leave(1)
    leave(0)
