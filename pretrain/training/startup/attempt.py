"""One start of a run: rank 0 claims the run folder, decides where training starts, and broadcasts the decision.

An attempt has a number. A process that was cut off (a node without network, a job requeued beside it) may outlive the next
start. It publishes no checkpoint after that: its number is no longer the newest, and its staging folder is gone.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import IO, TypeVar

from pretrain.checkpoint import layout
from pretrain.checkpoint.remote import RemoteRun, check_unused, open_remote, recover
from pretrain.config.load import config_text
from pretrain.distributed.collectives import from_main
from pretrain.distributed.world import World
from pretrain.errors import PretrainError, TrainingError
from pretrain.health.stop_request import StopRequest
from pretrain.run_folder import RunFolder, SkippedRange
from pretrain.storage.files import publish_file
from pretrain.training.startup.opened_data import OpenedData
from pretrain.training.startup.resume import Log, ResumePoint, find_resume_point, newest_checkpoint

FENCE_CHECK_S = 1.0
T = TypeVar("T")


class Attempt:
    """The claim on a run, known to all ranks: `number` of the start, and `skipped` ranges of samples."""

    def __init__(self, folder: RunFolder, world: World, data: OpenedData) -> None:
        self.folder, self.world, self.data = folder, world, data
        self.number = 0
        self.skipped: list[SkippedRange] = []
        self.remote: RemoteRun | None = None  # with checkpoint.upload; on rank 0
        self._lock: IO[str] | None = None
        self._fence_checked = 0.0

    def begin(self, stop: StopRequest) -> ResumePoint:
        """Claim the run and decide where training starts. A collective; raises PretrainError on every rank."""
        return self._on_rank_0(lambda: self._begin(stop))

    def newest(self) -> ResumePoint | None:
        """The newest checkpoint that verifies now, for a rollback. A collective."""
        return self._on_rank_0(self._newest)

    def skip(self, samples: SkippedRange) -> None:
        """Record samples to skip, before they are skipped."""
        self.skipped = [*self.skipped, samples]
        if self.world.is_main:
            self.folder.write_skipped(self.skipped)

    def superseded(self) -> bool:
        """Whether a later attempt has begun; rank 0 checks once a second."""
        if not self.world.is_main or time.monotonic() - self._fence_checked < FENCE_CHECK_S:
            return False
        self._fence_checked = time.monotonic()
        return self.folder.attempt() != self.number

    def leave(self, status: str) -> None:
        """Write the final status, unless a later attempt has begun."""
        if self.number and self.folder.attempt() == self.number:
            self.folder.set_status(status)

    def fence(self) -> None:
        """Raise TrainingError if a later attempt has begun."""
        newest = self.folder.attempt()
        if newest != self.number:
            raise TrainingError(
                f"run {self.folder.path}: superseded by attempt {newest} (this is attempt {self.number}); "
                "exiting without saving"
            )

    def _on_rank_0(self, decide: Callable[[], T]) -> T:
        """The result of rank 0 on every rank, or its error: a rank that waited for rank 0 would hang."""
        result, error = None, None
        if self.world.is_main:
            try:
                result = decide()
            except PretrainError as problem:
                error = problem
        result, error, self.number, self.skipped = from_main((result, error, self.number, self.skipped))
        if error is not None:
            error.everywhere = True
            raise error
        return result

    def _newest(self) -> ResumePoint | None:
        self.fence()  # a rollback rewrites metrics.jsonl and jumps.json
        return newest_checkpoint(self.folder.checkpoints)

    def _begin(self, stop: StopRequest) -> ResumePoint:
        self.folder.make()
        self._lock = self.folder.claim()
        self.number = self.folder.begin_attempt()
        self.folder.failure.unlink(missing_ok=True)
        self.folder.set_status("running")
        self._remove_old_stop_file(stop)
        self.folder.clean()
        for saves in (self.folder.checkpoints, self.folder.weights):
            layout.clean(saves)
        stop.stop_file = self.folder.stop_file
        self.skipped = self.folder.read_skipped()
        self.remote = open_remote(self.data.config)
        point = find_resume_point(self.data, hashes=True, recover=self._recover)
        self._add_skipped(point)
        for path in (self.folder.config, self.folder.config_of(self.number)):
            publish_file(path, config_text(self.data.config))
        return point

    def _add_skipped(self, point: ResumePoint) -> None:
        """Add the ranges that the checkpoint knows: with a new disk, jumps.json is not there."""
        for gap in (point.state or {}).get("jumps", []):
            if (known := SkippedRange(**gap)) not in self.skipped:
                self.skip(known)

    def _recover(self, log: Log) -> ResumePoint | None:
        """From the object store, for a run without a usable checkpoint: its disk may be new."""
        if self.remote is None:
            return None
        if self.data.config.checkpoint.resume == "never":
            check_unused(self.remote)
            return None
        found = recover(self.remote, self.folder.checkpoints, self.number, log)
        return None if found is None else ResumePoint(*found)

    def _remove_old_stop_file(self, stop: StopRequest) -> None:
        """A stop file older than this process was meant for an earlier one; a newer one is meant for this one."""
        with suppress(FileNotFoundError):
            if self.folder.stop_file.stat().st_mtime < stop.since:
                self.folder.stop_file.unlink()
