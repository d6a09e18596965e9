"""Formats by content: what a name does not say, or says wrongly, is recognised, left out by name, or an error."""

import bz2
import gzip
import io
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pretrain.errors import DataError
from tests.support.corpora import lines, read, rejections, texts
from tokenizer.corpus.file_summary import describe_files, describe_left_out
from tokenizer.corpus.readers import ReadOptions
from tokenizer.corpus.task_plan import plan_tasks

LINES = lines("one", "two")
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab\nsize 12345\n"


def parquet() -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"text": ["one", "two"]}), file)
    return file.getvalue()


RECORDS = {
    "x.jsonl-00000-of-00002": LINES,
    "x.jsonl.gz-00000-of-00002": gzip.compress(LINES),
    "x.parquet-00000-of-00002": parquet(),
    "x.jsonl.1": LINES,
    "data.jsonl.aa": LINES,
    "train.json": LINES,
    "train.txt": b"\xef\xbb\xbf" + LINES,
    "part-00000": LINES,
    "part-00001": gzip.compress(LINES),
    "part-00002": parquet(),
    "gzipped.jsonl": gzip.compress(LINES),
    "zstd.jsonl": zstandard.compress(LINES),
    "xz.jsonl": lzma.compress(LINES),
    "lines.txt.bz2": bz2.compress(LINES),
    "long.json": b'{"text": "one"}\n{"text": "two", "more": "' + b"x" * 70_000 + b'"}\n',
}


@pytest.mark.parametrize("name", RECORDS)
def test_records_under_another_name_are_records(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(RECORDS[name])
    assert texts(read(tmp_path)) == texts(read(tmp_path / name)) == ["one", "two"]


TEXTS = {
    "a.txt": b"{\n",
    "a.json": json.dumps({"name": "a", "version": 1}, indent=1).encode(),
    "b.json": b'{"name": "a"}',
    "a.py": b"{}\n{}\n",
    "c.txt": b'{"a": 1} is JSON\n{"b": 2} too\n',
    "README.md": b"[{no array}]",
    "a.b": b"<html>",
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_stays_a_text(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(TEXTS[name])
    assert texts(read(tmp_path)) == [TEXTS[name].decode()]


LEFT_OUT = {
    "x.jsonl~": (LINES, "copy or half of a file"),
    "x.bak": (LINES, "copy or half of a file"),
    "x.jsonl.gz.part": (b"x", "copy or half of a file"),
    "x.csv": (b"a,b\n1,2\n", "table, not text"),
    "x.json": (b'[{"text": "one"},\n {"text": "two"}]', "table, not text"),
    "x.out": (gzip.compress(b"text"), "compressed or archive"),
    "README.md": (b"# Data", "description of a data set"),
    "LICENSE": (b"MIT", "description of a data set"),
    "dataset_info.json": (b"{\n}", "description of a data set"),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_is_no_text_is_left_out_by_name_and_format_forces(tmp_path: Path, name: str) -> None:
    content, reason = LEFT_OUT[name]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl").write_bytes(LINES)
    (tmp_path / name).write_bytes(content)
    found = read(tmp_path)
    assert texts(found) == ["one", "two"]
    assert rejections(found) == [(str(tmp_path / name), reason)]
    plan = plan_tasks([str(tmp_path)], ReadOptions())
    assert describe_left_out(plan.tasks) == {reason: f"1: {name}"}
    assert describe_files(plan.tasks) == "1 jsonl"
    if not content.startswith(b"\x1f"):
        assert texts(read(tmp_path, file_format="text")) == [
            *([content.decode()] if name < "data" else []),
            LINES.decode(),
            *([content.decode()] if name > "data" else []),
        ]
    if reason in ("description of a data set", "compressed or archive"):
        return
    with pytest.raises(DataError, match=reason) as caught:
        plan_tasks([str(tmp_path / name)], ReadOptions())
    assert "--format" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["README.md", "x.csv"])
def test_what_is_forced_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"a,b\n")
    assert texts(read(tmp_path / name, file_format="text")) == ["a,b\n"]


def test_a_readme_among_texts_is_a_text(tmp_path: Path) -> None:
    for name in ("README.md", "a.py"):
        (tmp_path / name).write_text(name)
    assert texts(read(tmp_path)) == ["README.md", "a.py"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        *((name, POINTER, "Git LFS pointer") for name in ("a.jsonl", "a.parquet", "a.jsonl.gz", "a.txt", "a.tar")),
        ("a.txt", "text".encode("utf-16"), "UTF-16 text"),
        ("a.jsonl", LINES.decode().encode("utf-16"), "UTF-16 text"),
        ("a.jsonl", b"<!DOCTYPE html>\n<html>Not found</html>", "not JSON Lines"),
        ("a.jsonl", b'[\n {"text": "one"}\n]', "not JSON Lines"),
    ],
)
def test_what_is_not_what_it_is_called_is_a_damaged_file(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert rejections(read(tmp_path)) == [(str(tmp_path / name), reason)]
    plan = plan_tasks([str(tmp_path)], ReadOptions())
    assert list(plan.problems.damaged) == [str(tmp_path / name)]
    with pytest.raises(DataError, match=f"max_bad_files=0 files are damaged\n  - .*{name}: {reason}"):
        plan.problems.check_limits(0, 0)


def test_the_summary_names_what_a_name_does_not_say(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.json", "c.txt"):
        (tmp_path / name).write_bytes(b"text" if name == "c.txt" else LINES)
    plan = plan_tasks([str(tmp_path)], ReadOptions())
    assert describe_files(plan.tasks) == "2 jsonl (1 not by name: b.json), 1 text"


def test_a_format_is_no_part_of_the_fingerprint_unless_forced(tmp_path: Path) -> None:
    assert "file_format" not in ReadOptions().to_json()
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(DataError, match="not one of jsonl, text"):
        ReadOptions(file_format="xml")
