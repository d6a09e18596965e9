import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pretrain.errors import DataError
from tokenizer.corpus import read_text, refuse_output_inside, scan, shuffled
from tokenizer.rejections import Rejection, RejectionLog


def jsonl(path: Path, *texts: str) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def texts_of(inputs: list[Path], **options: int) -> list[str | Rejection]:
    corpus = scan(inputs, **options)
    return [*corpus.rejections, *(read_text(corpus.document(i)) for i in range(len(corpus)))]


def test_a_text_file_is_one_document_and_is_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\n\n  two\rthree\u2028 \u0301".encode())
    assert texts_of([path]) == ["\ufeffone\r\n\n  two\rthree\u2028 \u0301"]


def test_a_jsonl_file_is_one_document_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.JSONL"
    path.write_bytes(b'{"text": "one\\nline", "id": 3}\r\n\n  \n{"id": 4, "text": "\\ud83d\\ude00"}')
    corpus = scan([path])
    assert [read_text(corpus.document(i)) for i in range(len(corpus))] == ["one\nline", "\U0001f600"]
    assert [corpus.document(i).place for i in range(len(corpus))] == [f"{path}:1", f"{path}:4"]
    path.write_text('{"body": "other"}')
    assert read_text(scan([path]).document(0), text_field="body") == "other"


def test_a_folder_is_walked_in_sorted_order_without_hidden_files_and_links(tmp_path: Path) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text("outside")
    tree = tmp_path / "tree"
    for name in ("b/2.py", "a.txt", "b/1.py", "c.txt", ".git/x", "b/.hidden", "__pycache__/y.py", "b.txt"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(name)
    jsonl(tree / "b" / "3.jsonl", "line 1", "line 2")
    (tree / "link.txt").symlink_to(outside)
    (tree / "linked").symlink_to(tmp_path)
    os.mkfifo(tree / "fifo")
    assert texts_of([tree]) == ["a.txt", "b/1.py", "b/2.py", "line 1", "line 2", "b.txt", "c.txt"]
    assert texts_of([outside, tree])[:2] == ["outside", "a.txt"]


LINES: list[tuple[bytes, str]] = [
    (b'{"text": "caf\xe9"}', "invalid UTF-8"),
    (b'{"text": "a\\ud800b"}', "lone surrogate"),
    (b'{"text": "a\\u0000b"}', "NUL character"),
    (b'{"text": "a', "broken JSON"),
    (b"[" * 100_000, "broken JSON"),
    (b'{"text": "a", "n": ' + b"9" * 5_000 + b"}", "broken JSON"),
    (b'["text"]', "not a JSON object"),
    (b'{"txt": "a"}', "no text field"),
    (b'{"text": 3}', "text is not a string"),
    (b'{"text": null}', "text is not a string"),
    (b'{"text": ""}', "empty"),
    (b'{"text": "' + b"x" * 200_000 + b'"}', "too large"),
]


@pytest.mark.parametrize(("line", "reason"), LINES)
def test_a_bad_line_is_named_counted_and_never_repaired(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "before"}\n' + line + b'\n{"text": "after"}\n')
    found = texts_of([path], max_document_bytes=150_000)
    rejections = [item for item in found if isinstance(item, Rejection)]
    assert [(rejection.place, rejection.reason) for rejection in rejections] == [(f"{path}:2", reason)]
    assert [item for item in found if isinstance(item, str)] == ["before", "after"]


@pytest.mark.parametrize("size", [99, 100, 101])
def test_the_size_limit_is_exact(tmp_path: Path, size: int) -> None:
    line = json.dumps({"text": "x" * (size - len('{"text": ""}'))})
    assert len(line) == size
    (tmp_path / "a.jsonl").write_text("\n".join([line, '{"text": "y"}', line]))
    (tmp_path / "b.txt").write_text("z" * size)
    found = texts_of([tmp_path], max_document_bytes=100)
    kept = [len(item) for item in found if isinstance(item, str)]
    assert kept == ([size - 12, 1, size - 12, size] if size <= 100 else [1])
    assert len(found) == 4


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.png", b"\x89PNG\0\0", "binary file"),
        ("a.txt", b"caf\xe9", "invalid UTF-8"),
        ("a.txt", b"", "empty"),
        ("a.tar", b"x", "compressed or archive"),
        ("a.JSONL.GZ", b"x", "compressed or archive"),
        ("a.parquet", b"x", "compressed or archive"),
    ],
)
def test_a_bad_file_in_a_folder_is_named_and_counted(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    (tmp_path / "good.txt").write_text("good")
    rejection, text = texts_of([tmp_path])
    assert text == "good"
    assert isinstance(rejection, Rejection)
    assert (rejection.place, rejection.reason) == (str(tmp_path / name), reason)


@pytest.mark.parametrize("suffix", ["gz", "jsonl.zst", "parquet", "tar", "TAR"])
def test_a_compressed_input_that_is_named_is_refused_with_a_hint(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b"x")
    with pytest.raises(DataError, match="not readable yet") as caught:
        scan([path])
    assert "unpack" in str(caught.value)
    assert caught.value.exit_code == 2


def make_empty_tree(folder: Path) -> list[Path]:
    (folder / "tree").mkdir()
    (folder / "tree" / "empty.txt").touch()
    return [folder / "tree"]


def make_twice(folder: Path) -> list[Path]:
    (folder / "tree").mkdir()
    (folder / "tree" / "a.txt").write_text("a")
    return [folder / "tree", folder / "tree" / ".." / "tree" / "a.txt"]


def make_fifo(folder: Path) -> list[Path]:
    os.mkfifo(folder / "fifo")
    return [folder / "fifo"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: [], "no input was given"),
        (lambda folder: [folder / "missing.txt"], r"missing\.txt: no such file or folder"),
        (make_empty_tree, "no document in .*tree; left out: 1 empty"),
        (make_twice, "would be read twice"),
        (make_fifo, "neither a regular file nor a folder"),
    ],
)
def test_an_unusable_input_is_refused(tmp_path: Path, make: Callable[[Path], list[Path]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        scan(make(tmp_path))


def test_the_output_may_not_lie_in_the_input(tmp_path: Path) -> None:
    refuse_output_inside([tmp_path / "corpus"], tmp_path / "corpus2")
    with pytest.raises(DataError, match="lies inside the input"):
        refuse_output_inside([tmp_path], tmp_path / "x" / ".." / "shards")


def test_a_file_that_shrinks_after_the_scan_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("hello")
    corpus = scan([path])
    path.write_text("he")
    with pytest.raises(DataError, match="became shorter"):
        read_text(corpus.document(0))


def test_the_log_stops_at_the_first_bad_document_over_the_limit_and_shows_ten() -> None:
    log = RejectionLog(12)
    log.add([Rejection("tree/x.png", "binary file", "has NUL bytes")] * 50)
    log.add([Rejection(f"a.jsonl:{i}", "broken JSON", "at 1") for i in range(12)])
    assert log.counts == {"binary file": 50, "broken JSON": 12}
    with pytest.raises(DataError, match="more than max_bad_documents=12") as caught:
        log.add([Rejection("last", "invalid UTF-8", "byte 3")])
    assert "a.jsonl:0: broken JSON (at 1)" in str(caught.value)
    assert str(caught.value).count("\n  - ") == 10


@pytest.mark.parametrize("n", [0, 1, 2, 1_000])
def test_shuffled_is_a_permutation_that_follows_the_seed(n: int) -> None:
    order = shuffled(n, seed=3)
    assert sorted(order.tolist()) == list(range(n))
    assert (order == shuffled(n, seed=3)).all()
    if n == 1_000:
        assert (order != shuffled(n, seed=4)).mean() > 0.98
        assert abs(np.corrcoef(order, np.arange(n))[0, 1]) < 0.1


def test_the_shuffle_never_changes() -> None:
    assert shuffled(8, seed=0).tolist() == [1, 6, 4, 0, 5, 7, 3, 2]
