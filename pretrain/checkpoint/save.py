"""Saving: every rank writes what it owns, rank 0 commits. The engine waits meanwhile."""

import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pretrain.checkpoint import layout
from pretrain.checkpoint.deepspeed_state import loss_scale_state, optimizer_steps, partitions, writes
from pretrain.checkpoint.pieces import KINDS, piece_key
from pretrain.checkpoint.rng import rng_state
from pretrain.config.load import save_config
from pretrain.distributed import barrier, gather_to_all
from pretrain.engine import Engine
from pretrain.state import Progress
from pretrain.world import World


def save_checkpoint(
    checkpoints: Path,
    engine: Engine,
    world: World,
    progress: Progress,
    data_state: dict[str, Any],
    *,
    tokenizer: bytes | None,
    keep_last: int,
) -> Path:
    """Commit `checkpoints/step-…` and delete old ones. A collective: every rank calls it at the same step.

    `data_state` holds the description of the `order` and the `ledger`, what has been read of each source.
    """
    staging = layout.staging_folder(checkpoints, progress.step)
    if world.is_main:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
    barrier()
    files = _write_rank(staging, engine, world.rank)
    if world.is_main:
        files += _write_common(staging, engine, world, progress, data_state, tokenizer)
    everything = [entry for entries in gather_to_all(files) for entry in entries]
    if world.is_main:
        layout.commit(checkpoints, progress.step, everything)
        layout.prune(checkpoints, keep_last, saved_step=progress.step)
    barrier()
    return checkpoints / layout.checkpoint_name(progress.step)


def _write_rank(staging: Path, engine: Engine, rank: int) -> list[layout.FileEntry]:
    rng = staging / f"rank-{rank:05d}.rng.json"
    layout.write_json(rng, rng_state(engine.device))
    entries = [layout.describe(rng)]
    if writes(engine):
        tensors = staging / f"rank-{rank:05d}.safetensors"
        save_file(_owned_tensors(engine), tensors)
        entries.append(layout.describe(tensors))
    return entries


def _owned_tensors(engine: Engine) -> dict[str, torch.Tensor]:
    return {
        # A copy: safetensors refuses tensors that share memory, and these are views of one flat partition.
        piece_key(kind, fragment.start, fragment.name): part.flat(kind)
        .narrow(0, fragment.offset, fragment.numel)
        .detach()
        .to("cpu", copy=True)
        for part in partitions(engine)
        for fragment in part.fragments
        for kind in KINDS
    }


def _write_common(
    staging: Path,
    engine: Engine,
    world: World,
    progress: Progress,
    data_state: dict[str, Any],
    tokenizer: bytes | None,
) -> list[layout.FileEntry]:
    state = {
        **progress.to_json(),
        **data_state,
        "optimizer_steps": optimizer_steps(engine),
        "loss_scale": loss_scale_state(engine),
        "world_size": world.size,
        "zero_stage": engine.stage,
        "precision": engine.config.engine.precision,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("pretrain-toolkit", "torch", "deepspeed")},
        },
    }
    layout.write_json(staging / layout.STATE, state)
    save_config(engine.config, staging / layout.CONFIG)
    names = [layout.STATE, layout.CONFIG]
    if tokenizer is not None:
        (staging / layout.TOKENIZER).write_bytes(tokenizer)
        names.append(layout.TOKENIZER)
    return [layout.describe(staging / name) for name in names]
