"""Checkpoints in an object store (memory://): complete or absent whatever fails, and never in training's way."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pretrain.checkpoint import layout, remote
from pretrain.checkpoint.remote import RemoteRun, check_unused, check_upload, open_remote, recover
from pretrain.checkpoint.upload import Uploads
from pretrain.config import Config
from pretrain.config.schema import CheckpointConfig, StoreConfig
from pretrain.errors import CheckpointError, ConfigError, DataError, TrainingError
from pretrain.run_folder import RunFolder
from tests.support.checkpoints import WEIGHTS, flip_a_bit, names, save
from tests.support.stores import memory_address_fixture, no_waits_fixture  # noqa: F401

pytestmark = pytest.mark.usefixtures("no_waits")
FILES = {"config.yaml", "rank-00000.safetensors", "state.json"}
Act = Callable[[str, str], None]


class Wire:
    """A file system that reports each change, (what, name), to `log`, and asks `before` each of them, which may raise."""

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
    """In memory, with a wire that can be cut and answers that can be changed."""

    def __init__(self, address: str, attempts: int = 2) -> None:
        super().__init__(address, StoreConfig(attempts=attempts, timeout_s=20))
        self.wire = self._files = Wire(self._files)
        self.answer: Callable[[str, bytes], bytes] = lambda name, data: data

    def _raw(self, name: str, start: int, stop: int) -> bytes:
        return self.answer(name, super()._raw(name, start, stop))

    def write(self, name: str, data: bytes) -> None:
        self.wire._files.pipe_file(self._path(name), data)

    def copy(self, folder: Path) -> None:
        """A whole upload."""
        present = self.list_saves(folder.parent.name).get(layout.parse_name(folder.name) or 0, {})
        self.upload(folder, (folder / layout.MANIFEST).read_bytes(), present, lambda: None)

    def steps(self, kind: str = "checkpoints") -> list[int]:
        """What is complete."""
        return [step for step, found in self.list_saves(kind).items() if layout.MANIFEST in found]


@pytest.fixture(name="store")
def store_fixture(memory_address: str) -> Store:
    return Store(memory_address)


@pytest.fixture(name="run")
def run_fixture(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.make()
    return run


def fetched(store: Store, run: RunFolder) -> tuple[int | None, list[str]]:
    """The step that a run without a disk gets back, and what was passed over."""
    reasons: list[str] = []
    found = recover(store, run.checkpoints, 7, reasons.append)
    if found is not None:
        assert layout.verify(found[0]) == found[1]
    assert not [name for name in names(run.checkpoints) if name.startswith(".")]
    return None if found is None else int(found[1]["step"]), reasons


# --- one checkpoint ---------------------------------------------------------------------------------------------------


def test_what_was_uploaded_comes_back_byte_for_byte(store: Store, run: RunFolder, tmp_path: Path) -> None:
    folder = save(run.checkpoints, 100, bytes(range(256)) * 999)
    store.copy(folder)
    other = RunFolder(tmp_path / "other")
    other.make()
    assert fetched(store, other) == (100, [])
    copy = other.checkpoints / folder.name
    assert names(copy) == names(folder)
    assert all((copy / name).read_bytes() == (folder / name).read_bytes() for name in names(folder))


def test_long_files_come_back_in_chunks(store: Store, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(run.checkpoints, 100, bytes(range(250)) * 4)
    store.copy(folder)
    layout.remove(folder)
    monkeypatch.setattr(remote, "CHUNK_BYTES", 64)
    asked: list[int] = []
    store.answer = lambda name, data: (asked.append(len(data)), data)[1]
    assert fetched(store, run) == (100, [])
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
def test_an_upload_that_ends_anywhere_leaves_a_whole_checkpoint_or_none(
    store: Store, run: RunFolder, last: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over one of the same step, whose files are more."""
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
    whole = last in (0, 5)
    assert store.steps() == ([100, 200] if whole else [100])
    assert fetched(store, run) == (200 if whole else 100, [])
    if whole:
        weights = run.checkpoints / "step-00000200" / WEIGHTS
        assert weights.read_bytes() == (b"weights" if last == 0 else b"other")


def test_files_that_arrive_short_are_sent_again(store: Store, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "TRANSFERS", 1)
    folder = save(run.checkpoints, 100, b"a long file of weights")
    whole, calls = store.wire.put_file, []

    def put(source: str, target: str) -> None:
        calls.append(target)
        whole(source, target)
        if len(calls) == 1:
            store.wire._files.pipe_file(target, b"short")

    store.wire.put_file = put  # type: ignore[method-assign]
    store.copy(folder)
    assert len(calls) == 4
    layout.remove(folder)
    assert fetched(store, run) == (100, [])


def test_deleting_what_is_gone_is_fine(store: Store, run: RunFolder) -> None:
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


def test_strangers_in_the_folder_are_not_ours(store: Store, run: RunFolder) -> None:
    store.copy(save(run.checkpoints, 100))
    for name in ("notes.txt", "checkpoints/notes.txt", "checkpoints/step-1/manifest.json", "weights/x/manifest.json"):
        store.write(name, b"mine")
    store.write("checkpoints/step-00000100/deeper/file", b"mine")
    assert list(store.list_saves("checkpoints")) == [100] and store.list_saves("weights") == {}
    assert sorted(store.list_saves("checkpoints")[100]) == sorted([*FILES, layout.MANIFEST])


# --- coming back ------------------------------------------------------------------------------------------------------


def damage_bit(store: Store) -> None:
    store.write(f"checkpoints/step-00000200/{WEIGHTS}", b"veights")


DAMAGES: dict[str, tuple[Callable[[Store], object], str]] = {
    "a flipped bit": (damage_bit, f"{WEIGHTS} is damaged"),
    "a short file": (
        lambda store: store.write(f"checkpoints/step-00000200/{WEIGHTS}", b"w"),
        "has 1 bytes, and was written with 7",
    ),
    "a missing file": (lambda store: store.delete(f"checkpoints/step-00000200/{WEIGHTS}"), f"{WEIGHTS} is missing"),
    "half a manifest": (
        lambda store: store.write("checkpoints/step-00000200/manifest.json", b'{"format":'),
        "not a complete checkpoint",
    ),
    "an empty manifest": (
        lambda store: store.write("checkpoints/step-00000200/manifest.json", b""),
        "not a complete checkpoint",
    ),
    "a name that leads out": (
        lambda store: store.write(
            "checkpoints/step-00000200/manifest.json",
            b'{"format": "pretrain-checkpoint/1", "step": 200, '
            b'"files": [{"name": "../../stolen", "bytes": 1, "sha256": ""}]}',
        ),
        "not a plain file name",
    ),
    "the manifest of another step": (
        lambda store: store.write(
            "checkpoints/step-00000200/manifest.json",
            store.read_file("checkpoints/step-00000100/manifest.json", 10_000),
        ),
        "the manifest is that of step 100",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_upload_is_passed_over_with_the_reason(store: Store, run: RunFolder, damage: str) -> None:
    for step in (100, 200):
        store.copy(save(run.checkpoints, step))
        layout.remove(run.checkpoints / layout.checkpoint_name(step))
    act, reason = DAMAGES[damage]
    act(store)
    step, reasons = fetched(store, run)
    assert step == 100
    assert len(reasons) == 1 and reason in reasons[0] and f"{store.address}/checkpoints/step-00000200" in reasons[0]
    assert not (run.path / "stolen").exists()
    store.delete("checkpoints/step-00000100/manifest.json")
    layout.remove(run.checkpoints / "step-00000100")
    assert fetched(store, run) == (None, reasons)


def test_an_upload_without_a_manifest_does_not_exist(store: Store, run: RunFolder) -> None:
    store.copy(save(run.checkpoints, 100))
    store.delete("checkpoints/step-00000100/manifest.json")
    layout.remove(run.checkpoints / "step-00000100")
    assert fetched(store, run) == (None, [])


def test_weights_alone_are_never_resumed_from(store: Store, run: RunFolder) -> None:
    store.copy(save(run.weights, 100))
    assert fetched(store, run) == (None, [])


@pytest.mark.parametrize("bad", [1, 2, 3])
def test_what_was_damaged_on_the_way_is_asked_for_again(store: Store, run: RunFolder, bad: int) -> None:
    for step in (100, 200):
        store.copy(save(run.checkpoints, step))
        layout.remove(run.checkpoints / layout.checkpoint_name(step))
    answers: list[str] = []

    def answer(name: str, data: bytes) -> bytes:
        if name.endswith(f"200/{WEIGHTS}"):
            answers.append(name)
            return data if len(answers) > bad else bytes(len(data))
        return data

    store.answer = answer
    assert fetched(store, run)[0] == (200 if bad < 3 else 100)
    assert len(answers) == min(3, bad + 1)


def test_a_store_that_fails_is_no_reason_for_an_older_checkpoint(store: Store, run: RunFolder) -> None:
    for step in (100, 200):
        store.copy(save(run.checkpoints, step))
        layout.remove(run.checkpoints / layout.checkpoint_name(step))

    def answer(name: str, data: bytes) -> bytes:
        if name.endswith(f"200/{WEIGHTS}"):
            raise ConnectionResetError
        return data

    store.answer = answer
    with pytest.raises(DataError, match=f"200/{WEIGHTS}.* failed 2 tries; the last: ConnectionReset") as caught:
        fetched(store, run)
    assert "checkpoint.upload" in str(caught.value.hint)
    assert names(run.checkpoints) == []


def test_a_disk_that_fails_is_one_error(store: Store, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    store.copy(save(run.checkpoints, 100))
    layout.remove(run.checkpoints / "step-00000100")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(remote.os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"step 100 cannot be written to .*: No space left on device"):
        fetched(store, run)
    assert names(run.checkpoints) == []


def test_a_damaged_checkpoint_on_the_disk_is_replaced_by_the_one_in_the_store(store: Store, run: RunFolder) -> None:
    folder = save(run.checkpoints, 100)
    store.copy(folder)
    flip_a_bit(folder / WEIGHTS)
    assert fetched(store, run) == (100, [])
    assert names(run.checkpoints) == ["step-00000100"]


def test_an_address_that_holds_a_checkpoint_is_not_unused(store: Store, run: RunFolder) -> None:
    store.copy(save(run.checkpoints, 100))
    store.delete("checkpoints/step-00000100/manifest.json")
    check_unused(store)
    store.copy(save(run.checkpoints, 200))
    with pytest.raises(CheckpointError, match=f"resume=never, and {store.address} holds a checkpoint of step 200"):
        check_unused(store)


@pytest.mark.parametrize("address", ["https://host/run", "http://host/run", "runs/copy", "/runs/copy", "ftp://a/b"])
def test_what_cannot_be_written_to_is_no_address(address: str) -> None:
    with pytest.raises(ConfigError, match="is not one of s3://") as caught:
        check_upload(Config(checkpoint=CheckpointConfig(upload=address)))
    assert "hint: checkpoint.upload=s3://BUCKET/RUN" in str(caught.value)


@pytest.mark.parametrize("address", ["s3://", "s3://bucket/../other", "s3://bucket\\run", "zip::s3://bucket/a.zip"])
def test_an_address_is_held_against_the_rules_of_every_store(address: str) -> None:
    with pytest.raises((ConfigError, DataError)):
        check_upload(Config(checkpoint=CheckpointConfig(upload=address)))


def test_credentials_are_not_repeated_in_an_error() -> None:
    with pytest.raises(ConfigError) as caught:
        check_upload(Config(checkpoint=CheckpointConfig(upload="https://me:secret@host/run")))
    assert "secret" not in str(caught.value)


def test_without_an_address_there_is_no_store(memory_address: str) -> None:
    check_upload(Config())
    assert open_remote(Config()) is None
    config = Config(checkpoint=CheckpointConfig(upload=memory_address + "/"))
    check_upload(config)
    opened = open_remote(config)
    assert opened is not None and opened.address == memory_address


# --- what the store keeps ---------------------------------------------------------------------------------------------


def test_the_rules_of_retention_hold_there_too(store: Store, run: RunFolder) -> None:
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
def test_a_damaged_state_is_not_among_the_best_and_stops_nothing(store: Store, run: RunFolder, state: bytes) -> None:
    for step in (1, 2, 3):
        store.copy(save(run.checkpoints, step, validation_loss=float(step)))
    store.write("checkpoints/step-00000001/state.json", state)
    store.prune(CheckpointConfig(keep_last=1, keep_best=1), {}, 3)
    assert store.steps() == [2, 3]


# --- in the background ------------------------------------------------------------------------------------------------


class Background:
    """Uploads of a run, the lines that they noted, and the training's side of it."""

    def __init__(self, store: Store, run: RunFolder, **rules: Any) -> None:
        self.run, self.notes = run, list[str]()
        self.rules = CheckpointConfig(**rules)
        self.outdated = False
        self.uploads = Uploads(store, run, self.rules, self._fence, self.notes.append)

    def _fence(self) -> None:
        if self.outdated:
            raise TrainingError("attempt 2 has begun")

    def save(self, step: int, content: bytes = b"weights", **state: Any) -> Path:
        folder = save(self.run.checkpoints, step, content, **state)
        self.uploads.wake(folder)
        return folder

    def settle(self) -> None:
        """Until nothing is being copied."""
        while (thread := self.uploads._thread) is not None:
            thread.join()


def hold(store: Store, part: str) -> tuple[threading.Event, threading.Event]:
    """Stops a change of names with `part` in them: (it has come, let it go on)."""
    reached, released = threading.Event(), threading.Event()

    def before(what: str, path: str) -> None:
        if part in path:
            reached.set()
            assert released.wait(60)

    store.wire.before = before
    return reached, released


def test_each_checkpoint_is_copied_and_said(store: Store, run: RunFolder) -> None:
    background = Background(store, run, keep_last=2)
    for step in (10, 20, 30):
        background.save(step)
        background.settle()
    assert store.steps() == [20, 30]
    assert background.notes == [f"uploaded {store.address}/checkpoints/step-000000{step}" for step in (10, 20, 30)]
    background.uploads.finish()
    assert len(background.notes) == 3


def test_weights_are_copied_after_the_checkpoints_and_never_deleted(store: Store, run: RunFolder) -> None:
    background = Background(store, run, keep_last=1)
    for step in (10, 20):
        background.uploads.wake(save(run.weights, step), save(run.checkpoints, step))
        background.settle()
    assert store.steps() == [20] and store.steps("weights") == [10, 20]
    assert [note.split("/")[-2] for note in background.notes] == ["checkpoints", "weights"] * 2


def test_a_newer_checkpoint_overtakes_those_that_wait_but_for_what_is_kept_for_good(
    store: Store, run: RunFolder
) -> None:
    background = Background(store, run, keep_last=9, keep_every_steps=20)
    reached, released = hold(store, "step-00000010")
    background.save(10)
    assert reached.wait(60)
    for step in (15, 20, 25, 30):
        background.save(step)
    assert store.steps() == []
    released.set()
    background.settle()
    assert [int(note[-2:]) for note in background.notes] == [10, 30, 20]
    assert store.steps() == [10, 20, 30]


def test_what_is_being_copied_is_held_and_nothing_else(store: Store, run: RunFolder) -> None:
    background = Background(store, run)
    reached, released = hold(store, "step-00000010")
    folder = background.save(10)
    assert reached.wait(60)
    background.save(20)
    with background.uploads.held() as held:
        assert held == [folder]
    released.set()
    background.settle()
    with background.uploads.held() as held:
        assert held == []


def test_nothing_is_chosen_while_checkpoints_are_deleted(store: Store, run: RunFolder) -> None:
    background = Background(store, run)
    reached, _ = hold(store, "step-00000010")
    with background.uploads.held():
        folder = background.save(10)
        assert not reached.wait(0.2)
        layout.remove(folder)
    background.settle()
    assert (background.notes, store.steps()) == ([], [])


def test_a_failure_is_noted_and_the_next_checkpoint_tries_again(store: Store, run: RunFolder) -> None:
    background = Background(store, run, keep_last=3, keep_every_steps=10)

    def fail(what: str, path: str) -> None:
        raise PermissionError("not yours")

    store.wire.before = fail
    background.save(10)
    background.settle()
    (note,) = background.notes
    with background.uploads.held() as held:
        assert held == []
    assert note.startswith("upload failed: ") and "PermissionError: not yours" in note and "tried again" in note
    assert store.address in note
    store.wire.before = lambda what, path: None
    background.save(20)
    background.settle()
    assert store.steps() == [10, 20]


def test_a_failure_of_any_kind_is_noted(store: Store, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    background = Background(store, run)
    with monkeypatch.context() as patched:
        patched.setattr(Store, "list_saves", lambda *_: 1 / 0)
        background.save(10)
        background.settle()
    assert background.notes == ["upload failed: ZeroDivisionError: division by zero; it is tried again after the next "
                                "checkpoint"]  # fmt: skip
    background.uploads.finish()
    assert store.steps() == [10]


def test_the_end_waits_tries_once_more_and_says_what_is_left(store: Store, run: RunFolder) -> None:
    background = Background(store, run)
    fails = [True]

    def fail(what: str, path: str) -> None:
        if fails:
            raise PermissionError

    store.wire.before = fail
    background.save(10)
    background.settle()
    background.uploads.finish()
    assert [note.split(" ")[0] for note in background.notes] == ["upload", "upload", "not"]
    left = background.notes[-1]
    assert left == f"not uploaded to {store.address}: checkpoints/step-00000010; the same command tries again"
    fails.clear()
    background.uploads.finish()
    assert store.steps() == [10] and len(background.notes) == 4


def test_the_end_does_not_wait_for_ever(store: Store, run: RunFolder) -> None:
    background = Background(store, run)
    reached, released = hold(store, "step-00000010")
    background.save(10)
    assert reached.wait(60)
    background.uploads.finish(timeout_s=0.01)
    assert background.notes == [
        f"not uploaded to {store.address}: checkpoints/step-00000010; the same command tries again"
    ]
    released.set()
    background.settle()


def test_the_next_start_copies_what_is_missing_and_nothing_twice(store: Store, run: RunFolder) -> None:
    first = Background(store, run, keep_every_steps=10)
    first.save(10)
    first.settle()
    folder = save(run.checkpoints, 20)  # killed before it was copied
    store.wire.log.clear()
    second = Background(store, run, keep_every_steps=10)
    second.uploads.wake(folder)
    second.settle()
    assert store.steps() == [10, 20]
    assert {name.split("/")[0] for _, name in store.wire.log} == {"step-00000020"}
    store.wire.log.clear()
    second.uploads.wake()
    second.settle()
    assert store.wire.log == []


def test_a_step_that_is_saved_again_is_copied_again(store: Store, run: RunFolder) -> None:
    background = Background(store, run, keep_best=1, keep_last=2)
    for step, content, loss in ((5, b"old", 3.0), (10, b"first", 2.0), (10, b"second", 9.0), (20, b"new", None)):
        background.save(step, content, validation_loss=loss)
        background.settle()
    assert store.read_file(f"checkpoints/step-00000010/{WEIGHTS}", 100) == b"second"
    assert store.steps() == [5, 10, 20]  # the best is that of step 5 again


def test_a_step_that_is_saved_again_while_it_is_copied_ends_as_the_new_one(store: Store, run: RunFolder) -> None:
    background = Background(store, run)
    reached, released = hold(store, WEIGHTS)
    background.save(10, b"first and longer")
    assert reached.wait(60)
    background.save(10, b"second")
    released.set()
    background.settle()
    background.uploads.finish()
    layout.remove(run.checkpoints / "step-00000010")
    assert fetched(store, run)[0] == 10
    assert (run.checkpoints / "step-00000010" / WEIGHTS).read_bytes() == b"second"


def test_a_damaged_checkpoint_of_an_earlier_start_is_not_copied(store: Store, run: RunFolder) -> None:
    flip_a_bit(save(run.checkpoints, 10) / WEIGHTS)
    background = Background(store, run, keep_every_steps=10, keep_last=1)
    background.save(20)
    background.settle()
    assert store.steps() == [20]
    assert [note for note in background.notes if "not uploaded: " in note and "is damaged" in note]
    background.uploads.finish()
    assert len(background.notes) == 2


def test_one_without_a_manifest_is_not_copied_and_disturbs_nothing(store: Store, run: RunFolder) -> None:
    (save(run.checkpoints, 10) / layout.MANIFEST).unlink()
    background = Background(store, run, keep_every_steps=10)
    background.save(20)
    background.settle()
    assert store.steps() == [20] and len(background.notes) == 1


def test_a_newer_damaged_checkpoint_is_neither_copied_nor_does_it_push_out_good_ones(
    store: Store, run: RunFolder
) -> None:
    flip_a_bit(save(run.checkpoints, 30) / WEIGHTS)
    background = Background(store, run, keep_last=1, keep_every_steps=10)
    background.save(20)
    background.settle()
    assert store.steps() == [20] and len(background.notes) == 1


def test_after_a_later_attempt_has_begun_no_upload_is_completed_or_deleted(store: Store, run: RunFolder) -> None:
    background = Background(store, run, keep_last=1)
    background.save(10)
    background.settle()
    reached, released = hold(store, f"step-00000020/{WEIGHTS}")
    background.save(20)
    assert reached.wait(60)
    background.outdated = True
    released.set()
    background.settle()
    assert store.steps() == [10]
    assert "attempt 2 has begun" in background.notes[-1]


def test_an_outdated_attempt_deletes_nothing_there(store: Store, run: RunFolder) -> None:
    background = Background(store, run, keep_last=1)
    background.save(10)
    background.settle()
    reached, released = hold(store, f"step-00000020/{layout.MANIFEST}")
    background.save(20)
    assert reached.wait(60)
    background.outdated = True
    released.set()
    background.settle()
    assert store.steps() == [10, 20]
