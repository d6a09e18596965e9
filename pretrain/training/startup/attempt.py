"""One start of a run: rank 0 claims the folder and decides where to begin, and tells the others.

An attempt has a number. A process that was cut off (a node without network, a job that was requeued beside it) may still
live when the next attempt begins; what it saves after that is not published, because its number is no longer the newest
and its staging folder is gone.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from pretrain.checkpoint import layout
from pretrain.checkpoint.remote import RemoteRun, check_unused, open_remote, recover
from pretrain.config.load import save_config
from pretrain.distributed.collectives import from_main
from pretrain.distributed.world import World
from pretrain.errors import PretrainError, TrainingError
from pretrain.health.stop_request import StopRequest
from pretrain.run_folder import RunFolder, SkippedRange
from pretrain.training.startup.init_weights import verify_start
from pretrain.training.startup.preflight import Found, OpenedData, find_resume

LOOK_EVERY_S = 1.0


class Attempt:
    """What all ranks know of this start."""

    def __init__(self, folder: RunFolder, world: World, data: OpenedData) -> None:
        self.folder, self.world, self.data = folder, world, data
        self.number = 0
        self.jumps: list[SkippedRange] = []
        self.start: Path | None = None  # what run.init_from names, once that is verified
        self.notes: list[str] = []  # why newer checkpoints were passed over; on rank 0
        self.remote: RemoteRun | None = None  # with checkpoint.upload; on rank 0
        self._lock: IO[str] | None = None
        self._looked = 0.0

    def begin(self, stop: StopRequest) -> Found:
        """Claim the run and choose the checkpoint to start from. A collective; raises PretrainError on every rank."""
        return self._decide(lambda: self._begin(stop))

    def newest(self) -> Found:
        """The newest whole checkpoint now, for a rollback. A collective."""
        return self._decide(self._newest)

    def jump(self, jump: SkippedRange) -> None:
        """Note what will be jumped over, before it is."""
        self.jumps = [*self.jumps, jump]
        if self.world.is_main:
            self.folder.write_jumps(self.jumps)

    def outdated(self) -> bool:
        """Whether a later attempt has begun; looked up once a second, on rank 0."""
        if not self.world.is_main or time.monotonic() - self._looked < LOOK_EVERY_S:
            return False
        self._looked = time.monotonic()
        return self.folder.attempt() != self.number

    def leave(self, status: str) -> None:
        """Write the status that this attempt ends with, unless a later one has begun."""
        if self.number and self.folder.attempt() == self.number:
            self.folder.set_status(status)

    def fence(self) -> None:
        """Raise TrainingError where a later attempt has begun."""
        found = self.folder.attempt()
        if found != self.number:
            raise TrainingError(
                f"run {self.folder.path}: attempt {found} has begun, and this is attempt {self.number}, which ends unsaved"
            )

    def _decide(self, choose: Any) -> Found:
        """What rank 0 chooses, or the error that it met: a rank that waited for rank 0 would hang."""
        found, error = None, None
        if self.world.is_main:
            try:
                found = choose()
            except PretrainError as problem:
                error = problem
        found, error, self.number, self.jumps, self.start = from_main(
            (found, error, self.number, self.jumps, self.start)
        )
        if error is not None:
            error.everywhere = True
            raise error
        return found

    def _newest(self) -> Found:
        self.fence()  # a rollback rewrites metrics.jsonl and jumps.json
        return layout.find_newest(self.folder.checkpoints)

    def _begin(self, stop: StopRequest) -> Found:
        self.folder.make()
        self._lock = self.folder.claim()
        self.number = self.folder.begin_attempt()
        self._forget_old_stop(stop)
        self.folder.clean()
        for saves in (self.folder.checkpoints, self.folder.weights):
            layout.clean(saves)
        stop.stop_file = self.folder.stop_file
        self.jumps = self.folder.read_jumps()
        self.remote = open_remote(self.data.config)
        found = find_resume(self.data, hashes=True, skipped=self.notes.append, recover=self._recover)
        if found is None:
            self.start = verify_start(self.data.config)
        save_config(self.data.config, self.folder.config)
        self.folder.set_status("running")
        return found

    def _recover(self, skipped: Callable[[str], None]) -> Found:
        """From the object store: the run has no usable checkpoint, perhaps because its disk is new."""
        if self.remote is None:
            return None
        if self.data.config.checkpoint.resume == "never":
            check_unused(self.remote)
            return None
        return recover(self.remote, self.folder.checkpoints, self.number, skipped)

    def _forget_old_stop(self, stop: StopRequest) -> None:
        """A stop file from before this process asked an earlier one; one that came since asks us."""
        with suppress(FileNotFoundError):
            if self.folder.stop_file.stat().st_mtime < stop.since:
                self.folder.stop_file.unlink()
