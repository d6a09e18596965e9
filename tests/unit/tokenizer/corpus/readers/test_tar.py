"""WebDataset tars of texts: members that hold text are read, others counted, and what is no plain file refused."""

import gzip
import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
import webdataset

from pretrain.errors import DataError
from tests.support.corpora import read, rejections, texts
from tests.support.tars import END, header, member, pax
from tokenizer.corpus.readers.rejections import BROKEN_TAR, ORDINARY_REASONS


def write(folder: Path, *members: tuple[str, bytes]) -> Path:
    path = folder / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_a_member_is_a_document(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        ("1.txt", "one\r\né".encode()),
        ("folder/2.md", b"# two"),
        ("3.json", b'{"text": "three", "id": 3}\n'),
        ("4.txt.gz", gzip.compress(b"four")),
        ("5.json.gz", gzip.compress(b'{"text": "five"}')),
        ("6.md.gz", gzip.compress(b"si") + gzip.compress(b"x")),
    )
    found = read(path)
    assert texts(found) == ["one\r\né", "# two", "three", "four", "five", "six"]
    assert [item.place for item in found][:2] == [f"{path}: 1.txt", f"{path}: folder/2.md"]


def test_what_webdataset_writes_is_read(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for n in range(20):
            writer.write({"__key__": f"{n:04d}", "txt": f"text {n}", "cls": n})
    found = read(tmp_path)
    assert texts(found) == [f"text {n}" for n in range(20)]
    assert {reason for _, reason in rejections(found)} == {"not a text member"}
    assert len(found) == 40


BAD: list[tuple[str, bytes, str]] = [
    ("2.txt", b"", "empty"),
    ("2.txt", b"caf\xe9", "invalid UTF-8"),
    ("2.txt", b"a\0b", "binary file"),
    ("2.txt", b"x" * 1001, "too large"),
    ("2.txt.gz", gzip.compress(b"x" * 1001), "too large"),
    ("2.txt.gz", gzip.compress(bytes(500_000)), "decompression bomb in a member"),
    ("2.txt.gz", gzip.compress(b"text")[:-9], "truncated gzip in a member"),
    ("2.txt.gz", b"text", "broken gzip in a member"),
    ("2.txt.gz", gzip.compress(b"text") + b"more", "broken gzip in a member"),
    ("2.json", b'{"text": ', "broken JSON"),
    ("2.json", b'["text"]', "not a JSON object"),
    ("2.json", b'{"body": "text"}', "no text field"),
    ("2.json.gz", gzip.compress(b'{"text": 2}'), "text is not a string"),
    ("2.jpg", b"\xff\xd8", "not a text member"),
    ("2.jsonl", b'{"text": "a"}\n', "not a text member"),
]


@pytest.mark.parametrize(("name", "data", "reason"), BAD)
def test_a_member_that_cannot_be_used_is_named_and_the_next_is_read(
    tmp_path: Path, name: str, data: bytes, reason: str
) -> None:
    path = write(tmp_path, ("1.txt", b"before"), (name, data), ("3.txt", b"after"))
    found = read(path, max_document_bytes=1000)
    assert texts(found) == ["before", "after"]
    assert rejections(found) == [(f"{path}: {name}", reason)]


HOSTILE: list[tuple[bytes, str]] = [
    (header(b"l.txt", 0, b"1"), "not a plain file"),
    (header(b"l.txt", 0, b"2"), "not a plain file"),
    (header(b"d.txt", 0, b"3"), "not a plain file"),
    (header(b"d.txt", 0, b"6"), "not a plain file"),
    (member(b"../../etc/x.txt", b"text"), "unsafe name"),
    (member(b"/etc/x.txt", b"text"), "unsafe name"),
    (pax(path="../x.txt") + member(b"x.txt", b"text"), "unsafe name"),
    (pax(GNU__sparse__size="9", GNU__sparse__map="0,9") + member(b"s.txt", b"text"), "not a plain file"),
]


@pytest.mark.parametrize(("data", "reason"), HOSTILE)
def test_what_is_no_plain_file_is_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(member(b"1.txt", b"before") + data + member(b"3.txt", b"after") + END)
    found = read(path)
    assert texts(found) == ["before", "after"]
    assert [found_reason for _, found_reason in rejections(found)] == [reason]
    assert reason not in ORDINARY_REASONS


def test_a_sparse_file_is_not_expanded(tmp_path: Path) -> None:
    hole = tmp_path / "hole.txt"
    with hole.open("wb") as file:
        file.truncate(400 << 20)
    for form in ("gnu", "posix"):
        path = tmp_path / f"{form}.tar"
        subprocess.run(["tar", "cSf", path, f"--format={form}", "-C", tmp_path, "hole.txt"], check=True)
        assert path.stat().st_size < 20_000
        ((place, reason),) = rejections(read(path))
        assert place.startswith(str(path))
        assert reason in (BROKEN_TAR, "not a plain file")


@pytest.mark.parametrize("cut", [1, 513, 1024, 1100, 2000])
def test_a_tar_that_is_cut_off_is_named(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.tar"
    data = member(b"1.txt", b"x" * 600) + member(b"2.txt", b"y" * 600) + END
    path.write_bytes(data[:-cut])
    (tmp_path / "b.txt").write_text("good")
    found = read(tmp_path)
    assert texts(found) == [letter * 600 for letter in ("x", "y")[: 2 if cut <= 1024 else 1]] + ["good"]
    assert rejections(found) == [(str(path), BROKEN_TAR)]


def test_an_empty_tar_has_no_documents_and_an_empty_file_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "a.tar").touch()
    (tmp_path / "b.tar").write_bytes(END)
    assert rejections(read(tmp_path)) == [(str(tmp_path / "a.tar"), BROKEN_TAR)]


def test_two_members_that_may_hold_the_text_of_a_sample_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, ("1.json", b'{"text": "a"}'), ("1.jpg", b""), ("1.txt", b"caption"), ("2.txt", b"b"))
    with pytest.raises(DataError, match=r"1\.json and 1\.txt") as caught:
        read(path)
    assert caught.value.exit_code == 2
    found = read(path, member="*.txt")
    assert texts(found) == ["caption", "b"]
    assert [reason for _, reason in rejections(found)] == ["not a text member"] * 2


def test_a_name_that_comes_twice_is_two_documents(tmp_path: Path) -> None:
    path = write(tmp_path, (".txt", b"a"), ("1.txt", b"b"), ("1.txt", b"c"))
    assert texts(read(path)) == ["a", "b", "c"]


def test_a_pattern_takes_members_of_any_name(tmp_path: Path) -> None:
    path = write(tmp_path, ("1.body", b"text"), ("1.txt", b"other"), ("2.body", b"\0"))
    found = read(path, member="*.body")
    assert texts(found) == ["text"]
    assert [reason for _, reason in rejections(found)] == ["not a text member", "binary file"]


def test_members_are_filtered_by_their_fields(tmp_path: Path) -> None:
    path = write(tmp_path, ("1.json", b'{"text": "a", "n": 1}'), ("2.json", b'{"text": "b", "n": 2}'), ("3.txt", b"c"))
    found = read(path, where=("n>1",))
    assert texts(found) == ["b"]
    assert [reason for _, reason in rejections(found)] == ["filtered out", "filter field missing or not comparable"]


def test_a_compressed_tar_that_is_named_is_refused(tmp_path: Path) -> None:
    for name in ("a.tar.gz", "a.tgz", "a.tar.zst"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(DataError, match="not readable"):
            read(tmp_path / name)
    assert os.listdir(tmp_path)  # noqa: PTH208
