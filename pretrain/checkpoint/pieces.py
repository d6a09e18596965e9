"""Tensors as pieces: what makes a checkpoint independent of the ZeRO stage and of the number of ranks.

Parameters are flattened. Each rank writes the ranges that it owns, under keys that name them:

    KIND/START/NAME      e.g.  exp_avg/4096/blocks.0.attention.query.weight

KIND is `fp32` (master weights) or a name of the optimizer's state: `exp_avg`, `exp_avg_sq` (AdamW's moments). A reader
requests any range of any parameter and gets it from the files that hold it. The files are safetensors: loading
executes nothing.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pretrain.checkpoint.layout import FileEntry
from pretrain.errors import CheckpointError, DataError
from pretrain.storage.safetensors import Entry, read_elements, read_header, write_durably


class Piece(NamedTuple):
    """Elements [start, start + numel) of a flattened parameter."""

    start: int
    numel: int
    entry: Entry


def piece_key(kind: str, start: int, name: str) -> str:
    """Key of a piece in its file."""
    return f"{kind}/{start}/{name}"


def write_pieces(path: Path, pieces: Mapping[str, Tensor]) -> FileEntry:
    """Write flat fp32 tensors on the CPU without copying them, and fsync. Raises OSError if the disk is full or fails."""
    assert all(piece.dim() == 1 for piece in pieces.values())
    size, sha256 = write_durably(path, pieces)
    return FileEntry(path.name, size, sha256)


class PieceIndex:
    """Pieces of all files by kind and parameter. Raises CheckpointError if a file is corrupt or holds no pieces."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._pieces: dict[tuple[str, str], list[Piece]] = {}
        for file in sorted(files):
            try:
                for key, entry in read_header(file).items():
                    kind, name, piece = _parse(key, entry)
                    self._pieces.setdefault((kind, name), []).append(piece)
            except DataError as error:
                raise CheckpointError(error.message) from error
            except ValueError as error:
                raise CheckpointError(f"{file} is not a file of pieces: {error}") from error
        for pieces in self._pieces.values():
            pieces.sort()

    def names(self) -> list[str]:
        """All parameters, sorted."""
        return sorted({name for kind, name in self._pieces if kind == "fp32"})

    def kinds(self) -> set[str]:
        """Kinds of all pieces; `fp32` alone if this is a weights-only save."""
        return {kind for kind, _ in self._pieces}

    def read(self, kind: str, name: str, start: int, out: Tensor) -> None:
        """Fill the flat tensor `out`, of any dtype and device, with elements from `start` on.

        Raises CheckpointError if elements are missing, or a file is truncated or unreadable.
        """
        position, stop = start, start + out.numel()
        for piece in self._pieces.get((kind, name), []):
            if position >= stop:
                break
            begin, end = max(position, piece.start), min(stop, piece.start + piece.numel)
            if begin != position or end <= begin:
                continue
            try:
                read_elements(piece.entry, begin - piece.start, out[begin - start : end - start])
            except DataError as error:
                raise CheckpointError(error.message) from error
            position = end
        if position < stop:
            if (kind, name) not in self._pieces and ("fp32", name) in self._pieces:
                raise CheckpointError(
                    f"the checkpoint holds no {kind} of {name}: a weights-only save cannot be resumed"
                )
            raise CheckpointError(
                f"{kind} of {name} has no element {position}: the checkpoint is of another model or incomplete"
            )

    def read_parameter(self, kind: str, name: str, shape: tuple[int, ...]) -> Tensor:
        """A complete parameter in fp32, on the CPU."""
        out = torch.empty(shape, dtype=torch.float32)
        self.read(kind, name, 0, out.view(-1))
        return out


def _parse(key: str, entry: Entry) -> tuple[str, str, Piece]:
    """Kind, parameter and piece. Raises ValueError if this is not a piece."""
    kind, start, name = key.split("/", 2)
    if not start.isdecimal():
        raise ValueError(f"{key} has no start")
    if entry.dtype != "F32" or len(entry.shape) != 1:
        raise ValueError(f"{key} is {entry.dtype} of shape {entry.shape}, not flat F32")
    return kind, name, Piece(int(start), entry.shape[0], entry)
