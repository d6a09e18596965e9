"""safetensors files, a piece of a tensor at a time: neither reading nor writing holds more than it is given.

    | length of the header, 8 bytes | header: JSON, padded to 8 | the tensors' bytes, one after the other |

The format is https://github.com/huggingface/safetensors. The library's own writer wants all tensors of a file in memory,
and its reader maps the file: what was read stays in the memory that the process is charged for, and a file that is cut
meanwhile kills the process with a signal.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pretrain.errors import DataError

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
CHUNK = 8 << 20  # elements


class Entry(NamedTuple):
    """Where a tensor lies: its type as the file names it, its shape, and the byte of the file at which it begins."""

    dtype: str
    shape: tuple[int, ...]
    file: Path
    position: int


def read_header(file: Path) -> dict[str, Entry]:
    """All tensors of a file, in the order of their names. Raises DataError for one that is not in this format."""
    try:
        with safe_open(file, framework="pt"):
            pass  # the library has looked: a header of bounded length, and tensors that fill the file without a gap
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length))
    except (ValueError, SafetensorError, OSError, RecursionError) as error:
        raise DataError(f"{file} is not a safetensors file: {error}") from error
    header.pop("__metadata__", None)
    return {
        name: Entry(entry["dtype"], tuple(entry["shape"]), file, 8 + length + entry["data_offsets"][0])
        for name, entry in sorted(header.items())
    }


def read_tensor(entry: Entry) -> Tensor:
    """The tensor in fp32, whatever it is stored in. Raises DataError for a type that is not in DTYPES."""
    if entry.dtype not in DTYPES:
        raise DataError(f"{entry.file}: a tensor of the type {entry.dtype}", hint=f"read are {', '.join(DTYPES)}")
    dtype, out = DTYPES[entry.dtype], torch.empty(entry.shape)
    flat, position = out.view(-1), entry.position
    try:
        with entry.file.open("rb", buffering=0) as opened:
            opened.seek(position)
            for part in flat.split(CHUNK) if flat.numel() else ():
                stored = part if dtype == torch.float32 else torch.empty(part.shape, dtype=dtype)
                rest = memoryview(stored.view(torch.uint8).numpy())
                while rest:
                    count = opened.readinto(rest)
                    if not count:
                        raise DataError(f"{entry.file} has become shorter while it was read")
                    rest = rest[count:]
                if stored is not part:
                    part.copy_(stored)
    except OSError as error:
        raise DataError(f"{entry.file} cannot be read: {error.strerror}") from error
    return out


def write_tensors(
    path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, tensor: Callable[[str], Tensor]
) -> None:
    """Write a file of tensors of one type, each asked for when its turn comes. Raises OSError where the disk is full."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in shapes.items():
        end = position + prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            found = tensor(name)
            assert tuple(found.shape) == tuple(shape), f"{name}: {tuple(found.shape)}, announced as {shape}"
            for rows in _rows(found):
                file.write(memoryview(rows.to(dtype).contiguous().view(-1).view(torch.uint8).numpy()))


def _rows(tensor: Tensor) -> Iterator[Tensor]:
    """The tensor in parts of about CHUNK elements; a transposed one is made contiguous a part at a time."""
    width = max(1, tensor.numel() // max(1, tensor.shape[0])) if tensor.dim() else 1
    yield from tensor.split(max(1, CHUNK // width)) if tensor.dim() else (tensor,)
