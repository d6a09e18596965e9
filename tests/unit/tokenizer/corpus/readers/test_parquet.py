"""Parquet files: one document a row, in small batches, and every kind of damage named."""

import json
import random
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pretrain.errors import DataError
from tests.support.corpora import read, read_in_child, rejections, texts
from tests.support.tars import mutate
from tokenizer.corpus.readers import FilePart, ReadOptions, read_part
from tokenizer.corpus.task_plan import plan_tasks

TEXTS = [f"document {n} " + "é" * (n % 50) for n in range(500)]


def write(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


@pytest.mark.parametrize("dictionary", [True, False])
@pytest.mark.parametrize("compression", ["NONE", "SNAPPY", "GZIP", "ZSTD", "LZ4", "BROTLI"])
def test_a_row_is_a_document(tmp_path: Path, compression: str, dictionary: bool) -> None:
    path = write(
        tmp_path / "a.parquet",
        {"id": list(range(500)), "text": TEXTS},
        compression=compression,
        use_dictionary=dictionary,
        row_group_size=120,
        data_page_version="2.0",
    )
    found = read(path)
    assert texts(found) == TEXTS
    assert [item.place for item in found] == [f"{path}: row {n}" for n in range(500)]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_strings_of_every_type_are_read(tmp_path: Path, kind: pa.DataType) -> None:
    write(tmp_path / "a.parquet", {"text": pa.array(TEXTS).cast(kind)})
    assert texts(read(tmp_path)) == TEXTS


@pytest.mark.parametrize("task_bytes", [1, 3_000, 10_000, 1 << 30])
def test_row_groups_are_shared_among_tasks(tmp_path: Path, task_bytes: int) -> None:
    write(tmp_path / "a.parquet", {"text": TEXTS[:300]}, row_group_size=70, use_dictionary=False)
    write(tmp_path / "b.parquet", {"text": TEXTS[300:]}, row_group_size=70, use_dictionary=False)
    plan = plan_tasks([str(tmp_path)], ReadOptions(task_bytes=task_bytes))
    assert texts(read(tmp_path, task_bytes=task_bytes)) == TEXTS
    largest = max(task.text_bytes for task in plan.tasks)
    assert len(plan.tasks) == {1: 8, 3_000: 8, 10_000: 5, 1 << 30: 1}[task_bytes]
    assert largest <= task_bytes or task_bytes < 5_000  # the smallest row group
    groups = [
        (Path(part.url).name, n) for task in plan.tasks for part in task.parts for n in range(part.start, part.stop)
    ]
    assert groups == [("a.parquet", n) for n in range(5)] + [("b.parquet", n) for n in range(3)]


def test_a_nested_text_is_read_and_rows_are_filtered(tmp_path: Path) -> None:
    rows = [{"body": {"text": f"t{n}"}, "meta": {"lang": "de" if n % 3 else "en", "score": n / 10}} for n in range(9)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = read(tmp_path, text_field="body.text", where=("meta.lang=de", "meta.score>=0.4"))
    assert texts(found) == ["t4", "t5", "t7", "t8"]
    assert {reason for _, reason in rejections(found)} == {"filtered out"}
    assert len(found) == 9
    found = read(tmp_path, text_field="body.text", where=("other=1",))
    assert {reason for _, reason in rejections(found)} == {"filter field missing or not comparable"}


def test_a_column_with_a_dot_in_its_name_comes_first(tmp_path: Path) -> None:
    rows = [{"a": {"b": "nested"}, "a.b": "plain"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert texts(read(tmp_path, text_field="a.b")) == ["plain"]


def test_rows_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    bad = [b"\xff", b"a\xed\xa0\x80", b"a\0", b"", b"x" * 101, b"good", None]
    values = pa.array(bad, pa.binary()).cast(pa.large_binary())
    texts_of = pa.Array.from_buffers(pa.large_string(), len(bad), values.buffers(), values.null_count)
    path = write(tmp_path / "a.parquet", {"text": texts_of})
    found = read(path, max_document_bytes=100)
    assert texts(found) == ["good"]
    assert rejections(found) == [
        (f"{path}: row 0", "invalid UTF-8"),
        (f"{path}: row 1", "invalid UTF-8"),
        (f"{path}: row 2", "NUL character"),
        (f"{path}: row 3", "empty"),
        (f"{path}: row 4", "too large"),
        (f"{path}: row 6", "text is not a string"),
    ]


@pytest.mark.parametrize("values", [[1, 2], [b"a", b"b"], [["a"], ["b"]], [{"x": "a"}, {"x": "b"}], [None, None]])
def test_a_column_that_holds_no_strings_is_named_row_by_row(tmp_path: Path, values: list[Any]) -> None:
    path = write(tmp_path / "a.parquet", {"text": values})
    assert rejections(read(path)) == [(f"{path}: row {n}", "text is not a string") for n in range(2)]


def test_each_row_of_a_file_without_the_column_is_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"content": TEXTS, "textual": TEXTS}, row_group_size=200)
    found = read(path)
    assert rejections(found) == [(f"{path}: row {n}", "no text field") for n in range(500)]
    assert "'content', 'textual'" in str(found[0])


def damaged(folder: Path, how: str) -> Path:
    """A file of five row groups whose third is damaged, or that is damaged as a whole."""
    path = write(
        folder / "a.parquet", {"text": TEXTS}, row_group_size=100, write_page_checksum=True, compression="NONE"
    )
    data = bytearray(path.read_bytes())
    if how == "truncated":
        path.write_bytes(data[:-20])
    elif how == "footer":
        length = int.from_bytes(data[-8:-4], "little")
        data[-8 - length : -8] = bytes(length)
    elif how == "footer length":
        data[-8:-4] = (1 << 31).to_bytes(4, "little")
    elif how == "no parquet":
        data[:] = b"a,b,c\n" * 100
    else:
        chunk = pq.ParquetFile(path).metadata.row_group(2).column(0)
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        end = start + chunk.total_compressed_size
        if how == "page":
            data[(start + end) // 2] ^= 1
        else:
            data[start:end] = bytes(end - start)
    if how != "truncated":
        path.write_bytes(data)
    return path


@pytest.mark.parametrize("how", ["truncated", "footer", "footer length", "no parquet"])
def test_a_file_without_a_footer_is_named(tmp_path: Path, how: str) -> None:
    path = damaged(tmp_path, how)
    (tmp_path / "b.txt").write_text("good")
    found = read(tmp_path)
    assert texts(found) == ["good"]
    assert rejections(found) == [(str(path), "broken parquet")]


@pytest.mark.parametrize("task_bytes", [1, 1 << 30])
@pytest.mark.parametrize("how", ["page", "page header"])
def test_a_damaged_page_costs_the_rest_of_its_row_group(tmp_path: Path, how: str, task_bytes: int) -> None:
    path = damaged(tmp_path, how)
    found = read(path, task_bytes=task_bytes)
    assert texts(found) == TEXTS[:200] + TEXTS[300:]
    assert rejections(found) == [(f"{path}: row 200", "broken parquet")]
    assert "100 rows of row group 2 are left out" in str(found[200])


def test_no_damage_shortens_a_file_without_a_word(tmp_path: Path) -> None:
    draw = random.Random(0)
    path = write(tmp_path / "a.parquet", {"text": TEXTS, "id": list(range(500))}, row_group_size=120)
    whole = path.read_bytes()
    named = 0
    for _ in range(100):
        path.write_bytes(mutate(whole, draw))
        found = read(path)
        named += bool(rejections(found))
        assert rejections(found) or len(found) == 500
    assert named > 50


def test_a_footer_whose_names_are_no_text_is_damaged(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"text": TEXTS, "other_field": TEXTS}, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"other_field", b"other\xe9field"))
    assert rejections(read(path)) == [(str(path), "broken parquet")]


def test_an_empty_file_is_damaged_and_one_without_rows_is_not(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").touch()
    write(tmp_path / "b.parquet", {"text": pa.array([], pa.string())})
    assert rejections(read(tmp_path)) == [(str(tmp_path / "a.parquet"), "broken parquet")]


def test_a_row_group_larger_than_the_memory_is_read_in_batches(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    schema = pa.schema([("text", pa.string()), ("other", pa.binary())])
    rows = 1_500
    # Pages of 16 rows. Of what a page holds, nothing less than all is in memory.
    with pq.ParquetWriter(path, schema, compression="ZSTD", write_batch_size=16) as writer:
        texts_of = pa.array([f"{n} " + "x" * 200_000 for n in range(rows)], pa.string())
        writer.write_table(pa.table([texts_of, pa.array([bytes(100_000)] * rows)], schema=schema), row_group_size=rows)
    assert pq.ParquetFile(path).num_row_groups == 1  # of 300 MB, and 150 MB that nobody asked for
    found, peak = read_in_child([path])
    assert [reason for _, reason in found] == ["text"] * rows
    assert peak < 150 << 20


def test_a_value_that_is_repeated_by_a_dictionary_takes_little_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"text": ["x" * 900_000] * 600})
    assert path.stat().st_size < 1 << 20  # for 540 MB of text
    found, peak = read_in_child([path])
    assert len(found) == 600
    assert peak < 200 << 20


def test_the_text_alone_is_read(tmp_path: Path) -> None:
    """A column that is damaged, and that nobody asked for, does not matter."""
    path = write(tmp_path / "a.parquet", {"id": list(range(500)), "text": TEXTS}, compression="NONE")
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(0)
    data = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data[start : start + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
    path.write_bytes(data)
    assert texts(read(path)) == TEXTS


def test_without_pyarrow_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", {"text": TEXTS})
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DataError, match=r"pretrain-toolkit\[parquet\]"):
        plan_tasks([str(path)], ReadOptions())
    size = path.stat().st_size
    with pytest.raises(DataError, match=r"pretrain-toolkit\[parquet\]"):
        list(read_part(FilePart("parquet", str(path), 0, 1, size, 0), ReadOptions()))
    (tmp_path / "b.txt").write_text("text needs no package")
    assert len(read(tmp_path / "b.txt")) == 1
    assert json.dumps(plan_tasks([str(tmp_path / "b.txt")], ReadOptions()).tasks[0].to_json())
