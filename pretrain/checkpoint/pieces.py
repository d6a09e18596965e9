"""Tensors as pieces: how a checkpoint is independent of the ZeRO stage and of the number of ranks.

A parameter is flattened; each rank writes the ranges of it that it owns, under a key that says which:

    KIND/START/NAME      e.g.  exp_avg/4096/blocks.0.attention.query.weight

KIND is `fp32` (the master weights), `exp_avg` or `exp_avg_sq` (Adam's moments). A reader asks for any range of any
parameter and gets it from whichever files hold it. The files are safetensors: loading them executes nothing.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pretrain.errors import CheckpointError

KINDS = ("fp32", "exp_avg", "exp_avg_sq")


class Piece(NamedTuple):
    """Elements [start, start + numel) of a flattened parameter, and the byte of a file at which they begin."""

    start: int
    numel: int
    file: Path
    position: int


def piece_key(kind: str, start: int, name: str) -> str:
    """The key under which a piece is written."""
    return f"{kind}/{start}/{name}"


class PieceIndex:
    """Where everything lies, from the headers of all files. Raises CheckpointError for one that is no file of pieces."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._pieces: dict[tuple[str, str], list[Piece]] = {}
        for file in sorted(files):
            try:
                for key, position, numel in _header(file):
                    kind, start, name = key.split("/", 2)
                    if not start.isdecimal():
                        raise ValueError(f"{key} does not say where it begins")
                    self._pieces.setdefault((kind, name), []).append(Piece(int(start), numel, file, position))
            except (ValueError, SafetensorError, OSError) as error:
                raise CheckpointError(f"{file} is not a file of pieces: {error}") from error
        for pieces in self._pieces.values():
            pieces.sort()

    def names(self) -> list[str]:
        """All parameters, sorted."""
        return sorted({name for kind, name in self._pieces if kind == "fp32"})

    def read(self, kind: str, name: str, start: int, out: Tensor) -> None:
        """Fill the flat tensor `out` with elements from `start` on.

        Raises CheckpointError for a gap, and for a file that cannot be read.
        """
        position, stop = start, start + out.numel()
        for piece in self._pieces.get((kind, name), []):
            if position >= stop:
                break
            begin, end = max(position, piece.start), min(stop, piece.start + piece.numel)
            if begin != position or end <= begin:
                continue
            _fill(out[begin - start : end - start], piece.file, piece.position + 4 * (begin - piece.start))
            position = end
        if position < stop:
            if (kind, name) not in self._pieces and ("fp32", name) in self._pieces:
                raise CheckpointError(
                    f"the checkpoint holds no {kind} of {name}: with the weights alone no training can be resumed"
                )
            raise CheckpointError(
                f"{kind} of {name} has no element {position}: the checkpoint holds another model, or not all of it"
            )

    def whole(self, kind: str, name: str, shape: tuple[int, ...]) -> Tensor:
        """The whole parameter."""
        out = torch.empty(shape, dtype=torch.float32)
        self.read(kind, name, 0, out.view(-1))
        return out


def _header(file: Path) -> Iterator[tuple[str, int, int]]:
    """Key, first byte and number of elements of each tensor."""
    with safe_open(file, framework="pt"):
        pass  # the library has looked: a header of bounded length, and tensors that fill the file without a gap
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    header.pop("__metadata__", None)
    for key, tensor in header.items():
        (numel,) = tensor["shape"]
        if tensor["dtype"] != "F32":
            raise ValueError(f"{key} has the type {tensor['dtype']}")
        yield key, 8 + length + tensor["data_offsets"][0], numel


def _fill(out: Tensor, file: Path, position: int) -> None:
    # Read and not mapped into memory: a file that is cut meanwhile is an error, not a signal that kills the process.
    host = out if out.dtype == torch.float32 and out.device.type == "cpu" else torch.empty(out.shape)
    rest = memoryview(host.detach().numpy()).cast("B")
    try:
        with file.open("rb", buffering=0) as opened:
            opened.seek(position)
            while rest:
                count = opened.readinto(rest)
                if not count:
                    raise CheckpointError(f"{file} has become shorter while it was read")
                rest = rest[count:]
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
    if host is not out:
        out.copy_(host)
