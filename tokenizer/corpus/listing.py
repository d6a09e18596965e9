"""Files named by an input, in a fixed order, each with its format and size. File contents are not read.

    FILE      .jsonl .ndjson    .parquet    .tar    any other name: text
              .jsonl.gz .ndjson.gz .json.gz    .txt.gz .md.gz            .zst, .bz2 and .xz alike
    FOLDER    every file below it, sorted by name at each level

In a folder, hidden files, `__pycache__`, symbolic links, special files, archives and compressed files of other names are
listed so that they are counted, but not read. A folder of an object store is a prefix that ends with a slash.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pretrain.errors import DataError
from tokenizer.corpus.readers.open_file import Bucket, escape_url, locate
from tokenizer.corpus.readers.parts import ARCHIVE, HIDDEN_NAME, NO_FILE

_KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".tar": "tar"}
_CODECS = {".gz": "gz", ".zst": "zst", ".zstd": "zst", ".bz2": "bz2", ".xz": "xz"}
# Compressed JSON Lines are often named .json.gz; an uncompressed .json is read as one text.
_COMPRESSED_KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".txt": "text", ".md": "text"}
_ARCHIVES = frozenset(
    {".tgz", ".tbz", ".txz", ".lz4", ".br", ".z", ".zip", ".7z", ".rar", ".whl", ".arrow", ".feather"}
)


class ListedFile(NamedTuple):
    """A file by its path or address, with its format (see `FilePart`) and its size in bytes."""

    url: str
    format: str
    size: int


def format_of(name: str) -> str:
    """Format implied by a file's name; ARCHIVE if it is not readable."""
    path = Path(name.lower())
    codec = _CODECS.get(path.suffix)
    if codec is not None:
        kind = _COMPRESSED_KINDS.get(Path(path.stem).suffix)
        return ARCHIVE if kind is None else f"{kind}.{codec}"
    return ARCHIVE if path.suffix in _ARCHIVES else _KINDS.get(path.suffix, "text")


def list_files(address: str) -> list[ListedFile]:
    """List the files of one input. Raises DataError if it does not exist or is a file of an unreadable format."""
    place = locate(address)
    if not isinstance(place, Path):
        return _list_remote(address, *place)
    try:
        found = place.stat()
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        raise DataError(
            f"{escape_url(address)}: {'no such file or folder' if missing else f'cannot be read: {error.strerror}'}"
        ) from None
    if stat.S_ISDIR(found.st_mode):
        return list(_walk(place))
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{escape_url(address)}: neither a regular file nor a folder")
    return [_list_single(str(place), found.st_size)]


def _list_single(url: str, size: int) -> ListedFile:
    file_format = format_of(url)
    if file_format == ARCHIVE:
        raise DataError(
            f"{escape_url(url)}: archives and compressed files of this name are not readable",
            hint="unpack or convert it first; readable formats: .jsonl, .txt and .md, also with .gz, .zst, .bz2 or .xz; "
            ".parquet; uncompressed .tar",
        )
    return ListedFile(url, file_format, size)


def _walk(folder: Path) -> Iterator[ListedFile]:
    """All entries below `folder`, sorted by name at each level: the same order on every file system."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{escape_url(str(folder))}: cannot be listed: {error.strerror}") from None
    for entry in entries:
        if _is_hidden(entry.name):
            yield ListedFile(entry.path, HIDDEN_NAME, 0)
        elif entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path))
        elif entry.is_file(follow_symlinks=False):
            yield ListedFile(entry.path, format_of(entry.name), _size(entry))
        else:
            yield ListedFile(entry.path, NO_FILE, 0)


def _size(entry: "os.DirEntry[str]") -> int:
    try:
        return entry.stat(follow_symlinks=False).st_size
    except OSError as error:
        raise DataError(f"{escape_url(entry.path)}: cannot be read: {error.strerror}") from None


def _list_remote(address: str, bucket: Bucket, name: str) -> list[ListedFile]:
    if name and not name.endswith("/") and not bucket.is_folder(name):
        return [_list_single(address, bucket.size(name))]
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
            listed[url] = ListedFile(url, format_of(path), size) if hidden is None else ListedFile(url, HIDDEN_NAME, 0)
    return list(listed.values())


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__pycache__"
