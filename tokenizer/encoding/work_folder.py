"""Where an encoding keeps finished tasks until the corpus is complete: OUTPUT/tasks, which the last step removes.

    tasks/job.json                        what all tasks share; a run that wants something else is refused
    tasks/task-000003.BOOT-XXXX.tmp/      a task at work: its own folder, and a lock on a file in it
    tasks/task-000003/                    a finished task: its shards, their indexes, receipt.json
    tasks/merging                         all tasks are finished, and their shards are being moved to OUTPUT

A task is committed by one rename of its folder, with everything in it on the disk. A process that runs the same task at the
same time, on this machine or another, has a folder of its own, and comes too late to rename it: it finds the same receipt, and
drops what it wrote. What a killed process left is removed by the next one on the same machine that can take its lock; the
rest goes when the corpus is complete.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pretrain.errors import DataError, PretrainError
from pretrain.storage.files import publish_file, sync, write_synced
from tokenizer.encoding.receipts import RECEIPT_NAME, Receipt, parse_receipt

WORK_NAME = "tasks"
JOB_NAME = "job.json"
_MERGING = "merging"
_LOCK = "lock"
_AGAIN = "give the same options and files to finish it, or add --overwrite to start from nothing"

Job = dict[str, Any]


class WorkFolder:
    """The folder of one output and one job. Making it writes nothing."""

    def __init__(self, output: Path, job: Job) -> None:
        self.output, self.path = output, output / WORK_NAME
        self.job = json.loads(json.dumps(job))  # as it is read back: lists, no tuples
        self.how_to_begin_anew = f"remove {self.path}, and encode again from the beginning"
        self.digest = hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()

    def open(self) -> None:
        """Begin, or go on with what an earlier run began.

        Raises DataError with what differs if that run had other options, files or another tokenizer.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        found = self.found_job()
        if found is None:
            self._refuse_others()
            self.write(JOB_NAME, json.dumps(self.job, indent=1).encode() + b"\n")
        elif found != self.job:
            keys = {**self.job, **found}
            shown = {key: (_show(found, key), _show(self.job, key)) for key in keys}
            lines = "".join(f"\n  - {key}: {old}, now {new}" for key, (old, new) in shown.items() if old != new)
            raise DataError(f"{self.output}: holds an unfinished encoding of something else:{lines}", hint=_AGAIN)
        self.remove_abandoned()

    def _refuse_others(self) -> None:
        for path in self.path.iterdir():
            # Another process may begin at the same time, or was killed when it began.
            if not path.name.startswith(JOB_NAME) and not (self.path / JOB_NAME).exists():
                raise DataError(
                    f"{path}: is none of ours, and {self.path} is removed when the corpus is complete",
                    hint="choose another --output",
                )

    def found_job(self) -> Job | None:
        """What an earlier run wrote down; None where there was none."""
        path = self.path / JOB_NAME
        try:
            found = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise DataError(f"{path}: damaged: {error}", hint=self.how_to_begin_anew) from None
        return found if isinstance(found, dict) else {}

    def write(self, name: str, data: bytes) -> None:
        """Write a small file atomically; another process may write the same at the same time."""
        publish_file(self.path / name, data)

    @contextlib.contextmanager
    def staging(self, name: str) -> Iterator[Path]:
        """A new folder for what will be committed under `name`; removed again if it is not."""
        folder, lock = self._new_staging(name)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)

    def _new_staging(self, name: str) -> tuple[Path, int]:
        while True:
            folder = Path(tempfile.mkdtemp(prefix=f"{name}.{_boot()}-", suffix=".tmp", dir=self.path))
            folder.chmod(0o777 & ~_umask())
            try:
                lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR)
            except FileNotFoundError:
                continue  # somebody took the empty folder for an abandoned one
            with contextlib.suppress(OSError):  # a file system without locks, on which nobody will remove it either
                fcntl.flock(lock, fcntl.LOCK_EX)
            if os.fstat(lock).st_nlink:
                return folder, lock
            os.close(lock)

    def commit(self, folder: Path, name: str) -> bool:
        """Publish a staging folder as `name`, its files being on the disk. False if another process did so before."""
        (folder / _LOCK).unlink()
        sync(folder)
        try:
            folder.rename(self.path / name)
        except OSError:
            if not (self.path / name).is_dir():
                raise
            return False
        sync(self.path)
        return True

    def commit_task(self, folder: Path, receipt: Receipt) -> None:
        """Publish a finished task. Raises PretrainError if another process finished it with other bytes."""
        write_synced(folder / RECEIPT_NAME, receipt.to_json().encode())
        if not self.commit(folder, task_name(receipt.task)):
            other = self.receipt(receipt.task)
            if other is not None and other != receipt:
                raise PretrainError(
                    f"task {receipt.task} was run twice at the same time, with different results",
                    hint="something reads the corpus or the tokenizer differently here: compare the machines",
                )

    def receipt(self, task: int) -> Receipt | None:
        """The receipt of a finished task, or None. One whose files are not what it says is removed, to be run again."""
        folder = self.path / task_name(task)
        try:
            receipt = parse_receipt((folder / RECEIPT_NAME).read_bytes())
            if receipt.job != self.digest or receipt.task != task:
                raise ValueError("of another job")
            if not self.merging:
                for name, size in receipt.files.items():
                    if size not in (None, (folder / name).stat().st_size):
                        raise ValueError(f"{name} has another size")
        except (OSError, ValueError):
            if not folder.is_dir() or self.merging:
                return None
            with self.staging(task_name(task)) as aside:
                with contextlib.suppress(OSError):  # a process that runs the same task may have been faster
                    folder.rename(aside / "damaged")
            return None
        return receipt

    @property
    def merging(self) -> bool:
        """Whether shards may have left the folders of their tasks already."""
        return (self.path / _MERGING).exists()

    def start_merging(self) -> None:
        """Write down that shards leave the folders of their tasks."""
        self.write(_MERGING, b"")

    def remove_abandoned(self) -> None:
        """Remove folders that killed processes of this machine left."""
        for folder in self.path.glob(f"*.{_boot()}-*.tmp"):
            try:
                lock = os.open(folder / _LOCK, os.O_RDWR)
            except OSError:
                continue  # being made or being committed just now
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            except OSError:
                pass  # somebody works in it
            finally:
                os.close(lock)

    def remove(self) -> None:
        """Remove everything, job.json last: whatever is left of a removal says what it belonged to."""
        with contextlib.suppress(FileNotFoundError):
            for path in self.path.iterdir():
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                elif path.name != JOB_NAME:
                    path.unlink(missing_ok=True)
            (self.path / JOB_NAME).unlink(missing_ok=True)
            self.remove_if_empty()

    def remove_if_empty(self) -> None:
        """Remove the folder, unless something is in it, which a process that came too late may work on."""
        with contextlib.suppress(OSError):
            self.path.rmdir()


def task_name(task: int) -> str:
    """Folder name of a task."""
    return f"task-{task:06d}"


def _boot() -> str:
    """What tells this machine from others that see the same disk, containers on it included; changes when it restarts."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        text = os.uname().nodename
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _umask() -> int:
    # The only way to ask is to set it.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _show(job: Job, key: str) -> str:
    return json.dumps(job[key]) if key in job else "not given"
