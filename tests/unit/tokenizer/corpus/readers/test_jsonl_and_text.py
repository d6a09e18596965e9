"""Lines and text files: taken exactly as they are, or named, counted and left out."""

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from pretrain.errors import DataError
from tests.support.corpora import lines, read, read_in_child, rejections, texts
from tokenizer.corpus.readers import CorpusTask, Document, ReadOptions, read_documents, read_part
from tokenizer.corpus.readers.rejections import ORDINARY_REASONS, Rejection
from tokenizer.corpus.task_plan import plan_tasks


def test_a_text_file_is_one_document_and_is_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    text = "one\ufeff\r\n\n  two\rthree\u2028 \u0301"
    path.write_bytes(text.encode())
    assert read(path) == [Document(str(path), text, len(text.encode()))]


def test_a_jsonl_file_is_one_document_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.JSONL"
    path.write_bytes(b'{"text": "one\\nline", "id": 3}\r\n\n  \n{"id": 4, "text": "\\ud83d\\ude00"}')
    assert read(path) == [Document(f"{path}:1", "one\nline", 8), Document(f"{path}:4", "\U0001f600", 4)]
    path.write_text('{"body": "other"}')
    assert texts(read(path, text_field="body")) == ["other"]


LINES: list[tuple[bytes, str]] = [
    (b'{"text": "caf\xe9"}', "invalid UTF-8"),
    (b'{"text": "a\xed\xa0\x80b"}', "invalid UTF-8"),
    (b'{"text": "a\\ud800b"}', "lone surrogate"),
    (b'{"text": "a\\u0000b"}', "NUL character"),
    (b'{"text": "a\0b"}', "broken JSON"),
    (b'{"text": "a', "broken JSON"),
    (b'\xef\xbb\xbf{"text": "a"}', "broken JSON"),
    (b"[" * 100_000, "broken JSON"),
    (b'{"text": "a", "n": ' + b"9" * 5_000 + b"}", "broken JSON"),
    (b'["text"]', "not a JSON object"),
    (b'{"txt": "a"}', "no text field"),
    (b"{}", "no text field"),
    (b'{"text": 3}', "text is not a string"),
    (b'{"text": null}', "text is not a string"),
    (b'{"text": {"text": "a"}}', "text is not a string"),
    (b'{"text": ""}', "empty"),
    (b'{"text": "' + b"x" * 200_000 + b'"}', "too large"),
]


@pytest.mark.parametrize(("line", "reason"), LINES)
def test_a_bad_line_is_named_counted_and_never_repaired(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "before"}\n' + line + b'\n{"text": "after"}\n')
    found = read(path, max_document_bytes=150_000)
    assert rejections(found) == [(f"{path}:2", reason)]
    assert texts(found) == ["before", "after"]


@pytest.mark.parametrize("size", [99, 100, 101])
def test_the_size_limit_is_exact(tmp_path: Path, size: int) -> None:
    line = '{"text": "' + "x" * (size - 12) + '"}'
    (tmp_path / "a.jsonl").write_text("\n".join([line, '{"text": "y"}', line]))
    (tmp_path / "b.txt").write_text("z" * size)
    found = read(tmp_path, max_document_bytes=100)
    assert [len(text) for text in texts(found)] == ([size - 12, 1, size - 12, size] if size <= 100 else [1])
    assert len(found) == 4


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.png", b"\x89PNG\0\0", "binary file"),
        ("a.txt", b"caf\xe9", "invalid UTF-8"),
        ("a.txt", b"", "empty"),
        ("a.jsonl", b"", "empty"),
        ("a.zip", b"x", "compressed or archive"),
        ("a.JSONL.LZ4", b"x", "compressed or archive"),
        ("a.csv.gz", b"x", "compressed or archive"),
        ("a.tar.gz", b"x", "compressed or archive"),
        (".hidden", b"x", "hidden"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_and_counted(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(content)
    (tmp_path / "good.txt").write_text("good")
    found = read(tmp_path)
    assert texts(found) == ["good"]
    assert rejections(found) == [(str(tmp_path / name), reason)]
    assert (reason in ORDINARY_REASONS) == (reason != "invalid UTF-8")


def test_documents_of_a_text_file_lie_between_separators(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\n<|end|>\ntwo<|end|><|end|>caf\xe9<|end|>a\0b<|end|> ")
    found = read(path, separator="<|end|>")
    assert texts(found) == ["one\n", "\ntwo", " "]
    assert rejections(found) == [
        (f"{path}: byte 22", "empty"),
        (f"{path}: byte 29", "invalid UTF-8"),
        (f"{path}: byte 40", "binary file"),
    ]
    path.write_bytes(b"one<|end|>")
    assert len(read(path, separator="<|end|>")) == 1


NESTED = b'{"a": {"b": {"c": "nested"}}, "a.b": "plain"}'


@pytest.mark.parametrize(
    ("line", "field", "expected"),
    [
        (NESTED, "a.b.c", "nested"),
        (NESTED, "a.b", "plain"),
        (NESTED, "a.c", "no text field"),
        (NESTED, "a.b.c.d", "no text field"),
        (NESTED, "a", "text is not a string"),
        (b'{"a": [{"b": "x"}]}', "a.b", "no text field"),
    ],
)
def test_a_text_may_be_nested(tmp_path: Path, line: bytes, field: str, expected: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(line)
    (found,) = read(tmp_path, text_field=field)
    assert expected == (found.text if isinstance(found, Document) else found.reason)


RECORD = b'{"text": "x", "lang": "en", "n": 3, "q": {"s": 0.5}, "ok": true, "none": null, "list": [3]}'
FILTERED, MISSING = "filtered out", "filter field missing or not comparable"


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (["lang=en"], None),
        (["lang=e"], FILTERED),
        (["lang!=de"], None),
        (["lang!=en"], FILTERED),
        (["n>=3"], None),
        (["n>3"], FILTERED),
        (["n<=3"], None),
        (["n<3"], FILTERED),
        (["n=3.0"], None),
        (["n=three"], FILTERED),
        (["n!=three"], None),
        (["q.s>=0.5", "lang=en"], None),
        (["q.s>=0.5", "lang=de"], FILTERED),
        (["ok=true"], None),
        (["ok!=false"], None),
        (["ok=True"], FILTERED),
        (["ok>0"], MISSING),
        (["none=null"], None),
        (["list=3"], MISSING),
        (["lang>=3"], MISSING),
        (["other!=3"], MISSING),
        (["q.other=3"], MISSING),
    ],
)
def test_records_are_filtered_by_conditions(tmp_path: Path, where: list[str], expected: str | None) -> None:
    (tmp_path / "a.jsonl").write_bytes(RECORD)
    (found,) = read(tmp_path, where=tuple(where))
    assert expected == (found.reason if isinstance(found, Rejection) else None)
    assert expected is None or expected in ORDINARY_REASONS


@pytest.mark.parametrize("where", ["lang", "=en", "n>=many", "n>=", ""])
def test_a_condition_that_is_none_is_refused(tmp_path: Path, where: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(RECORD)
    with pytest.raises(DataError, match="where=") as caught:
        read(tmp_path, where=(where,))
    assert caught.value.exit_code == 2


def test_a_text_meets_no_condition(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    assert rejections(read(tmp_path, where=("lang!=en",))) == [(str(tmp_path / "a.txt"), MISSING)]


@pytest.mark.parametrize(("name", "separator"), [("a.jsonl", None), ("a.txt", None), ("a.txt", "<end>")])
def test_a_line_of_a_gigabyte_takes_little_memory(tmp_path: Path, name: str, separator: str | None) -> None:
    path = tmp_path / name
    with path.open("wb") as file:
        file.seek(1 << 30)  # zeros that take no place on the disk
        file.write(b'<end>\n{"text": "after"}')
    found, peak = read_in_child([path], separator=separator)
    assert found[0][1] == "too large"
    after = (1 << 30) + (6 if name == "a.jsonl" else 5)
    assert found[1:] == ([] if name == "a.txt" and separator is None else [[f"{path}: byte {after}", "text"]])
    assert peak < 96 << 20


def test_a_file_that_may_not_be_read_is_counted_as_damaged() -> None:
    if os.geteuid():
        pytest.skip("needs to become another user")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        for file, mode in (("a.jsonl", 0o600), ("b.jsonl", 0o644)):
            (folder / file).write_bytes(lines("a"))
            (folder / file).chmod(mode)
        found, _ = read_in_child([folder], as_user=65534)
        assert found == [[f"{folder}/a.jsonl", "unreadable"], [f"{folder}/b.jsonl:1", "text"]]


def changed(folder: Path, how: str) -> None:
    path = folder / "a.txt"
    if how == "gone":
        path.unlink()
    elif how == "pipe":
        path.unlink()
        os.mkfifo(path)
    else:
        path.write_text(how)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("gone", "is gone"),
        ("pipe", "no longer a regular file"),
        ("shorter", "had 12 bytes, and has 7"),
        ("much longer...", "14"),
    ],
)
def test_a_file_that_changed_after_the_plan_is_refused(tmp_path: Path, how: str, message: str) -> None:
    (tmp_path / "a.txt").write_text("hello, world")
    options = ReadOptions()
    (task,) = plan_tasks([str(tmp_path)], options).tasks
    changed(tmp_path, how)
    with pytest.raises(DataError, match=message):
        list(read_documents(task, options))


def test_documents_are_read_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(*(str(n) for n in range(1000))))
    options = ReadOptions()
    (task,) = plan_tasks([str(path)], options).tasks
    reading = read_part(task.parts[0], options)
    first: Any = next(reading)
    assert first.text == "0"
    reading.close()
    assert CorpusTask.from_json(task.to_json()) == task


def test_names_are_shown_without_what_a_terminal_obeys(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    path = os.fsencode(tmp_path / "t") + b"/a\xff\x1b[31mb\n.txt"
    with open(path, "wb") as file:  # noqa: PTH123 - bytes that are no UTF-8
        file.write(b"\xff")
    ((place, reason),) = rejections(read(tmp_path / "t"))
    assert reason == "invalid UTF-8"
    assert place.isprintable() and place.encode()
