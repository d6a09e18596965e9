"""Any cuts of a file give each of its records once, in order."""

import io
import json
import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.corpora import lines, read, rejections, texts
from tokenizer.corpus.readers import Document, FilePart, ReadOptions, read_part
from tokenizer.corpus.readers.byte_ranges import seek_offset, split_records

LINES = st.lists(st.binary(max_size=12).map(lambda line: line.replace(b"\n", b"")), max_size=12)


def split(
    data: bytes, edges: Sequence[int], delimiter: bytes, chunk: int, limit: int = 100
) -> list[tuple[int, bytes | None]]:
    """The records of all ranges between `edges`, one range after the other."""
    found: list[tuple[int, bytes | None]] = []
    for start, stop in pairwise(edges):
        file = io.BytesIO(data)
        file.seek(seek_offset(start, delimiter))
        chunks = iter(lambda file=file: file.read(chunk), b"")
        found += split_records(chunks, delimiter, start=start, stop=stop, limit=limit)
    return found


@given(LINES, st.booleans(), st.data(), st.integers(1, 9), st.sampled_from([b"\n", b"ab", b"<|end|>"]))
def test_any_ranges_give_each_record_once_in_order(
    records: list[bytes], ended: bool, data: st.DataObject, chunk: int, delimiter: bytes
) -> None:
    records = [record.replace(delimiter, b"") for record in records]
    whole = delimiter.join(records) + (delimiter if ended and records else b"")
    cuts = data.draw(st.lists(st.integers(0, len(whole)), max_size=6))
    expected = whole.split(delimiter)
    if not expected[-1]:
        expected.pop()
    found = split(whole, [0, *sorted(cuts), len(whole)], delimiter, chunk)
    assert [record for _, record in found] == expected
    assert all(whole[offset:].startswith(record) for offset, record in found if record is not None)
    assert all(offset == 0 or whole[:offset].endswith(delimiter) for offset, _ in found)


@given(st.lists(st.text(min_size=1).filter(lambda text: "\0" not in text), min_size=1, max_size=8), st.data())
def test_any_ranges_of_a_file_give_each_document_once(
    tmp_path_factory: pytest.TempPathFactory, documents: list[str], data: st.DataObject
) -> None:
    documents = [text for text in documents if text.encode("utf-8", "ignore").decode() == text]
    path = tmp_path_factory.mktemp("corpus") / "a.jsonl"
    content = b"".join(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n" for text in documents)
    path.write_bytes(content)
    cuts = data.draw(st.lists(st.integers(0, len(content)), max_size=5))
    edges = [0, *sorted(cuts), len(content)]
    found = [
        item
        for start, stop in pairwise(edges)
        for item in read_part(FilePart("jsonl", str(path), start, stop, len(content), 0), ReadOptions())
    ]
    if content:
        assert [item.text for item in found if isinstance(item, Document)] == documents
        assert len(found) == len(documents)


@pytest.mark.parametrize("task_bytes", [1, 2, 7, 100, 1 << 20])
def test_a_plan_of_any_task_size_gives_the_same_documents(tmp_path: Path, task_bytes: int) -> None:
    draw = random.Random(0)
    documents = ["".join(draw.choices("ab\n é", k=draw.randrange(1, 60))) for _ in range(60)]
    (tmp_path / "a.jsonl").write_bytes(lines(*documents[:30]))
    (tmp_path / "b.txt").write_text("<end>".join(documents[30:50]))
    (tmp_path / "c.jsonl").write_bytes(lines(*documents[50:]).rstrip())
    assert texts(read(tmp_path, task_bytes=task_bytes, separator="<end>")) == documents


@pytest.mark.parametrize("chunk", [1, 3, 50])
@pytest.mark.parametrize(("length", "kept"), [(9, True), (10, True), (11, False), (200, False)])
def test_the_limit_of_a_record_is_exact_and_the_next_one_is_read(chunk: int, length: int, kept: bool) -> None:
    data = b"a\n" + b"x" * length + b"\nb\n" + b"y" * length
    records = [record for _, record in split(data, [0, len(data)], b"\n", chunk, limit=10)]
    assert records == [b"a", b"x" * length if kept else None, b"b", b"y" * length if kept else None]


def test_a_separator_that_overlaps_with_itself_is_searched_from_the_beginning(tmp_path: Path) -> None:
    # From byte 2 on, the separator would be found one newline later.
    (tmp_path / "a.txt").write_bytes(b"a\n\n\nb\n\n\n\nc")
    expected = ["a", "\nb", "c"]
    for task_bytes in (1, 2, 3, 100):
        found = read(tmp_path, task_bytes=task_bytes, separator="\n\n")
        assert texts(found) == expected
        assert [reason for _, reason in rejections(found)] == ["empty"]


def test_places_are_lines_from_the_beginning_of_a_file_and_bytes_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines("one", "two", "three", "four"))
    size = path.stat().st_size
    whole = FilePart("jsonl", str(path), 0, size, size, 0)
    later = FilePart("jsonl", str(path), 20, size, size, 0)
    assert [found.place for found in read_part(whole, ReadOptions())] == [f"{path}:{n}" for n in (1, 2, 3, 4)]
    assert [found.place for found in read_part(later, ReadOptions())] == [f"{path}: byte {n}" for n in (32, 50)]
