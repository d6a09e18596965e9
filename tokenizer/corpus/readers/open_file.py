"""Opens and lists the files of a corpus, on local disk or in an object store.

Addresses follow the rules of token shards (pretrain/storage/store.py): same schemes, retries and restrictions. Unlike
shards, files may have any name.
"""

import io
import os
import re
import stat
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, cast

from pretrain.config.schema import StoreConfig
from pretrain.errors import DataError
from pretrain.storage.retry import retry
from pretrain.storage.store import LISTING_TRIES, LocalStore, RemoteStore, open_store
from tokenizer.corpus.readers.byte_ranges import CHUNK_BYTES
from tokenizer.corpus.readers.parts import FilePart

REMOTE_CHUNK_BYTES = 8 << 20  # per request: at 40 ms latency about 100 MB/s per process
_NO_PATH = re.compile(r"[\x00-\x1f\x7f\\]|(^|/)\.\.(/|$)")


class Bucket(RemoteStore):
    """A complete bucket or host; a name is a full path in it."""

    def walk(self, folder: str) -> list[tuple[str, int]]:
        """Names and sizes in bytes of all files below `folder`, unordered."""
        root = self._path(folder)

        def once() -> dict[str, dict[str, Any]]:
            found: dict[str, dict[str, Any]] = self._files.find(root, detail=True)
            return found

        entries = self._retry(once, f"{folder}: its listing", timeouts=LISTING_TRIES)
        start = len(self._root.rstrip("/")) + 1
        files = [(name[start:], entry["size"]) for name, entry in entries.items() if entry["type"] == "file"]
        # Stores list by prefix: "data" would also match "data2/…".
        return [(name, size) for name, size in files if not folder or name.startswith(f"{folder}/")]

    def is_folder(self, name: str) -> bool:
        """Whether `name` is a prefix of files rather than a file. Raises DataError if it is neither."""
        if self.scheme in ("http", "https"):
            return False
        path = self._path(name)
        return bool(self._retry(lambda: self._files.info(path)["type"], name) == "directory")

    def _path(self, name: str) -> str:
        if _NO_PATH.search(name):
            raise DataError(f"{self.address}: the name {name!r} contains `..`, a backslash or a control character")
        return f"{self._root.rstrip('/')}/{name}".rstrip("/")

    def _retry(self, once: Callable[[], Any], what: str, timeouts: int = 1) -> Any:
        return retry(
            once,
            what=f"{self.address}/{what}",
            attempts=self.config.attempts,
            timeout_s=self.config.timeout_s * timeouts,
            hint="check address, credentials and network",
        )


def locate(address: str) -> Path | tuple[Bucket, str]:
    """Resolve an address to a local path, or to a bucket and a name in it. Raises DataError if it is not allowed."""
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", address):
        return Path(address)
    scheme, _, rest = address.partition("://")
    root, _, name = rest.partition("/")
    if scheme.lower() == "file" or not rest:
        store = open_store(address)
        return store.folder if isinstance(store, LocalStore) else (_bucket(address), "")
    return _bucket(f"{scheme}://{root}"), name


@lru_cache(maxsize=16)
def _bucket(address: str) -> Bucket:
    open_store(address)  # raises if the address is not allowed
    return Bucket(address, StoreConfig())


def open_file(part: FilePart) -> BinaryIO:
    """Open the file of a part, seekable. Raises OSError if it is not readable, DataError if it changed since planning."""
    place = locate(part.url)
    if isinstance(place, Path):
        file, size = _open_local(place)
    else:
        size = place[0].size(place[1])
        file = cast(BinaryIO, io.BufferedReader(_RemoteFile(*place, size), REMOTE_CHUNK_BYTES))
    if size != part.size:
        file.close()
        raise _changed_error(part.url, f"it had {part.size} bytes, and has {size}")
    return file


def read_chunks(file: BinaryIO) -> Iterator[bytes]:
    """The rest of a file in chunks of CHUNK_BYTES."""
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


def escape_url(url: str) -> str:
    """A path or address for a message, with unprintable and control characters escaped."""
    return url if url.isprintable() else ascii(url)[1:-1]


def _open_local(path: Path) -> tuple[BinaryIO, int]:
    try:
        # O_NONBLOCK: if a pipe has replaced the file, open() would block until somebody writes to it.
        file = cast(BinaryIO, os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb"))
    except FileNotFoundError:
        raise _changed_error(str(path), "it is gone") from None
    found = os.fstat(file.fileno())
    if not stat.S_ISREG(found.st_mode):
        file.close()
        raise _changed_error(str(path), "it is no longer a regular file")
    return file, found.st_size


def _changed_error(url: str, how: str) -> DataError:
    return DataError(
        f"{escape_url(url)}: changed since it was planned: {how}", hint="run again when nothing writes to the corpus"
    )


class _RemoteFile(io.RawIOBase):
    """A file of an object store, read by range requests with retries and a length check."""

    def __init__(self, bucket: Bucket, name: str, size: int) -> None:
        super().__init__()
        self._bucket, self._name, self._size, self._position = bucket, name, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        length = max(0, min(len(buffer), self._size - self._position))
        if length:
            buffer[:length] = self._bucket.read_range(self._name, self._position, length)
            self._position += length
        return length
