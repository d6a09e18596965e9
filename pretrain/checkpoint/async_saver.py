"""Saving while training goes on: at most one checkpoint is being written, and all ranks agree what became of it.

    start      every rank copies what it owns to the host; a thread of each writes that copy     save.py
    flags      whether this rank has written, or failed; summed over ranks in the step's one small all-reduce
    settle     at the step at which all ranks have written, rank 0 commits; where one failed, all drop what they wrote

So nothing but the training thread ever talks to other ranks, and a checkpoint appears at the same step for all of them.
Then rank 0 deletes what is superseded and copies to an object store, in threads of its own     retention.py, upload.py
"""

import queue
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.checkpoint import layout
from pretrain.checkpoint.pieces import KINDS
from pretrain.checkpoint.remote import RemoteRun
from pretrain.checkpoint.retention import prune
from pretrain.checkpoint.snapshot import WEIGHTS, Snapshot, give_way, take_snapshot, write_snapshot
from pretrain.checkpoint.upload import Uploads
from pretrain.config.schema import CheckpointConfig
from pretrain.distributed.collectives import from_main, gather_to_all, sum_over_ranks
from pretrain.distributed.engine import Engine
from pretrain.distributed.world import World
from pretrain.errors import PretrainError
from pretrain.run_folder import Progress, RunFolder

CLOSING_S = 10.0


class AsyncSaver:
    """One process's part in all saves of a run. What becomes of them is told to `say`."""

    def __init__(
        self,
        folder: RunFolder,
        attempt: int,
        rules: CheckpointConfig,
        world: World,
        device: torch.device,
        say: Callable[[str], None],
        *,
        fence: Callable[[], None],
        remote: RemoteRun | None,
    ) -> None:
        self.folder, self.attempt, self.rules, self.world, self.device = folder, attempt, rules, world, device
        self.say, self.fence = say, fence
        self.saved_step = 0  # of the newest whole checkpoint
        self.step: int | None = None  # of the save in flight
        self.seconds = 0.0  # from start to commit, of the last save
        self._started = 0.0
        self._buffers: dict[str, Tensor] = {}
        self._roots: list[tuple[Path, tuple[str, ...]]] = []
        self._thread: threading.Thread | None = None
        self._pruning: threading.Thread | None = None
        self._written: list[list[layout.FileEntry]] | None = None
        self._problem: str | None = None
        self._notes: queue.SimpleQueue[str] = queue.SimpleQueue()  # from threads: only the training thread may `say`
        self._uploads: Uploads | None = None
        if remote is not None:
            self._uploads = Uploads(remote, folder, rules, fence, self._notes.put)

    def stand_at(self, step: int, folder: Path | None) -> None:
        """Training continues from the checkpoint of `step` in `folder`, or from scratch."""
        self.saved_step = step
        if self._uploads is not None and folder is not None:
            self._uploads.wake(folder)

    def start(
        self,
        engine: Engine,
        progress: Progress,
        trainer_state: dict[str, Any],
        *,
        tokenizer: dict[str, bytes] | None,
        whole: bool = True,
        weights: bool = False,
    ) -> None:
        """Begin to save the whole state, or the weights alone to RUN/weights, or both. A collective.

        A save that is still in flight ends first.
        """
        self.flush()
        self._started = time.perf_counter()
        self.step = progress.step
        # The whole state last: a kill between the two commits makes the next start save both again.
        self._roots = [
            *([(self.folder.weights, WEIGHTS)] if weights else []),
            *([(self.folder.checkpoints, KINDS)] if whole else []),
        ]
        snapshot = take_snapshot(
            engine,
            self.world,
            progress,
            trainer_state,
            tokenizer=tokenizer,
            buffers=self._buffers,
            kinds=KINDS if whole else WEIGHTS,
        )
        self._written, self._problem = None, None
        self._thread = threading.Thread(target=self._write, args=(snapshot,), name="save", daemon=True)
        self._thread.start()
        if not self.rules.asynchronous:
            self.flush()

    def flags(self) -> list[float]:
        """[has written, has failed], to be summed over ranks."""
        return [float(self._written is not None), float(self._problem is not None)]

    def settle(self, written: float, failed: float) -> None:
        """With the sums of all ranks' flags: commit, drop, or nothing while somebody still writes. A collective."""
        self._say_notes()
        if self.step is None or (failed == 0 and written < self.world.size):
            return
        if failed:
            self._wait()  # a rank may still be writing into what is about to be dropped
        parts = gather_to_all((self._written, self._problem))
        problems = [f"rank {rank}: {problem}" for rank, (_, problem) in enumerate(parts) if problem is not None]
        folders: list[Path] = []
        error: PretrainError | None = None
        if self.world.is_main:
            try:
                folders = [] if problems else self._commit([written for written, _ in parts])
            except OSError as problem:
                problems = [f"rank 0: {problem}"]
            except PretrainError as problem:
                error = problem
            if problems:
                self._drop()
        folders, problems, error = from_main((folders, problems, error))
        if error is not None:
            error.everywhere = True
            raise error
        self._tell(folders, problems)
        self.step, self._thread = None, None
        self.seconds = time.perf_counter() - self._started

    def flush(self) -> None:
        """Wait until nothing is in flight. A collective."""
        if self.step is not None:
            self._wait()
            self.settle(*sum_over_ranks(self.flags(), self.device))

    def finish(self) -> None:
        """Wait until everything is uploaded, within bounds."""
        if self._uploads is not None:
            self._uploads.finish()
        if self.world.is_main:
            if self._pruning is not None:
                self._pruning.join()
            self._prune(self.saved_step)  # what was held while it was copied, or left by a kill after the last save
        self._say_notes()

    def close(self) -> None:
        """Let deletions end, and drop what is in flight: where a run fails, nobody will commit it.

        Without much patience: the next start removes what is left, and should not have to wait.
        """
        if self._pruning is not None:
            self._pruning.join()
        if self.step is not None and self.world.is_main:
            if self._thread is not None:
                self._thread.join(CLOSING_S)
            self._drop()

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _tell(self, folders: list[Path], problems: list[str]) -> None:
        assert self.step is not None
        if problems:
            self.say(
                f"step {self.step} could not be saved: {'; '.join(problems)}; the newest checkpoint is that of step "
                f"{self.saved_step}"
            )
        elif self.folder.checkpoints in {folder.parent for folder in folders}:
            self.saved_step = self.step
        for folder in folders:
            self.say(f"saved {folder}")

    def _write(self, snapshot: Snapshot) -> None:
        if self.rules.asynchronous:
            give_way()
        try:
            written = [
                write_snapshot(layout.staging_folder(root, snapshot.step, self.attempt), snapshot, kinds)
                for root, kinds in self._roots
            ]
        except Exception as error:
            # Not only OSError: whatever it is, training goes on and says so.
            self._problem = f"{type(error).__name__}: {error}"
        else:
            self._written = written

    def _commit(self, written: list[list[list[layout.FileEntry]]]) -> list[Path]:
        assert self.step is not None
        self.fence()
        folders = []
        for number, (root, _) in enumerate(self._roots):
            files = [entry for parts in written for entry in parts[number]]
            folders.append(layout.commit(root, self.step, files, self.attempt))
        if self._pruning is not None:
            self._pruning.join()
        self._pruning = threading.Thread(target=self._prune, args=(self.step,), name="prune", daemon=True)
        self._pruning.start()
        if self._uploads is not None:
            self._uploads.wake(*folders)
        return folders

    def _prune(self, step: int) -> None:
        try:
            with nullcontext([]) if self._uploads is None else self._uploads.held() as held:
                prune(self.folder.checkpoints, self.rules, saved_step=step, spared=held)
        except OSError as error:
            self._notes.put(f"superseded checkpoints cannot be deleted: {error}")

    def _say_notes(self) -> None:
        while not self._notes.empty():
            self.say(self._notes.get())

    def _drop(self) -> None:
        for root, _ in self._roots:
            shutil.rmtree(layout.staging_folder(root, self.step or 0, self.attempt), ignore_errors=True)
