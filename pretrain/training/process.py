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
from pretrain.failure import describe_failure, record_failure, record_lost_peer
from pretrain.health.stop_request import StopRequest
from pretrain.health.watchdog import Watchdog
from pretrain.run_folder import RunFolder
from pretrain.training.startup.preflight import OpenedData, prepare


def train(config: Config, data: OpenedData, world: World, stop: StopRequest, watchdog: Watchdog) -> str:
    """Train in this process. Returns the final status."""
    say_phase(world, "loading libraries")
    import numpy as np
    import torch

    from pretrain.distributed.collectives import end_group, pick_device, start_group

    device = pick_device(config.engine.device, world.local_rank)
    if device.type == "cpu" and config.engine.precision == "fp16":
        raise UserError("engine.precision=fp16 is not supported on CPU", hint="engine.precision=bf16")
    _configure_torch(config, world.local_size)
    # Longer than the watchdog's limit: its report says more than a timeout does.
    if world.size > 1:
        say_phase(world, f"joining {world.size} processes")
    start_group(world, device, timeout_minutes=max(45, 3 * config.guard.watchdog_s / 60))

    from pretrain.training.trainer import Trainer

    for seed in (random.seed, np.random.seed, torch.manual_seed):  # what checkpoint/rng_state.py keeps
        seed(config.run.seed + world.rank)
    say_phase(world, "building the model")
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


def say_phase(world: World, phase: str) -> None:
    """A line of rank 0 about the start, which may take minutes before the first step."""
    if world.is_main:
        print(f"{phase} …", flush=True)


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
        if world.size == 1:  # a launcher has said it
            say_phase(world, "checking data and checkpoints")
        data = prepare(config, world.size, is_main=world.is_main)
    except PretrainError as error:  # the same on every rank
        if world.is_main:
            print(f"error: {error}", file=sys.stderr)
        leave(error.exit_code)
    stop.set_deadline(config.run.time_limit_minutes)
    watchdog = Watchdog(config.guard.watchdog_s, RunFolder(Path(config.run.dir)), world)
    try:
        with watchdog:
            train(config, data, world, stop, watchdog)
    except KeyboardInterrupt:
        leave(130)
    except Exception as error:
        leave(report_failure(error, watchdog))
    leave(0)


def report_failure(error: Exception, watchdog: Watchdog) -> int:
    """Record the failure in the run folder, print it as the last words of this process, and return the exit code."""
    from pretrain.distributed.collectives import lost_peer

    world, folder = watchdog.world, watchdog.folder
    failure = describe_failure(error, rank=world.rank, step=watchdog.step, attempt=watchdog.attempt)
    details = "" if isinstance(error, PretrainError) else "".join(traceback.format_exception(error))
    if isinstance(error, PretrainError) and error.everywhere and not world.is_main:
        return error.exit_code
    if lost_peer(error) and not isinstance(error, PretrainError):
        # Not the cause: the rank that failed, or the launcher, reports that, and it should stay the last line on the screen.
        record_lost_peer(folder, failure)
        return 1
    logged = record_failure(folder, failure, details)
    if details and not logged:
        print(details, file=sys.stderr)
    alone = world.size == 1 or getattr(error, "everywhere", False)
    text = str(error) if isinstance(error, PretrainError) else failure.reason
    hint = failure.hint if failure.hint and f"hint: {failure.hint}" not in text else None
    print(f"error{'' if alone else f' on rank {world.rank}'}: {text}", file=sys.stderr)
    if hint is not None:
        print(f"  hint: {hint}", file=sys.stderr)
    if details and logged:
        print(f"  traceback: {folder.logs / 'train.log'}", file=sys.stderr)
    return error.exit_code if isinstance(error, PretrainError) and failure.status == "failed" else 1
