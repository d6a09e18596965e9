"""Work folder of an encoding, OUTPUT/tasks: holds finished tasks until the corpus is complete, then is removed.

    tasks/job.json                        options that all tasks share; a run with other options is refused
    tasks/task-000003.BOOT-XXXX.tmp/      a task in progress: its own folder, with a lock file
    tasks/task-000003/                    a finished task: its shards, their indexes, receipt.json
    tasks/merging                         all tasks are finished, and their shards are being moved to OUTPUT

A task is committed by an atomic rename of its folder after fsync. If several processes run the same task, on this machine or
another, each has its own folder; the first rename wins, and the others find an equal receipt and drop their work. The folder
of a killed process is removed by the next process on the same machine that gets its lock; the rest when the corpus is
complete.
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
from pretrain.shards.writer import ENCODING_NAME
from pretrain.storage.files import publish_file, sync, write_synced
from tokenizer.encoding.receipts import RECEIPT_NAME, Receipt, parse_receipt

WORK_NAME = "tasks"
JOB_NAME = "job.json"
_MERGING = "merging"
_LOCK = "lock"
_RESUME_HINT = "give the same options and files to finish it, or add --overwrite to start from the beginning"

Job = dict[str, Any]


class WorkFolder:
    """Work folder of one output and one job. The constructor writes nothing."""

    def __init__(self, output: Path, job: Job) -> None:
        self.output, self.path = output, output / WORK_NAME
        self.job = json.loads(json.dumps(job))  # as read back: tuples become lists
        self.restart_hint = f"remove {self.path}, and encode again from the beginning"
        self.digest = hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()

    def open(self) -> None:
        """Create the folder, or resume an earlier run.

        Raises DataError, listing the differences, if that run had other options, files or another tokenizer.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        found = self.found_job()
        if found is None:
            self._refuse_others()
            self.write(JOB_NAME, job_text(self.job))
        elif found != self.job:
            raise DataError(
                f"{self.output}: holds an unfinished encoding with other options:{self.differences(found)}",
                hint=_RESUME_HINT,
            )
        self.remove_abandoned()

    def _refuse_others(self) -> None:
        for path in self.path.iterdir():
            # A process that starts at the same time, or was killed while starting, may have left job.json or its temporary.
            if not path.name.removeprefix(".").startswith(JOB_NAME) and not (self.path / JOB_NAME).exists():
                raise DataError(
                    f"{path}: is not from an encoding run, and {self.path} is removed when the corpus is complete",
                    hint="choose another --output",
                )

    def found_job(self) -> Job | None:
        """The job of an earlier run; None if there was none. Raises DataError if job.json is corrupt."""
        return _read_job(self.path / JOB_NAME, self.restart_hint)

    def finished_job(self) -> Job | None:
        """The job that made the complete corpus in the output; None if no file says so. Raises DataError if it is corrupt."""
        return _read_job(self.output / ENCODING_NAME, "encode again with --overwrite")

    def differences(self, found: Job) -> str:
        """Differences between another job and this one, a line for each option."""
        shown = {key: (_show(found, key), _show(self.job, key)) for key in {**self.job, **found}}
        return "".join(f"\n  - {key}: {old}, now {new}" for key, (old, new) in shown.items() if old != new)

    def write(self, name: str, data: bytes) -> None:
        """Write a small file atomically; safe against a concurrent writer of the same file."""
        publish_file(self.path / name, data)

    @contextlib.contextmanager
    def staging(self, name: str) -> Iterator[Path]:
        """A new locked folder, to be committed as `name`; removed on exit if it is not."""
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
                continue  # another process removed the new folder as abandoned
            with contextlib.suppress(OSError):  # without lock support, remove_abandoned removes nothing either
                fcntl.flock(lock, fcntl.LOCK_EX)
            if os.fstat(lock).st_nlink:
                return folder, lock
            os.close(lock)

    def commit(self, folder: Path, name: str) -> bool:
        """Publish a staging folder, whose files are synced, as `name`. False if another process did so before."""
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
        """Publish a finished task. Raises PretrainError if another process committed it with a different receipt."""
        write_synced(folder / RECEIPT_NAME, receipt.to_json().encode())
        if not self.commit(folder, task_name(receipt.task)):
            other = self.receipt(receipt.task)
            if other is not None and other != receipt:
                raise PretrainError(
                    f"task {receipt.task} was run twice at the same time, with different results",
                    hint="the machines do not read the same corpus or tokenizer: compare their files and library versions",
                )

    def receipt(self, task: int) -> Receipt | None:
        """The receipt of a finished task, or None. A task whose files do not match its receipt is removed."""
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
                with contextlib.suppress(OSError):  # another process may have removed or replaced it first
                    folder.rename(aside / "damaged")
            return None
        return receipt

    @property
    def merging(self) -> bool:
        """Whether shards may have left their task folders."""
        return (self.path / _MERGING).exists()

    def start_merging(self) -> None:
        """Write the marker that shards may leave their task folders."""
        self.write(_MERGING, b"")

    def remove_abandoned(self) -> None:
        """Remove staging folders of killed processes on this machine."""
        for folder in self.path.glob(f"*.{_boot()}-*.tmp"):
            try:
                lock = os.open(folder / _LOCK, os.O_RDWR)
            except OSError:
                continue  # being created or committed right now
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            except OSError:
                pass  # in use
            finally:
                os.close(lock)

    def remove(self) -> None:
        """Remove everything, job.json last, so that an interrupted removal can still be identified."""
        with contextlib.suppress(FileNotFoundError):
            for path in self.path.iterdir():
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                elif path.name != JOB_NAME:
                    path.unlink(missing_ok=True)
            (self.path / JOB_NAME).unlink(missing_ok=True)
            self.remove_if_empty()

    def remove_if_empty(self) -> None:
        """Remove the folder if it is empty; a process that started too late may still work in it."""
        with contextlib.suppress(OSError):
            self.path.rmdir()


def job_text(job: Job) -> bytes:
    """A job as a JSON file: the same bytes for the same job."""
    return json.dumps(job, indent=1).encode() + b"\n"


def _read_job(path: Path, hint: str) -> Job | None:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(f"{path}: corrupt: {error}", hint=hint) from None
    return found if isinstance(found, dict) else {}


def task_name(task: int) -> str:
    """Name of the folder of a task."""
    return f"task-{task:06d}"


def _boot() -> str:
    """Id of this machine (and its containers) on a shared disk; changes with each boot."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        text = os.uname().nodename
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _umask() -> int:
    # os.umask reads the mask only by setting it.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _show(job: Job, key: str) -> str:
    return json.dumps(job[key]) if key in job else "not given"
