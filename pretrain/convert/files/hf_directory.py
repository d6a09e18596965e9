"""Files of an untrusted Hugging Face directory: paths and links that lead outside are refused.

Nothing here needs torch.
"""

import json
import re
from pathlib import Path
from typing import Any

from pretrain.checkpoint import layout
from pretrain.errors import DataError

CONFIG = "config.json"
LARGEST_JSON = 64 << 20  # bytes; above an index of a million tensors


def read_json(directory: Path, name: str) -> dict[str, Any]:
    """A JSON object of the directory. Raises DataError."""
    path = inside(directory, name)
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_JSON + 1)
        if len(data) > LARGEST_JSON:
            raise ValueError(f"longer than {LARGEST_JSON} bytes")
        value = json.loads(data)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON: {str(error)[:200]}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} is not a JSON object")
    return value


def model_name(directory: Path, config: dict[str, Any]) -> str:
    """Name of the model on the Hub if config.json has it, else of the directory."""
    name = config.get("_name_or_path")
    on_hub = isinstance(name, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", name)  # not a local path
    return str(name) if on_hub else directory.resolve().name


def is_hf_directory(path: Path) -> bool:
    """Whether `path` is one. One of our checkpoints may hold a config.json too, as part of its tokenizer."""
    ours = layout.parse_name(path.name) is not None and (path / layout.MANIFEST).is_file()
    return (path / CONFIG).is_file() and not ours


def inside(directory: Path, name: str) -> Path:
    """Path of a file of the directory. Raises DataError if it is missing or lies elsewhere.

    Links must stay within the directory. Exception: the Hub's cache, whose snapshots are links into `blobs`.
    """
    path = directory / name
    if Path(name).name != name or name in ("", "..") or "\0" in name:
        raise DataError(f"{directory}: {name!r} is not a plain file name")
    try:
        there = path.is_file()
    except OSError:  # the name is too long
        there = False
    if not there:
        raise DataError(f"{path} is missing")
    home, target = directory.resolve(), path.resolve()
    blobs = home.parent.parent / "blobs"
    if target.parent != home and not (home.parent.name == "snapshots" and target.parent == blobs):
        raise DataError(
            f"{path} is a link to {target}, outside the directory",
            hint=f"replace the link by the file: cp --remove-destination {target} {path}",
        )
    return path
