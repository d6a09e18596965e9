"""Corpora in fsspec's memory:// store, and a store whose requests fail on demand."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pretrain.config.schema import StoreConfig
from pretrain.storage import retry as retries
from pretrain.storage.store import RemoteStore

Fault = Callable[[Callable[[], bytes]], bytes]


def upload(folder: Path, address: str) -> None:
    """Copy the files of a folder to a memory:// address."""
    for path in folder.iterdir():
        fsspec.filesystem("memory").pipe_file(f"{address}/{path.name}", path.read_bytes())


@pytest.fixture(name="memory_address")
def memory_address_fixture(tmp_path: Path) -> Iterator[str]:
    """A folder in the store of this process that no other test knows; emptied afterwards."""
    address = f"memory://{tmp_path.parent.name}-{tmp_path.name}"
    yield address
    files = fsspec.filesystem("memory")
    if files.exists(address):
        files.rm(address, recursive=True)


@pytest.fixture(name="no_waits")
def no_waits_fixture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow each other at once."""
    monkeypatch.setattr(retries, "FIRST_WAIT_S", 0.0)


class FaultyStore(RemoteStore):
    """Records each request, and lets `faults` have those that come next, or `always` each of them."""

    def __init__(self, address: str, config: StoreConfig | None = None) -> None:
        super().__init__(address, config or StoreConfig())
        self.requests: list[tuple[str, int, int]] = []
        self.faults: list[Fault | None] = []
        self.always: Callable[[str, int], Fault | None] = lambda name, start: None
        self._guard = threading.Lock()

    def _raw(self, name: str, start: int, stop: int) -> bytes:
        with self._guard:
            self.requests.append((name, start, stop))
            fault = self.faults.pop(0) if self.faults else self.always(name, start)

        def honest() -> bytes:
            return super(FaultyStore, self)._raw(name, start, stop)

        return honest() if fault is None else fault(honest)


def fails(error: Exception) -> Fault:
    """A request that raises."""

    def fault(honest: Callable[[], bytes]) -> bytes:
        raise error

    return fault


def short(honest: Callable[[], bytes]) -> bytes:
    """An answer that lacks its last byte."""
    return honest()[:-1]


def long(honest: Callable[[], bytes]) -> bytes:
    """An answer of a byte too many."""
    return honest() + b"\0"


def flipped(place: int) -> Fault:
    """An answer with one bit turned over."""

    def fault(honest: Callable[[], bytes]) -> bytes:
        data = bytearray(honest())
        data[place % len(data)] ^= 1
        return bytes(data)

    return fault


def hangs(until: threading.Event) -> Fault:
    """A request without an answer, until a test ends it."""

    def fault(honest: Callable[[], bytes]) -> Any:
        until.wait(60)
        return honest()

    return fault
