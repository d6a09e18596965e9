"""A run's checkpoints in an object store: the same files under ADDRESS/checkpoints and ADDRESS/weights as in the run.

A store has no rename, so the manifest is the commit: it is written last and deleted first, and a folder without one is no
checkpoint. What comes back is held against its hashes, so a damaged or mixed upload is an older checkpoint and never
wrong weights.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from pretrain.checkpoint import layout
from pretrain.checkpoint.layout import SMALL_BYTES, FileEntry
from pretrain.checkpoint.retention import kept, validation_loss
from pretrain.config.schema import CheckpointConfig, Config, StoreConfig
from pretrain.errors import CheckpointError, ConfigError, DataError
from pretrain.storage.retry import retry
from pretrain.storage.store import LISTING_TRIES, SAME_ANSWERS, RemoteStore, check_name, open_store

WRITABLE = ("s3", "gs", "gcs", "az", "abfs", "memory")
TRANSFERS = 4  # files at a time: training needs the network too
CHUNK_BYTES = 64 << 20  # `data.store.timeout_s` is granted for each

Names = dict[str, int]  # files of one save, with their sizes


class RemoteRun(RemoteStore):
    """The folder of an object store to which a run is copied. A file's name is a path below it, as `checkpoints/step-…/NAME`.

    All methods raise DataError where the store fails, for good or too often.
    """

    def __init__(self, address: str, config: StoreConfig) -> None:
        super().__init__(address, config)
        self.damaged: set[int] = (
            set()
        )  # steps of checkpoints that were found so: to be uploaded again, whatever is there
        if self.scheme == "s3":
            self._files.retries = config.attempts  # of each part: a whole file may never come through at once
            self._files.max_concurrency = 2  # parts of 50 MB in memory, for each file

    def list_saves(self, kind: str) -> dict[int, Names]:
        """Everything under `checkpoints` or `weights` by step, oldest first, complete or not."""
        top = f"{self._root}/{kind}"
        found = self._retry(lambda: self._files.find(top, detail=True), f"{kind}: its listing", LISTING_TRIES)
        saves: dict[int, Names] = {}
        for path, entry in found.items():
            folder, _, name = path.removeprefix(top).strip("/").partition("/")
            step = layout.parse_name(folder)
            if step is not None and name and "/" not in name:
                saves.setdefault(step, {})[name] = entry["size"]
        return dict(sorted(saves.items()))

    def holds(self, folder: Path, manifest: bytes, present: Names) -> bool:
        """Whether exactly this checkpoint is there: a step may be saved again with other content."""
        damaged = folder.parent.name == "checkpoints" and layout.parse_name(folder.name) in self.damaged
        if damaged or present.get(layout.MANIFEST) != len(manifest):
            return False
        return bool(self.read_file(f"{_place(folder)}/{layout.MANIFEST}", SMALL_BYTES) == manifest)

    def upload(self, folder: Path, manifest: bytes, present: Names, check: Callable[[], None]) -> None:
        """Copy a checkpoint over what is `present` there; `check` may raise before the manifest is written.

        The manifest comes from memory: should the step be saved again meanwhile, the store would hold the new manifest
        beside old files otherwise.
        """
        place = _place(folder)
        if layout.MANIFEST in present:
            self.delete(f"{place}/{layout.MANIFEST}")
        names = [entry.name for entry in layout.parse_manifest(manifest, folder.name, str(folder))]
        with ThreadPoolExecutor(TRANSFERS, thread_name_prefix="upload") as pool:
            list(pool.map(lambda name: self._put(folder / name, f"{place}/{name}"), names))
        for name in present.keys() - {*names, layout.MANIFEST}:
            self.delete(f"{place}/{name}")
        check()
        target = self._path(f"{place}/{layout.MANIFEST}")
        self._retry(lambda: self._files.pipe_file(target, manifest), f"{place}/{layout.MANIFEST}")
        if folder.parent.name == "checkpoints":
            self.damaged.discard(layout.parse_name(folder.name) or 0)

    def prune(self, rules: CheckpointConfig, losses: dict[int, float | None], saved_step: int) -> None:
        """Apply the rules of retention.py to what is there, and delete uploads that never became complete.

        `losses` are those known from earlier calls, None for a checkpoint without one; new ones are added.
        """
        saves = {step: names for step, names in self.list_saves("checkpoints").items() if step <= saved_step}
        whole = [step for step, names in saves.items() if layout.MANIFEST in names]
        for step in whole if rules.keep_best else ():
            if step not in losses:
                losses[step] = self._loss(step, saves[step])
        known = {step: loss for step, loss in losses.items() if loss is not None}
        reasons = kept(whole, known, rules, saved_step=saved_step)
        for step, names in saves.items():
            if not reasons.get(step):
                self.remove("checkpoints", step, names)

    def remove(self, kind: str, step: int, names: Iterable[str]) -> None:
        """Delete a save, its manifest first."""
        for name in sorted(names, key=lambda name: name != layout.MANIFEST):
            self.delete(f"{kind}/{layout.checkpoint_name(step)}/{name}")

    def delete(self, name: str) -> None:
        """Delete a file; one that is gone is fine."""

        def once() -> None:
            try:
                self._files.rm_file(self._path(name))
            except FileNotFoundError:
                return  # an earlier try was heard, though not its answer

        self._retry(once, name)

    def download(self, step: int, names: Names, checkpoints: Path, attempt: int) -> Path:
        """Bring a checkpoint into the run, by the commit of a save. Raises CheckpointError where it is damaged."""
        name = layout.checkpoint_name(step)
        place, staging = f"checkpoints/{name}", layout.staging_folder(checkpoints, step, attempt)
        where = f"{self.address}/{place}"

        def read_manifest() -> list[FileEntry]:
            # A store answers a range of nothing with an error.
            data = self.read_file(f"{place}/{layout.MANIFEST}", SMALL_BYTES) if names[layout.MANIFEST] else b""
            return layout.parse_manifest(data, name, where)

        entries = _persist(read_manifest)
        for entry in entries:
            if names.get(entry.name) != entry.bytes:
                found = f"has {names[entry.name]} bytes" if entry.name in names else "is missing"
                raise CheckpointError(f"{where}/{entry.name} {found}, and was written with {entry.bytes} bytes")
        staging.mkdir(parents=True)
        try:
            with ThreadPoolExecutor(TRANSFERS, thread_name_prefix="download") as pool:
                list(pool.map(lambda entry: _persist(lambda: self._get(place, entry, staging)), entries))
            return layout.commit(checkpoints, step, entries, attempt)
        except Exception:
            shutil.rmtree(staging, ignore_errors=True)
            raise

    def _loss(self, step: int, names: Names) -> float | None:
        if not names.get(layout.STATE):
            return None
        data = self.read_file(f"checkpoints/{layout.checkpoint_name(step)}/{layout.STATE}", SMALL_BYTES)
        with suppress(ValueError):
            return validation_loss(json.loads(data))
        return None

    def _get(self, place: str, entry: FileEntry, folder: Path) -> None:
        digest = hashlib.sha256()
        with (folder / entry.name).open("wb") as file:
            for start in range(0, entry.bytes, CHUNK_BYTES):
                data = self.read_range(f"{place}/{entry.name}", start, min(CHUNK_BYTES, entry.bytes - start))
                digest.update(data)
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != entry.sha256:
            raise CheckpointError(
                f"{self.address}/{place}/{entry.name} is corrupt: its sha256 is not the one it was written with"
            )

    def _put(self, path: Path, name: str) -> None:
        size, target = path.stat().st_size, self._path(name)

        def once() -> None:
            self._files.put_file(str(path), target)
            found = self._files.info(target)["size"]
            if found != size:
                raise DataError(f"{found} of {size} bytes arrived")

        self._retry(once, name, 1 + size // CHUNK_BYTES)

    def _path(self, name: str) -> str:
        return "/".join([self._root, *map(check_name, name.split("/"))])

    def _insist(self, once: Callable[[], Any], what: str, timeouts: int = 1) -> Any:
        return retry(
            once,
            what=f"{self.address}/{what}",
            attempts=self.config.attempts,
            timeout_s=self.config.timeout_s * timeouts,
            hint="check checkpoint.upload, network, and credentials that may list, read, write and delete; "
            "data.store.attempts and data.store.timeout_s raise",
        )


def check_upload(config: Config) -> None:
    """Raise UserError where `checkpoint.upload` is no address that can be written to. Nothing is asked."""
    address = config.checkpoint.upload
    if address is None:
        return
    scheme, separator, _ = address.partition("://")
    if not separator or scheme.lower() not in WRITABLE:
        raise ConfigError(
            [
                f"checkpoint.upload={f'{scheme}://…' if separator else address} is not one of "
                f"{', '.join(f'{scheme}://' for scheme in WRITABLE)}\n    hint: checkpoint.upload=s3://BUCKET/RUN"
            ]
        )
    open_store(address, config.data.store)


def open_remote(config: Config) -> RemoteRun | None:
    """Where a run's checkpoints are copied to; None without `checkpoint.upload`. Nothing is asked."""
    address = config.checkpoint.upload
    return None if address is None else RemoteRun(address, config.data.store)


def check_unused(remote: RemoteRun) -> None:
    """Raise CheckpointError where the address holds a checkpoint: a later resume could take it for this run's."""
    steps = [step for step, names in remote.list_saves("checkpoints").items() if layout.MANIFEST in names]
    if steps:
        raise CheckpointError(
            f"checkpoint.resume=never, and {remote.address} holds a checkpoint of step {steps[-1]}",
            hint="checkpoint.resume=auto, or another checkpoint.upload",
        )


def recover(
    remote: RemoteRun, checkpoints: Path, attempt: int, skipped: Callable[[str], None]
) -> tuple[Path, dict[str, Any]] | None:
    """Fetch the newest checkpoint that is whole there, with its state; `skipped` is told why a newer one is passed over.

    Raises DataError where the store fails, and CheckpointError where the disk does: neither is a reason for an older one.
    """
    for step, names in reversed(remote.list_saves("checkpoints").items()):
        if layout.MANIFEST not in names:
            continue
        print(f"no usable checkpoint in {checkpoints}: fetching step {step} from {remote.address}", flush=True)
        try:
            folder = remote.download(step, names, checkpoints, attempt)
            return folder, layout.verify(folder, hashes=False)
        except CheckpointError as error:
            remote.damaged.add(step)
            skipped(error.message)
        except OSError as error:
            raise CheckpointError(
                f"{remote.address}: step {step} cannot be written to {checkpoints}: {error.strerror}"
            ) from error
    return None


def _persist(once: Callable[[], Any]) -> Any:
    """What came may have been damaged on the way; a damaged answer that came so often is what the store holds."""
    for _ in range(SAME_ANSWERS - 1):
        with suppress(CheckpointError):
            return once()
    return once()


def _place(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"
