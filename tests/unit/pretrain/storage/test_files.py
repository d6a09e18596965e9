"""Published files and folders are complete or absent."""

import os
from pathlib import Path

import pytest

from pretrain.storage.files import move_into_place, publish_file, publish_folder, staging_folder, temporary_name


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """fsync and renames, in order."""
    done: list[str] = []
    fsync, rename, replace = os.fsync, Path.rename, Path.replace

    def noted(kind: str, original):  # type: ignore[no-untyped-def]
        def call(path: Path, target: Path) -> Path:
            done.append(f"{kind} {Path(target).name}")
            return original(path, target)

        return call

    def noted_fsync(handle: int) -> None:
        done.append(f"fsync {Path(f'/proc/self/fd/{handle}').readlink().name}")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "rename", noted("rename", rename))
    monkeypatch.setattr(Path, "replace", noted("replace", replace))
    return done


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, calls: list[str]) -> None:
    path = tmp_path / "status"
    publish_file(path, "é\n")
    assert path.read_bytes() == "é\n".encode()
    assert calls == [f"fsync {temporary_name(path).name}", "replace status", f"fsync {tmp_path.name}"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["status"]


def test_a_file_of_no_use_after_a_power_cut_is_not_flushed(tmp_path: Path, calls: list[str]) -> None:
    publish_file(tmp_path / "beat", b"1", durable=False)
    assert calls == ["replace beat"]


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "status"
    publish_file(path, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        publish_file(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["status"]


def test_a_file_written_elsewhere_is_moved_and_its_folder_flushed(tmp_path: Path, calls: list[str]) -> None:
    (tmp_path / "part").write_text("x")
    move_into_place(tmp_path / "part", tmp_path / "final")
    assert calls == ["replace final", f"fsync {tmp_path.name}"]


def test_a_folder_replaces_one_that_is_there(tmp_path: Path, calls: list[str]) -> None:
    output = tmp_path / "export"
    for text in ("first", "second"):
        with staging_folder(output) as staging:
            (staging / "file").write_text(text)
            publish_folder(staging, output)
    assert (output / "file").read_text() == "second"
    assert [entry.name for entry in tmp_path.iterdir()] == ["export"]
    staged = f".export.staging-{os.getpid()}"
    assert calls[:3] == [f"fsync {staged}", "rename export", f"fsync {tmp_path.name}"]
    assert calls[3:] == [
        f"fsync {staged}",
        f"rename .replaced-export-{os.getpid()}",
        "rename export",
        f"fsync {tmp_path.name}",
    ]


def test_a_staging_folder_that_was_taken_away_brings_the_old_folder_back(tmp_path: Path) -> None:
    output = tmp_path / "export"
    output.mkdir()
    (output / "file").write_text("first")
    staging = tmp_path / "staging"
    staging.mkdir()
    original = Path.rename

    def taken(path: Path, target: Path) -> Path:
        if path == staging:
            staging.rmdir()
        return original(path, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "rename", taken)
        with pytest.raises(FileNotFoundError):
            publish_folder(staging, output)
    assert (output / "file").read_text() == "first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["export"]


def test_an_interrupted_export_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), staging_folder(tmp_path / "export") as staging:
        (staging / "file").write_text("x")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
