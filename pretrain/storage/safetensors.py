"""Reading and writing safetensors files in bounded memory: nothing here holds more than a chunk beside the caller's tensors.

    | header length, 8 bytes | header: JSON, padded to 8 | bytes of the tensors, back to back |

Format: https://github.com/huggingface/safetensors. The library only validates headers here. Its reader maps the file:
pages that were read count as memory of the process, and truncating a mapped file kills the process with SIGBUS. Its writer
needs all tensors of a file at once and copies each into a bytes object while it holds the GIL, which would stop training.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pretrain.errors import DataError

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
CHUNK = 2 << 20  # elements: 8 MiB of fp32


class Entry(NamedTuple):
    """A tensor in a file: dtype as the header spells it, shape, and the offset of its first byte in the file."""

    dtype: str
    shape: tuple[int, ...]
    file: Path
    position: int


def read_header(file: Path) -> dict[str, Entry]:
    """All tensors of a file, sorted by name. Raises DataError if it is not a valid safetensors file."""
    try:
        with safe_open(file, framework="pt"):
            pass  # validates: the header's length is bounded, and tensors fill the file without gaps or overlaps
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
    """A tensor as fp32, whatever its stored dtype. Raises DataError as `read_elements`."""
    out = torch.empty(entry.shape)
    read_elements(entry, 0, out.view(-1))
    return out


def read_elements(entry: Entry, start: int, out: Tensor) -> None:
    """Fill the flat tensor `out`, of any dtype and device, with elements of the flattened tensor from `start` on.

    Raises DataError if the dtype is not in DTYPES, or the file is truncated or unreadable.
    """
    if entry.dtype not in DTYPES:
        raise DataError(f"{entry.file}: dtype {entry.dtype} is not supported", hint=f"supported: {', '.join(DTYPES)}")
    dtype, out = DTYPES[entry.dtype], out.detach()
    direct = out.dtype == dtype and out.device.type == "cpu"
    try:
        with entry.file.open("rb", buffering=0) as file:
            file.seek(entry.position + start * dtype.itemsize)
            for part in out.split(CHUNK):
                stored = part if direct else torch.empty(part.shape, dtype=dtype)
                if not _read_all(file, _bytes(stored)):
                    raise DataError(f"{entry.file} was truncated while being read")
                if not direct:
                    part.copy_(stored)
    except OSError as error:
        raise DataError(f"{entry.file} cannot be read: {error.strerror}") from error


def write_tensors(
    path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, tensor: Callable[[str], Tensor]
) -> None:
    """Write a file of tensors of one dtype, calling `tensor` for each when it is due. Raises OSError if the disk is full."""

    def tensors() -> Iterator[Tensor]:
        for name, shape in shapes.items():
            found = tensor(name)
            assert tuple(found.shape) == tuple(shape), f"{name}: {tuple(found.shape)}, announced as {shape}"
            yield found

    # transformers 4 refuses files without it.
    header = _header(shapes, dtype, {"__metadata__": {"format": "pt"}})
    with path.open("wb") as file:
        for chunk in _chunks(header, tensors(), dtype):
            file.write(chunk)


def write_durably(path: Path, tensors: Mapping[str, Tensor]) -> tuple[int, str]:
    """Write contiguous fp32 tensors on the CPU without copying them, and fsync. Returns size and sha256 of the file.

    The sha256 is computed from memory, not from data read back, so that it exposes corruption by the disk. Raises OSError if
    the disk is full or fails.
    """
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.float32 and tensor.is_contiguous() and tensor.device.type == "cpu", name
    header = _header({name: tuple(tensor.shape) for name, tensor in tensors.items()}, torch.float32, {})
    digest, size = hashlib.sha256(), 0
    flushing: Future[None] | None = None
    with (
        path.open("wb", buffering=0) as file,
        ThreadPoolExecutor(1, thread_name_prefix="hash") as hashing,
        ThreadPoolExecutor(1, thread_name_prefix="flush") as flusher,
    ):
        for chunk in _chunks(header, tensors.values(), torch.float32):
            # The queue is unbounded: chunks are views of the tensors, which cost no memory.
            hashing.submit(digest.update, chunk)
            size += _write_all(file, chunk)
            # Flush while writing: one flush at the end took a third longer in total.
            if flushing is None or flushing.done():
                if flushing is not None:
                    flushing.result()
                flushing = flusher.submit(os.fdatasync, file.fileno())
        if flushing is not None:
            flushing.result()
        os.fsync(file.fileno())
    return size, digest.hexdigest()


def _header(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, header: dict[str, object]) -> bytes:
    """Length and JSON of the header; `header` holds entries that precede the tensors."""
    position = 0
    for name, shape in shapes.items():
        end = position + prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _chunks(header: bytes, tensors: Iterable[Tensor], dtype: torch.dtype) -> Iterator[memoryview]:
    """Contents of a file; views of the tensors wherever dtype and strides allow."""
    yield memoryview(header)
    for tensor in tensors:
        # Split by rows: a transposed tensor is made contiguous a chunk at a time.
        rows = tensor if tensor.dim() else tensor.view(1)
        width = max(1, rows.numel() // max(1, rows.shape[0]))
        for part in rows.split(max(1, CHUNK // width)):
            yield _bytes(part.to(dtype).contiguous().view(-1))


def _bytes(flat: Tensor) -> memoryview:
    # Through uint8: NumPy has no bf16.
    return memoryview(flat.view(torch.uint8).numpy())


def _read_all(file: FileIO, buffer: memoryview) -> bool:
    """Fill the buffer; False at the end of the file. Unbuffered files may read less than requested."""
    while buffer:
        count = file.readinto(buffer)
        if not count:
            return False
        buffer = buffer[count:]
    return True


def _write_all(file: FileIO, data: memoryview) -> int:
    """Unbuffered files may write less than requested, as when the disk becomes full."""
    written = 0
    while written < len(data):
        written += file.write(data[written:])
    return written
