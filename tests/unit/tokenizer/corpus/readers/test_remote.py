"""Corpora in object stores: the documents of a disk, through failures too, or one error."""

import gzip
import io
import tarfile
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pretrain.errors import DataError
from tests.support.corpora import lines, read, rejections, texts
from tests.support.faulty_proxy import Faults
from tests.support.object_store import (
    ObjectStore,
    object_store_fixture,  # noqa: F401
)
from tests.support.stores import (
    memory_address_fixture,  # noqa: F401
    no_waits_fixture,  # noqa: F401
)
from tokenizer.corpus.readers import ReadOptions, read_documents
from tokenizer.corpus.readers import open_file as files
from tokenizer.corpus.task_plan import plan_tasks

TEXTS = [f"document {n} " + "é" * (n % 50) for n in range(300)]


@pytest.fixture(scope="module", name="folder")
def folder_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file of each format, some of them in folders."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "b" / "c").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    (folder / "a.jsonl").write_bytes(lines(*TEXTS[:100]))
    (folder / "b" / "1.jsonl.gz").write_bytes(gzip.compress(lines(*TEXTS[100:150])))
    (folder / "b" / "c" / "é 2.txt").write_text(TEXTS[150])
    (folder / "b" / "c" / "3.zip").write_bytes(b"x")
    (folder / ".hidden" / "4.txt").write_text("hidden")
    pq.write_table(pa.table({"text": TEXTS[151:250]}), folder / "b-2.parquet", row_group_size=20)
    with tarfile.open(folder / "c.tar", "w") as tar:
        for n, text in enumerate(TEXTS[250:]):
            info = tarfile.TarInfo(f"{n:03d}.txt")
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    return folder


def upload(folder: Path, address: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            fsspec.filesystem("memory").pipe_file(f"{address}/{path.relative_to(folder)}", path.read_bytes())


@pytest.mark.parametrize("task_bytes", [100, 1_000, 1 << 30])
def test_a_folder_of_a_store_is_read_as_one_of_a_disk(folder: Path, memory_address: str, task_bytes: int) -> None:
    upload(folder, f"{memory_address}/deep/corpus")
    found = read([f"{memory_address}/deep/corpus"], task_bytes=task_bytes)
    local = read(folder, task_bytes=task_bytes)
    assert sorted(texts(local)) == sorted(TEXTS)
    assert [
        item._replace(place=item.place.replace(f"{memory_address}/deep/corpus", str(folder))) for item in found
    ] == local
    assert {reason for _, reason in rejections(found)} == {"hidden", "compressed or archive"}
    upload(folder, f"{memory_address}/other/corpus")
    upload(folder, f"{memory_address}/deep-2")
    assert read([f"{memory_address}/deep/corpus/"], task_bytes=task_bytes) == found
    assert texts(read([f"{memory_address}/deep"], task_bytes=task_bytes)) == texts(found)
    assert texts(read([memory_address], task_bytes=task_bytes)) == 3 * texts(found)


def test_a_file_of_a_store_is_read(folder: Path, memory_address: str) -> None:
    upload(folder, memory_address)
    assert texts(read([f"{memory_address}/a.jsonl"])) == TEXTS[:100]
    assert texts(read([f"{memory_address}/b/c/é 2.txt", folder / "c.tar"])) == [TEXTS[150], *TEXTS[250:]]
    assert texts(read([f"file://{folder}/a.jsonl"])) == TEXTS[:100]


@pytest.mark.parametrize("name", ["missing.jsonl", "missing/", "missing"])
def test_what_a_store_lacks_is_refused(folder: Path, memory_address: str, name: str) -> None:
    upload(folder, memory_address)
    with pytest.raises(DataError, match="missing"):
        read([f"{memory_address}/{name}"])


def test_an_archive_of_a_store_that_is_named_is_refused(folder: Path, memory_address: str) -> None:
    upload(folder, memory_address)
    with pytest.raises(DataError, match="not readable"):
        read([f"{memory_address}/b/c/3.zip"])


def test_an_input_that_is_part_of_another_is_refused(folder: Path, memory_address: str) -> None:
    upload(folder, memory_address)
    with pytest.raises(DataError, match="would be read twice"):
        read([f"{memory_address}/b/1.jsonl.gz", f"{memory_address}/b"])


def test_an_object_that_changed_after_the_plan_is_refused(folder: Path, memory_address: str) -> None:
    upload(folder, memory_address)
    options = ReadOptions()
    (task,) = plan_tasks([f"{memory_address}/a.jsonl"], options).tasks
    fsspec.filesystem("memory").pipe_file(f"{memory_address}/a.jsonl", lines("other"))
    with pytest.raises(DataError, match="changed since it was planned"):
        list(read_documents(task, options))


def test_a_truncated_object_is_named(folder: Path, memory_address: str) -> None:
    data = gzip.compress(lines(*TEXTS))
    fsspec.filesystem("memory").pipe_file(f"{memory_address}/a.jsonl.gz", data[:-4])
    found = read([f"{memory_address}/a.jsonl.gz"])
    assert texts(found) == TEXTS
    assert rejections(found) == [(f"{memory_address}/a.jsonl.gz", "truncated gzip")]


@pytest.mark.parametrize(
    "address",
    [
        "pipe:cat /etc/passwd",
        "ftp://host/a.jsonl",
        "zip://a.jsonl::s3://b/c.zip",
        "s3://b/../c",
        "s3://",
        "s3://b/a\\c",
    ],
)
def test_an_address_that_is_not_allowed_is_refused(address: str) -> None:
    with pytest.raises(DataError) as caught:
        plan_tasks([address], ReadOptions())
    assert caught.value.exit_code == 2


FAULTS = {
    "none": Faults(),
    "failing": Faults(unavailable=0.2, reset=0.2),
    "short": Faults(cut=0.2, short=0.2),
}


@pytest.mark.usefixtures("no_waits")
@pytest.mark.parametrize("name", FAULTS)
def test_a_store_that_fails_gives_the_same_documents(
    folder: Path, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    files._bucket.cache_clear()
    for variable, value in object_store.environment.items():
        monkeypatch.setenv(variable, value)
    object_store.proxy.inject()
    address = "s3://texts/corpus"
    for inner in (".", ".hidden", "b", "b/c"):
        flat = folder / inner
        names = [path for path in flat.iterdir() if path.is_file()]
        for path in names:
            object_store.file_system(object_store._server.ready["port"]).mkdirs("texts", exist_ok=True)
            object_store.file_system(object_store._server.ready["port"]).pipe_file(
                f"texts/corpus/{path.relative_to(folder)}", path.read_bytes()
            )
    object_store.proxy.inject(FAULTS[name])
    monkeypatch.setattr(files, "REMOTE_CHUNK_BYTES", 2_000)
    assert texts(read([address], task_bytes=1_000)) == texts(read(folder, task_bytes=1_000))
    faults = {request.fault for request in object_store.proxy.requests()}
    assert (faults == {""}) == (name == "none")


@pytest.mark.usefixtures("no_waits")
@pytest.mark.parametrize("name", ["a.jsonl", "b/1.jsonl.gz", "b-2.parquet", "c.tar"])
def test_a_store_that_fails_for_good_while_it_is_read_is_one_error_and_no_damage(
    folder: Path, memory_address: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    upload(folder, memory_address)
    options = ReadOptions()
    (task,) = plan_tasks([f"{memory_address}/{name}"], options).tasks

    def fails(*_: object) -> bytes:
        raise ConnectionResetError("the store is gone")

    monkeypatch.setattr(files.Bucket, "_raw", fails)
    with pytest.raises(DataError, match="the store is gone"):
        list(read_documents(task, options))


@pytest.mark.usefixtures("no_waits")
def test_a_store_that_always_fails_is_one_error(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    files._bucket.cache_clear()
    for variable, value in object_store.environment.items():
        monkeypatch.setenv(variable, value)
    object_store.proxy.inject(Faults(unavailable=1.0))
    with pytest.raises(DataError, match=r"failed \d+ times") as caught:
        plan_tasks(["s3://texts/corpus"], ReadOptions())
    assert caught.value.exit_code == 2
    object_store.proxy.inject()
    files._bucket.cache_clear()
