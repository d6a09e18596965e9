"""A checkpoint on disk: which files, when it counts as complete, which one to resume from.

    RUN/checkpoints/step-00000100/
        manifest.json                 size and sha256 of every other file; its folder's rename is the commit
        state.json                    step, samples, tokens, the order's description, versions
        config.yaml, tokenizer.model  what it takes to export it without the run
        rank-00000.safetensors        fp32 masters and Adam moments that rank 0 owns, as pieces   pieces.py
        rank-00000.rng.json           generators of rank 0

Ranks write into `.staging-step-00000100`; when all files are fsynced and the manifest is written, rank 0 renames the
folder. A kill at any moment leaves either the whole checkpoint or none. Nothing here needs torch.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.errors import CheckpointError

FORMAT = "pretrain-checkpoint/1"
MANIFEST = "manifest.json"
STATE = "state.json"
CONFIG = "config.yaml"
TOKENIZER = "tokenizer.model"
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class FileEntry:
    """A file of a checkpoint, as it must be found again."""

    name: str
    bytes: int
    sha256: str


def checkpoint_name(step: int) -> str:
    """`step-00000100`: sorts as numbers do."""
    return f"step-{step:08d}"


def list_steps(checkpoints: Path) -> list[int]:
    """Steps of all committed checkpoints, oldest first."""
    if not checkpoints.is_dir():
        return []
    matches = (_NAME.fullmatch(path.name) for path in checkpoints.iterdir() if path.is_dir())
    return sorted(int(match.group(1)) for match in matches if match)


def staging_folder(checkpoints: Path, step: int) -> Path:
    """Where ranks write before the commit."""
    return checkpoints / f".staging-{checkpoint_name(step)}"


def describe(path: Path) -> FileEntry:
    """Flush a written file to the disk and take its size and hash."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileEntry(path.name, file.tell(), digest)


def write_json(path: Path, value: Any) -> None:
    """Indented JSON."""
    path.write_text(json.dumps(value, indent=1) + "\n")


def commit(checkpoints: Path, step: int, files: list[FileEntry]) -> Path:
    """Write the manifest and make the checkpoint appear under its name."""
    staging, final = staging_folder(checkpoints, step), checkpoints / checkpoint_name(step)
    write_json(staging / MANIFEST, {"format": FORMAT, "step": step, "files": [vars(file) for file in files]})
    describe(staging / MANIFEST)
    _sync_folder(staging)
    replaced = checkpoints / f".replaced-{final.name}"
    if final.exists():  # saved before, and passed over since because it was damaged
        final.rename(replaced)
    staging.rename(final)
    _sync_folder(checkpoints)
    shutil.rmtree(replaced, ignore_errors=True)
    return final


def clean(checkpoints: Path) -> None:
    """Remove what a killed process left behind: hidden folders that never became, or no longer are, a checkpoint."""
    for leftover in checkpoints.glob(".*-step-*"):
        shutil.rmtree(leftover, ignore_errors=True)  # on NFS a reader keeps files alive; the next start tries again


def prune(checkpoints: Path, keep_last: int, *, saved_step: int) -> None:
    """Delete all but the newest `keep_last` checkpoints up to the one just saved.

    Later ones are not counted: a resume has passed them over as damaged, and they must not push out what is good.
    """
    for step in [step for step in list_steps(checkpoints) if step <= saved_step][:-keep_last]:
        _remove(checkpoints / checkpoint_name(step))


def verify(folder: Path, *, hashes: bool = True) -> dict[str, Any]:
    """The state of a checkpoint after holding each file against the manifest.

    Raises CheckpointError that names what is wrong with it.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            raise CheckpointError(f"{folder}: format {manifest['format']!r} is not {FORMAT!r}")
        if checkpoint_name(manifest["step"]) != folder.name:
            raise CheckpointError(f"{folder}: the manifest is that of step {manifest['step']}")
        entries = [FileEntry(**entry) for entry in manifest["files"]]
        missing = {STATE, CONFIG} - {entry.name for entry in entries}
        if missing:
            raise CheckpointError(f"{folder}: the manifest does not list {', '.join(sorted(missing))}")
        for entry in entries:
            _verify_file(folder, entry, hashes)
        state: dict[str, Any] = json.loads((folder / STATE).read_text())
        return state
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder}: not a complete checkpoint ({type(error).__name__}: {error})") from error


def listed_files(folder: Path, ending: str) -> list[Path]:
    """Files that the manifest lists: whatever else lies there was not verified, and is not read."""
    manifest = json.loads((folder / MANIFEST).read_text())
    names = sorted(entry["name"] for entry in manifest["files"])
    return [folder / name for name in names if name.endswith(ending)]


def find_newest(
    checkpoints: Path, *, hashes: bool = True, skipped: Callable[[str], None] = lambda _: None
) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that verifies, with its state; `skipped` is told why a newer one was passed over."""
    for step in reversed(list_steps(checkpoints)):
        folder = checkpoints / checkpoint_name(step)
        try:
            return folder, verify(folder, hashes=hashes)
        except CheckpointError as error:
            skipped(str(error))
    return None


def find_step(checkpoints: Path, step: int | None) -> Path:
    """The folder of a step, or of the newest checkpoint. Raises CheckpointError where there is none."""
    steps = list_steps(checkpoints)
    if not steps:
        raise CheckpointError(f"{checkpoints} holds no checkpoint", hint="train first: pretrain train CONFIG")
    if step is None:
        step = steps[-1]
    if step not in steps:
        raise CheckpointError(f"{checkpoints} has no step {step}", hint=f"saved steps: {', '.join(map(str, steps))}")
    return checkpoints / checkpoint_name(step)


def _verify_file(folder: Path, entry: FileEntry, hashes: bool) -> None:
    path = folder / entry.name
    if Path(entry.name).name != entry.name:
        raise CheckpointError(f"{folder}: the manifest names {entry.name!r}, which is not a plain file name")
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    if path.stat().st_size != entry.bytes:
        raise CheckpointError(f"{path} has {path.stat().st_size} bytes, and was written with {entry.bytes}")
    if hashes:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
                raise CheckpointError(f"{path} is damaged: its sha256 is not the one it was written with")


def _remove(folder: Path) -> None:
    """Take the name away first: a half-deleted folder must not look like a checkpoint."""
    doomed = folder.with_name(f".deleting-{folder.name}")
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
