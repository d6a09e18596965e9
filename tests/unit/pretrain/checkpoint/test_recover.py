"""Downloads from an object store (memory://): intact or skipped; and the addresses that are allowed."""

from collections.abc import Callable

import pytest

from pretrain.checkpoint import layout, remote
from pretrain.checkpoint.remote import check_unused, check_upload, open_remote
from pretrain.config import Config
from pretrain.config.schema import CheckpointConfig
from pretrain.errors import CheckpointError, ConfigError, DataError
from pretrain.run_folder import RunFolder
from tests.support.checkpoints import WEIGHTS, flip_a_bit, names, save
from tests.support.remote_runs import Store, recovered, run_fixture, store_fixture  # noqa: F401
from tests.support.stores import memory_address_fixture, no_waits_fixture  # noqa: F401

pytestmark = pytest.mark.usefixtures("no_waits")


def flip_bit(store: Store) -> None:
    store.write(f"checkpoints/step-00000200/{WEIGHTS}", b"veights")


CORRUPTIONS: dict[str, tuple[Callable[[Store], object], str]] = {
    "a flipped bit": (flip_bit, f"{WEIGHTS} is corrupt"),
    "a short file": (
        lambda store: store.write(f"checkpoints/step-00000200/{WEIGHTS}", b"w"),
        "has 1 bytes; the manifest says 7",
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
        "the manifest is of step 100",
    ),
}


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_a_corrupt_upload_is_skipped_with_the_reason(store: Store, run: RunFolder, corruption: str) -> None:
    for step in (100, 200):
        store.copy(save(run.checkpoints, step))
        layout.remove(run.checkpoints / layout.checkpoint_name(step))
    act, reason = CORRUPTIONS[corruption]
    act(store)
    step, reasons = recovered(store, run)
    assert step == 100
    assert len(reasons) == 1 and reason in reasons[0] and f"{store.address}/checkpoints/step-00000200" in reasons[0]
    assert not (run.path / "stolen").exists()
    store.delete("checkpoints/step-00000100/manifest.json")
    layout.remove(run.checkpoints / "step-00000100")
    assert recovered(store, run) == (None, reasons)


def test_an_upload_without_a_manifest_does_not_exist(store: Store, run: RunFolder) -> None:
    store.copy(save(run.checkpoints, 100))
    store.delete("checkpoints/step-00000100/manifest.json")
    layout.remove(run.checkpoints / "step-00000100")
    assert recovered(store, run) == (None, [])


def test_weights_alone_are_never_resumed_from(store: Store, run: RunFolder) -> None:
    store.copy(save(run.weights, 100))
    assert recovered(store, run) == (None, [])


@pytest.mark.parametrize("bad", [1, 2, 3])
def test_corrupt_downloads_are_retried(store: Store, run: RunFolder, bad: int) -> None:
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
    assert recovered(store, run)[0] == (200 if bad < 3 else 100)
    assert len(answers) == min(3, bad + 1)


def test_a_failing_store_does_not_lead_to_an_older_checkpoint(store: Store, run: RunFolder) -> None:
    for step in (100, 200):
        store.copy(save(run.checkpoints, step))
        layout.remove(run.checkpoints / layout.checkpoint_name(step))

    def answer(name: str, data: bytes) -> bytes:
        if name.endswith(f"200/{WEIGHTS}"):
            raise ConnectionResetError
        return data

    store.answer = answer
    with pytest.raises(DataError, match=f"200/{WEIGHTS}.* failed 2 times; the last: ConnectionReset") as caught:
        recovered(store, run)
    assert "checkpoint.upload" in str(caught.value.hint)
    assert names(run.checkpoints) == []


def test_a_failing_disk_is_one_error(store: Store, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    store.copy(save(run.checkpoints, 100))
    layout.remove(run.checkpoints / "step-00000100")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(remote.os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"step 100 cannot be written to .*: No space left on device"):
        recovered(store, run)
    assert names(run.checkpoints) == []


def test_a_corrupt_checkpoint_on_disk_is_replaced_by_the_one_in_the_store(store: Store, run: RunFolder) -> None:
    folder = save(run.checkpoints, 100)
    store.copy(folder)
    flip_a_bit(folder / WEIGHTS)
    assert recovered(store, run) == (100, [])
    assert names(run.checkpoints) == ["step-00000100"]


def test_an_address_that_holds_a_checkpoint_is_not_unused(store: Store, run: RunFolder) -> None:
    store.copy(save(run.checkpoints, 100))
    store.delete("checkpoints/step-00000100/manifest.json")
    check_unused(store)
    store.copy(save(run.checkpoints, 200))
    with pytest.raises(CheckpointError, match=f"resume=never, but {store.address} holds a checkpoint of step 200"):
        check_unused(store)


@pytest.mark.parametrize("address", ["https://host/run", "http://host/run", "runs/copy", "/runs/copy", "ftp://a/b"])
def test_addresses_that_cannot_be_written_are_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="is not one of s3://") as caught:
        check_upload(Config(checkpoint=CheckpointConfig(upload=address)))
    assert "hint: checkpoint.upload=s3://BUCKET/RUN" in str(caught.value)


@pytest.mark.parametrize("address", ["s3://", "s3://bucket/../other", "s3://bucket\\run", "zip::s3://bucket/a.zip"])
def test_an_address_must_follow_the_rules_of_every_store(address: str) -> None:
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
