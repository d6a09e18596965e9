"""Snapshots: one rank's part of a checkpoint, copied to the host and written to a staging folder.

take_snapshot     device → host: the only part that blocks training, and the only one that reads the engine
write_snapshot    host → files, hashed and fsynced, in a thread                     async_saver.py commits
"""

import json
import os
import platform
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.checkpoint import layout
from pretrain.checkpoint.pieces import piece_key, write_pieces
from pretrain.checkpoint.rng_state import rng_state
from pretrain.config.load import config_text
from pretrain.config.schema import Config
from pretrain.distributed.engine import Engine
from pretrain.distributed.world import World
from pretrain.distributed.zero_partitions import (
    all_kinds,
    check_optimizer_state,
    loss_scale_state,
    optimizer_steps,
    partitions,
    saves_partitions,
)
from pretrain.run_folder import Progress

LOWER_PRIORITY = 15  # added to the niceness: gets about 1/30 of a core that others compete for
WEIGHTS = ("fp32",)  # kinds of a weights-only save


@dataclass(frozen=True)
class Snapshot:
    """One rank's part of a checkpoint in host memory: pieces by kind and key, small files by name; the config on rank 0."""

    step: int
    rank: int
    pieces: dict[str, dict[str, Tensor]]
    files: dict[str, bytes]
    config: Config | None


def take_snapshot(
    engine: Engine,
    world: World,
    progress: Progress,
    trainer_state: dict[str, Any],
    *,
    tokenizer: dict[str, bytes] | None,
    buffers: dict[str, Tensor],
    kinds: Sequence[str] | None = None,
) -> Snapshot:
    """Copy this rank's partitions to the host. `buffers` persists between calls and holds the memory to reuse.

    `trainer_state` is added to state.json. `tokenizer` holds its files by name, from `read_tokenizer`. Raises UserError if
    the optimizer keeps other state than it declares.
    """
    check_optimizer_state(engine)
    names = all_kinds(engine) if kinds is None else kinds
    pieces: dict[str, dict[str, Tensor]] = {kind: {} for kind in names}
    if saves_partitions(engine):
        for part in partitions(engine):
            for fragment in part.fragments:
                for kind in names:
                    key = piece_key(kind, fragment.start, fragment.name)
                    source = part.flat(kind).narrow(0, fragment.offset, fragment.numel).detach()
                    pieces[kind][key] = _copy(source, buffers, key)
        if engine.device.type == "cuda":
            torch.cuda.synchronize(engine.device)  # copies into pinned memory are asynchronous
    files = {f"rank-{world.rank:05d}.rng.json": json.dumps(rng_state(engine.device)).encode()}
    if world.is_main:
        files |= _common_files(engine, world, progress, trainer_state, tokenizer)
    return Snapshot(progress.step, world.rank, pieces, files, engine.config if world.is_main else None)


def lower_priority() -> None:
    """Lower the priority of this thread and of threads that it starts.

    Hashing and copying to the page cache takes a core. With training threads on all cores, steps took a third longer during
    a save.
    """
    with suppress(OSError):
        # On Linux PRIO_PROCESS takes a thread id and affects only that thread.
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + LOWER_PRIORITY))


def write_snapshot(staging: Path, snapshot: Snapshot, kinds: Sequence[str] | None = None) -> list[layout.FileEntry]:
    """Write this rank's files to the staging folder, creating it. Raises OSError if the disk is full or fails."""
    staging.mkdir(parents=True, exist_ok=True)
    files = snapshot.files
    if snapshot.config is not None:  # takes 5 ms: here training does not wait for it
        files = {**files, layout.CONFIG: config_text(snapshot.config).encode()}
    entries = [layout.write_file(staging / name, data) for name, data in files.items()]
    pieces = {key: tensor for kind in kinds or snapshot.pieces for key, tensor in snapshot.pieces[kind].items()}
    if pieces:
        entries.append(write_pieces(staging / f"rank-{snapshot.rank:05d}.safetensors", pieces))
    return entries


def _copy(source: Tensor, buffers: dict[str, Tensor], key: str) -> Tensor:
    if key not in buffers or buffers[key].shape != source.shape:
        buffers[key] = torch.empty(source.shape, dtype=torch.float32, pin_memory=source.is_cuda)
    return buffers[key].copy_(source, non_blocking=True)


def _common_files(
    engine: Engine,
    world: World,
    progress: Progress,
    trainer_state: dict[str, Any],
    tokenizer: dict[str, bytes] | None,
) -> dict[str, bytes]:
    state = {
        **progress.to_json(),
        **trainer_state,
        "optimizer_steps": optimizer_steps(engine),
        "loss_scale": loss_scale_state(engine),
        "world_size": world.size,
        "zero_stage": engine.stage,
        "precision": engine.config.engine.precision,
        "versions": _versions(),
    }
    return {layout.STATE: layout.json_bytes(state), **(tokenizer or {})}


@cache
def _versions() -> dict[str, str]:
    names = ("pretrain-toolkit", "torch", "deepspeed")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
