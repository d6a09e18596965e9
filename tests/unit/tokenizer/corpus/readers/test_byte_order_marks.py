"""Byte-order marks: no part of the first document, whatever the format; anywhere else they are text."""

import gzip
from pathlib import Path

import pytest

from tests.support.corpora import lines, read, texts
from tests.support.tars import member

MARK = "\ufeff".encode()
CONTENT = {
    "a.jsonl": lines("one", "two"),
    "a.jsonl.gz": gzip.compress(MARK + lines("one", "two")),
    "a.txt": b"one<|end|>two",
    "a.txt.gz": gzip.compress(MARK + b"one<|end|>two"),
}


@pytest.mark.parametrize("name", CONTENT)
@pytest.mark.parametrize("task_bytes", [3, 1 << 20])
def test_a_mark_at_the_start_of_a_file_costs_no_document(tmp_path: Path, name: str, task_bytes: int) -> None:
    content = CONTENT[name]
    (tmp_path / name).write_bytes(content if name.endswith(".gz") else MARK + content)
    assert texts(read(tmp_path, separator="<|end|>", task_bytes=task_bytes)) == ["one", "two"]


def test_a_mark_at_the_start_of_a_text_is_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(MARK + b"one" + MARK)
    (tmp_path / "b.txt").write_bytes(MARK)
    assert texts(read(tmp_path)) == ["one\ufeff"]


def test_a_mark_at_the_start_of_a_member_is_no_part_of_it(tmp_path: Path) -> None:
    members = {b"1.txt": MARK + b"one", b"2.json": MARK + lines("two"), b"3.txt.gz": gzip.compress(MARK + b"three")}
    content = b"".join(member(name, data) for name, data in members.items())
    (tmp_path / "a.tar").write_bytes(content + bytes(1024))
    assert texts(read(tmp_path)) == ["one", "two", "three"]


def test_a_mark_between_two_documents_is_kept(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one<|end|>" + MARK + b"two")
    assert texts(read(tmp_path, separator="<|end|>")) == ["one", "\ufefftwo"]
