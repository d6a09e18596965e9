"""Asynchronous saves: at most one checkpoint is being written, and all ranks agree on its outcome.

    start                      each rank copies its part to the host; a thread writes the copy          snapshot.py
    written_flags              whether this rank has written or failed; summed over ranks in the step's small all-reduce
    commit_when_all_written    once all ranks have written, rank 0 commits; if one failed, the save is discarded

Only the training thread takes part in collectives, and a checkpoint appears at the same step on every rank. After a commit,
threads of rank 0 delete superseded checkpoints and upload to an object store          retention.py, upload.py
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
from pretrain.checkpoint.remote import RemoteRun
from pretrain.checkpoint.retention import prune
from pretrain.checkpoint.snapshot import WEIGHTS, Snapshot, lower_priority, take_snapshot, write_snapshot
from pretrain.checkpoint.upload import Uploader
from pretrain.config.schema import CheckpointConfig
from pretrain.distributed.collectives import from_main, gather_to_all, sum_over_ranks
from pretrain.distributed.engine import Engine
from pretrain.distributed.world import World
from pretrain.distributed.zero_partitions import all_kinds
from pretrain.errors import PretrainError
from pretrain.run_folder import Progress, RunFolder

CLOSING_S = 10.0  # wait for the writer when a run fails


class AsyncSaver:
    """Saves of a run, on one rank. `log` gets lines for people; `fence` raises if a later attempt has taken over the run."""

    def __init__(
        self,
        folder: RunFolder,
        attempt: int,
        rules: CheckpointConfig,
        world: World,
        device: torch.device,
        log: Callable[[str], None],
        *,
        fence: Callable[[], None],
        remote: RemoteRun | None,
    ) -> None:
        self.folder, self.attempt, self.rules, self.world, self.device = folder, attempt, rules, world, device
        self.log, self.fence = log, fence
        self.saved_step = 0  # of the newest complete checkpoint
        self.step: int | None = None  # of the save in flight
        self.seconds = 0.0  # of the last save, from start to commit
        self._started = 0.0
        self._buffers: dict[str, Tensor] = {}
        self._targets: list[tuple[Path, tuple[str, ...]]] = []
        self._thread: threading.Thread | None = None
        self._pruning: threading.Thread | None = None
        self._written: list[list[layout.FileEntry]] | None = None
        self._problem: str | None = None
        self._messages: queue.SimpleQueue[str] = queue.SimpleQueue()  # from threads: only the training thread may log
        self._uploader: Uploader | None = None
        if remote is not None:
            self._uploader = Uploader(remote, folder, rules, fence, self._messages.put)

    def continue_from(self, step: int, folder: Path | None) -> None:
        """Record that training continues from the checkpoint `folder` of `step`; None from scratch."""
        self.saved_step = step
        if self._uploader is not None and folder is not None:
            self._uploader.wake(folder)

    def start(
        self,
        engine: Engine,
        progress: Progress,
        trainer_state: dict[str, Any],
        *,
        tokenizer: dict[str, bytes] | None,
        full: bool = True,
        weights: bool = False,
    ) -> None:
        """Start a save of the full state, of the weights alone to RUN/weights, or of both. A collective.

        Waits for a save in flight.
        """
        self.flush()
        self._started = time.perf_counter()
        self.step = progress.step
        # Full state last: after a kill between the two commits, the resumed run repeats this save of both.
        self._targets = [
            *([(self.folder.weights, WEIGHTS)] if weights else []),
            *([(self.folder.checkpoints, all_kinds(engine))] if full else []),
        ]
        snapshot = take_snapshot(
            engine,
            self.world,
            progress,
            trainer_state,
            tokenizer=tokenizer,
            buffers=self._buffers,
            kinds=all_kinds(engine) if full else WEIGHTS,
        )
        self._written, self._problem = None, None
        self._thread = threading.Thread(target=self._write, args=(snapshot,), name="save", daemon=True)
        self._thread.start()
        if not self.rules.asynchronous:
            self.flush()

    def written_flags(self) -> list[float]:
        """[has written, has failed] of this rank, as summands of an all-reduce."""
        return [float(self._written is not None), float(self._problem is not None)]

    def commit_when_all_written(self, written: float, failed: float) -> None:
        """Commit if all ranks have written, discard if one failed, else do nothing. A collective.

        Arguments are sums of `written_flags` over ranks. Raises on every rank if `fence` does.
        """
        self._log_messages()
        if self.step is None or (failed == 0 and written < self.world.size):
            return
        if failed:
            self._wait()  # this rank may still be writing into the folder that is discarded below
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
                self._discard()
        folders, problems, error = from_main((folders, problems, error))
        if error is not None:
            error.everywhere = True
            raise error
        self._log_outcome(folders, problems)
        self.step, self._thread = None, None
        self.seconds = time.perf_counter() - self._started

    def flush(self) -> None:
        """Wait for the save in flight. A collective."""
        if self.step is not None:
            self._wait()
            self.commit_when_all_written(*sum_over_ranks(self.written_flags(), self.device))

    def finish(self) -> None:
        """Wait for uploads, up to a limit, and apply retention once more."""
        if self._uploader is not None:
            self._uploader.finish()
        if self.world.is_main:
            if self._pruning is not None:
                self._pruning.join()
            self._prune(self.saved_step)  # pinned by an upload until now, or left by a kill after the last save
        self._log_messages()

    def close(self) -> None:
        """Wait for deletions and discard the save in flight: after a failure no rank will commit it."""
        if self._pruning is not None:
            self._pruning.join()
        if self.step is not None and self.world.is_main:
            if self._thread is not None:
                self._thread.join(CLOSING_S)  # not longer: the next start removes leftovers
            self._discard()

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _log_outcome(self, folders: list[Path], problems: list[str]) -> None:
        assert self.step is not None
        if problems:
            self.log(
                f"step {self.step} could not be saved: {'; '.join(problems)}; the newest checkpoint is of step "
                f"{self.saved_step}"
            )
        elif self.folder.checkpoints in {folder.parent for folder in folders}:
            self.saved_step = self.step
        for folder in folders:
            self.log(f"saved {folder}")

    def _write(self, snapshot: Snapshot) -> None:
        if self.rules.asynchronous:
            lower_priority()
        try:
            written = [
                write_snapshot(layout.staging_folder(root, snapshot.step, self.attempt), snapshot, kinds)
                for root, kinds in self._targets
            ]
        except Exception as error:
            # Not only OSError: training continues after any failure to save, and logs it.
            self._problem = f"{type(error).__name__}: {error}"
        else:
            self._written = written

    def _commit(self, written: list[list[list[layout.FileEntry]]]) -> list[Path]:
        assert self.step is not None
        self.fence()
        folders = []
        for number, (root, _) in enumerate(self._targets):
            files = [entry for parts in written for entry in parts[number]]
            folders.append(layout.commit(root, self.step, files, self.attempt))
        if self._pruning is not None:
            self._pruning.join()
        self._pruning = threading.Thread(target=self._prune, args=(self.step,), name="prune", daemon=True)
        self._pruning.start()
        if self._uploader is not None:
            self._uploader.wake(*folders)
        return folders

    def _prune(self, step: int) -> None:
        try:
            with nullcontext([]) if self._uploader is None else self._uploader.pinned() as pinned:
                prune(self.folder.checkpoints, self.rules, saved_step=step, pinned=pinned)
        except OSError as error:
            self._messages.put(f"superseded checkpoints cannot be deleted: {error}")

    def _log_messages(self) -> None:
        while not self._messages.empty():
            self.log(self._messages.get())

    def _discard(self) -> None:
        for root, _ in self._targets:
            shutil.rmtree(layout.staging_folder(root, self.step or 0, self.attempt), ignore_errors=True)
