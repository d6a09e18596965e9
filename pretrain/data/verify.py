"""Whether shards hold what their manifest says, byte by byte: `pretrain data verify`.

of the folder   the manifest is whole, every shard and index is there with its size      manifest.py, shards.py
of each shard   its sha256, its index, and of each block the crc32, the ids and the document ends
"""

import hashlib
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np

from pretrain.data.manifest import Manifest, ShardEntry, read_manifest
from pretrain.data.shards import CRC32, OFFSET, TOKENS, read_index
from pretrain.errors import DataError


def verify_folder(folder: Path, *, workers: int) -> Iterator[tuple[str, list[str]]]:
    """(shard, problems) as each shard is done, in any order; threads, because hashing leaves the interpreter's lock.

    Raises DataError where there is no manifest to hold anything against.
    """
    manifest = read_manifest(folder)
    with ThreadPoolExecutor(workers) as pool:
        running = {pool.submit(verify_shard, folder, entry, manifest): entry.name for entry in manifest.shards}
        for done in as_completed(running):
            yield running[done], done.result()


def verify_shard(folder: Path, entry: ShardEntry, manifest: Manifest) -> list[str]:
    """Everything that is wrong with one shard; an empty list where nothing is."""
    path = folder / entry.name
    if not path.is_file():
        return [f"{path}: missing"]
    size = path.stat().st_size
    if size != entry.bytes:
        return [f"{path}: {size} bytes, the manifest says {entry.bytes}"]
    problems = []
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
            problems.append(f"{path}: its sha256 is not the manifest's")
    try:
        index = read_index(folder, entry, manifest.dtype)
    except DataError as error:
        return [*problems, error.message]
    data = np.memmap(path, np.uint8, "r")
    for block, row in enumerate(index):
        problems += [f"{path}: block {block}: {problem}" for problem in _block_problems(data, row, manifest)]
    return problems


def _block_problems(data: np.ndarray, row: np.ndarray, manifest: Manifest) -> Iterator[str]:
    dtype = np.dtype(manifest.dtype)
    start = int(row[OFFSET])
    payload = data[start : start + int(row[TOKENS]) * dtype.itemsize]
    if zlib.crc32(payload) != int(row[CRC32]):
        yield "its crc32 is not the index's"
    largest = int(payload.view(dtype).max())
    if largest >= manifest.vocab_size:
        yield f"holds id {largest}, and the vocabulary has {manifest.vocab_size}"
