"""Checkpoints of a run in an object store: the same files, under ADDRESS/checkpoints and ADDRESS/weights.

Object stores have no rename, so the manifest is the commit: written last, deleted first, and a folder without one is not a
checkpoint. Downloads are checked against its hashes: a corrupt or mixed upload means an older checkpoint, never wrong
weights.
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
from pretrain.checkpoint.retention import reasons_to_keep, validation_loss
from pretrain.config.schema import CheckpointConfig, Config, StoreConfig
from pretrain.errors import CheckpointError, ConfigError, DataError
from pretrain.storage.retry import retry
from pretrain.storage.store import LISTING_TRIES, SAME_ANSWERS, RemoteStore, check_name, open_store

WRITABLE = ("s3", "gs", "gcs", "az", "abfs", "memory")
TRANSFERS = 4  # files in parallel: training needs the network too
CHUNK_BYTES = 64 << 20  # `data.store.timeout_s` applies to each

Files = dict[str, int]  # size in bytes by file name, of one save


class RemoteRun(RemoteStore):
    """Folder of an object store that a run is uploaded to. File names are paths in it: `checkpoints/step-…/NAME`.

    All methods raise DataError if the store fails finally or too often.
    """

    def __init__(self, address: str, config: StoreConfig) -> None:
        super().__init__(address, config)
        self.corrupt: set[int] = set()  # steps of checkpoints found corrupt in the store: to be uploaded again
        if self.scheme == "s3":
            self._files.retries = (
                config.attempts
            )  # per part: on a flaky network a complete file may never succeed at once
            self._files.max_concurrency = 2  # 50 MB parts in memory per file

    def list_saves(self, kind: str) -> dict[int, Files]:
        """Saves under `checkpoints` or `weights` by step, oldest first, complete or not."""
        top = f"{self._root}/{kind}"
        found = self._retry(lambda: self._files.find(top, detail=True), f"{kind}: its listing", LISTING_TRIES)
        saves: dict[int, Files] = {}
        for path, entry in found.items():
            folder, _, name = path.removeprefix(top).strip("/").partition("/")
            step = layout.parse_name(folder)
            if step is not None and name and "/" not in name:
                saves.setdefault(step, {})[name] = entry["size"]
        return dict(sorted(saves.items()))

    def holds(self, folder: Path, manifest: bytes, present: Files) -> bool:
        """Whether the store holds exactly this checkpoint: a step may be saved again with other content."""
        corrupt = folder.parent.name == "checkpoints" and layout.parse_name(folder.name) in self.corrupt
        if corrupt or present.get(layout.MANIFEST) != len(manifest):
            return False
        return bool(self.read_file(f"{_remote_name(folder)}/{layout.MANIFEST}", SMALL_BYTES) == manifest)

    def upload(self, folder: Path, manifest: bytes, present: Files, check: Callable[[], None]) -> None:
        """Upload a checkpoint over the files `present` in the store. `check` may raise before the commit.

        `manifest` was read before the files: if the step is saved again meanwhile, the store must not get the new manifest
        beside old files.
        """
        place = _remote_name(folder)
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
            self.corrupt.discard(layout.parse_name(folder.name) or 0)

    def prune(self, rules: CheckpointConfig, losses: dict[int, float | None], saved_step: int) -> None:
        """Delete superseded and incomplete uploads up to `saved_step`, by the rules of retention.py.

        `losses` caches validation losses between calls; None for a checkpoint without one.
        """
        saves = {step: names for step, names in self.list_saves("checkpoints").items() if step <= saved_step}
        complete = [step for step, names in saves.items() if layout.MANIFEST in names]
        for step in complete if rules.keep_best else ():
            if step not in losses:
                losses[step] = self._loss(step, saves[step])
        known = {step: loss for step, loss in losses.items() if loss is not None}
        reasons = reasons_to_keep(complete, known, rules, saved_step=saved_step)
        for step, names in saves.items():
            if not reasons.get(step):
                self.remove("checkpoints", step, names)

    def remove(self, kind: str, step: int, names: Iterable[str]) -> None:
        """Delete a save, manifest first."""
        for name in sorted(names, key=lambda name: name != layout.MANIFEST):
            self.delete(f"{kind}/{layout.checkpoint_name(step)}/{name}")

    def delete(self, name: str) -> None:
        """Delete a file if it exists."""

        def once() -> None:
            try:
                self._files.rm_file(self._path(name))
            except FileNotFoundError:
                return  # deleted by an earlier try whose response was lost

        self._retry(once, name)

    def download(self, step: int, names: Files, checkpoints: Path, attempt: int) -> Path:
        """Download a checkpoint and commit it to the run. Raises CheckpointError if it is corrupt in the store."""
        name = layout.checkpoint_name(step)
        place, staging = f"checkpoints/{name}", layout.staging_folder(checkpoints, step, attempt)
        where = f"{self.address}/{place}"

        def read_manifest() -> list[FileEntry]:
            # Object stores refuse a range of an empty object.
            data = self.read_file(f"{place}/{layout.MANIFEST}", SMALL_BYTES) if names[layout.MANIFEST] else b""
            return layout.parse_manifest(data, name, where)

        entries = _retry_if_corrupt(read_manifest)
        for entry in entries:
            if names.get(entry.name) != entry.bytes:
                found = f"has {names[entry.name]} bytes" if entry.name in names else "is missing"
                raise CheckpointError(f"{where}/{entry.name} {found}; the manifest says {entry.bytes} bytes")
        staging.mkdir(parents=True)
        try:
            with ThreadPoolExecutor(TRANSFERS, thread_name_prefix="download") as pool:
                list(pool.map(lambda entry: _retry_if_corrupt(lambda: self._get(place, entry, staging)), entries))
            return layout.commit(checkpoints, step, entries, attempt)
        except Exception:
            shutil.rmtree(staging, ignore_errors=True)
            raise

    def _loss(self, step: int, names: Files) -> float | None:
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
                f"{self.address}/{place}/{entry.name} is corrupt: its sha256 differs from the manifest's"
            )

    def _put(self, path: Path, name: str) -> None:
        size, target = path.stat().st_size, self._path(name)

        def once() -> None:
            self._files.put_file(str(path), target)
            found = self._files.info(target)["size"]
            if found != size:
                raise DataError(f"the store has {found} of {size} bytes")

        self._retry(once, name, 1 + size // CHUNK_BYTES)

    def _path(self, name: str) -> str:
        return "/".join([self._root, *map(check_name, name.split("/"))])

    def _retry(self, once: Callable[[], Any], what: str, timeouts: int = 1) -> Any:
        return retry(
            once,
            what=f"{self.address}/{what}",
            attempts=self.config.attempts,
            timeout_s=self.config.timeout_s * timeouts,
            hint="check checkpoint.upload, the network, and that the credentials may list, read, write and delete; "
            "for a slow store, raise data.store.attempts or data.store.timeout_s",
        )


def check_upload(config: Config) -> None:
    """Raise UserError if `checkpoint.upload` is not a writable kind of address. Sends no request."""
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
    """The store of `checkpoint.upload`, or None. Sends no request."""
    address = config.checkpoint.upload
    return None if address is None else RemoteRun(address, config.data.store)


def check_unused(remote: RemoteRun) -> None:
    """Raise CheckpointError if the store holds a checkpoint: a later resume could mistake it for one of this run."""
    steps = [step for step, names in remote.list_saves("checkpoints").items() if layout.MANIFEST in names]
    if steps:
        raise CheckpointError(
            f"checkpoint.resume=never, but {remote.address} holds a checkpoint of step {steps[-1]}",
            hint="checkpoint.resume=auto, or another checkpoint.upload",
        )


def recover(
    remote: RemoteRun, checkpoints: Path, attempt: int, skipped: Callable[[str], None]
) -> tuple[Path, dict[str, Any]] | None:
    """Download the newest intact checkpoint, with its state; `skipped` gets the reason for each newer one.

    Raises DataError if the store fails and CheckpointError if the disk does: neither justifies an older checkpoint.
    """
    for step, names in reversed(remote.list_saves("checkpoints").items()):
        if layout.MANIFEST not in names:
            continue
        print(f"no usable checkpoint in {checkpoints}: fetching step {step} from {remote.address}", flush=True)
        try:
            folder = remote.download(step, names, checkpoints, attempt)
            return folder, layout.verify(folder, hashes=False)
        except CheckpointError as error:
            remote.corrupt.add(step)
            skipped(error.message)
        except OSError as error:
            raise CheckpointError(
                f"{remote.address}: step {step} cannot be written to {checkpoints}: {error.strerror}"
            ) from error
    return None


def _retry_if_corrupt(once: Callable[[], Any]) -> Any:
    # Transfers may corrupt data: only after SAME_ANSWERS corrupt responses does the store itself count as corrupt.
    for _ in range(SAME_ANSWERS - 1):
        with suppress(CheckpointError):
            return once()
    return once()


def _remote_name(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"
