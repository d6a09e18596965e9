"""Uploads to an object store during training: one thread of rank 0, one checkpoint at a time.

1. wake      after a commit, and at the start, with folders known to be intact
2. choose    missing in the store: the newest checkpoint, then older ones kept by `every` or `best`, then weights-only saves
3. copy      files, then the manifest                                            remote.py
4. prune     the rules of retention.py, applied to the store

A checkpoint superseded while another was being copied is not uploaded, unless retention keeps it. Failures are logged and
retried at the next `wake`. Training waits for uploads only at its end, and only for LAST_WAIT_S.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pretrain.checkpoint import layout
from pretrain.checkpoint.remote import RemoteRun
from pretrain.checkpoint.retention import local_losses, reasons_to_keep
from pretrain.config.schema import CheckpointConfig
from pretrain.errors import CheckpointError, PretrainError
from pretrain.run_folder import RunFolder

LAST_WAIT_S = 900.0  # the other ranks wait 30 minutes for rank 0, the timeout of the process group


class Uploader:
    """Uploads of rank 0. `fence` raises if a later attempt has taken over the run; `log` gets lines for people."""

    def __init__(
        self,
        remote: RemoteRun,
        folder: RunFolder,
        rules: CheckpointConfig,
        fence: Callable[[], None],
        log: Callable[[str], None],
    ) -> None:
        self.remote, self.folder, self.rules, self.fence, self.log = remote, folder, rules, fence, log
        self._newest = -1  # step of the checkpoint that this attempt last saved or resumed from
        self._intact: set[Path] = set()  # written or verified by this attempt
        self._uploaded: dict[Path, bytes] = {}  # manifests in the store
        self._corrupt: set[Path] = set()
        self._losses: dict[int, float | None] = {}
        self._pinned: Path | None = None
        self._choice_lock = threading.Lock()  # excludes choosing while checkpoints are being deleted
        self._wake_lock = threading.Lock()  # over the next two
        self._woken = False
        self._thread: threading.Thread | None = None

    def wake(self, *intact: Path) -> None:
        """Upload missing checkpoints in the background. Returns at once."""
        for folder in intact:
            if folder.parent == self.folder.checkpoints:
                self._newest = layout.parse_name(folder.name) or 0
            self._intact.add(folder)
            self._corrupt.discard(folder)
        with self._wake_lock:
            self._woken = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="upload", daemon=True)
                self._thread.start()

    def finish(self, timeout_s: float = LAST_WAIT_S) -> None:
        """Retry once, wait up to `timeout_s` seconds, and log checkpoints still missing in the store."""
        self.wake()
        thread = self._thread
        if thread is not None:
            thread.join(timeout_s)
        left = [f"{folder.parent.name}/{folder.name}" for folder in self._missing()]
        if left:
            self.log(f"not uploaded to {self.remote.address}: {', '.join(left)}; run the same command again to retry")

    @contextmanager
    def pinned(self) -> Iterator[list[Path]]:
        """Folders being copied, which must not be deleted. No other is chosen inside this context."""
        with self._choice_lock:
            yield [] if self._pinned is None else [self._pinned]

    def _run(self) -> None:
        while True:
            with self._wake_lock:
                if not self._woken:
                    self._thread = None
                    return
                self._woken = False
            try:
                while self._copy_next():
                    pass
            except Exception as error:
                # Not only errors of the toolkit: training continues after any failure to upload, and logs it.
                reason = error.message if isinstance(error, PretrainError) else f"{type(error).__name__}: {error}"
                self.log(f"upload failed: {reason}; retrying after the next checkpoint")
            finally:
                self._pinned = None

    def _copy_next(self) -> bool:
        """Upload one checkpoint; False if none is missing."""
        folder = self._choose()
        if folder is None:
            return False
        kind, step = folder.parent.name, layout.parse_name(folder.name) or 0
        manifest, present = (folder / layout.MANIFEST).read_bytes(), self.remote.list_saves(kind).get(step, {})
        if not self.remote.holds(folder, manifest, present):
            if not self._is_intact(folder):
                return True
            self.remote.upload(folder, manifest, present, self.fence)
            self._losses.pop(step, None)
            self.log(f"uploaded {self.remote.address}/{kind}/{folder.name}")
        self._uploaded[folder] = manifest
        if kind == self.folder.checkpoints.name:
            self.fence()
            self.remote.prune(self.rules, self._losses, self._newest)
        return True

    def _is_intact(self, folder: Path) -> bool:
        # A corrupt upload would displace good ones in the store.
        try:
            if folder not in self._intact:
                layout.verify(folder)
        except CheckpointError as error:
            self._corrupt.add(folder)
            self.log(f"not uploaded: {error.message}")
            return False
        return True

    def _choose(self) -> Path | None:
        with self._choice_lock:
            self._pinned = next(iter(self._missing()), None)
            return self._pinned

    def _missing(self) -> list[Path]:
        """Folders that the store should hold and is not known to, in the order of upload."""
        checkpoints, weights = self.folder.checkpoints, self.folder.weights
        losses = local_losses(checkpoints) if self.rules.keep_best else {}
        steps = reasons_to_keep(layout.list_steps(checkpoints), losses, self.rules, saved_step=self._newest)
        wanted = [
            *(checkpoints / layout.checkpoint_name(step) for step in (self._newest,) if step in steps),
            *(checkpoints / layout.checkpoint_name(step) for step in reversed(steps) if set(steps[step]) - {"last"}),
            *(weights / layout.checkpoint_name(step) for step in reversed(layout.list_steps(weights))),
        ]
        return [folder for folder in wanted if folder not in self._corrupt and self._is_missing(folder)]

    def _is_missing(self, folder: Path) -> bool:
        # By manifest, not by name: a step may be saved again with other content.
        try:
            return self._uploaded.get(folder) != (folder / layout.MANIFEST).read_bytes()
        except FileNotFoundError:
            return False  # deleted meanwhile
