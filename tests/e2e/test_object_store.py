"""Training from an object store that fails, lies and hangs: the same tokens as from a disk, or one clear error.

The store is a real S3 interface behind a proxy whose faults are drawn from a seed (tests/support/object_store.py).
"""

import itertools
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch

from pretrain.config.schema import BatchConfig, DataConfig, SourceConfig, StoreConfig
from pretrain.data.loader import Position, build_stream
from pretrain.data.order import Order, Stage
from pretrain.data.source import open_sources
from pretrain.distributed.world import World
from pretrain.errors import DataError
from tests.support.faulty_proxy import KINDS, Faults, Request
from tests.support.object_store import (
    ObjectStore,
    object_store_fixture,  # noqa: F401
)
from tests.support.processes import ENVIRONMENT, losses, pretrain, train
from tests.support.runs import VOCAB, make_run, markov_tokens
from tests.support.shards import write_corpus

Use = Callable[..., None]
MANY = "s3://corpora/many"
SEQUENCES = 20_000 // 32
EVERYTHING = Faults(
    unavailable=0.05, reset=0.05, cut=0.05, short=0.05, slow=0.05, hang=0.02, wrong=0.05, latency_s=0.01
)


@pytest.fixture(name="use", autouse=True)
def use_fixture(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Use:
    """This process and its commands find the store, without faults; the function changes single variables."""

    def use(**changes: str) -> None:
        for name, value in (object_store.environment | changes).items():
            monkeypatch.setenv(name, value)
            monkeypatch.setitem(ENVIRONMENT, name, value)

    object_store.proxy.inject()
    use()
    return use


@pytest.fixture(scope="module")
def folder(object_store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of many small blocks, and a held-out one; the same at s3://corpora/many and s3://corpora/valid."""
    folder = tmp_path_factory.mktemp("store")
    make_run(folder)
    write_corpus(folder / "many", markov_tokens(20_001, 3), vocab_size=VOCAB, block_tokens=256, blocks_per_shard=8)
    for name in ("many", "valid"):
        object_store.upload(folder / name, f"s3://corpora/{name}")
    return folder


@pytest.fixture(scope="module")
def config(folder: Path) -> Path:
    """40 steps of 8 sequences, half of the corpus; but the stream reads ahead. From the store, unless told another path."""
    return make_run(
        folder,
        data={
            "train": {"a": {"path": MANY}},
            "valid": {"b": {"path": "s3://corpora/valid"}},
            "audit": True,
            "store": {"attempts": 12, "timeout_s": 2.0},
        },
        schedule={"total_steps": 40, "warmup_steps": 5},
        eval={"every_steps": 20},
    )


def local(folder: Path) -> tuple[str, ...]:
    return (f"data.train.a.path={folder / 'many'}", f"data.valid.b.path={folder / 'valid'}")


def consumed(run: Path) -> tuple[str, dict[int, float]]:
    """What a run read and what it computed from it."""
    return (run / "audit.jsonl").read_text(), losses(run / "metrics.jsonl")


def evaluations(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "evaluations.jsonl").read_text().splitlines()]


def payloads(requests: list[Request]) -> list[Request]:
    return [request for request in requests if request.path.endswith(".tar") and request.method == "GET"]


# --- a store that goes wrong now and then -----------------------------------------------------------------------------


MEMORY_MIB = itertools.count(64)


def limits(**values: Any) -> StoreConfig:
    """Settings that no other test has: sources with the same limits share blocks in memory while one of them lives."""
    return StoreConfig(memory_mib=next(MEMORY_MIB), **values)


def stream(path: str, store: StoreConfig, *, rank: int, size: int, steps: int = SEQUENCES // 8) -> list[torch.Tensor]:
    """The inputs of one rank's micro-batches over an epoch."""
    data = DataConfig(seq_len=32, lanes=8, span=4, store=store)
    sources = open_sources({"a": SourceConfig(path)}, data.seq_len, data.store)
    order = Order([source.ordered() for source in sources], [Stage(0, {"a": 1.0})], seq_len=32, seed=0, lanes=8, span=4)
    batch = BatchConfig(global_batch_size=8, micro_batch_size=2)
    items = iter(build_stream(order, sources, batch, World(rank, size), Position(0, 0), data))
    found = [item["inputs"] for item in islice(items, steps * 4 // size)]
    items.close()
    return found


MIXES = {
    "failures": Faults(unavailable=0.15, reset=0.1),
    "short answers": Faults(cut=0.1, short=0.15),
    "slow answers": Faults(slow=0.2, hang=0.04, slow_s=0.2, latency_s=0.04),
    "wrong bytes": Faults(wrong=0.25),
}


@pytest.mark.parametrize("name", MIXES)
def test_a_rank_reads_what_lies_on_the_disk_whatever_the_store_does(
    name: str, folder: Path, object_store: ObjectStore
) -> None:
    object_store.proxy.inject(MIXES[name])
    found = stream(MANY, limits(attempts=12, timeout_s=1.0), rank=1, size=2)
    expected = stream(str(folder / "many"), StoreConfig(), rank=1, size=2)
    assert len(found) == len(expected) and all(map(torch.equal, found, expected))
    seen = {request.fault for request in object_store.proxy.requests()}
    assert seen == {"", *(kind for kind in KINDS if getattr(MIXES[name], kind))}


def test_requests_wait_for_each_other_only_as_far_as_told(folder: Path, object_store: ObjectStore) -> None:
    object_store.proxy.inject(Faults(latency_s=0.2))
    stream(MANY, limits(connections=4), rank=0, size=1)
    assert 1 < max(request.in_flight for request in object_store.proxy.requests()) <= 4


def test_a_training_from_a_store_with_faults_is_the_training_from_a_disk(
    config: Path, folder: Path, object_store: ObjectStore, tmp_path: Path
) -> None:
    train(config, 2, f"run.dir={tmp_path / 'disk'}", *local(folder))
    object_store.proxy.inject(EVERYTHING)
    train(config, 2, f"run.dir={tmp_path / 'store'}", f"data.store.cache_dir={tmp_path / 'cache'}")
    seen = object_store.proxy.requests()
    assert {request.fault for request in seen} == {"", *KINDS}
    assert len(payloads(seen)) > 79
    audit, losses = consumed(tmp_path / "disk")
    assert len(audit.splitlines()) == len(losses) == 40
    assert consumed(tmp_path / "store") == (audit, losses)
    assert evaluations(tmp_path / "store") == evaluations(tmp_path / "disk")
    assert len(evaluations(tmp_path / "disk")) == 3


# --- a store that stays wrong -----------------------------------------------------------------------------------------

STAYS = {
    "wrong bytes": (Faults(wrong=1.0, only="000003.tar"), ["crc32"]),
    "short": (Faults(short=1.0, only="000003.tar"), ["bytes arrived"]),
    "cut off": (Faults(cut=1.0, only="000003.tar"), []),
    "refused": (Faults(unavailable=1.0, only="000003.tar"), []),
    "reset": (Faults(reset=1.0, only="000003.tar"), []),
    "silent": (Faults(hang=1.0, only="000003.tar"), ["no answer within 1 s"]),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_stays_wrong_is_an_error_that_names_file_and_offset(
    name: str, folder: Path, object_store: ObjectStore
) -> None:
    faults, said = STAYS[name]
    object_store.proxy.inject(faults)
    with pytest.raises(DataError) as caught:
        stream(MANY, limits(attempts=2, timeout_s=1.0), rank=0, size=1)
    for part in (f"{MANY}/shard-000003.tar", "at offset", "failed 2 times", *said):
        assert part in caught.value.message
    assert "pretrain data verify" in str(caught.value.hint)
    tries = [request.range for request in payloads(object_store.proxy.requests()) if "000003" in request.path]
    # A block that could not be fetched ahead is fetched once more when it is read. And a client of HTTP asks again by itself
    # where a connection that it had used before is reset.
    assert max(map(tries.count, tries)) <= (8 if name == "reset" else 4)


def test_a_wrong_byte_in_an_index_never_becomes_a_token(folder: Path, object_store: ObjectStore, use: Use) -> None:
    """Where the store sends no checksums: a crc32 or an offset may then be wrong, and no block fits it."""
    use(AWS_RESPONSE_CHECKSUM_VALIDATION="when_required")
    expected = stream(str(folder / "many"), StoreConfig(), rank=0, size=1)
    outcomes = set()
    for seed in range(3):
        object_store.proxy.inject(Faults(wrong=0.5, only=r"\.idx\.npy$", seed=seed))
        try:
            found = stream(MANY, limits(attempts=3, timeout_s=2.0), rank=0, size=1)
        except DataError as error:
            outcomes.add("error")
            assert "shard-" in error.message
        else:
            outcomes.add("same")
            assert all(map(torch.equal, found, expected))
    assert "same" in outcomes


def end_without_store(config: Path, object_store: ObjectStore, run: Path, *command: str) -> CompletedProcess[str]:
    """A training that can open its corpus and never gets a certain shard."""
    object_store.proxy.inject(Faults(unavailable=0.5, hang=0.5, only="000003.tar"))
    limits = (f"run.dir={run}", "data.store.attempts=2", "data.store.timeout_s=2")
    done = pretrain(*command, *limits, timeout=120)
    for part in (f"{MANY}/shard-000003.tar", "at offset", "hint: "):
        assert part in done.stderr
    assert (run / "status").read_text() == "failed\n"
    return done


def test_a_training_whose_store_is_gone_ends_with_one_error(
    config: Path, object_store: ObjectStore, tmp_path: Path
) -> None:
    done = end_without_store(config, object_store, tmp_path / "run", "train", str(config))
    assert done.returncode == 2
    assert done.stderr.startswith("error: s3://") and done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
def test_ranks_whose_store_is_gone_end_together_and_one_says_why(
    config: Path, object_store: ObjectStore, tmp_path: Path
) -> None:
    """Not after the minutes that a collective waits for a rank that is gone."""
    command = ("launch", "local", str(config), "--nproc", "2")
    done = end_without_store(config, object_store, tmp_path / "run", *command)
    assert done.returncode == 1
    assert "error on rank" in done.stderr


# --- mistakes that are known before anything starts -------------------------------------------------------------------


def refused(config: Path, run: Path, *overrides: str) -> str:
    """The message of a start that is refused before a process group, or a run's folder, is made."""
    limits = ("data.store.attempts=2", "data.store.timeout_s=5")
    done = pretrain("launch", "local", config, "--nproc", "2", f"run.dir={run}", *limits, *overrides)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("error: ") == 1 and "hint: " in done.stderr
    assert not run.exists()
    return done.stderr


REFUSALS = {
    "a wrong secret": {"AWS_SECRET_ACCESS_KEY": "wrong"},
    "an unknown key": {"AWS_ACCESS_KEY_ID": "AKIAUNKNOWN"},
    "none at all": {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
    "nobody listens": {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_store_that_refuses_us_is_one_error_before_the_start(
    name: str, config: Path, object_store: ObjectStore, use: Use, tmp_path: Path
) -> None:
    use(**REFUSALS[name])
    assert f"{MANY}/manifest.json" in refused(config, tmp_path / "run")
    # One for data.train and one for data.valid: no second try with the same credentials.
    assert len(object_store.proxy.requests()) <= 2


@pytest.mark.parametrize("path", ["s3://nowhere/many", "s3://corpora/nothing"])
def test_a_missing_bucket_or_manifest_is_one_error_before_the_start(path: str, config: Path, tmp_path: Path) -> None:
    assert f"{path}/manifest.json" in refused(config, tmp_path / "run", f"data.train.a.path={path}")


def test_missing_objects_are_named_before_the_start(
    config: Path, folder: Path, object_store: ObjectStore, tmp_path: Path
) -> None:
    object_store.upload(folder / "many", "s3://gaps/many")
    for name in ("shard-000002.tar", "shard-000005.idx.npy"):
        object_store.remove(f"s3://gaps/many/{name}")
    error = refused(config, tmp_path / "run", "data.train.a.path=s3://gaps/many")
    assert "shard-000002.tar: missing" in error and "shard-000005.idx.npy: missing" in error


# --- the cache --------------------------------------------------------------------------------------------------------


def test_two_processes_fill_a_cache_at_once_and_a_third_reads_nothing_else(
    config: Path, folder: Path, object_store: ObjectStore, tmp_path: Path
) -> None:
    def order(*overrides: str) -> str:
        done = pretrain("data", "order", config, "--count", "600", f"run.dir={tmp_path / 'run'}", *overrides)
        assert done.returncode == 0, done.stderr
        return done.stdout

    cached = f"data.store.cache_dir={tmp_path / 'cache'}"
    expected = order(*local(folder))
    assert len(expected.splitlines()) >= 600
    object_store.proxy.inject(EVERYTHING)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(order, [cached, cached])) == [expected, expected]
    assert payloads(object_store.proxy.requests())
    object_store.proxy.inject(EVERYTHING)
    assert order(cached) == expected
    assert payloads(object_store.proxy.requests()) == []


def test_a_damaged_cache_heals(folder: Path, object_store: ObjectStore, tmp_path: Path) -> None:
    """Every way in which a file of it can be wrong: other bytes, cut, empty, gone."""

    def read() -> tuple[list[torch.Tensor], int]:
        object_store.proxy.inject()
        found = stream(MANY, limits(cache_dir=str(tmp_path)), rank=0, size=1)
        return found, len(payloads(object_store.proxy.requests()))

    expected, cold = read()
    assert cold == 79 and read()[1] == 0
    files = sorted(tmp_path.iterdir())
    assert len(files) == 10
    data = bytearray(files[0].read_bytes())
    data[len(data) // 2 :] = bytes(byte ^ 1 for byte in data[len(data) // 2 :])
    files[0].write_bytes(data)
    files[1].write_bytes(files[1].read_bytes()[:3_000])
    files[2].write_bytes(b"")
    files[3].unlink()
    found, again = read()
    assert all(map(torch.equal, found, expected))
    assert 2 * 8 < again < 4 * 8
    found, again = read()
    assert all(map(torch.equal, found, expected)) and again == 0
