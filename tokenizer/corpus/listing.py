"""Files named by an input, in a fixed order, each with its format and size. File contents are not read.

    FILE      its format by name                                                                              file_names.py
    FOLDER    every file below it, sorted by name at each level

In a folder, hidden files, `__pycache__`, symbolic links, special files and files of other formats are listed so that they
are counted, but not read. A folder of an object store is a prefix that ends with a slash.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pretrain.errors import DataError
from tokenizer.corpus.file_names import format_of
from tokenizer.corpus.readers.open_file import Bucket, escape_url, locate
from tokenizer.corpus.readers.parts import HIDDEN_NAME, NO_FILE


class ListedFile(NamedTuple):
    """A file by its path or address, with its format (see `FilePart`) and its size in bytes."""

    url: str
    format: str
    size: int


def list_files(address: str, forced: str | None = None) -> list[ListedFile]:
    """List the files of one input. `forced` is the format of all files that may be read.

    Raises DataError if it does not exist.
    """
    place = locate(address)
    if not isinstance(place, Path):
        return _list_remote(address, *place, forced)
    try:
        found = place.stat()
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        raise DataError(
            f"{escape_url(address)}: {'no such file or folder' if missing else f'cannot be read: {error.strerror}'}"
        ) from None
    if stat.S_ISDIR(found.st_mode):
        return list(_walk(place, forced))
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{escape_url(address)}: neither a regular file nor a folder")
    return [ListedFile(str(place), format_of(str(place), forced), found.st_size)]


def _walk(folder: Path, forced: str | None) -> Iterator[ListedFile]:
    """All entries below `folder`, sorted by name at each level: the same order on every file system."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{escape_url(str(folder))}: cannot be listed: {error.strerror}") from None
    for entry in entries:
        if _is_hidden(entry.name):
            yield ListedFile(entry.path, HIDDEN_NAME, 0)
        elif entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), forced)
        elif entry.is_file(follow_symlinks=False):
            yield ListedFile(entry.path, format_of(entry.name, forced), _size(entry))
        else:
            yield ListedFile(entry.path, NO_FILE, 0)


def _size(entry: "os.DirEntry[str]") -> int:
    try:
        return entry.stat(follow_symlinks=False).st_size
    except OSError as error:
        raise DataError(f"{escape_url(entry.path)}: cannot be read: {error.strerror}") from None


def _list_remote(address: str, bucket: Bucket, name: str, forced: str | None) -> list[ListedFile]:
    if name and not name.endswith("/") and not bucket.is_folder(name):
        return [ListedFile(address, format_of(address, forced), bucket.size(name))]
    folder = name.rstrip("/")
    files = sorted(bucket.walk(folder), key=lambda file: file[0].split("/"))
    if not files:
        raise DataError(f"{escape_url(address)}: no such file or folder")
    below = len(folder.split("/")) if folder else 0
    listed: dict[str, ListedFile] = {}
    for path, size in files:
        steps = path.split("/")
        hidden = next((i for i in range(below, len(steps)) if _is_hidden(steps[i])), None)
        url = f"{bucket.address}/{'/'.join(steps if hidden is None else steps[: hidden + 1])}"
        # Some programs mark a folder by an empty object whose name ends with a slash.
        if steps[-1]:
            listed[url] = (
                ListedFile(url, format_of(path, forced), size) if hidden is None else ListedFile(url, HIDDEN_NAME, 0)
            )
    return list(listed.values())


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__pycache__"
