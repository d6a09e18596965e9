"""kill -9 at named points: `kill_at_manifest:count=2` ends this process the second time that it comes there.

A point is a function of the product, before or after which the process dies; `rank` is the one that does, -1 all. Another
`number` of a signal does less: 19 stops the process, until somebody continues it.
"""

import os
import signal
from collections.abc import Callable, Iterator
from functools import partial, wraps
from pathlib import Path
from types import ModuleType
from typing import Any

from sitecustomize import FAULTS, RANK, fault

# Point: module, function, whether the function has done its work by then.
POINTS = {
    "claim": ("pretrain.run_folder", "RunFolder.begin_attempt", True),
    "load": ("pretrain.checkpoint.pieces", "PieceIndex.read", False),
    "loaded": ("pretrain.checkpoint.restore", "load_checkpoint", True),
    "snapshot": ("pretrain.checkpoint.snapshot", "take_snapshot", True),
    "staging": ("pretrain.checkpoint.layout", "write_file", False),
    "between_files": ("pretrain.checkpoint.layout", "write_file", True),
    "commit": ("pretrain.checkpoint.layout", "commit", False),
    "committed": ("pretrain.checkpoint.layout", "commit", True),
    "evaluate": ("pretrain.training.periodic_eval", "PeriodicEval._held_out_sums", False),
    "forward": ("pretrain.distributed.engine", "Engine._loss", False),
    "update": ("pretrain.training.trainer", "Trainer._before_update", False),
    "jump": ("pretrain.run_folder", "RunFolder.write_skipped", True),
    "rollback": ("pretrain.training.recorder", "Recorder.rewind", False),
    "finish": ("pretrain.training.trainer", "Trainer._finish", False),
    "uploading": ("pretrain.checkpoint.remote", "RemoteRun.upload", False),
    "file_uploaded": ("pretrain.checkpoint.remote", "RemoteRun._put", True),
    "uploaded": ("pretrain.checkpoint.remote", "RemoteRun.upload", True),
    "deleted_there": ("pretrain.checkpoint.remote", "RemoteRun.delete", True),
}


def die_here(rank: int, count: int, number: int = signal.SIGKILL) -> Callable[[], None]:
    """A function that sends the process a signal when it is called for the `count`-th time."""
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1
        if calls == count and rank in (-1, RANK):
            os.kill(os.getpid(), number)

    return call


def _kill_at(module: ModuleType, *, path: str, after: bool, rank: int = -1, count: int = 1, number: int = 9) -> None:
    *owners, name = path.split(".")
    owner: Any = module
    for step in owners:
        owner = getattr(owner, step)
    original, die = getattr(owner, name), die_here(rank, count, number)

    @wraps(original)
    def dying(*arguments: Any, **options: Any) -> Any:
        if not after:
            die()
        result = original(*arguments, **options)
        if after:
            die()
        return result

    setattr(owner, name, dying)


for _point, (_module, _path, _after) in POINTS.items():
    FAULTS[f"kill_at_{_point}"] = (_module, partial(_kill_at, path=_path, after=_after))


@fault("pretrain.checkpoint.piece_file")
def kill_at_writing(piece_file: ModuleType, rank: int = -1, count: int = 1) -> None:
    """In the middle of a file: its header is written, or some of its bytes."""
    original, die = piece_file._chunks, die_here(rank, count)

    def chunks(tensors: Any) -> Iterator[memoryview]:
        for chunk in original(tensors):
            yield chunk[: len(chunk) // 2]
            die()
            yield chunk[len(chunk) // 2 :]

    piece_file._chunks = chunks


@fault("pretrain.storage.files")
def kill_at_manifest(files: ModuleType, rank: int = -1, count: int = 1, number: int = 9) -> None:
    """Between the manifest and the rename."""
    _kill_in_sync(files, True, die_here(rank, count, number))


@fault("pretrain.storage.files")
def kill_at_renamed(files: ModuleType, rank: int = -1, count: int = 1) -> None:
    """After the rename, before it is flushed."""
    _kill_in_sync(files, False, die_here(rank, count))


def _kill_in_sync(files: ModuleType, staging: bool, die: Callable[[], None]) -> None:
    original = files.sync

    def sync(folder: Path) -> None:
        if staging:
            original(folder)
        if folder.name.startswith(".staging-step") if staging else folder.name in ("checkpoints", "weights"):
            die()
        if not staging:
            original(folder)

    files.sync = sync


@fault("pretrain.checkpoint.layout")
def kill_at_pruning(layout: ModuleType, rank: int = -1, count: int = 1) -> None:
    """A superseded checkpoint has lost its name and one file."""
    original, die = layout.shutil.rmtree, die_here(rank, count)

    def rmtree(folder: Path, **options: Any) -> None:
        if folder.name.startswith(".deleting") and folder.exists():
            next(folder.iterdir()).unlink()
            die()
        original(folder, **options)

    layout.shutil.rmtree = rmtree


@fault("pretrain.training.metrics")
def kill_at_cut_line(metrics: ModuleType, rank: int = -1, count: int = 1) -> None:
    """Half a line of metrics, evaluations or audit is written."""
    original, die = metrics._append, die_here(rank, count)

    def append(file: Any, values: dict[str, Any]) -> None:
        text = metrics.json.dumps(values)
        file.write(text[: len(text) // 2])
        file.flush()
        die()
        file.truncate(file.tell() - len(text[: len(text) // 2].encode()))
        original(file, values)

    metrics._append = append


@fault("pretrain.run_folder")
def kill_at_replacing(_state: ModuleType, name: str, rank: int = -1, count: int = 1) -> None:
    """A small file is about to be replaced by a new one: attempt, status, metrics.jsonl, jumps.json, …"""
    original, die = Path.replace, die_here(rank, count)

    def replace(self: Path, target: Path) -> Path:
        if Path(target).name == name:
            die()
        return original(self, target)

    Path.replace = replace  # type: ignore[method-assign]
