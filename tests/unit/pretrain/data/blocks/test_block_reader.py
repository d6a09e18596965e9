import gc
import io
import os
import threading
import warnings
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest

from pretrain.data.blocks import block_reader as module
from pretrain.data.blocks.block_memory import BlockMemory
from pretrain.data.blocks.block_reader import EvictionLimit, LocalBlocks, OpenShards, RemoteBlocks
from pretrain.data.blocks.disk_cache import ShardCache
from pretrain.errors import DataError
from pretrain.shards.format import CRC32, OFFSET, TOKENS, read_index
from pretrain.shards.manifest import Manifest
from pretrain.shards.manifest_file import read_manifest, write_manifest
from pretrain.shards.table import ShardTable
from pretrain.storage.store import LocalStore
from tests.support.shards import write_corpus
from tests.support.stores import FaultyStore, fails, flipped, hangs, short, upload
from tests.support.stores import memory_address_fixture as memory_address_fixture
from tests.support.stores import no_waits_fixture as no_waits_fixture

STREAM = np.arange(1_000) % 997


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """16 blocks of 64 tokens in 6 shards."""
    write_corpus(tmp_path / "corpus", STREAM)
    return tmp_path / "corpus"


def local(folder: Path) -> LocalBlocks:
    return LocalBlocks(LocalStore(folder), read_manifest(folder))


def places(manifest: Manifest) -> list[tuple[int, int]]:
    return [(shard, block) for shard, entry in enumerate(manifest.shards) for block in range(entry.blocks)]


def payload_place(folder: Path, shard: int, block: int) -> tuple[Path, int, int]:
    """Where the payload of a block lies: path, first byte, and the byte after the last."""
    entry = read_manifest(folder).shards[shard]
    row = read_index(LocalStore(folder), entry)[block]
    return folder / entry.name, int(row[OFFSET]), int(row[OFFSET] + 2 * row[TOKENS])


def flip(path: Path, place: int, bit: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= bit
    path.write_bytes(content)


def held(blocks: RemoteBlocks, shard: int, block: int) -> np.ndarray:
    blocks.pin([shard], [block])
    try:
        return blocks.tokens(shard, block)
    finally:
        blocks.unpin([shard], [block])


# --- local ------------------------------------------------------------------------------------------------------------


def test_blocks_hold_the_stream(folder: Path) -> None:
    found = local(folder)
    assert len(places(found.manifest)) == 16
    for number, (shard, block) in enumerate(places(found.manifest)):
        for _ in range(2):
            assert found.tokens(shard, block).tolist() == STREAM[64 * number : 64 * number + 65].tolist()


@pytest.mark.parametrize("place", [0, 1, 64, 129, -1])
def test_any_flipped_bit_in_a_payload_is_an_error_and_no_token(folder: Path, place: int) -> None:
    path, start, stop = payload_place(folder, 1, 2)
    flip(path, (start if place >= 0 else stop) + place, bit=1 << (place % 3))
    found = local(folder)
    for _ in range(2):
        with pytest.raises(DataError, match=rf"shard-000001\.tar: block 2 at offset {start}: corrupt") as caught:
            found.tokens(1, 2)
        assert "pretrain data verify" in str(caught.value.hint)
    assert found.tokens(1, 1).tolist() == STREAM[64 * 4 : 64 * 5 + 1].tolist()


def test_an_id_outside_the_vocabulary_is_an_error_even_with_its_crc32(folder: Path) -> None:
    manifest = read_manifest(folder)
    found = LocalBlocks(LocalStore(folder), manifest.__class__(**{**vars(manifest), "vocab_size": 900}))
    assert found.tokens(0, 0).max() < 900
    with pytest.raises(DataError, match=r"block 2 .*holds id 960, and the vocabulary has 900"):
        found.tokens(4, 2)


def test_a_block_is_checked_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked, check = [], module.check_block
    monkeypatch.setattr(module, "check_block", lambda *a: (checked.append(a[3]), check(*a)))
    monkeypatch.setattr(module, "MAPS", EvictionLimit(2))
    found = local(folder)
    for _ in range(3):
        for shard, block in places(found.manifest):
            found.tokens(shard, block)
    assert len(checked) == len(set(checked)) == 16  # though each shard's map went and came back


def test_a_file_that_was_exchanged_is_checked_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAPS", EvictionLimit(1))
    found = local(folder)
    found.tokens(0, 1)
    found.tokens(1, 1)  # shard 0 is closed
    path, start, _ = payload_place(folder, 0, 1)
    new = path.with_name("new")
    new.write_bytes(path.read_bytes())
    flip(new, start)
    new.replace(path)
    with pytest.raises(DataError, match=r"block 1 .*corrupt"):
        found.tokens(0, 1)


def test_no_more_shards_are_open_than_the_budget_has(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAPS", EvictionLimit(3))
    one, other = local(folder), local(folder)

    def open_files() -> int:
        gc.collect()
        return sum(".tar" in str(fd.readlink()) for fd in list(Path("/proc/self/fd").iterdir()) if fd.is_symlink())

    for _ in range(2):
        for shard, block in places(one.manifest):
            one.tokens(shard, block)
            other.tokens(shard, block)
            assert open_files() <= 3
    del one, other
    assert open_files() == 0


@pytest.mark.parametrize("damage", ["gone", "short", "long", "no index", "bad index", "folder"])
def test_a_shard_that_is_not_whole_is_named_at_its_first_touch(folder: Path, damage: str) -> None:
    tar, index = folder / "shard-000001.tar", folder / "shard-000001.idx.npy"
    found = local(folder)
    if damage in ("gone", "folder"):
        tar.unlink()
        if damage == "folder":
            tar.mkdir()
    elif damage == "short":
        tar.write_bytes(tar.read_bytes()[:-512])
    elif damage == "long":
        tar.write_bytes(tar.read_bytes() + b"\0")
    elif damage == "no index":
        index.unlink()
    else:
        flip(index, 130)
    with pytest.raises(DataError, match=r"shard-000001"):
        found.tokens(1, 0)
    assert found.tokens(2, 0)[0] == STREAM[64 * 6]


def test_an_index_with_a_block_that_is_not_full_is_refused(folder: Path) -> None:
    path = folder / "shard-000001.idx.npy"
    index = np.load(path)
    index[0, TOKENS] -= 1
    index[1, TOKENS] += 1
    np.save(path, index)
    with pytest.raises(DataError, match=r"row 0 .*must have 64 tokens and one, and only the last of a shard fewer"):
        local(folder).tokens(1, 2)


def test_budgets_forget_who_is_gone() -> None:
    budget, one, other = EvictionLimit(2), OpenShards(), OpenShards()
    budget.keep(one, 1, "a")
    budget.keep(other, 1, "b")
    del one
    budget.keep(other, 2, "c")
    assert other == {1: "b", 2: "c"}
    budget.keep(other, 3, "d")
    assert other == {2: "c", 3: "d"}


# --- remote -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def faulty(folder: Path, memory_address: str, no_waits: None) -> FaultyStore:
    upload(folder, memory_address)
    return FaultyStore(memory_address)


def remote(store: FaultyStore, folder: Path, cache: Path | None = None, memory_bytes: int = 1 << 20) -> RemoteBlocks:
    kept = ShardCache(cache, 1 << 30) if cache else None
    return RemoteBlocks(store, read_manifest(folder), BlockMemory(memory_bytes, connections=4), kept)


def payload_requests(store: FaultyStore) -> list[tuple[str, int, int]]:
    return [request for request in store.requests if request[0].endswith(".tar")]


def test_a_store_gives_the_same_blocks_as_a_disk(faulty: FaultyStore, folder: Path) -> None:
    found, expected = remote(faulty, folder), local(folder)
    for _ in range(2):
        for shard, block in places(found.manifest):
            assert (held(found, shard, block) == expected.tokens(shard, block)).all()
    # Each index and each block once, and a block is one request for its payload alone.
    assert len(faulty.requests) == 6 + 16
    assert all(stop - start <= 130 for _, start, stop in payload_requests(faulty))


def test_an_index_is_asked_for_once_by_many_threads(faulty: FaultyStore, folder: Path) -> None:
    found = remote(faulty, folder)
    found.pin([0, 0, 0], [0, 1, 2])
    for block in range(3):
        found.tokens(0, block)
    assert [name for name, _, _ in faulty.requests if name.endswith(".npy")] == ["shard-000000.idx.npy"]


@pytest.mark.parametrize("fault", [fails(OSError(5, "reset")), short, flipped(0), flipped(77), flipped(-1)])
def test_damage_on_the_way_never_becomes_a_token(faulty: FaultyStore, folder: Path, fault) -> None:
    found, expected = remote(faulty, folder), local(folder)
    # Two of three answers are damaged, indexes too; one index may meet it three times, but never with the same bytes.
    number = [0]

    def sometimes(name: str, start: int):
        number[0] += 1
        return fault if number[0] % 3 else None

    faulty.always = sometimes
    for shard, block in places(found.manifest):
        assert (held(found, shard, block) == expected.tokens(shard, block)).all()
    assert len(payload_requests(faulty)) > 16


def test_damage_in_the_store_is_one_error_with_everything_in_it(faulty: FaultyStore, folder: Path) -> None:
    path, start, stop = payload_place(folder, 1, 2)
    flip(path, start + 5)
    fsspec.filesystem("memory").pipe_file(f"{faulty.address}/{path.name}", path.read_bytes())
    found = remote(faulty, folder)
    with pytest.raises(DataError) as caught:
        held(found, 1, 2)
    for part in (
        f"{faulty.address}/shard-000001.tar",
        f"{stop - start} bytes at offset {start}",
        "failed 6 times",
        "crc32",
    ):
        assert part in caught.value.message
    assert "pretrain data verify" in str(caught.value.hint)
    assert held(found, 1, 1)[0] == STREAM[64 * 4]


def test_a_shard_that_vanished_is_named_at_once(faulty: FaultyStore, folder: Path) -> None:
    fsspec.filesystem("memory").rm(f"{faulty.address}/shard-000002.tar")
    found = remote(faulty, folder)
    with pytest.raises(DataError, match=r"shard-000002\.tar: 130 bytes at offset \d+: FileNotFoundError"):
        held(found, 2, 0)
    assert len(payload_requests(faulty)) <= 2  # ahead, and when it was needed; never six times


def test_the_cache_answers_for_the_store(faulty: FaultyStore, folder: Path, tmp_path: Path) -> None:
    first, expected = remote(faulty, folder, tmp_path / "cache"), local(folder)
    for shard, block in places(first.manifest):
        held(first, shard, block)
    assert len(payload_requests(faulty)) == 16
    faulty.requests.clear()
    second = remote(faulty, folder, tmp_path / "cache")
    for shard, block in places(second.manifest):
        assert (held(second, shard, block) == expected.tokens(shard, block)).all()
    assert payload_requests(faulty) == []


def test_a_damaged_cache_is_asked_in_vain_and_heals(faulty: FaultyStore, folder: Path, tmp_path: Path) -> None:
    expected = local(folder)
    for again in range(3):
        found = remote(faulty, folder, tmp_path / "cache")
        for shard, block in places(found.manifest):
            assert (held(found, shard, block) == expected.tokens(shard, block)).all()
        requests = len(payload_requests(faulty))
        assert requests == (16, 16, 0)[again]
        faulty.requests.clear()
        if again == 0:
            for path in (tmp_path / "cache").iterdir():
                path.write_bytes(os.urandom(path.stat().st_size))


def test_a_cache_that_cannot_be_written_stops_nothing(faulty: FaultyStore, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    found, expected = remote(faulty, folder, tmp_path / "file"), local(folder)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for shard, block in places(found.manifest):
            assert (held(found, shard, block) == expected.tokens(shard, block)).all()
    assert len(warned) == 1


@pytest.mark.parametrize("column", [OFFSET, CRC32])
def test_an_index_that_came_damaged_is_asked_for_again(faulty: FaultyStore, folder: Path, column: int) -> None:
    index = io.BytesIO()
    np.save(index, np.zeros((3, 4), np.int64))
    faulty.faults = [flipped(len(index.getvalue()) - 64 + 8 * column + (2 if column == CRC32 else 0))]
    found = remote(faulty, folder)
    assert held(found, 0, 1).tolist() == STREAM[64:129].tolist()
    assert [name for name, _, _ in faulty.requests].count("shard-000000.idx.npy") == 2


def test_what_is_read_now_does_not_wait_for_what_is_read_ahead(faulty: FaultyStore, folder: Path) -> None:
    found, until = remote(faulty, folder), threading.Event()
    found.memory = BlockMemory(1 << 20, connections=1)
    faulty.faults = [hangs(until)]
    found.pin([1, 2, 3], [0, 0, 0])
    while not faulty.requests:
        pass
    found.pin([0], [0], urgent=True)
    until.set()
    for shard in range(4):
        found.tokens(shard, 0)
    assert [name[:12] for name, _, _ in payload_requests(faulty)] == [f"shard-00000{shard}" for shard in (1, 0, 2, 3)]


def test_two_sources_that_share_the_memory_do_not_share_blocks(
    faulty: FaultyStore, folder: Path, memory_address: str, tmp_path: Path
) -> None:
    """Whatever their manifests say: this one claims the hashes of another's shards."""
    write_corpus(tmp_path / "other", 996 - STREAM)
    hashes = [shard.sha256 for shard in read_manifest(folder).shards]
    manifest = read_manifest(tmp_path / "other")
    shards = [replace(shard, sha256=sha256) for shard, sha256 in zip(manifest.shards, hashes, strict=True)]
    write_manifest(tmp_path / "other", replace(manifest, shards=ShardTable.of(shards)))
    upload(tmp_path / "other", f"{memory_address}-other")
    kept = ShardCache(tmp_path / "cache", 1 << 30)
    other = RemoteBlocks(
        FaultyStore(f"{memory_address}-other"), read_manifest(tmp_path / "other"), BlockMemory(1 << 20, 2), kept
    )
    found = remote(faulty, folder)
    found.memory, found.cache = other.memory, kept
    assert held(other, 0, 1).tolist() == (996 - STREAM[64:129]).tolist()
    assert held(found, 0, 1).tolist() == STREAM[64:129].tolist()
    fsspec.filesystem("memory").rm(f"{memory_address}-other", recursive=True)
