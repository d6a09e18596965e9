"""The files that an input names, in one order, each with its format and size. Names and sizes only: nothing is read.

    FILE      .jsonl .ndjson    .parquet    .tar    any other name: text
              .jsonl.gz .ndjson.gz .json.gz    .txt.gz .md.gz            .zst, .bz2 and .xz alike
    FOLDER    every file below it, sorted by name at each level

In a folder, what is hidden (and `__pycache__`), symbolic links and special files, archives and compressed files of other names
are listed to be counted, and not read. A folder of an object store is whatever begins with its name and a slash.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pretrain.errors import DataError
from tokenizer.corpus.readers.open_file import Bucket, locate, show
from tokenizer.corpus.readers.parts import ARCHIVE, HIDDEN_NAME, NO_FILE

_KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".tar": "tar"}
_CODECS = {".gz": "gz", ".zst": "zst", ".zstd": "zst", ".bz2": "bz2", ".xz": "xz"}
# What is compressed is named .json.gz by many who mean lines of JSON; an uncompressed .json is a text.
_COMPRESSED_KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".txt": "text", ".md": "text"}
_ARCHIVES = frozenset(
    {".tgz", ".tbz", ".txz", ".lz4", ".br", ".z", ".zip", ".7z", ".rar", ".whl", ".arrow", ".feather"}
)


class File(NamedTuple):
    """A file by its path or address, with the format of `Part` and its stored bytes."""

    url: str
    format: str
    size: int


def format_of(name: str) -> str:
    """The format that a file's name stands for; ARCHIVE where it is none that can be read."""
    path = Path(name.lower())
    codec = _CODECS.get(path.suffix)
    if codec is not None:
        kind = _COMPRESSED_KINDS.get(Path(path.stem).suffix)
        return ARCHIVE if kind is None else f"{kind}.{codec}"
    return ARCHIVE if path.suffix in _ARCHIVES else _KINDS.get(path.suffix, "text")


def list_files(address: str) -> list[File]:
    """The files of one input. Raises DataError where there is none, or one that is named is not readable."""
    place = locate(address)
    if not isinstance(place, Path):
        return _list_remote(address, *place)
    try:
        found = place.stat()
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        raise DataError(
            f"{show(address)}: {'no such file or folder' if missing else f'cannot be read: {error.strerror}'}"
        ) from None
    if stat.S_ISDIR(found.st_mode):
        return list(_walk(place))
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{show(address)}: neither a regular file nor a folder")
    return [_named(str(place), found.st_size)]


def _named(url: str, size: int) -> File:
    file_format = format_of(url)
    if file_format == ARCHIVE:
        raise DataError(
            f"{show(url)}: archives and compressed files of this name are not readable",
            hint="unpack or convert it first; what is readable: .jsonl, .txt and .md, also .gz, .zst, .bz2 and .xz of them; "
            ".parquet; uncompressed .tar",
        )
    return File(url, file_format, size)


def _walk(folder: Path) -> Iterator[File]:
    """Everything below `folder`, by name at each level: the same order on every file system."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{show(str(folder))}: cannot be listed: {error.strerror}") from None
    for entry in entries:
        if _is_hidden(entry.name):
            yield File(entry.path, HIDDEN_NAME, 0)
        elif entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path))
        elif entry.is_file(follow_symlinks=False):
            yield File(entry.path, format_of(entry.name), _size(entry))
        else:
            yield File(entry.path, NO_FILE, 0)


def _size(entry: "os.DirEntry[str]") -> int:
    try:
        return entry.stat(follow_symlinks=False).st_size
    except OSError as error:
        raise DataError(f"{show(entry.path)}: cannot be read: {error.strerror}") from None


def _list_remote(address: str, bucket: Bucket, name: str) -> list[File]:
    if name and not name.endswith("/") and not bucket.is_folder(name):
        return [_named(address, bucket.size(name))]
    folder = name.rstrip("/")
    files = sorted(bucket.walk(folder), key=lambda file: file[0].split("/"))
    if not files:
        raise DataError(f"{show(address)}: no such file or folder")
    below = len(folder.split("/")) if folder else 0
    listed: dict[str, File] = {}
    for path, size in files:
        steps = path.split("/")
        hidden = next((i for i in range(below, len(steps)) if _is_hidden(steps[i])), None)
        url = f"{bucket.address}/{'/'.join(steps if hidden is None else steps[: hidden + 1])}"
        # Some programs mark a folder by an empty object of its name.
        if steps[-1]:
            listed[url] = File(url, format_of(path), size) if hidden is None else File(url, HIDDEN_NAME, 0)
    return list(listed.values())


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__pycache__"
