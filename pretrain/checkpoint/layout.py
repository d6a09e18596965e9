"""A checkpoint on disk: which files, when it counts as complete, which one to resume from.

    RUN/checkpoints/step-00000100/
        manifest.json                 size and sha256 of every other file; its folder's rename is the commit
        state.json                    step, samples, tokens, the order's description, versions
        config.yaml                   what it takes to export it without the run: the configuration, and
        tokenizer.model               the tokenizer, or tokenizer.json with what lay beside it (codec.py)
        rank-00000.safetensors        fp32 masters and Adam moments that rank 0 owns, as pieces   pieces.py
        rank-00000.rng.json           generators of rank 0

Ranks write into `.staging-step-00000100-ATTEMPT`; when all files are fsynced and the manifest is written, rank 0 renames
the folder. A kill at any moment leaves either the whole checkpoint or none. Nothing here needs torch.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.errors import CheckpointError
from pretrain.storage.files import publish_folder, write_synced

FORMAT = "pretrain-checkpoint/1"
MANIFEST = "manifest.json"
STATE = "state.json"
CONFIG = "config.yaml"
TOKENIZERS = ("tokenizer.json", "tokenizer.model")  # one with a tokenizer.json is of that kind
HASHERS = 4  # files at a time: one thread hashes slower than most disks read
SMALL_BYTES = 16 << 20  # no JSON file is longer: enough for the manifest of 40,000 ranks, and harmless in memory
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


def parse_name(name: str) -> int | None:
    """The step of `step-00000100`; None for what is no checkpoint's name."""
    match = _NAME.fullmatch(name)
    return int(match.group(1)) if match and checkpoint_name(int(match.group(1))) == name else None


def list_steps(checkpoints: Path) -> list[int]:
    """Steps of all committed checkpoints, oldest first."""
    if not checkpoints.is_dir():
        return []
    steps = (parse_name(path.name) for path in checkpoints.iterdir() if path.is_dir())
    return sorted(step for step in steps if step is not None)


def staging_folder(checkpoints: Path, step: int, attempt: int) -> Path:
    """Where the ranks of an attempt write before the commit."""
    return checkpoints / f".staging-{checkpoint_name(step)}-{attempt}"


def json_bytes(value: Any) -> bytes:
    """Indented JSON."""
    return (json.dumps(value, indent=1) + "\n").encode()


def write_file(path: Path, data: bytes) -> FileEntry:
    """Write a small file, flushed to the disk."""
    write_synced(path, data)
    return FileEntry(path.name, len(data), hashlib.sha256(data).hexdigest())


def commit(checkpoints: Path, step: int, files: list[FileEntry], attempt: int) -> Path:
    """Write the manifest and make the checkpoint appear under its name.

    Raises OSError where the disk is full, or where a later attempt has taken the staging folder away.
    """
    staging, final = staging_folder(checkpoints, step, attempt), checkpoints / checkpoint_name(step)
    manifest = {"format": FORMAT, "step": step, "files": [vars(file) for file in files]}
    write_file(staging / MANIFEST, json_bytes(manifest))
    publish_folder(staging, final)
    return final


def clean(checkpoints: Path) -> None:
    """Remove what a killed process left behind: hidden folders that never became, or no longer are, a checkpoint."""
    for leftover in checkpoints.glob(".*-step-*"):
        shutil.rmtree(leftover, ignore_errors=True)  # on NFS a reader keeps files alive; the next start tries again


def remove(folder: Path) -> None:
    """Delete a checkpoint. Its name goes first: a half-deleted folder must not look like a checkpoint."""
    doomed = folder.with_name(f".deleting-{folder.name}")
    shutil.rmtree(doomed, ignore_errors=True)  # of an earlier save of this step
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def verify(folder: Path, *, hashes: bool = True) -> dict[str, Any]:
    """The state of a checkpoint after holding each file against the manifest; without `hashes`, large files by size only.

    Raises CheckpointError that names what is wrong with it.
    """
    try:
        entries = read_manifest(folder)
        with ThreadPoolExecutor(HASHERS, thread_name_prefix="verify") as pool:
            wanted = [hashes or entry.name in (STATE, CONFIG) for entry in entries]
            list(pool.map(lambda entry, hashes: check_file(folder, entry, hashes=hashes), entries, wanted))
        read_small(folder / CONFIG)  # whoever reads it later does not ask for its length
        state = read_json(folder / STATE)
    except OSError as error:
        raise CheckpointError(f"{folder}: not a complete checkpoint ({type(error).__name__}: {error})") from error
    if not isinstance(state, dict) or state.get("step") != parse_name(folder.name):
        raise CheckpointError(f"{folder / STATE} is not the state of this step")
    return state


def read_json(path: Path) -> Any:
    """A JSON file of a checkpoint. Raises OSError, and CheckpointError for what is none or is too long to be one."""
    data = read_small(path)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({type(error).__name__}: {error})") from error


def read_small(path: Path) -> bytes:
    """A file that is not above SMALL_BYTES. Raises OSError and CheckpointError."""
    with path.open("rb") as file:
        data = file.read(SMALL_BYTES + 1)
    if len(data) > SMALL_BYTES:
        raise CheckpointError(f"{path} is longer than the {SMALL_BYTES} bytes that such a file can have")
    return data


def read_manifest(folder: Path) -> list[FileEntry]:
    """The files of a checkpoint. Raises CheckpointError for a manifest that is missing or not this checkpoint's."""
    try:
        data = read_small(folder / MANIFEST)
    except OSError as error:
        raise CheckpointError(f"{folder}: not a complete checkpoint ({type(error).__name__}: {error})") from error
    return parse_manifest(data, folder.name, str(folder))


def parse_manifest(data: bytes, name: str, where: str) -> list[FileEntry]:
    """The files that the manifest of checkpoint `name` lists. Raises CheckpointError, which says `where` it lies."""
    try:
        manifest = json.loads(data)
        if manifest["format"] != FORMAT:
            raise CheckpointError(f"{where}: format {manifest['format']!r} is not {FORMAT!r}")
        if checkpoint_name(manifest["step"]) != name:
            raise CheckpointError(f"{where}: the manifest is that of step {manifest['step']}")
        entries = [FileEntry(**entry) for entry in manifest["files"]]
        for entry in entries:
            if Path(entry.name).name != entry.name or entry.name in ("", ".."):
                raise CheckpointError(f"{where}: the manifest names {entry.name!r}, which is not a plain file name")
            if type(entry.bytes) is not int or type(entry.sha256) is not str:
                raise CheckpointError(f"{where}: the manifest gives {entry.name} no size or no sha256")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{where}: not a complete checkpoint ({type(error).__name__}: {error})") from error
    names = [entry.name for entry in entries]
    missing = {STATE, CONFIG} - set(names)
    if missing:
        raise CheckpointError(f"{where}: the manifest does not list {', '.join(sorted(missing))}")
    if len(set(names)) != len(names):
        raise CheckpointError(f"{where}: the manifest lists a file twice")
    return entries


def check_file(folder: Path, entry: FileEntry, *, hashes: bool = True) -> None:
    """Raise CheckpointError where a file is not what the manifest says, and OSError where it cannot be read."""
    path = folder / entry.name
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    if path.stat().st_size != entry.bytes:
        raise CheckpointError(f"{path} has {path.stat().st_size} bytes, and was written with {entry.bytes}")
    if hashes:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
                raise CheckpointError(f"{path} is damaged: its sha256 is not the one it was written with")


def listed_files(folder: Path, ending: str) -> list[Path]:
    """Files that the manifest lists: whatever else lies there was not verified, and is not read."""
    return [folder / name for name in sorted(entry.name for entry in read_manifest(folder)) if name.endswith(ending)]


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


def find_step(step: int | None, *places: Path) -> Path:
    """The folder of a step, or of the newest one, in the first of the places that has it. Raises CheckpointError."""
    found = {number: place for place in reversed(places) for number in list_steps(place)}
    if not found:
        raise CheckpointError(f"{places[0]} holds no checkpoint", hint="train first: pretrain train CONFIG")
    if step is None:
        step = max(found)
    if step not in found:
        raise CheckpointError(
            f"no step {step} in {' or '.join(map(str, places))}",
            hint=f"saved steps: {', '.join(map(str, sorted(found)))}",
        )
    return found[step] / checkpoint_name(step)
