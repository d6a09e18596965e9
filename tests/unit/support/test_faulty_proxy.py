"""The faults that other tests rely on do happen, and where none is asked for, nothing does."""

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.faulty_proxy import KINDS, Faults
from tests.support.object_store import (
    ObjectStore,
    object_store_fixture,  # noqa: F401
)
from tests.support.shards import write_corpus

SHARD = "bucket/faults/shard-000000.tar"


@pytest.fixture(scope="module")
def shard(object_store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of an object that the store holds as SHARD."""
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, 5_000, block_tokens=512)
    object_store.upload(folder, "s3://bucket/faults")
    return (folder / "shard-000000.tar").read_bytes()


@pytest.fixture
def files(object_store: ObjectStore) -> Any:
    object_store.proxy.inject()
    return object_store.file_system(read_timeout=1)


def read(files: Any, start: int, end: int) -> bytes | None:
    """A range of SHARD, None where that raises."""
    try:
        found: bytes = files.cat_file(SHARD, start=start, end=end)
    except Exception:
        return None
    return found


def test_without_faults_ranges_are_the_object_s(object_store: ObjectStore, files: Any, shard: bytes) -> None:
    assert files.cat_file(SHARD) == shard
    object_store.proxy.inject()
    assert [read(files, start, start + 700) for start in (0, 5, 700)] == [shard[s : s + 700] for s in (0, 5, 700)]
    seen = object_store.proxy.requests()
    assert [(r.method, r.path, r.range, r.fault, r.status, r.sent) for r in seen] == [
        ("GET", f"/{SHARD}", f"bytes={start}-{start + 699}", "", 206, 700) for start in (0, 5, 700)
    ]


EXPECTED = {
    "unavailable": lambda got, whole: got is None,
    "reset": lambda got, whole: got is None,
    "cut": lambda got, whole: got is None,
    "short": lambda got, whole: got == whole[:500],
    "slow": lambda got, whole: got == whole,
    "hang": lambda got, whole: got is None,
    "wrong": lambda got, whole: len(got) == 1000 and sum(a != b for a, b in zip(got, whole, strict=True)) == 1,
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_fault_happens(kind: str, object_store: ObjectStore, files: Any, shard: bytes) -> None:
    object_store.proxy.inject(Faults(**{kind: 1.0}))
    assert EXPECTED[kind](read(files, 100, 1100), shard[100:1100])
    seen = object_store.proxy.requests()
    assert seen and {request.fault for request in seen} == {kind}
    sent = {"unavailable": 0, "reset": 0, "cut": 500, "short": 500, "hang": 500}
    assert seen[0].sent == sent.get(kind, 1000)


def test_shares_are_kept_and_a_seed_always_draws_the_same(object_store: ObjectStore, files: Any, shard: bytes) -> None:
    def faults(seed: int) -> list[str]:
        object_store.proxy.inject(Faults(unavailable=0.2, short=0.2, seed=seed))
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda start: read(files, start, start + 50), range(200)))
        return [r.fault for r in sorted(object_store.proxy.requests(), key=lambda r: int(r.range[6:].split("-")[0]))]

    first = faults(1)
    counts = Counter(first)
    assert set(counts) == {"", "unavailable", "short"}
    assert 20 < counts["unavailable"] < 60 and 20 < counts["short"] < 60
    assert faults(1) == first
    assert faults(2) != first


def test_a_second_try_draws_again(object_store: ObjectStore, files: Any, shard: bytes) -> None:
    object_store.proxy.inject(Faults(unavailable=0.5))
    tries = [read(files, 10, 20) for _ in range(30)]
    assert None in tries and shard[10:20] in tries


def test_faults_hit_the_named_paths_only(object_store: ObjectStore, files: Any, shard: bytes) -> None:
    object_store.proxy.inject(Faults(unavailable=1.0, only=r"\.tar$"))
    assert read(files, 0, 10) is None
    assert files.cat_file("bucket/faults/manifest.json").startswith(b"{")


def test_silence_is_not_the_end_of_a_connection(object_store: ObjectStore, files: Any, shard: bytes) -> None:
    object_store.proxy.inject(Faults(hang=1.0))
    with pytest.raises(TimeoutError):
        files.cat_file(SHARD, start=0, end=10)


def test_a_slow_answer_takes_its_time(object_store: ObjectStore, files: Any, shard: bytes) -> None:
    object_store.proxy.inject(Faults(slow=1.0, slow_s=0.5))
    started = time.monotonic()
    assert read(files, 0, 1000) == shard[:1000]
    assert time.monotonic() - started >= 0.4  # not a limit on speed: the proxy slept that long


def test_latency_holds_answers_back_while_others_wait_too(object_store: ObjectStore, files: Any, shard: bytes) -> None:
    object_store.proxy.inject(Faults(latency_s=0.5))
    started = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda start: read(files, start, start + 5), range(4))) == [
            shard[start : start + 5] for start in range(4)
        ]
    assert time.monotonic() - started >= 0.5
    assert max(request.in_flight for request in object_store.proxy.requests()) > 1


def test_only_a_known_key_with_a_right_signature_reads(object_store: ObjectStore, files: Any, shard: bytes) -> None:
    from s3fs import S3FileSystem

    for key, secret in ((object_store.key, "wrong"), ("nobody", object_store.secret)):
        stranger = S3FileSystem(
            key=key, secret=secret, endpoint_url=object_store.environment["AWS_ENDPOINT_URL"], skip_instance_cache=True
        )
        with pytest.raises(PermissionError):
            stranger.cat_file(SHARD, start=0, end=10)


def test_the_proxy_lets_nobody_write(object_store: ObjectStore, files: Any, shard: bytes) -> None:
    with pytest.raises(OSError):
        files.pipe_file(SHARD, b"other")
    assert files.cat_file(SHARD) == shard


def test_an_object_can_be_removed(object_store: ObjectStore, files: Any, tmp_path: Path) -> None:
    (tmp_path / "only").write_bytes(b"for a while")
    object_store.upload(tmp_path, "s3://other/folder")
    assert files.cat_file("other/folder/only") == b"for a while"
    object_store.remove("s3://other/folder/only")
    with pytest.raises(FileNotFoundError):
        files.cat_file("other/folder/only", start=0, end=5)
