import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain.checkpoint import layout
from pretrain.errors import CheckpointError


def save(checkpoints: Path, step: int, content: bytes = b"weights") -> Path:
    staging = layout.staging_folder(checkpoints, step)
    staging.mkdir(parents=True)
    layout.write_json(staging / layout.STATE, {"step": step})
    (staging / layout.CONFIG).write_text("{}")
    (staging / "rank-00000.safetensors").write_bytes(content)
    written = (layout.STATE, layout.CONFIG, "rank-00000.safetensors")
    return layout.commit(checkpoints, step, [layout.describe(staging / name) for name in written])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def edit_manifest(folder: Path, change: Callable[[dict], object]) -> None:
    manifest = json.loads((folder / layout.MANIFEST).read_text())
    change(manifest)
    (folder / layout.MANIFEST).write_text(json.dumps(manifest))


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


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
    for name in (".staging-step-00000060", ".deleting-step-00000070", "step-80", "step-00000090x", "other"):
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
    assert layout.find_step(tmp_path, 100).name == "step-00000100"
    assert layout.find_step(tmp_path, None).name == "step-00000200"
    with pytest.raises(CheckpointError, match="has no step 150") as caught:
        layout.find_step(tmp_path, 150)
    assert caught.value.hint == "saved steps: 100, 200"
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        layout.find_step(tmp_path / "none", None)


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
    assert names(tmp_path) == [".staging-step-00000100"]


def test_cleaning_removes_leftovers_and_nothing_else(tmp_path: Path) -> None:
    save(tmp_path, 100)
    for leftover in (layout.staging_folder(tmp_path, 200), tmp_path / ".deleting-step-00000050"):
        leftover.mkdir()
        (leftover / "file").touch()
    (tmp_path / ".mine").mkdir()
    layout.clean(tmp_path)
    assert names(tmp_path) == [".mine", "step-00000100"]
    layout.clean(tmp_path / "none")


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_pruning_keeps_the_newest(tmp_path: Path, keep: int) -> None:
    for step in (100, 200, 300):
        save(tmp_path, step)
    layout.prune(tmp_path, keep, saved_step=300)
    assert layout.list_steps(tmp_path) == [100, 200, 300][-keep:]
    assert len(names(tmp_path)) == min(keep, 3)


def test_pruning_after_a_damaged_one_was_passed_over_keeps_what_was_just_saved(tmp_path: Path) -> None:
    for step in (200, 300):
        save(tmp_path, step)
    os.truncate(tmp_path / "step-00000300" / "rank-00000.safetensors", 1)
    found = layout.find_newest(tmp_path)
    assert found is not None
    assert found[1] == {"step": 200}
    save(tmp_path, 250)  # training went on from 200
    layout.prune(tmp_path, 1, saved_step=250)
    newest = layout.find_newest(tmp_path)
    assert newest is not None
    assert newest[1] == {"step": 250}


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
