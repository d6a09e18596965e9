"""Disks that are slow or fail when they are flushed. What is full is a real file system in the tests."""

import errno
import os
import time
from pathlib import Path
from types import ModuleType

from sitecustomize import RANK, fault


@fault("pretrain.checkpoint.layout")
def slow_flush(_layout: ModuleType, seconds: float, rank: int = -1) -> None:
    """Every fsync takes so much longer: saves stay in flight for several steps."""
    original = os.fsync

    def slow(handle: int) -> None:
        if rank in (-1, RANK):
            time.sleep(seconds)
        original(handle)

    os.fsync = slow


@fault("pretrain.checkpoint.layout")
def failing_flush(_layout: ModuleType, step: int, until: int, rank: int = -1) -> None:
    """fsync fails with EIO on files of the checkpoints of steps `step` to `until`."""
    original = os.fsync

    def failing(handle: int) -> None:
        folder = Path(f"/proc/self/fd/{handle}").readlink().parent.name
        found = folder.split("-")[2] if folder.startswith(".staging-step-") else "0"
        if step <= int(found) <= until and rank in (-1, RANK):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        original(handle)

    os.fsync = failing
