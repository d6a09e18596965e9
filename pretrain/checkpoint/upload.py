"""Copying checkpoints to an object store while training goes on: one thread of rank 0, one checkpoint at a time.

1. wake      after a commit, and at the start, with folders that are known to be whole
2. choose    what the store lacks: the newest checkpoint, then older ones that are kept for good, then saves of the weights
3. copy      files, then the manifest                                            remote.py
4. prune     the rules of retention.py, on what the store holds

So a checkpoint that was overtaken while another was copied is left out, unless it is kept for good. A failure is a note
for the log, and the next `wake` tries again; training never waits but at its end, and then not for long.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pretrain.checkpoint import layout
from pretrain.checkpoint.remote import RemoteRun
from pretrain.checkpoint.retention import kept, local_losses
from pretrain.config.schema import CheckpointConfig
from pretrain.errors import CheckpointError, PretrainError
from pretrain.run_folder import RunFolder

LAST_WAIT_S = 900.0  # at the end of a run; the other ranks wait half an hour for rank 0


class Uploads:
    """What rank 0 copies. `fence` raises where a later attempt has taken over the run; `note` gets lines for the log."""

    def __init__(
        self,
        remote: RemoteRun,
        folder: RunFolder,
        rules: CheckpointConfig,
        fence: Callable[[], None],
        note: Callable[[str], None],
    ) -> None:
        self.remote, self.folder, self.rules, self.fence, self.note = remote, folder, rules, fence, note
        self._newest = -1  # the step of the checkpoint that this attempt saved or resumed from last
        self._whole: set[Path] = set()  # written or verified by this attempt
        self._there: dict[Path, bytes] = {}  # manifests in the store
        self._damaged: set[Path] = set()
        self._losses: dict[int, float | None] = {}
        self._held: Path | None = None
        self._files = threading.Lock()  # over what is chosen and what is deleted
        self._turn = threading.Lock()  # over the two that follow
        self._woken = False
        self._thread: threading.Thread | None = None

    def wake(self, *whole: Path) -> None:
        """Copy what the store lacks, in the background. Returns at once."""
        for folder in whole:
            if folder.parent == self.folder.checkpoints:
                self._newest = layout.parse_name(folder.name) or 0
            self._whole.add(folder)
            self._damaged.discard(folder)
        with self._turn:
            self._woken = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="upload", daemon=True)
                self._thread.start()

    def finish(self, timeout_s: float = LAST_WAIT_S) -> None:
        """Try once more and wait for it, up to `timeout_s` seconds; note what is not in the store then."""
        self.wake()
        thread = self._thread
        if thread is not None:
            thread.join(timeout_s)
        left = [f"{folder.parent.name}/{folder.name}" for folder in self._lacking()]
        if left:
            self.note(f"not uploaded to {self.remote.address}: {', '.join(left)}; the same command tries again")

    @contextmanager
    def held(self) -> Iterator[list[Path]]:
        """What is being copied and must not be deleted; nothing else is chosen meanwhile."""
        with self._files:
            yield [] if self._held is None else [self._held]

    def _run(self) -> None:
        while True:
            with self._turn:
                if not self._woken:
                    self._thread = None
                    return
                self._woken = False
            try:
                while self._copy_next():
                    pass
            except Exception as error:
                # Not only what is raised on purpose: whatever it is, training goes on and says so.
                reason = error.message if isinstance(error, PretrainError) else f"{type(error).__name__}: {error}"
                self.note(f"upload failed: {reason}; it is tried again after the next checkpoint")
            finally:
                self._held = None

    def _copy_next(self) -> bool:
        """Copy one checkpoint; whether there was one to copy."""
        folder = self._choose()
        if folder is None:
            return False
        kind, step = folder.parent.name, layout.parse_name(folder.name) or 0
        manifest, present = (folder / layout.MANIFEST).read_bytes(), self.remote.list_saves(kind).get(step, {})
        if not self.remote.holds(folder, manifest, present):
            if not self._is_whole(folder):
                return True
            self.remote.upload(folder, manifest, present, self.fence)
            self._losses.pop(step, None)
            self.note(f"uploaded {self.remote.address}/{kind}/{folder.name}")
        self._there[folder] = manifest
        if kind == self.folder.checkpoints.name:
            self.fence()
            self.remote.prune(self.rules, self._losses, self._newest)
        return True

    def _is_whole(self, folder: Path) -> bool:
        """A damaged one in the store would push out good ones."""
        try:
            if folder not in self._whole:
                layout.verify(folder)
        except CheckpointError as error:
            self._damaged.add(folder)
            self.note(f"not uploaded: {error.message}")
            return False
        return True

    def _choose(self) -> Path | None:
        with self._files:
            self._held = next(iter(self._lacking()), None)
            return self._held

    def _lacking(self) -> list[Path]:
        """What should be in the store and is not known to be, in the order in which it goes there."""
        checkpoints, weights = self.folder.checkpoints, self.folder.weights
        losses = local_losses(checkpoints) if self.rules.keep_best else {}
        steps = kept(layout.list_steps(checkpoints), losses, self.rules, saved_step=self._newest)
        wanted = [
            *(checkpoints / layout.checkpoint_name(step) for step in (self._newest,) if step in steps),
            *(checkpoints / layout.checkpoint_name(step) for step in reversed(steps) if set(steps[step]) - {"last"}),
            *(weights / layout.checkpoint_name(step) for step in reversed(layout.list_steps(weights))),
        ]
        return [folder for folder in wanted if folder not in self._damaged and self._lacks(folder)]

    def _lacks(self, folder: Path) -> bool:
        """A step may be saved again with other content."""
        try:
            return self._there.get(folder) != (folder / layout.MANIFEST).read_bytes()
        except FileNotFoundError:
            return False  # deleted meanwhile
