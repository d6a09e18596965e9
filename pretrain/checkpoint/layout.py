"""A checkpoint on disk: its files, when it is complete, and which one to resume from.

    RUN/checkpoints/step-00000100/
        manifest.json                 size and sha256 of every other file; renaming its folder is the commit
        state.json                    step, samples, tokens, description of the sample order, versions
        config.yaml                   the resolved configuration: with it and the tokenizer, a checkpoint can be exported alone
        tokenizer.model               SentencePiece model, or tokenizer.json with the files that belong to it
        rank-00000.safetensors        fp32 masters and Adam moments that rank 0 owns, as pieces   pieces.py
        rank-00000.rng.json           generators of rank 0

Ranks write into `.staging-step-00000100-ATTEMPT`. Once all files are fsynced and the manifest is written, rank 0 renames
the folder. A kill at any moment leaves the complete checkpoint or none. Nothing here imports torch.
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
TOKENIZERS = ("tokenizer.json", "tokenizer.model")  # by precedence: tokenizer.json may come with a tokenizer.model
HASHERS = 4  # files in parallel: one thread hashes slower than most disks read
SMALL_BYTES = 16 << 20  # limit of JSON and YAML files: enough for the manifest of 40,000 ranks, and harmless in memory
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class FileEntry:
    """A file as the manifest lists it."""

    name: str
    bytes: int
    sha256: str


def checkpoint_name(step: int) -> str:
    """`step-00000100`: names sort as numbers."""
    return f"step-{step:08d}"


def parse_name(name: str) -> int | None:
    """The step of `step-00000100`; None if this is not the name of a checkpoint."""
    match = _NAME.fullmatch(name)
    return int(match.group(1)) if match and checkpoint_name(int(match.group(1))) == name else None


def list_steps(checkpoints: Path) -> list[int]:
    """Steps of all committed checkpoints, oldest first."""
    if not checkpoints.is_dir():
        return []
    steps = (parse_name(path.name) for path in checkpoints.iterdir() if path.is_dir())
    return sorted(step for step in steps if step is not None)


def staging_folder(checkpoints: Path, step: int, attempt: int) -> Path:
    """Folder that the ranks of an attempt write to before the commit."""
    return checkpoints / f".staging-{checkpoint_name(step)}-{attempt}"


def json_bytes(value: Any) -> bytes:
    """Indented JSON."""
    return (json.dumps(value, indent=1) + "\n").encode()


def write_file(path: Path, data: bytes) -> FileEntry:
    """Write a small file and fsync it."""
    write_synced(path, data)
    return FileEntry(path.name, len(data), hashlib.sha256(data).hexdigest())


def commit(checkpoints: Path, step: int, files: list[FileEntry], attempt: int) -> Path:
    """Write the manifest and publish the checkpoint under its name by an atomic rename.

    Raises OSError if the disk is full, or if a later attempt has removed the staging folder.
    """
    staging, final = staging_folder(checkpoints, step, attempt), checkpoints / checkpoint_name(step)
    manifest = {"format": FORMAT, "step": step, "files": [vars(file) for file in files]}
    write_file(staging / MANIFEST, json_bytes(manifest))
    # Replaces a corrupt one: a resume has skipped it, and training has reached its step again.
    publish_folder(staging, final)
    return final


def clean(checkpoints: Path) -> None:
    """Remove leftovers of killed processes: folders that are not yet, or no longer, a checkpoint."""
    for leftover in checkpoints.glob(".*-step-*"):
        # Fails on NFS while a reader has files open; the next start retries.
        shutil.rmtree(leftover, ignore_errors=True)


def remove(folder: Path) -> None:
    """Delete a checkpoint. Renamed first: a partly deleted folder must not count as one."""
    doomed = folder.with_name(f".deleting-{folder.name}")
    shutil.rmtree(doomed, ignore_errors=True)  # left by a kill during an earlier deletion of this step
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def verify(folder: Path, *, hashes: bool = True) -> dict[str, Any]:
    """Check each file against the manifest and return the state. Without `hashes`, large files are checked by size only.

    Raises CheckpointError that names the file at fault.
    """
    try:
        entries = read_manifest(folder)
        with ThreadPoolExecutor(HASHERS, thread_name_prefix="verify") as pool:
            wanted = [hashes or entry.name in (STATE, CONFIG) for entry in entries]
            list(pool.map(lambda entry, hashes: check_file(folder, entry, hashes=hashes), entries, wanted))
        read_small(folder / CONFIG)  # for its size limit: readers of the configuration do not check it
        state = read_json(folder / STATE)
    except OSError as error:
        raise CheckpointError(f"{folder}: not a complete checkpoint ({type(error).__name__}: {error})") from error
    if not isinstance(state, dict) or state.get("step") != parse_name(folder.name):
        raise CheckpointError(f"{folder / STATE} is not the state of {folder.name}")
    return state


def read_json(path: Path) -> Any:
    """Parse a JSON file. Raises OSError, and CheckpointError if it is not JSON or above SMALL_BYTES."""
    data = read_small(path)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({type(error).__name__}: {error})") from error


def read_small(path: Path) -> bytes:
    """Read a file. Raises OSError, and CheckpointError if it is above SMALL_BYTES."""
    with path.open("rb") as file:
        data = file.read(SMALL_BYTES + 1)
    if len(data) > SMALL_BYTES:
        raise CheckpointError(f"{path} is longer than the limit of {SMALL_BYTES} bytes")
    return data


def read_manifest(folder: Path) -> list[FileEntry]:
    """Files of a checkpoint. Raises CheckpointError if the manifest is missing, invalid, or of another step."""
    try:
        data = read_small(folder / MANIFEST)
    except OSError as error:
        raise CheckpointError(f"{folder}: not a complete checkpoint ({type(error).__name__}: {error})") from error
    return parse_manifest(data, folder.name, str(folder))


def parse_manifest(data: bytes, name: str, where: str) -> list[FileEntry]:
    """Files that the manifest of checkpoint `name` lists. Raises CheckpointError, which names `where` it was read."""
    try:
        manifest = json.loads(data)
        if manifest["format"] != FORMAT:
            raise CheckpointError(f"{where}: format {manifest['format']!r} is not {FORMAT!r}")
        if checkpoint_name(manifest["step"]) != name:
            raise CheckpointError(f"{where}: the manifest is of step {manifest['step']}")
        entries = [FileEntry(**entry) for entry in manifest["files"]]
        for entry in entries:
            if Path(entry.name).name != entry.name or entry.name in ("", ".."):
                raise CheckpointError(f"{where}: the manifest lists {entry.name!r}, which is not a plain file name")
            if type(entry.bytes) is not int or type(entry.sha256) is not str:
                raise CheckpointError(f"{where}: the manifest lists {entry.name} without a size or a sha256")
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
    """Raise CheckpointError if a file is not as the manifest lists it, and OSError if it cannot be read."""
    path = folder / entry.name
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    if path.stat().st_size != entry.bytes:
        raise CheckpointError(f"{path} has {path.stat().st_size} bytes; the manifest says {entry.bytes}")
    if hashes:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
                raise CheckpointError(f"{path} is corrupt: its sha256 differs from the manifest's")


def listed_files(folder: Path, ending: str) -> list[Path]:
    """Paths of listed files whose names have this ending. Other files of the folder were not verified and must not be read."""
    return [folder / name for name in sorted(entry.name for entry in read_manifest(folder)) if name.endswith(ending)]


def find_newest(
    checkpoints: Path, *, hashes: bool = True, skipped: Callable[[str], None] = lambda _: None
) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that verifies, with its state; `skipped` gets the reason for each newer one."""
    for step in reversed(list_steps(checkpoints)):
        folder = checkpoints / checkpoint_name(step)
        try:
            return folder, verify(folder, hashes=hashes)
        except CheckpointError as error:
            skipped(str(error))
    return None


def find_step(step: int | None, *places: Path) -> Path:
    """Folder of a step, by default the newest; the first of `places` wins. Raises CheckpointError if there is none."""
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
