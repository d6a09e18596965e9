"""Uploads to an object store (memory://): complete or absent whatever fails, and retention there."""

from pathlib import Path

import pytest

from pretrain.checkpoint import layout, remote
from pretrain.config.schema import CheckpointConfig
from pretrain.errors import DataError
from pretrain.run_folder import RunFolder
from tests.support.checkpoints import WEIGHTS, names, save
from tests.support.remote_runs import FILES, Store, recovered, run_fixture, store_fixture  # noqa: F401
from tests.support.stores import memory_address_fixture, no_waits_fixture  # noqa: F401

pytestmark = pytest.mark.usefixtures("no_waits")


def test_downloads_are_bitwise_equal(store: Store, run: RunFolder, tmp_path: Path) -> None:
    folder = save(run.checkpoints, 100, bytes(range(256)) * 999)
    store.copy(folder)
    other = RunFolder(tmp_path / "other")
    other.make()
    assert recovered(store, other) == (100, [])
    copy = other.checkpoints / folder.name
    assert names(copy) == names(folder)
    assert all((copy / name).read_bytes() == (folder / name).read_bytes() for name in names(folder))


def test_long_files_are_downloaded_in_chunks(store: Store, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(run.checkpoints, 100, bytes(range(250)) * 4)
    store.copy(folder)
    layout.remove(folder)
    monkeypatch.setattr(remote, "CHUNK_BYTES", 64)
    asked: list[int] = []
    store.answer = lambda name, data: (asked.append(len(data)), data)[1]
    assert recovered(store, run) == (100, [])
    assert max(size for size in asked if size != 64) < 1_000 and asked.count(64) >= 15


def test_the_manifest_is_written_last_and_deleted_first(store: Store, run: RunFolder) -> None:
    store.copy(save(run.checkpoints, 100))
    manifest = f"step-00000100/{layout.MANIFEST}"
    assert store.wire.log[-1] == ("put", manifest)
    assert {name.split("/")[1] for _, name in store.wire.log[:-1]} == FILES
    store.wire.log.clear()
    store.copy(save(run.checkpoints, 100, b"other"))
    assert store.wire.log[0] == ("delete", manifest) and store.wire.log[-1] == ("put", manifest)
    store.wire.log.clear()
    store.remove("checkpoints", 100, store.list_saves("checkpoints")[100])
    assert store.wire.log[0] == ("delete", manifest) and len(store.wire.log) == 4
    assert store.list_saves("checkpoints") == {}


@pytest.mark.parametrize("last", range(6))
def test_an_interrupted_upload_leaves_a_complete_checkpoint_or_none(
    store: Store, run: RunFolder, last: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over an upload of the same step that has more files."""
    monkeypatch.setattr(remote, "TRANSFERS", 1)
    store.copy(save(run.checkpoints, 100))
    store.write("checkpoints/step-00000200/rank-00001.safetensors", b"of an upload that was never finished")
    store.copy(save(run.checkpoints, 200))
    assert sorted(store.list_saves("checkpoints")[200]) == sorted([*FILES, layout.MANIFEST])
    store.wire.log.clear()

    def cut(what: str, path: str) -> None:
        if len(store.wire.log) >= last:
            raise PermissionError

    store.wire.before = cut
    with pytest.raises(DataError, match="PermissionError") if last < 5 else pytest.MonkeyPatch.context():
        store.copy(save(run.checkpoints, 200, b"other"))
    for step in (100, 200):
        layout.remove(run.checkpoints / layout.checkpoint_name(step))
    complete = last in (0, 5)
    assert store.steps() == ([100, 200] if complete else [100])
    assert recovered(store, run) == (200 if complete else 100, [])
    if complete:
        weights = run.checkpoints / "step-00000200" / WEIGHTS
        assert weights.read_bytes() == (b"weights" if last == 0 else b"other")


def test_truncated_uploads_are_retried(store: Store, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "TRANSFERS", 1)
    folder = save(run.checkpoints, 100, b"a long file of weights")
    put_file, calls = store.wire.put_file, []

    def put(source: str, target: str) -> None:
        calls.append(target)
        put_file(source, target)
        if len(calls) == 1:
            store.wire._files.pipe_file(target, b"short")

    store.wire.put_file = put  # type: ignore[method-assign]
    store.copy(folder)
    assert len(calls) == 4
    layout.remove(folder)
    assert recovered(store, run) == (100, [])


def test_deleting_a_missing_file_is_fine(store: Store, run: RunFolder) -> None:
    store.copy(save(run.checkpoints, 100))
    for _ in range(2):
        store.delete(f"checkpoints/step-00000100/{WEIGHTS}")
    assert WEIGHTS not in store.list_saves("checkpoints")[100]


def test_a_step_that_was_saved_again_is_another_checkpoint(store: Store, run: RunFolder) -> None:
    folder = save(run.checkpoints, 100, b"first.")
    store.copy(folder)
    assert store.holds(folder, (folder / layout.MANIFEST).read_bytes(), store.list_saves("checkpoints")[100])
    save(run.checkpoints, 100, b"second")
    assert not store.holds(folder, (folder / layout.MANIFEST).read_bytes(), store.list_saves("checkpoints")[100])
    assert not store.holds(folder, b"", {})


def test_foreign_files_in_the_folder_are_ignored(store: Store, run: RunFolder) -> None:
    store.copy(save(run.checkpoints, 100))
    for name in ("notes.txt", "checkpoints/notes.txt", "checkpoints/step-1/manifest.json", "weights/x/manifest.json"):
        store.write(name, b"mine")
    store.write("checkpoints/step-00000100/deeper/file", b"mine")
    assert list(store.list_saves("checkpoints")) == [100] and store.list_saves("weights") == {}
    assert sorted(store.list_saves("checkpoints")[100]) == sorted([*FILES, layout.MANIFEST])


def test_retention_applies_to_the_store(store: Store, run: RunFolder) -> None:
    for step, loss in ((10, 3.0), (20, 1.0), (30, None), (40, 2.0), (50, 2.0), (60, 2.0), (70, 0.5)):
        store.copy(save(run.checkpoints, step, validation_loss=loss))
    store.delete("checkpoints/step-00000010/manifest.json")
    store.wire.log.clear()
    losses: dict[int, float | None] = {}
    store.prune(CheckpointConfig(keep_last=2, keep_best=1, keep_every_steps=40), losses, 60)
    assert list(store.list_saves("checkpoints")) == [20, 40, 50, 60, 70]
    assert losses == {20: 1.0, 30: None, 40: 2.0, 50: 2.0, 60: 2.0}
    deleted = [name for what, name in store.wire.log if name.startswith("step-00000030")]
    assert deleted[0].endswith(layout.MANIFEST) and len(deleted) == 4
    asked: list[str] = []
    store.answer = lambda name, data: (asked.append(name), data)[1]
    store.prune(CheckpointConfig(keep_last=1, keep_best=1), losses, 60)
    assert asked == [] and list(store.list_saves("checkpoints")) == [20, 60, 70]


@pytest.mark.parametrize("state", [b"{", b"[1]", b""])
def test_a_corrupt_state_is_not_among_the_best_and_raises_nothing(store: Store, run: RunFolder, state: bytes) -> None:
    for step in (1, 2, 3):
        store.copy(save(run.checkpoints, step, validation_loss=float(step)))
    store.write("checkpoints/step-00000001/state.json", state)
    store.prune(CheckpointConfig(keep_last=1, keep_best=1), {}, 3)
    assert store.steps() == [2, 3]
