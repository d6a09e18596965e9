"""Checkpoints without a training: the files are right, what is in them is not looked at."""

from pathlib import Path
from typing import Any

from pretrain.checkpoint import layout

WEIGHTS = "rank-00000.safetensors"


def save(
    place: Path, step: int, content: bytes = b"weights", *, attempt: int = 1, config: bytes = b"{}", **state: Any
) -> Path:
    """A committed checkpoint of one rank; `state` is added to state.json."""
    staging = layout.staging_folder(place, step, attempt)
    staging.mkdir(parents=True)
    files = {
        layout.STATE: layout.json_bytes({"step": step, **state}),
        layout.CONFIG: config,
        WEIGHTS: content,
    }
    return layout.commit(
        place, step, [layout.write_file(staging / name, data) for name, data in files.items()], attempt
    )


def names(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(path.name for path in folder.iterdir())


def flip_a_bit(path: Path) -> None:
    """Damage that no size shows."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
