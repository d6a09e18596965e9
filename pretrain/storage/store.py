"""Folders of a file system or an object store: `open_store(address)`.

    PATH, file:///PATH                                     LocalStore
    s3:// gs:// gcs:// az:// abfs:// http:// https://      RemoteStore, over fsspec; memory:// is for tests
    anything else                                          refused: fsspec has schemes that run commands or unpack archives

Both read files by plain name in that folder, and nothing outside it. Credentials come from the environment: each package
reads its own (s3fs: AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_ENDPOINT_URL, …).
"""

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pretrain.config.schema import StoreConfig
from pretrain.errors import DataError
from pretrain.storage.retry import FinalError, describe, retry

SCHEMES = ("s3", "gs", "gcs", "https", "http", "az", "abfs", "memory")
EXTRAS = {"gs": "gcs", "az": "azure", "abfs": "azure", "https": "http"}  # the other extras are named as their scheme
LISTING_TRIES = 10  # timeouts that a listing may take: pages of a thousand names, one after the other
SAME_ANSWERS = 3  # a corrupt answer that arrived this often is what the store holds

_COPY = "copy the folder again, or encode the corpus again"


class LocalStore:
    """A folder of a file system."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.address = folder, str(folder)

    def read_file(self, name: str, limit_bytes: int, parse: Callable[[bytes], Any] = bytes) -> Any:
        """`parse` of a file. Raises DataError, before reading, if it is longer than `limit_bytes`."""
        size = self.size(name)
        if size > limit_bytes:
            raise _too_long(f"{self.folder / name}", size, limit_bytes)
        return self.read_range(name, 0, size, parse)

    def read_range(self, name: str, start: int, length: int, parse: Callable[[bytes], Any] = bytes) -> Any:
        """`parse` of exactly `length` bytes from `start` on."""
        path, size = self.folder / check_name(name), self.size(name)
        if start + length > size:  # checked first: no buffer of a size that a manifest claims
            raise DataError(
                f"{path}: ends at byte {size}, and {length} bytes at offset {start} were expected", hint=_COPY
            )
        try:
            with path.open("rb") as file:
                file.seek(start)
                data = file.read(length)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}", hint=_COPY) from None
        if len(data) != length:
            raise DataError(f"{path}: became shorter while it was read", hint=_COPY)
        return parse(data)

    def size(self, name: str) -> int:
        """Size of a file in bytes. Raises DataError if it is missing or not a regular file."""
        path = self.folder / check_name(name)
        try:
            found = path.stat()
        except FileNotFoundError:
            raise DataError(f"{path}: no such file", hint=_COPY) from None
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}", hint=_COPY) from None
        if not path.is_file():
            raise DataError(f"{path}: not a regular file", hint=_COPY)
        return found.st_size

    def list_names(self, *, sizes: bool) -> dict[str, int | None]:
        """Files of the folder, with `sizes` their sizes, which cost a request each on a network file system."""
        try:
            with os.scandir(self.folder) as entries:
                files = [entry for entry in entries if entry.is_file()]
                return {entry.name: entry.stat().st_size if sizes else None for entry in files}
        except OSError as error:
            raise DataError(f"{self.folder}: cannot be listed: {error.strerror}") from None


class RemoteStore:
    """A folder of an object store. Requests are retried, have a timeout, and are checked by `parse`."""

    def __init__(self, address: str, config: StoreConfig) -> None:
        self.address, self.config = address.rstrip("/"), config
        self.scheme = address.partition(":")[0].lower()
        self._files = _filesystem(self.scheme, config)
        self._root = self._files._strip_protocol(self.address)

    def read_file(self, name: str, limit_bytes: int, parse: Callable[[bytes], Any] = bytes) -> Any:
        """`parse` of a file. Raises DataError above `limit_bytes`.

        A DataError in `parse` is retried, unless the same bytes arrived SAME_ANSWERS times.
        """
        self._path(name)  # raises here: a failure below would be retried
        refused: list[bytes] = []

        def once() -> Any:
            data = self._raw(name, 0, limit_bytes + 1)
            try:
                if len(data) > limit_bytes:
                    raise _too_long(f"{self.address}/{name}", len(data), limit_bytes)
                return parse(data)
            except DataError as error:
                refused.append(hashlib.sha256(data).digest())
                if refused.count(refused[-1]) == SAME_ANSWERS:
                    raise FinalError(error) from None
                raise

        return self._retry(once, name)

    def read_range(self, name: str, start: int, length: int, parse: Callable[[bytes], Any] = bytes) -> Any:
        """`parse` of exactly `length` bytes from `start` on; a DataError in it is retried."""
        self._path(name)

        def once() -> Any:
            data = self._raw(name, start, start + length)
            if len(data) != length:
                raise DataError(f"{len(data)} bytes arrived")
            return parse(data)

        return self._retry(once, f"{name}: {length} bytes at offset {start}")

    def size(self, name: str) -> int:
        """Size of a file in bytes. Raises DataError if it is missing."""
        path = self._path(name)
        size = self._retry(lambda: self._files.info(path)["size"], name)
        if not isinstance(size, int):
            raise DataError(f"{self.address}/{name}: the store does not say its size")
        return size

    def list_names(self, *, sizes: bool) -> dict[str, int | None] | None:
        """Files of the folder with their sizes; None if the store cannot or may not list."""
        if self.scheme in ("http", "https"):
            return None

        def once() -> dict[str, int | None] | None:
            try:
                found = self._files.ls(self._root, detail=True)
            except PermissionError:  # reading may be allowed where listing is not
                return None
            return {entry["name"].rpartition("/")[2]: entry["size"] for entry in found if entry["type"] == "file"}

        names: dict[str, int | None] | None = self._retry(once, "its listing", timeouts=LISTING_TRIES)
        return names

    def _raw(self, name: str, start: int, stop: int) -> bytes:
        """One request: the bytes from `start` to `stop`, fewer at the end of the file."""
        path = self._path(name)
        if self.scheme in ("http", "https"):
            # cat_file would take a whole shard from a server that ignores ranges; a file of fsspec refuses that.
            with self._files.open(path, "rb", cache_type="none", size=stop) as file:
                file.seek(start)
                return bytes(file.read(stop - start))
        return bytes(self._files.cat_file(path, start=start, end=stop))

    def _path(self, name: str) -> str:
        return f"{self._root}/{check_name(name)}"

    def _retry(self, once: Callable[[], Any], what: str, timeouts: int = 1) -> Any:
        return retry(
            once,
            what=f"{self.address}/{what}",
            attempts=self.config.attempts,
            timeout_s=self.config.timeout_s * timeouts,
            hint=f"check address, credentials and network; `pretrain data verify {self.address}` finds corrupt files; "
            "for a slow store, raise data.store.attempts or data.store.timeout_s",
        )


Store = LocalStore | RemoteStore


def open_store(address: str, config: StoreConfig | None = None) -> Store:
    """The folder of a path or an address. Nothing is read. Raises DataError for an address that is not allowed."""
    rule = f"use a path or one of {', '.join(f'{scheme}://' for scheme in SCHEMES)}"
    scheme, separator, rest = address.partition("://")
    if "\0" in address:
        raise DataError(f"address {address!r} holds a NUL", hint=rule)
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", address):
        return LocalStore(Path(address))
    if "::" in address or not separator or scheme.lower() not in (*SCHEMES, "file"):
        raise DataError(
            f"address {address!r} is not allowed: {rule}", hint=f"./{address} for a path that looks like an address"
        )
    if scheme.lower() == "file":
        if not rest.startswith("/"):
            raise DataError(f"address {address!r} must be file:/// and an absolute path", hint="use the path itself")
        return LocalStore(Path(rest))
    _check_remote(address, scheme.lower(), rest)
    return RemoteStore(address, config or StoreConfig())


def check_name(name: str) -> str:
    """`name`, if it is a plain file name. Raises DataError if it would leave the folder."""
    if not name or name in (".", "..") or any(character in name for character in "/\\\0"):
        raise DataError(f"file name {name!r} is not a plain name of a file in the corpus' folder")
    return name


def _check_remote(address: str, scheme: str, rest: str) -> None:
    web = scheme in ("http", "https")
    problems = [
        ("it names no bucket or host", not rest.strip("/")),
        ("it holds a backslash or a control character", re.search(r"[\\\x00-\x1f\x7f]", rest) is not None),
        ("`..` would leave the folder", ".." in rest.split("/")),
        ("a query or fragment cannot be followed by file names", web and ("?" in rest or "#" in rest)),
        ("credentials belong in the environment", web and "@" in rest.partition("/")[0]),
    ]
    for problem, holds in problems:
        if holds:
            shown = f"{scheme}://…" if "@" in rest else repr(address)
            raise DataError(f"address {shown} is not allowed: {problem}")


def _filesystem(scheme: str, config: StoreConfig) -> Any:
    """fsspec's file system, without listing caches and, where that can be set, without its own retries."""
    import fsspec  # lazily: a corpus on a disk does not need it

    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if scheme in ("http", "https"):
        options["headers"] = {"Accept-Encoding": "identity"}  # a range of a compressed body would be a different range
    if scheme == "s3":
        limits = {"connect_timeout": config.timeout_s, "read_timeout": config.timeout_s}
        pool = {"max_pool_connections": config.connections, "retries": {"max_attempts": 0}}
        options["config_kwargs"] = limits | pool
    try:
        files = fsspec.filesystem(scheme, **options)
    except ImportError as error:
        extra = EXTRAS.get(scheme, scheme)
        raise DataError(
            f"{scheme}:// needs a package that is not installed: {error}",
            hint=f"pip install 'pretrain-toolkit[{extra}]'",
        ) from None
    except Exception as error:
        raise DataError(f"{scheme}:// cannot be used: {describe(error)}") from None
    if scheme == "s3":
        files.retries = 1
    return files


def _too_long(what: str, size: int, limit: int) -> DataError:
    return DataError(f"{what}: {size} bytes or more, where at most {limit} are expected", hint=_COPY)
