"""Writing tensors as a safetensors file without a copy of them, hashed on the way.

    | length of the header, 8 bytes | header: JSON, padded to 8 | the tensors' bytes, one after the other |

The format is https://github.com/huggingface/safetensors; the library's own writer first copies every tensor into a bytes
object while it holds the interpreter, which would stop training. Here one thread hashes what is being written, so the
sha256 is that of the memory and not of what came back from the disk, and another has the disk begin while there is more
to write: waiting for all of it at the end took a third longer.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from pretrain.checkpoint.layout import FileEntry

CHUNK_BYTES = 8 << 20


def write_pieces(path: Path, tensors: Mapping[str, Tensor]) -> FileEntry:
    """Write flat fp32 tensors on the host, flushed to the disk. Raises OSError where the disk is full or fails."""
    digest, size = hashlib.sha256(), 0
    flushing: Future[None] | None = None
    with (
        path.open("wb", buffering=0) as file,
        ThreadPoolExecutor(1, thread_name_prefix="hash") as hashing,
        ThreadPoolExecutor(1, thread_name_prefix="flush") as flusher,
    ):
        for chunk in _chunks(tensors):
            hashing.submit(digest.update, chunk)
            size += _write_all(file, chunk)
            if flushing is None or flushing.done():
                if flushing is not None:
                    flushing.result()
                flushing = flusher.submit(os.fdatasync, file.fileno())
        if flushing is not None:
            flushing.result()
        os.fsync(file.fileno())
    return FileEntry(path.name, size, digest.hexdigest())


def _write_all(file: FileIO, data: memoryview) -> int:
    """Unbuffered files may take a part of what they are given, as on a disk that becomes full."""
    written = 0
    while written < len(data):
        written += file.write(data[written:])
    return written


def _chunks(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    header, position = {}, 0
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.float32 and tensor.dim() == 1 and tensor.is_contiguous() and not tensor.is_cuda, (
            name
        )
        end = position + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": [tensor.numel()], "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield memoryview(len(text).to_bytes(8, "little") + text)
    for tensor in tensors.values():
        data = memoryview(tensor.numpy()).cast("B")
        for start in range(0, len(data), CHUNK_BYTES):
            yield data[start : start + CHUNK_BYTES]
