"""Blocks of remote shards on a local disk, for later epochs and runs.

    CACHE_DIR/SHA256.blocks    one sparse file a shard, by the shard's hash; each block at its own offset

There is no lock and no list of cached blocks: a block counts as cached if its crc32 matches the index. So processes share
the folder, a torn write is a cache miss, and foreign content cannot become tokens. The file of the least recently used
shard is evicted; a process that has it open keeps reading.
"""

import contextlib
import errno
import os
import re
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from pretrain.config.schema import StoreConfig
from pretrain.errors import DataError

SUFFIX = ".blocks"
SLACK = 64  # the folder is scanned after each 1/64 of its limit that was written
TOUCH_S = 60.0  # the mtime of a file in use is updated this often

_NAME = re.compile(r"[0-9a-f]{64}\.blocks")
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class ShardCache:
    """A cache folder of about `limit_bytes`. A failure in it is one warning, never an error."""

    _of_process: ClassVar[weakref.WeakValueDictionary[tuple[Path, int], "ShardCache"]] = weakref.WeakValueDictionary()

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self._writable = True
        self._unseen = limit_bytes  # bytes written since the folder was scanned; others may have written before
        self._touched: dict[str, float] = {}
        self._lock = threading.Lock()

    @classmethod
    def of(cls, config: StoreConfig) -> "ShardCache | None":
        """The instance that all sources of this process share; None without data.store.cache_dir."""
        if config.cache_dir is None:
            return None
        options = Path(config.cache_dir), int(config.cache_gib * (1 << 30))
        return cls._of_process.setdefault(options, cls(*options))

    def read(self, sha256: str, start: int, length: int, parse: Callable[[bytes], Any]) -> Any:
        """`parse` of a cached block; None if it is absent or incomplete, or `parse` raises DataError."""
        try:
            descriptor = self._open(sha256, os.O_RDONLY)
        except OSError:
            return None
        try:
            data = os.pread(descriptor, length, start)
            if len(data) != length:
                return None
            found = parse(data)
            self._mark_used(sha256, descriptor)
            return found
        except (OSError, DataError):
            return None
        finally:
            os.close(descriptor)

    def write(self, sha256: str, start: int, data: bytes) -> None:
        """Cache a block that was checked."""
        if not self._writable:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._make_room(len(data))
            descriptor = self._open(sha256, os.O_RDWR | os.O_CREAT)
            try:
                os.pwrite(descriptor, data, start)
            finally:
                os.close(descriptor)
        except OSError as error:
            self._writable = False
            warnings.warn(
                f"data.store.cache_dir={self.folder} cannot be written ({error.strerror}): blocks are no longer cached",
                stacklevel=2,
            )

    def _open(self, sha256: str, flags: int) -> int:
        """A descriptor of the shard's file. Raises OSError for a link, which may lead to foreign data."""
        descriptor = os.open(self.folder / f"{sha256}{SUFFIX}", flags | _FLAGS, 0o644)
        if os.fstat(descriptor).st_nlink > 1:
            os.close(descriptor)
            raise OSError(errno.EMLINK, f"{sha256}{SUFFIX} has a second name")
        return descriptor

    def _mark_used(self, sha256: str, descriptor: int) -> None:
        """Record use by mtime: many file systems do not record reads."""
        now = time.monotonic()
        if now - self._touched.get(sha256, -TOUCH_S) >= TOUCH_S:
            self._touched[sha256] = now
            with contextlib.suppress(OSError):  # a file of another user
                os.utime(descriptor)

    def _make_room(self, size: int) -> None:
        with self._lock:
            self._unseen += size
            if self._unseen * SLACK < self.limit_bytes:
                return
            self._unseen = 0
        files = sorted(self._files())
        total = sum(used for _, used, _ in files) + size
        for _, used, path in files:
            if total <= self.limit_bytes - self.limit_bytes // SLACK:
                break
            with contextlib.suppress(OSError):  # removed by another process, or not ours to remove
                path.unlink()
                total -= used

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """(time of last use, bytes on the disk, path) of each shard's file."""
        for path in self.folder.iterdir():
            if _NAME.fullmatch(path.name):
                with contextlib.suppress(OSError):
                    found = path.lstat()
                    yield found.st_mtime, found.st_blocks * 512, path
