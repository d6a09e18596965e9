"""Why a run failed: RUN/failure.json, one line in RUN/logs/train.log, and the status.

failed     bad input or the verdict of a guard: the same again after a restart
crashed    everything else (CUDA errors, memory, storage, a killed process): a restart may get on

The first process that fails writes the file; the next start of the run removes it.
"""

import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pretrain.errors import PretrainError
from pretrain.run_folder import RunFolder
from pretrain.storage.files import temporary_name

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
STORAGE = FULL | {errno.EIO, errno.ESTALE, errno.EREMOTEIO, errno.ENODEV, errno.ETIMEDOUT}
LONGEST = 500  # characters of a reason


@dataclass(frozen=True)
class Failure:
    """`status`: failed or crashed. `bad_node`: the host, if the next start should avoid it."""

    status: str
    reason: str  # one line
    hint: str | None
    rank: int
    host: str
    step: int
    attempt: int
    time: str
    bad_node: str | None = None

    def __str__(self) -> str:
        return f"{self.reason} (rank {self.rank} on {self.host}, step {self.step})"


def describe_failure(error: BaseException, *, rank: int, step: int, attempt: int) -> Failure:
    """Classify an error by its cause, and put it into one line and a hint."""
    codes = {cause.errno for cause in _causes(error) if isinstance(cause, OSError)}
    # PretrainError itself: a failure that is not the user's input.
    ours = isinstance(error, PretrainError) and error.exit_code != PretrainError.exit_code
    crashed = not ours or bool(codes & STORAGE)
    host = socket.gethostname()
    if isinstance(error, PretrainError):
        reason, hint = error.message, error.hint
    elif isinstance(error, OSError) and error.strerror:
        reason = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        hint = None
    else:
        reason, hint = f"{type(error).__name__}: {error}", None
    if hint is None and codes & FULL:
        hint = "free some space; the same command resumes from the newest checkpoint"
    return Failure(
        status="crashed" if crashed else "failed",
        reason=" ".join(reason.split())[:LONGEST],
        hint=hint,
        rank=rank,
        host=host,
        step=step,
        attempt=attempt,
        time=time.strftime("%Y-%m-%d %H:%M:%S"),
        bad_node=host if crashed and not codes & STORAGE else None,  # storage is shared by all nodes
    )


def record_failure(folder: RunFolder, failure: Failure, details: str = "") -> bool:
    """Write the status, the log and failure.json, as far as the disk allows; returns whether the log has `details`.

    Nothing is written if a later attempt has begun; nothing but `details` if this attempt has a failure already. Attempt 0
    stands for a start that has not claimed the run yet.
    """
    newest, begun = folder.attempt(), failure.attempt > 0
    if (begun and newest != failure.attempt) or not folder.logs.is_dir():
        return False
    failure = replace(failure, attempt=newest if begun else newest + 1)
    known = read_failure(folder)
    first = folder.status() == "running" if begun else known is None or known.attempt == newest
    if first:
        if begun:
            _overwrite_status(folder, failure.status)
        with suppress(OSError):
            folder.failure.unlink(missing_ok=True)
            publish_once(folder.failure, failure_text(failure))
    try:
        with (folder.logs / "train.log").open("a") as log:
            hint = f"\n  hint: {failure.hint}" if failure.hint else ""
            line = f"{failure.time}  {failure.status}: {failure}{hint}\n" if first else ""
            log.write(details + line)  # the line last: `pretrain status` shows the end of the log
    except OSError:
        return False
    return True


def record_lost_peer(folder: RunFolder, failure: Failure) -> None:
    """Log that a rank ends since another one did. The run has no failure by that: the other one may have recorded it."""
    with suppress(OSError), (folder.logs / "train.log").open("a") as log:
        log.write(f"{failure.time}  rank {failure.rank} on {failure.host} lost another rank: {failure.reason}\n")


def read_failure(folder: RunFolder) -> Failure | None:
    """The failure of the newest attempt, if it has one; an unreadable file counts as none."""
    try:
        failure = Failure(**json.loads(folder.failure.read_text()))
    except (OSError, ValueError, TypeError):
        return None
    # One more: of a start that failed before it claimed the run.
    return failure if failure.attempt - folder.attempt() in (0, 1) else None


def failure_text(failure: Failure) -> str:
    """JSON, a value a line: the batch script reads it without Python."""
    return json.dumps(asdict(failure), indent=1, ensure_ascii=False) + "\n"


def publish_once(path: Path, text: str) -> None:
    """Write a file that is complete or absent; the first writer wins. Raises OSError."""
    temporary = temporary_name(path)
    try:
        temporary.write_text(text)
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _overwrite_status(folder: RunFolder, status: str) -> None:
    try:
        folder.set_status(status)
    except OSError:
        # A full disk has no room for a new file, but still for these bytes in the place of the old ones.
        with suppress(OSError), (folder.path / "status").open("r+") as file:
            file.write(f"{status}\n")
            file.truncate()


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
