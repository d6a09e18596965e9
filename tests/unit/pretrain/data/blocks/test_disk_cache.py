import os
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest

from pretrain.config.schema import StoreConfig
from pretrain.data.blocks.disk_cache import ShardCache
from pretrain.errors import DataError

SHA = "a" * 64
OTHER = "b" * 64
BLOCK = np.random.default_rng(0).bytes(4096)
GIB = 1 << 30


def checked(data: bytes) -> bytes:
    if zlib.crc32(data) != zlib.crc32(BLOCK):
        raise DataError("its crc32 is not the one in the index")
    return data


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_written_is_read(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "new" / "cache", GIB)
    assert cache.read(SHA, 512, 4096, checked) is None
    cache.write(SHA, 512, BLOCK)
    assert cache.read(SHA, 512, 4096, checked) == BLOCK
    assert ShardCache(tmp_path / "new" / "cache", GIB).read(SHA, 512, 4096, checked) == BLOCK
    assert names(tmp_path / "new" / "cache") == [f"{SHA}.blocks"]


def test_a_block_that_was_never_written_is_not_there(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, GIB)
    cache.write(SHA, 1 << 20, BLOCK)
    for start in (0, 4096, (1 << 20) - 4096, (1 << 20) + 4096, 1 << 30):
        assert cache.read(SHA, start, 4096, checked) is None
    assert cache.read(OTHER, 1 << 20, 4096, checked) is None


def test_a_block_beyond_the_end_of_its_file_is_not_there_whoever_asks(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, GIB)
    cache.write(SHA, 0, BLOCK)
    assert cache.read(SHA, 100, 4096, bytes) is None
    assert cache.read(SHA, 8192, 4096, bytes) is None
    assert cache.read(SHA, 100, 3996, bytes) == BLOCK[100:]


def test_a_file_takes_the_room_of_its_blocks_only(tmp_path: Path) -> None:
    ShardCache(tmp_path, GIB).write(SHA, 200 << 20, BLOCK)
    found = (tmp_path / f"{SHA}.blocks").stat()
    assert found.st_size == (200 << 20) + 4096
    assert found.st_blocks * 512 < 1 << 20


@pytest.mark.parametrize("damage", ["torn", "flipped", "cut", "empty", "foreign"])
def test_a_damaged_block_is_not_there_and_heals(tmp_path: Path, damage: str) -> None:
    cache, path = ShardCache(tmp_path, GIB), tmp_path / f"{SHA}.blocks"
    cache.write(SHA, 4096, BLOCK)
    content = bytearray(path.read_bytes())
    if damage == "torn":
        content[6000:] = bytes(len(content) - 6000)
    elif damage == "flipped":
        content[5000] ^= 1
    elif damage == "cut":
        del content[-1:]
    else:
        content = bytearray(b"" if damage == "empty" else b"a stranger's words" * 1000)
    path.write_bytes(content)
    assert cache.read(SHA, 4096, 4096, checked) is None
    cache.write(SHA, 4096, BLOCK)
    assert cache.read(SHA, 4096, 4096, checked) == BLOCK


def test_links_and_other_files_are_neither_read_nor_written(tmp_path: Path) -> None:
    folder, victim = tmp_path / "cache", tmp_path / "victim"
    folder.mkdir()
    for kind in ("symbolic", "hard", "pipe"):
        victim.write_bytes(bytes(4096) + BLOCK)
        path = folder / f"{SHA}.blocks"
        if kind == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to(victim) if kind == "symbolic" else path.hardlink_to(victim)
        cache = ShardCache(folder, GIB)
        assert cache.read(SHA, 4096, 4096, checked) is None
        with pytest.warns(UserWarning, match="cannot be written"):
            cache.write(SHA, 0, BLOCK)
        assert victim.read_bytes() == bytes(4096) + BLOCK
        path.unlink()


def test_the_shard_used_longest_ago_makes_room(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 64 << 10)
    hashes = [f"{number:064x}" for number in range(12)]
    for number, sha256 in enumerate(hashes[:8]):
        cache.write(sha256, 0, BLOCK)
        os.utime(tmp_path / f"{sha256}.blocks", (number, number))
    assert cache.read(hashes[0], 0, 4096, checked) == BLOCK  # used now: not the oldest any more
    for sha256 in hashes[8:]:
        for block in range(3):
            cache.write(sha256, block * 4096, BLOCK)
    left = set(names(tmp_path))
    assert f"{hashes[0]}.blocks" in left
    assert {f"{sha256}.blocks" for sha256 in hashes[1:4]} & left == set()
    assert {f"{sha256}.blocks" for sha256 in hashes[8:]} <= left
    used = sum(path.stat().st_blocks * 512 for path in tmp_path.iterdir())
    assert used <= 64 << 10


def test_holes_take_no_room(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 64 << 10)
    for number in range(8):
        cache.write(f"{number:064x}", 1 << 30, BLOCK)
    assert len(names(tmp_path)) == 8


def test_what_is_not_a_shard_is_never_removed(tmp_path: Path) -> None:
    for name in ("notes.txt", "A" * 64 + ".blocks", "a" * 63 + ".blocks", f"{SHA}.blocks.old"):
        (tmp_path / name).write_bytes(bytes(100_000))
    (tmp_path / f"{OTHER}.blocks").write_bytes(bytes(100_000))
    before = set(names(tmp_path))
    ShardCache(tmp_path, 8192).write(SHA, 0, BLOCK)
    assert set(names(tmp_path)) == before - {f"{OTHER}.blocks"} | {f"{SHA}.blocks"}


def test_a_folder_that_cannot_be_written_is_one_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = ShardCache(tmp_path / "file" / "cache", GIB)
    with pytest.warns(UserWarning, match=r"data\.store\.cache_dir=.* cannot be written \(Not a directory\)"):
        cache.write(SHA, 0, BLOCK)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.write(SHA, 0, BLOCK)
    assert cache.read(SHA, 0, 4096, checked) is None


def test_a_full_disk_is_one_warning_and_what_is_there_is_still_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ShardCache(tmp_path, GIB)
    cache.write(SHA, 0, BLOCK)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.warns(UserWarning, match=r"No space left on device"):
        cache.write(SHA, 4096, BLOCK)
    cache.write(SHA, 4096, BLOCK)
    assert cache.read(SHA, 0, 4096, checked) == BLOCK


PROGRAM = """
import sys, zlib
from pathlib import Path
import numpy as np
from pretrain.data.blocks.disk_cache import ShardCache
from pretrain.errors import DataError

cache, rng, hits = ShardCache(Path(sys.argv[1]), 1 << 20), np.random.default_rng(int(sys.argv[2])), 0
blocks = [np.random.default_rng(number).bytes(8192) for number in range(64)]
for number in rng.integers(0, 64, 3000).tolist():
    def parse(data):
        if zlib.crc32(data) != zlib.crc32(blocks[number]):
            raise DataError("not there")
        return data
    sha256, start = f"{number // 8:064x}", number % 8 * 8192 + number
    found = cache.read(sha256, start, 8192, parse)
    assert found in (None, blocks[number])
    hits += found is not None
    if found is None:
        cache.write(sha256, start, blocks[number] if rng.random() > 0.1 else blocks[number][:5000])
print(hits)
"""


def test_processes_share_a_folder_without_locks(tmp_path: Path) -> None:
    running = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", PROGRAM, tmp_path, str(seed)], stdout=subprocess.PIPE, text=True
        )
        for seed in range(3)
    ]
    ends = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert sum(map(int, ends)) > 3 * 3000 / 2
    assert sum(path.stat().st_blocks * 512 for path in tmp_path.iterdir()) <= 1 << 20


def test_sources_of_a_process_share_one(tmp_path: Path) -> None:
    config = StoreConfig(cache_dir=str(tmp_path), cache_gib=0.5)
    cache = ShardCache.of(config)
    assert cache is not None
    assert cache is ShardCache.of(config)
    assert (cache.folder, cache.limit_bytes) == (tmp_path, GIB // 2)
    assert ShardCache.of(StoreConfig()) is None
