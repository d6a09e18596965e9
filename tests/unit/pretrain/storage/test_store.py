import http.server
import os
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import fsspec
import pytest

from pretrain.config.schema import StoreConfig
from pretrain.errors import DataError
from pretrain.storage.store import LocalStore, RemoteStore, Store, check_name, open_store
from tests.support.stores import FaultyStore, fails, flipped, hangs, long, short, upload
from tests.support.stores import memory_address_fixture as memory_address_fixture
from tests.support.stores import no_waits_fixture as no_waits_fixture

CONTENT = bytes(range(256)) * 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.tar").write_bytes(CONTENT)
    (tmp_path / "corpus" / "b.tar").write_bytes(b"b")
    (tmp_path / "secret").write_bytes(b"outside")
    return tmp_path / "corpus"


@pytest.fixture(params=["local", "remote"])
def store(request: pytest.FixtureRequest, folder: Path, memory_address: str) -> Store:
    if request.param == "local":
        return open_store(str(folder))
    upload(folder, memory_address)
    return open_store(memory_address)


@pytest.fixture
def faulty(folder: Path, memory_address: str, no_waits: None) -> FaultyStore:
    upload(folder, memory_address)
    return FaultyStore(memory_address)


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["corpus", "/data/corpus", "./a:b/c", "../corpus", "file:///data/corpus", ""])
def test_paths_are_local(address: str) -> None:
    found = open_store(address)
    assert isinstance(found, LocalStore)
    assert found.folder == Path(address.removeprefix("file://"))


@pytest.mark.parametrize(
    "address",
    [
        "pipe:cat /etc/passwd",
        "pipe://x",
        "ssh://host/data",
        "zip://a.zip",
        "reference://x",
        "github://a:b@main/x",
        "data:text/plain,x",
        "s3:bucket/key",
        "s3:/bucket/key",
        "simplecache::s3://bucket/key",
        "s3://bucket/a::zip://b",
        "memory://a::b",
        "file://host/data",
        "file:relative",
        "filecache::/data",
        "s3://",
        "s3:///",
        "s3://bucket/../other",
        "s3://bucket/a\\b",
        "s3://bucket/a\nb",
        "/data/corpus\0.tar",
        "https://host/corpus?signature=1",
        "https://host/corpus#part",
    ],
)
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(DataError, match="address") as caught:
        open_store(address)
    assert caught.value.exit_code == 2


def test_credentials_in_an_address_are_refused_and_not_repeated() -> None:
    with pytest.raises(DataError, match="credentials belong in the environment") as caught:
        open_store("https://me:hunter2@host/corpus")
    assert "hunter2" not in str(caught.value)


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    for scheme in ("gs", "gcs"):
        with pytest.raises(DataError, match=rf"{scheme}:// needs a package that is not installed") as caught:
            open_store(f"{scheme}://bucket/corpus")
        assert caught.value.hint == "pip install 'pretrain-toolkit[gcs]'"


# --- what both kinds do ----------------------------------------------------------------------------------------------


def test_files_and_ranges_are_read(store: Store) -> None:
    assert store.read_range("a.tar", 250, 10) == CONTENT[250:260]
    assert store.read_range("a.tar", 0, 1024) == CONTENT
    assert store.read_range("a.tar", 0, 4, parse=len) == 4
    assert store.read_file("a.tar", 1024) == CONTENT
    assert store.read_file("b.tar", 1 << 20, parse=bytes.decode) == "b"
    assert store.size("a.tar") == 1024
    assert set(store.list_names(sizes=False) or {}) == {"a.tar", "b.tar"}
    assert store.list_names(sizes=True) == {"a.tar": 1024, "b.tar": 1}


def test_a_file_above_the_limit_is_refused(store: Store, no_waits: None) -> None:
    with pytest.raises(DataError, match=r"a\.tar: \d+ bytes or more, where at most 1023 are expected"):
        store.read_file("a.tar", 1023)


@pytest.mark.parametrize(("start", "length"), [(1020, 5), (1024, 1), (5000, 8), (0, 1 << 50)])
def test_a_range_that_the_file_lacks_is_an_error(store: Store, no_waits: None, start: int, length: int) -> None:
    with pytest.raises(DataError, match=r"a\.tar: .*offset"):
        store.read_range("a.tar", start, length)


def test_a_missing_file_is_named(store: Store) -> None:
    for request in (
        partial(store.read_range, "c.tar", 0, 1),
        partial(store.read_file, "c.tar", 9),
        partial(store.size, "c.tar"),
    ):
        with pytest.raises(DataError, match=r"c\.tar"):
            request()


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/../../secret", "..", ".", "", "sub/a.tar", "a\\b", "a\0"]
)
def test_names_cannot_leave_the_folder(store: Store, name: str) -> None:
    for request in (
        partial(store.read_range, name, 0, 1),
        partial(store.read_file, name, 9),
        partial(store.size, name),
    ):
        with pytest.raises(DataError, match="is not a plain name"):
            request()
    with pytest.raises(DataError):
        check_name(name)


def test_a_pipe_is_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "pipe.tar")
    with pytest.raises(DataError, match="not a regular file"):
        LocalStore(folder).read_file("pipe.tar", 10)


def test_a_folder_that_is_not_there_cannot_be_listed(tmp_path: Path, memory_address: str) -> None:
    for address in (str(tmp_path / "nowhere"), memory_address):
        with pytest.raises(DataError, match=r"listing|listed"):
            open_store(address).list_names(sizes=False)


def test_a_store_that_may_not_be_listed_says_nothing(faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError("ListBucket")

    monkeypatch.setattr(faulty._files, "ls", refused)
    assert faulty.list_names(sizes=True) is None


# --- faults -----------------------------------------------------------------------------------------------------------


def refuse_changes(data: bytes) -> bytes:
    if data != CONTENT[: len(data)]:
        raise DataError("its crc32 is not the one in the index")
    return data


@pytest.mark.parametrize("fault", [fails(OSError(5, "reset")), fails(TimeoutError()), short, long, flipped(7)])
def test_a_fault_that_passes_is_not_seen(faulty: FaultyStore, fault) -> None:
    faulty.faults = [fault] * 5
    assert faulty.read_range("a.tar", 0, 100, refuse_changes) == CONTENT[:100]
    assert len(faulty.requests) == 6
    faulty.requests.clear()
    faulty.faults = [fault, fault]
    assert faulty.read_file("a.tar", 2000, refuse_whole) == CONTENT
    assert len(faulty.requests) == 3


def refuse_whole(data: bytes) -> bytes:
    if data != CONTENT:
        raise DataError("damaged")
    return data


@pytest.mark.parametrize("fault", [short, long])
def test_a_range_has_the_length_that_was_asked_for_whoever_parses_it(faulty: FaultyStore, fault) -> None:
    faulty.faults = [fault, fault]
    assert faulty.read_range("a.tar", 8, 16) == CONTENT[8:24]
    assert len(faulty.requests) == 3


def test_a_fault_that_stays_is_one_error_with_everything_in_it(faulty: FaultyStore) -> None:
    faulty.faults = [flipped(0)] * 6
    with pytest.raises(DataError) as caught:
        faulty.read_range("a.tar", 0, 64, refuse_changes)
    assert caught.value.message == (
        f"{faulty.address}/a.tar: 64 bytes at offset 0: failed 6 times; the last: its crc32 is not the one in the index"
    )
    assert f"pretrain data verify {faulty.address}" in str(caught.value.hint)
    assert len(faulty.requests) == 6


def test_a_missing_file_is_asked_for_once(faulty: FaultyStore) -> None:
    with pytest.raises(DataError, match="FileNotFoundError"):
        faulty.read_range("c.tar", 0, 64)
    assert len(faulty.requests) == 1


def test_a_request_that_hangs_is_repeated(folder: Path, memory_address: str, no_waits: None) -> None:
    upload(folder, memory_address)
    faulty, never = FaultyStore(memory_address, StoreConfig(timeout_s=0.2)), threading.Event()
    faulty.faults = [hangs(never)]
    assert faulty.read_range("a.tar", 8, 8) == CONTENT[8:16]
    never.set()


def test_a_file_that_is_wrong_in_the_store_is_not_asked_for_for_ever(faulty: FaultyStore) -> None:
    def refuse(data: bytes) -> None:
        raise DataError("no manifest", hint="encode the corpus again")

    with pytest.raises(DataError, match="no manifest") as caught:
        faulty.read_file("a.tar", 2000, refuse)
    assert caught.value.hint == "encode the corpus again"
    assert len(faulty.requests) == 3  # three times the same bytes: on their way they would not be damaged alike
    faulty.faults = [flipped(1), flipped(2), flipped(3), flipped(4)]
    assert faulty.read_file("a.tar", 2000, refuse_whole) == CONTENT


def test_listings_are_fresh(folder: Path, memory_address: str) -> None:
    upload(folder, memory_address)
    found = open_store(memory_address)
    assert found.list_names(sizes=True) == {"a.tar": 1024, "b.tar": 1}
    fsspec.filesystem("memory").pipe_file(f"{memory_address}/c.tar", b"new")
    assert found.list_names(sizes=True) == {"a.tar": 1024, "b.tar": 1, "c.tar": 3}
    assert found.size("c.tar") == 3


# --- a web server -----------------------------------------------------------------------------------------------------


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT as /corpus/a.tar; with ranges, or without as many simple servers do."""

    ranges = True
    sent: int

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        if self.path != "/corpus/a.tar":
            self.send_error(404 if "b.tar" in self.path else 403)
            return
        start, stop, wanted = 0, len(CONTENT), self.headers.get("Range")
        if wanted and self.ranges:
            first, last = wanted.removeprefix("bytes=").split("-")
            start, stop = int(first), min(stop, int(last) + 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(CONTENT)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        if body:
            self.wfile.write(CONTENT[start:stop])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(params=[True, False], ids=["ranges", "no ranges"])
def web(request: pytest.FixtureRequest) -> Iterator[tuple[RemoteStore, bool]]:
    pytest.importorskip("aiohttp")
    handler = type("Handler", (Handler,), {"ranges": request.param})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found = open_store(f"http://127.0.0.1:{server.server_port}/corpus", StoreConfig(attempts=2))
        assert isinstance(found, RemoteStore)
        yield found, request.param
        server.shutdown()


def test_a_web_server_is_read_if_it_knows_ranges(web: tuple[RemoteStore, bool], no_waits: None) -> None:
    store, ranges = web
    assert store.read_file("a.tar", 2000) == CONTENT
    assert store.size("a.tar") == 1024
    assert store.list_names(sizes=True) is None
    if ranges:
        assert store.read_range("a.tar", 250, 10) == CONTENT[250:260]
    else:
        with pytest.raises(DataError, match=r"does(n't| not) appear to support range requests"):
            store.read_range("a.tar", 250, 10)
    for name in ("b.tar", "c.tar"):
        with pytest.raises(DataError, match=name) as caught:
            store.read_file(name, 2000)
        assert "tries" not in caught.value.message
