"""Publishing files and folders: under its final name, each is complete or absent, whatever interrupts.

    publish_file      a small file, from bytes in memory
    append_line       a line of a file that grows
    publish_folder    a staging folder whose files are synchronized
    move_into_place   a file that was written and synchronized under a temporary name

Each writes beside the target, calls fsync, renames, and calls fsync on the folder: a rename without it may be lost in a
power cut, and one before it may leave a name without content.
"""

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def sync(path: Path) -> None:
    """Flush a file to the disk, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Give an OSError of the block the name of its file: that of a write or flush has none."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def append_line(file: IO[str], line: str) -> None:
    """Append a line at once, so that a killed process keeps it. Raises OSError."""
    with naming(file.name):
        file.write(line + "\n")
        file.flush()


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and flush it to the disk; for files of a staging folder."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def publish_file(path: Path, data: bytes | str, *, durable: bool = True) -> None:
    """Replace `path` atomically; text is UTF-8. Raises OSError.

    Processes that publish the same file at once do not disturb each other. Without `durable`, nothing is flushed: for a file
    of no use after a power cut.
    """
    content = data.encode() if isinstance(data, str) else data
    temporary = temporary_name(path)
    try:
        with naming(path):
            if durable:
                write_synced(temporary, content)
            else:
                temporary.write_bytes(content)
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)


def move_into_place(temporary: Path, path: Path) -> None:
    """Rename a synchronized file. Raises OSError."""
    temporary.replace(path)
    sync(path.parent)


def publish_folder(staging: Path, path: Path) -> None:
    """Rename a folder of synchronized files to `path`, replacing a folder that is there. Raises OSError."""
    sync(staging)
    replaced = path.with_name(f".replaced-{path.name}-{os.getpid()}")
    if path.exists():
        path.rename(replaced)
    try:
        staging.rename(path)
    except OSError:
        if replaced.exists():
            replaced.rename(path)
        raise
    sync(path.parent)
    shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def staging_folder(output: Path) -> Iterator[Path]:
    """A new folder beside `output`, on its file system, for `publish_folder`. Removed unless it was renamed."""
    output = Path(os.path.abspath(output))  # noqa: PTH100 - resolve() would follow a link that is to be replaced
    folder = output.with_name(f".{output.name}.staging-{os.getpid()}")
    output.parent.mkdir(parents=True, exist_ok=True)
    # A process with this id died here before; in a container, the first process always has the same id.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def temporary_name(path: Path) -> Path:
    """A hidden name beside `path`, of this process alone; what a killed process leaves matches `.*.tmp`."""
    return path.with_name(f".{path.name}-{socket.gethostname()}-{os.getpid()}.tmp")
