"""Tensors as pieces: how a checkpoint is independent of the ZeRO stage and of the number of ranks.

A parameter is flattened; each rank writes the ranges of it that it owns, under a key that says which:

    KIND/START/NAME      e.g.  exp_avg/4096/blocks.0.attention.query.weight

KIND is `fp32` (the master weights), `exp_avg` or `exp_avg_sq` (Adam's moments). A reader asks for any range of any
parameter and gets it from whichever files hold it. The files are safetensors: loading them executes nothing.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pretrain.errors import CheckpointError

KINDS = ("fp32", "exp_avg", "exp_avg_sq")


class Piece(NamedTuple):
    """Elements [start, start + numel) of a flattened parameter, in a file."""

    start: int
    numel: int
    file: Path
    key: str


def piece_key(kind: str, start: int, name: str) -> str:
    """The key under which a piece is written."""
    return f"{kind}/{start}/{name}"


class PieceIndex:
    """Where everything lies, from the headers of all files."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._pieces: dict[tuple[str, str], list[Piece]] = {}
        for file in sorted(files):
            try:
                with safe_open(file, framework="pt") as tensors:
                    for key in tensors.keys():  # noqa: SIM118 - a safe_open handle is no mapping
                        kind, start, name = key.split("/", 2)
                        (numel,) = tensors.get_slice(key).get_shape()
                        self._pieces.setdefault((kind, name), []).append(Piece(int(start), numel, file, key))
            except (ValueError, SafetensorError) as error:
                raise CheckpointError(f"{file} is not a file of pieces: {error}") from error
        for pieces in self._pieces.values():
            pieces.sort()

    def names(self) -> list[str]:
        """All parameters, sorted."""
        return sorted({name for kind, name in self._pieces if kind == "fp32"})

    def read(self, kind: str, name: str, start: int, out: Tensor) -> None:
        """Fill the flat tensor `out` with elements from `start` on. Raises CheckpointError for a gap."""
        position, stop = start, start + out.numel()
        for piece in self._pieces.get((kind, name), []):
            if position >= stop:
                break
            begin, end = max(position, piece.start), min(stop, piece.start + piece.numel)
            if begin != position or end <= begin:
                continue
            with safe_open(piece.file, framework="pt") as tensors:
                values = tensors.get_slice(piece.key)[begin - piece.start : end - piece.start]
            out[begin - start : end - start].copy_(values)
            position = end
        if position < stop:
            raise CheckpointError(
                f"{kind} of {name} has no element {position}: the checkpoint holds another model, or not all of it"
            )

    def whole(self, kind: str, name: str, shape: tuple[int, ...]) -> Tensor:
        """The whole parameter."""
        out = torch.empty(shape, dtype=torch.float32)
        self.read(kind, name, 0, out.view(-1))
        return out
