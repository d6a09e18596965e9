"""Thousands of damaged corpora: what is read is exactly what was written, or there is one error. Never a wrong token."""

import random
import resource
from pathlib import Path

import numpy as np
import pytest

from pretrain.config.schema import SourceConfig
from pretrain.data.source import Source
from pretrain.errors import DataError
from pretrain.shards.integrity import verify_shards
from pretrain.shards.manifest_file import load_manifest
from pretrain.storage.store import open_store
from tests.support.shards import write_corpus

T = 16
LARGEST_GROWTH = 256 << 20  # bytes of memory, whatever a file claims


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, np.random.default_rng(0).integers(0, 1_000, 900), block_tokens=64)
    return folder


def read_all(folder: Path) -> np.ndarray:
    source = Source("a", SourceConfig(str(folder)), T)
    tokens = np.empty((len(source), T + 1), np.int64)
    source.read(np.arange(len(source)), tokens)
    return tokens


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Flipped bits, bytes that are other numbers, cuts, insertions, stretches that are doubled, moved or blank."""
    place, other = rng.randrange(len(data)), rng.randrange(len(data))
    length = rng.choice([1, 1, 2, 8, 64, 512, 600])
    kind = rng.randrange(9)
    if kind < 3:
        return data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]
    if kind == 3:
        return data[:place] + rng.choice([b"\0", b"\xff", b"9", b"-", b"e9"]) + data[place + 1 :]
    if kind == 4:
        return data[:place]
    if kind == 5:
        return data[:place] + rng.randbytes(length) + data[place:]
    if kind == 6:
        return data[:place] + data[place : place + length] + data[place:]
    if kind == 7:
        return data[:place] + data[other : other + length] + data[place + length :]
    return data[:place] + bytes(length) + data[place + length :]


def damage(folder: Path) -> list[str]:
    store = open_store(str(folder))
    return [problem for _, found in verify_shards(store, load_manifest(store), workers=1) for problem in found]


def check(folder: Path, path: Path, original: bytes, truth: np.ndarray, rng: random.Random) -> None:
    """One mutation of one file: read all, verify, put it back."""
    mutated = mutate(original, rng)
    replace(path, mutated)
    try:
        try:
            assert np.array_equal(read_all(folder), truth), f"{path.name}: other tokens were read"
        except DataError as error:
            assert path.name.split(".")[0] in str(error) or path.name == "shards.npy", error
        try:
            found = damage(folder)
        except DataError:
            return
        # A manifest, or the header of an index, that was only laid out otherwise says the same.
        same = mutated == original or path.name == "manifest.json" or _same_rows(path, mutated, original)
        assert found or same, f"{path.name}: the damage was not found"
    finally:
        replace(path, original)


def _same_rows(path: Path, mutated: bytes, original: bytes) -> bool:
    header = 128
    return path.name.endswith(".idx.npy") and mutated[header:] == original[header:]


def replace(path: Path, data: bytes) -> None:
    """As a new file: an old map of it keeps the old bytes."""
    temporary = path.with_name("mutation.tmp")
    temporary.write_bytes(data)
    temporary.replace(path)


@pytest.mark.parametrize(
    ("seed", "count"), [(0, 800), *(pytest.param(seed, 1_000, marks=pytest.mark.slow) for seed in range(1, 11))]
)
def test_a_mutated_corpus_gives_the_same_tokens_or_an_error(corpus: Path, seed: int, count: int) -> None:
    rng = random.Random(seed)
    truth = read_all(corpus)
    files = [path for path in sorted(corpus.iterdir()) if path.is_file()]
    assert {path.suffix for path in files} == {".tar", ".npy", ".json"}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for _ in range(count):
        path = rng.choice(files)
        check(corpus, path, path.read_bytes(), truth, rng)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before < LARGEST_GROWTH
    assert np.array_equal(read_all(corpus), truth)
