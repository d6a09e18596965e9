import errno
import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pretrain.checkpoint import layout
from pretrain.errors import CheckpointError
from tests.support.checkpoints import flip_a_bit, names, save


def edit_manifest(folder: Path, change: Callable[[dict], object]) -> None:
    manifest = json.loads((folder / layout.MANIFEST).read_text())
    change(manifest)
    (folder / layout.MANIFEST).write_text(json.dumps(manifest))


def test_a_committed_checkpoint_verifies_and_gives_its_state(tmp_path: Path) -> None:
    folder = save(tmp_path, 100)
    assert folder == tmp_path / "step-00000100"
    assert layout.verify(folder) == {"step": 100}
    assert names(tmp_path) == ["step-00000100"]
    assert names(folder) == ["config.yaml", "manifest.json", "rank-00000.safetensors", "state.json"]


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing file": (lambda f: (f / "rank-00000.safetensors").unlink(), r"rank-00000\.safetensors is missing"),
    "truncated file": (
        lambda f: os.truncate(f / "rank-00000.safetensors", 3),
        r"has 3 bytes, and was written with 7",
    ),
    "longer file": (lambda f: (f / "rank-00000.safetensors").write_bytes(b"weights!"), r"has 8 bytes"),
    "flipped bit": (lambda f: flip_a_bit(f / "rank-00000.safetensors"), r"rank-00000\.safetensors is damaged"),
    "flipped bit in the state": (lambda f: flip_a_bit(f / layout.STATE), r"state\.json is damaged"),
    "no manifest": (lambda f: (f / layout.MANIFEST).unlink(), "not a complete checkpoint"),
    "half a manifest": (lambda f: os.truncate(f / layout.MANIFEST, 40), "not a complete checkpoint"),
    "empty manifest": (lambda f: os.truncate(f / layout.MANIFEST, 0), "not a complete checkpoint"),
    "manifest of zeros": (lambda f: (f / layout.MANIFEST).write_bytes(bytes(200)), "not a complete checkpoint"),
    "a list as manifest": (lambda f: (f / layout.MANIFEST).write_text("[]"), "not a complete checkpoint"),
    "another format": (lambda f: edit_manifest(f, lambda m: m.update(format="x/2")), "format 'x/2' is not"),
    "a file without a hash": (lambda f: edit_manifest(f, lambda m: m["files"][0].pop("sha256")), "not a complete"),
    "an unknown field": (lambda f: edit_manifest(f, lambda m: m["files"][0].update(mode=7)), "not a complete"),
    "a directory as file": (
        lambda f: ((f / layout.STATE).unlink(), (f / layout.STATE).mkdir()),
        r"state\.json is missing",
    ),
}


@pytest.mark.parametrize("damage", sorted(DAMAGES))
def test_each_damage_is_found_and_named(tmp_path: Path, damage: str) -> None:
    folder = save(tmp_path, 100)
    act, message = DAMAGES[damage]
    act(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        layout.verify(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "a/b", "./state.json", "..", ""])
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    folder = save(tmp_path, 100)
    (tmp_path / "secret").write_bytes(b"")
    edit_manifest(folder, lambda manifest: manifest["files"][-1].update(name=name))
    with pytest.raises(CheckpointError, match=r"not a plain file name|is missing"):
        layout.verify(folder)


def test_without_hashes_sizes_are_still_compared(tmp_path: Path) -> None:
    folder = save(tmp_path, 100)
    flip_a_bit(folder / "rank-00000.safetensors")
    assert layout.verify(folder, hashes=False) == {"step": 100}
    os.truncate(folder / "rank-00000.safetensors", 3)
    with pytest.raises(CheckpointError):
        layout.verify(folder, hashes=False)


def test_steps_are_listed_as_numbers_and_nothing_else_counts(tmp_path: Path) -> None:
    for step in (5, 123_456_789, 40):
        save(tmp_path, step)
    for name in (
        ".staging-step-00000060",
        ".deleting-step-00000070",
        "step-80",
        "step-00000090x",
        "step-000000091",
        "other",
    ):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000099").touch()  # a file
    assert layout.list_steps(tmp_path) == [5, 40, 123_456_789]
    assert layout.list_steps(tmp_path / "none") == []


def test_the_newest_is_found(tmp_path: Path) -> None:
    for step in (100, 200, 300):
        save(tmp_path, step)
    assert layout.find_newest(tmp_path) == (tmp_path / "step-00000300", {"step": 300})
    assert layout.find_newest(tmp_path / "none") is None


def test_damaged_ones_are_passed_over_with_the_reason(tmp_path: Path) -> None:
    for step in (100, 200, 300):
        save(tmp_path, step)
    os.truncate(tmp_path / "step-00000300" / "rank-00000.safetensors", 1)
    flip_a_bit(tmp_path / "step-00000200" / "rank-00000.safetensors")
    reasons: list[str] = []
    found = layout.find_newest(tmp_path, skipped=reasons.append)
    assert found == (tmp_path / "step-00000100", {"step": 100})
    assert ["has 1 bytes" in reasons[0], "is damaged" in reasons[1]] == [True, True]
    assert "step-00000300" in reasons[0]
    assert "step-00000200" in reasons[1]


def test_nothing_usable_is_nothing_found(tmp_path: Path) -> None:
    (save(tmp_path, 100) / layout.MANIFEST).unlink()
    reasons: list[str] = []
    assert layout.find_newest(tmp_path, skipped=reasons.append) is None
    assert len(reasons) == 1


def test_a_step_is_found_by_number_and_a_wrong_one_lists_the_right_ones(tmp_path: Path) -> None:
    save(tmp_path, 100)
    save(tmp_path, 200)
    assert layout.find_step(100, tmp_path).name == "step-00000100"
    assert layout.find_step(None, tmp_path).name == "step-00000200"
    with pytest.raises(CheckpointError, match=f"no step 150 in {tmp_path}") as caught:
        layout.find_step(150, tmp_path)
    assert caught.value.hint == "saved steps: 100, 200"
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        layout.find_step(None, tmp_path / "none")


def test_of_two_places_the_newest_counts_and_the_first_that_has_a_step(tmp_path: Path) -> None:
    places = (tmp_path / "checkpoints", tmp_path / "weights")
    for place, steps in zip(places, ((100, 200), (200, 300)), strict=True):
        for step in steps:
            save(place, step)
    found = {step: layout.find_step(step, *places).parent.name for step in (None, 100, 200, 300)}
    assert found == {None: "weights", 100: "checkpoints", 200: "checkpoints", 300: "weights"}
    assert layout.find_step(None, *places).name == "step-00000300"
    with pytest.raises(CheckpointError, match=f"no step 1 in {places[0]} or {places[1]}") as caught:
        layout.find_step(1, *places)
    assert caught.value.hint == "saved steps: 100, 200, 300"


def test_everything_is_on_the_disk_before_the_name_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a power cut would leave the name and lose what is in it."""
    done: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def noted_fsync(handle: int) -> None:
        assert not Path(f"/proc/self/fd/{handle}").is_file() or os.fstat(handle).st_size  # nothing is left in a buffer
        done.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        fsync(handle)

    def noted_rename(path: Path, target: Path) -> Path:
        done.append(f"rename to {target.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    folder = save(tmp_path, 100)
    place = done.index(f"rename to {folder.name}")
    assert set(done[:place]) == {*names(folder), ".staging-step-00000100-1"}
    assert done[place + 1 :] == [tmp_path.name]


def test_attempts_write_apart_and_the_last_to_commit_is_found(tmp_path: Path) -> None:
    staging = {attempt: layout.staging_folder(tmp_path, 100, attempt) for attempt in (1, 2)}
    assert len(set(staging.values())) == 2
    save(tmp_path, 100, b"first", attempt=1)
    folder = save(tmp_path, 100, b"second", attempt=2)
    assert (folder / "rank-00000.safetensors").read_bytes() == b"second"


def test_a_commit_whose_staging_folder_was_taken_away_fails_and_shows_nothing(tmp_path: Path) -> None:
    """A later attempt has cleaned up behind this one."""
    staging = layout.staging_folder(tmp_path, 100, 1)
    staging.mkdir(parents=True)
    files = [layout.write_file(staging / layout.STATE, b"{}")]
    layout.clean(tmp_path)
    with pytest.raises(FileNotFoundError):
        layout.commit(tmp_path, 100, files, 1)
    assert names(tmp_path) == []


def test_a_written_file_is_described_by_size_and_hash(tmp_path: Path) -> None:
    data = layout.json_bytes({"a": [1, 2]})
    entry = layout.write_file(tmp_path / "state.json", data)
    assert json.loads((tmp_path / "state.json").read_text()) == {"a": [1, 2]}
    assert entry == layout.FileEntry("state.json", len(data), hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_disk_that_is_full_is_an_os_error(size: int) -> None:
    with pytest.raises(OSError) as caught:
        layout.write_file(Path("/dev/full"), bytes(size))
    assert caught.value.errno == errno.ENOSPC


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    os.truncate(save(tmp_path, 100) / "rank-00000.safetensors", 1)
    folder = save(tmp_path, 100, b"new weights")
    assert layout.verify(folder) == {"step": 100}
    assert (folder / "rank-00000.safetensors").read_bytes() == b"new weights"
    assert names(tmp_path) == ["step-00000100"]


def test_nothing_appears_before_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk is full")

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="disk is full"):
        save(tmp_path, 100)
    assert layout.list_steps(tmp_path) == []
    assert names(tmp_path) == [".staging-step-00000100-1"]


def test_cleaning_removes_leftovers_and_nothing_else(tmp_path: Path) -> None:
    save(tmp_path, 100)
    for leftover in (layout.staging_folder(tmp_path, 200, 3), tmp_path / ".deleting-step-00000050"):
        leftover.mkdir()
        (leftover / "file").touch()
    (tmp_path / ".mine").mkdir()
    layout.clean(tmp_path)
    assert names(tmp_path) == [".mine", "step-00000100"]
    layout.clean(tmp_path / "none")


def test_removing_a_checkpoint_leaves_nothing(tmp_path: Path) -> None:
    folder = save(tmp_path, 100)
    save(tmp_path, 200)
    layout.remove(folder)
    assert names(tmp_path) == ["step-00000200"]


def test_a_half_deleted_checkpoint_is_none_and_no_obstacle(tmp_path: Path) -> None:
    save(tmp_path, 100).rename(tmp_path / ".deleting-step-00000100")  # killed here
    assert layout.list_steps(tmp_path) == []
    layout.remove(save(tmp_path, 100))
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", range(12))
def test_whatever_call_is_the_last_there_is_a_whole_checkpoint(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that dies in the middle of a save; a new step, and one that replaces another of the same step."""
    for step in (100, 200):
        save(tmp_path, step, b"old")
    calls = iter(range(100))

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if next(calls) >= number:
                raise KeyboardInterrupt
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as patched:
        for owner, name in ((Path, "rename"), (Path, "mkdir"), (os, "fsync"), (layout.shutil, "rmtree")):
            patched.setattr(owner, name, dying(getattr(owner, name)))
        with suppress(KeyboardInterrupt):
            save(tmp_path, 200, b"new")
    found = layout.find_newest(tmp_path)
    assert found is not None
    if found[1]["step"] == 200:
        assert (found[0] / "rank-00000.safetensors").read_bytes() in (b"old", b"new")
    layout.clean(tmp_path)
    assert set(names(tmp_path)) <= {"step-00000100", "step-00000200"}
    save(tmp_path, 200, b"again")
    assert layout.list_steps(tmp_path) == [100, 200]


@pytest.mark.parametrize("name", [layout.STATE, layout.CONFIG])
def test_a_manifest_that_leaves_out_what_is_read_is_refused(tmp_path: Path, name: str) -> None:
    folder = save(tmp_path, 100)
    edit_manifest(folder, lambda m: m.update(files=[entry for entry in m["files"] if entry["name"] != name]))
    with pytest.raises(CheckpointError, match=f"does not list {name}"):
        layout.verify(folder)


def test_only_listed_files_are_read(tmp_path: Path) -> None:
    folder = save(tmp_path, 100)
    (folder / "rank-00001.safetensors").write_bytes(b"a stranger's")
    assert [path.name for path in layout.listed_files(folder, ".safetensors")] == ["rank-00000.safetensors"]
