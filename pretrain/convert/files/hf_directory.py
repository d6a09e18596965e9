"""Files of a Hugging Face directory, which may come from a stranger: names that lead out of it are not followed.

Nothing here needs torch.
"""

import json
import re
from pathlib import Path
from typing import Any

from pretrain.checkpoint import layout
from pretrain.errors import DataError

CONFIG = "config.json"
LARGEST_JSON = 64 << 20  # an index of a million tensors is shorter


def read_json(directory: Path, name: str) -> dict[str, Any]:
    """A JSON object of the directory. Raises DataError."""
    path = inside(directory, name)
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_JSON + 1)
        if len(data) > LARGEST_JSON:
            raise ValueError(f"longer than the {LARGEST_JSON} bytes that such a file can have")
        value = json.loads(data)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON: {str(error)[:200]}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} holds no JSON object")
    return value


def model_name(directory: Path, config: dict[str, Any]) -> str:
    """What the model is called: its name on the Hub, where config.json says it, or that of the directory."""
    name = config.get("_name_or_path")
    on_hub = isinstance(name, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", name)  # and no path of somebody's machine
    return str(name) if on_hub else directory.resolve().name


def is_hf_directory(path: Path) -> bool:
    """Whether it is one. A checkpoint of ours may hold a config.json too, as a part of its tokenizer."""
    ours = layout.parse_name(path.name) is not None and (path / layout.MANIFEST).is_file()
    return (path / CONFIG).is_file() and not ours


def inside(directory: Path, name: str) -> Path:
    """The path of a file of the directory. Raises DataError for one that is missing or that lies elsewhere.

    Links stay within it, but for those into `blobs`, of which the Hub's cache is made.
    """
    path = directory / name
    if Path(name).name != name or name in ("", "..") or "\0" in name:
        raise DataError(f"{directory}: {name!r} is not the plain name of a file")
    try:
        there = path.is_file()
    except OSError:  # a name that is too long
        there = False
    if not there:
        raise DataError(f"{path} is missing")
    home, target = directory.resolve(), path.resolve()
    blobs = home.parent.parent / "blobs"
    if target.parent != home and not (home.parent.name == "snapshots" and target.parent == blobs):
        raise DataError(
            f"{path} is a link to {target}, out of the directory", hint="copy the file itself to this place"
        )
    return path
