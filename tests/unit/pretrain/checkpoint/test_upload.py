"""Background uploads (memory://): ordering, pinning, failures, fencing."""

import threading
from pathlib import Path
from typing import Any

import pytest

from pretrain.checkpoint import layout
from pretrain.checkpoint.upload import Uploader
from pretrain.config.schema import CheckpointConfig
from pretrain.errors import TrainingError
from pretrain.run_folder import RunFolder
from tests.support.checkpoints import WEIGHTS, flip_a_bit, save
from tests.support.remote_runs import Store, recovered, run_fixture, store_fixture  # noqa: F401
from tests.support.stores import memory_address_fixture, no_waits_fixture  # noqa: F401

pytestmark = pytest.mark.usefixtures("no_waits")


class Background:
    """Uploader of a run, the lines that it logged, and the trainer's side."""

    def __init__(self, store: Store, run: RunFolder, **rules: Any) -> None:
        self.run, self.lines = run, list[str]()
        self.rules = CheckpointConfig(**rules)
        self.outdated = False
        self.uploader = Uploader(store, run, self.rules, self._fence, self.lines.append)

    def _fence(self) -> None:
        if self.outdated:
            raise TrainingError("attempt 2 has begun")

    def save(self, step: int, content: bytes = b"weights", **state: Any) -> Path:
        folder = save(self.run.checkpoints, step, content, **state)
        self.uploader.wake(folder)
        return folder

    def wait(self) -> None:
        """Wait until nothing is being uploaded."""
        while (thread := self.uploader._thread) is not None:
            thread.join()


def hold(store: Store, part: str) -> tuple[threading.Event, threading.Event]:
    """Block changes of names that contain `part`. Returns events: (reached, released)."""
    reached, released = threading.Event(), threading.Event()

    def before(what: str, path: str) -> None:
        if part in path:
            reached.set()
            assert released.wait(60)

    store.wire.before = before
    return reached, released


def test_each_checkpoint_is_uploaded_and_logged(store: Store, run: RunFolder) -> None:
    background = Background(store, run, keep_last=2)
    for step in (10, 20, 30):
        background.save(step)
        background.wait()
    assert store.steps() == [20, 30]
    assert background.lines == [f"uploaded {store.address}/checkpoints/step-000000{step}" for step in (10, 20, 30)]
    background.uploader.finish()
    assert len(background.lines) == 3


def test_weights_are_uploaded_after_the_checkpoints_and_never_deleted(store: Store, run: RunFolder) -> None:
    background = Background(store, run, keep_last=1)
    for step in (10, 20):
        background.uploader.wake(save(run.weights, step), save(run.checkpoints, step))
        background.wait()
    assert store.steps() == [20] and store.steps("weights") == [10, 20]
    assert [line.split("/")[-2] for line in background.lines] == ["checkpoints", "weights"] * 2


def test_a_newer_checkpoint_supersedes_waiting_ones_unless_retention_keeps_them(store: Store, run: RunFolder) -> None:
    background = Background(store, run, keep_last=9, keep_every_steps=20)
    reached, released = hold(store, "step-00000010")
    background.save(10)
    assert reached.wait(60)
    for step in (15, 20, 25, 30):
        background.save(step)
    assert store.steps() == []
    released.set()
    background.wait()
    assert [int(line[-2:]) for line in background.lines] == [10, 30, 20]
    assert store.steps() == [10, 20, 30]


def test_only_the_checkpoint_being_uploaded_is_pinned(store: Store, run: RunFolder) -> None:
    background = Background(store, run)
    reached, released = hold(store, "step-00000010")
    folder = background.save(10)
    assert reached.wait(60)
    background.save(20)
    with background.uploader.pinned() as pinned:
        assert pinned == [folder]
    released.set()
    background.wait()
    with background.uploader.pinned() as pinned:
        assert pinned == []


def test_nothing_is_chosen_while_checkpoints_are_deleted(store: Store, run: RunFolder) -> None:
    background = Background(store, run)
    reached, _ = hold(store, "step-00000010")
    with background.uploader.pinned():
        folder = background.save(10)
        assert not reached.wait(0.2)
        layout.remove(folder)
    background.wait()
    assert (background.lines, store.steps()) == ([], [])


def test_a_failure_is_logged_and_retried_after_the_next_checkpoint(store: Store, run: RunFolder) -> None:
    background = Background(store, run, keep_last=3, keep_every_steps=10)

    def fail(what: str, path: str) -> None:
        raise PermissionError("not yours")

    store.wire.before = fail
    background.save(10)
    background.wait()
    (line,) = background.lines
    with background.uploader.pinned() as pinned:
        assert pinned == []
    assert line.startswith("upload failed: ") and "PermissionError: not yours" in line and "retrying" in line
    assert store.address in line
    store.wire.before = lambda what, path: None
    background.save(20)
    background.wait()
    assert store.steps() == [10, 20]


def test_any_exception_is_logged(store: Store, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    background = Background(store, run)
    with monkeypatch.context() as patched:
        patched.setattr(Store, "list_saves", lambda *_: 1 / 0)
        background.save(10)
        background.wait()
    assert background.lines == ["upload failed: ZeroDivisionError: division by zero; retrying after the next checkpoint"
                                ]  # fmt: skip
    background.uploader.finish()
    assert store.steps() == [10]


def test_the_end_waits_retries_once_and_logs_what_is_left(store: Store, run: RunFolder) -> None:
    background = Background(store, run)
    fails = [True]

    def fail(what: str, path: str) -> None:
        if fails:
            raise PermissionError

    store.wire.before = fail
    background.save(10)
    background.wait()
    background.uploader.finish()
    assert [line.split(" ")[0] for line in background.lines] == ["upload", "upload", "not"]
    left = background.lines[-1]
    assert left == f"not uploaded to {store.address}: checkpoints/step-00000010; run the same command again to retry"
    fails.clear()
    background.uploader.finish()
    assert store.steps() == [10] and len(background.lines) == 4


def test_the_end_waits_no_longer_than_its_timeout(store: Store, run: RunFolder) -> None:
    background = Background(store, run)
    reached, released = hold(store, "step-00000010")
    background.save(10)
    assert reached.wait(60)
    background.uploader.finish(timeout_s=0.01)
    assert background.lines == [
        f"not uploaded to {store.address}: checkpoints/step-00000010; run the same command again to retry"
    ]
    released.set()
    background.wait()


def test_the_next_start_uploads_what_is_missing_and_nothing_twice(store: Store, run: RunFolder) -> None:
    first = Background(store, run, keep_every_steps=10)
    first.save(10)
    first.wait()
    folder = save(run.checkpoints, 20)  # killed before its upload
    store.wire.log.clear()
    second = Background(store, run, keep_every_steps=10)
    second.uploader.wake(folder)
    second.wait()
    assert store.steps() == [10, 20]
    assert {name.split("/")[0] for _, name in store.wire.log} == {"step-00000020"}
    store.wire.log.clear()
    second.uploader.wake()
    second.wait()
    assert store.wire.log == []


def test_a_step_saved_again_is_uploaded_again(store: Store, run: RunFolder) -> None:
    background = Background(store, run, keep_best=1, keep_last=2)
    for step, content, loss in ((5, b"old", 3.0), (10, b"first", 2.0), (10, b"second", 9.0), (20, b"new", None)):
        background.save(step, content, validation_loss=loss)
        background.wait()
    assert store.read_file(f"checkpoints/step-00000010/{WEIGHTS}", 100) == b"second"
    assert store.steps() == [5, 10, 20]  # the best is step 5 again


def test_a_step_saved_again_during_its_upload_ends_as_the_new_one(store: Store, run: RunFolder) -> None:
    background = Background(store, run)
    reached, released = hold(store, WEIGHTS)
    background.save(10, b"first and longer")
    assert reached.wait(60)
    background.save(10, b"second")
    released.set()
    background.wait()
    background.uploader.finish()
    layout.remove(run.checkpoints / "step-00000010")
    assert recovered(store, run)[0] == 10
    assert (run.checkpoints / "step-00000010" / WEIGHTS).read_bytes() == b"second"


def test_a_corrupt_checkpoint_of_an_earlier_start_is_not_uploaded(store: Store, run: RunFolder) -> None:
    flip_a_bit(save(run.checkpoints, 10) / WEIGHTS)
    background = Background(store, run, keep_every_steps=10, keep_last=1)
    background.save(20)
    background.wait()
    assert store.steps() == [20]
    assert [line for line in background.lines if "not uploaded: " in line and "is corrupt" in line]
    background.uploader.finish()
    assert len(background.lines) == 2


def test_a_checkpoint_without_a_manifest_is_not_uploaded(store: Store, run: RunFolder) -> None:
    (save(run.checkpoints, 10) / layout.MANIFEST).unlink()
    background = Background(store, run, keep_every_steps=10)
    background.save(20)
    background.wait()
    assert store.steps() == [20] and len(background.lines) == 1


def test_a_newer_corrupt_checkpoint_is_not_uploaded_and_displaces_no_good_ones(store: Store, run: RunFolder) -> None:
    flip_a_bit(save(run.checkpoints, 30) / WEIGHTS)
    background = Background(store, run, keep_last=1, keep_every_steps=10)
    background.save(20)
    background.wait()
    assert store.steps() == [20] and len(background.lines) == 1


def test_after_a_later_attempt_has_begun_no_upload_is_committed_or_deleted(store: Store, run: RunFolder) -> None:
    background = Background(store, run, keep_last=1)
    background.save(10)
    background.wait()
    reached, released = hold(store, f"step-00000020/{WEIGHTS}")
    background.save(20)
    assert reached.wait(60)
    background.outdated = True
    released.set()
    background.wait()
    assert store.steps() == [10]
    assert "attempt 2 has begun" in background.lines[-1]


def test_an_outdated_attempt_deletes_nothing_in_the_store(store: Store, run: RunFolder) -> None:
    background = Background(store, run, keep_last=1)
    background.save(10)
    background.wait()
    reached, released = hold(store, f"step-00000020/{layout.MANIFEST}")
    background.save(20)
    assert reached.wait(60)
    background.outdated = True
    released.set()
    background.wait()
    assert store.steps() == [10, 20]
