"""An uploaded run in fsspec's memory:// store, with a connection that tests can cut."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pretrain.checkpoint import layout
from pretrain.checkpoint.remote import RemoteRun, recover
from pretrain.config.schema import StoreConfig
from pretrain.run_folder import RunFolder
from tests.support.checkpoints import names
from tests.support.stores import memory_address_fixture, no_waits_fixture  # noqa: F401

FILES = {"config.yaml", "rank-00000.safetensors", "state.json"}
Act = Callable[[str, str], None]


class Wire:
    """A file system that records each change as (what, name) in `log`, and first calls `before`, which may raise."""

    def __init__(self, files: Any) -> None:
        self._files = files
        self.log: list[tuple[str, str]] = []
        self.before: Act = lambda what, path: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._files, name)

    def _note(self, what: str, path: str) -> None:
        self.before(what, path)
        self.log.append((what, "/".join(path.split("/")[-2:])))

    def put_file(self, source: str, target: str) -> None:
        self._note("put", target)
        self._files.put_file(source, target)

    def pipe_file(self, target: str, data: bytes) -> None:
        self._note("put", target)
        self._files.pipe_file(target, data)

    def rm_file(self, target: str) -> None:
        self._note("delete", target)
        self._files.rm_file(target)


class Store(RemoteRun):
    """A store in memory whose connection can be cut and whose responses can be changed."""

    def __init__(self, address: str, attempts: int = 2) -> None:
        super().__init__(address, StoreConfig(attempts=attempts, timeout_s=20))
        self.wire = self._files = Wire(self._files)
        self.answer: Callable[[str, bytes], bytes] = lambda name, data: data

    def _raw(self, name: str, start: int, stop: int) -> bytes:
        return self.answer(name, super()._raw(name, start, stop))

    def write(self, name: str, data: bytes) -> None:
        self.wire._files.pipe_file(self._path(name), data)

    def copy(self, folder: Path) -> None:
        """Upload a checkpoint."""
        present = self.list_saves(folder.parent.name).get(layout.parse_name(folder.name) or 0, {})
        self.upload(folder, (folder / layout.MANIFEST).read_bytes(), present, lambda: None)

    def steps(self, kind: str = "checkpoints") -> list[int]:
        """Steps of complete checkpoints."""
        return [step for step, found in self.list_saves(kind).items() if layout.MANIFEST in found]


@pytest.fixture(name="store")
def store_fixture(memory_address: str) -> Store:
    return Store(memory_address)


@pytest.fixture(name="run")
def run_fixture(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.make()
    return run


def recovered(store: Store, run: RunFolder) -> tuple[int | None, list[str]]:
    """The step that a run with an empty disk recovers, and the reasons of skipped ones."""
    reasons: list[str] = []
    found = recover(store, run.checkpoints, 7, reasons.append)
    if found is not None:
        assert layout.verify(found[0]) == found[1]
    assert not [name for name in names(run.checkpoints) if name.startswith(".")]
    return None if found is None else int(found[1]["step"]), reasons
