"""Plans: what a corpus' tasks hold, by its files and the options alone; and what is refused before anything is read."""

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.errors import DataError
from tests.support.corpora import lines, read, rejections, texts
from tokenizer.corpus.file_names import format_of
from tokenizer.corpus.readers import CorpusTask, ReadOptions
from tokenizer.corpus.task_plan import TaskPlan, plan_tasks, refuse_output_inside


def plan(*inputs: str | Path, **options: int) -> TaskPlan:
    return plan_tasks([str(path) for path in inputs], ReadOptions(**options))


def spans(found: TaskPlan) -> list[list[tuple[str, int, int]]]:
    """(name, start, stop) of each part, by task."""
    return [[(Path(part.url).name, part.start, part.stop) for part in task.parts] for task in found.tasks]


def test_a_large_file_is_cut_and_small_ones_are_joined_in_order(tmp_path: Path) -> None:
    for name, size in (
        ("a.jsonl", 250),
        ("b.txt", 30),
        ("c.jsonl", 40),
        ("d.jsonl.gz", 12),
        ("e.txt", 500),
        ("f.txt", 1),
    ):
        (tmp_path / name).write_bytes(bytes(size))
    assert spans(plan(tmp_path, task_bytes=100)) == [
        [("a.jsonl", 0, 83)],
        [("a.jsonl", 83, 166)],
        [("a.jsonl", 166, 250)],
        [("b.txt", 0, 30), ("c.jsonl", 0, 40)],
        [("d.jsonl.gz", 0, 12)],  # 48 bytes of text, more or less
        [("e.txt", 0, 500)],  # one document
        [("f.txt", 0, 1)],
    ]
    assert plan(tmp_path, task_bytes=100).bytes == 833
    assert plan(tmp_path, task_bytes=100).text_bytes == 833 + 3 * 12


def test_files_that_fill_a_task_exactly_are_one(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.txt").write_bytes(bytes(50))
    assert [len(task.parts) for task in plan(tmp_path, task_bytes=100).tasks] == [2, 1]


@given(st.lists(st.integers(0, 2_000), min_size=1, max_size=12), st.integers(1, 3_000))
def test_tasks_hold_every_byte_once_in_order_and_none_is_too_large(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], task_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("corpus")
    for n, size in enumerate(sizes):
        (folder / f"{n:02d}.jsonl").write_bytes(bytes(size))
    found = plan(folder, task_bytes=task_bytes)
    parts = [part for task in found.tasks for part in task.parts]
    assert [task.number for task in found.tasks] == list(range(len(found.tasks)))
    assert all(task.text_bytes <= task_bytes for task in found.tasks)
    for n, size in enumerate(sizes):
        own = [(part.start, part.stop) for part in parts if part.url.endswith(f"{n:02d}.jsonl")]
        assert [start for start, _ in own] == [0, *(stop for _, stop in own[:-1])]
        assert own[-1][1] == size
    urls = [part.url for part in parts]
    assert urls == sorted(urls)
    # Two neighbours that fit into one task are in one.
    pairs = zip(found.tasks[:-1], found.tasks[1:], strict=True)
    assert all(first.text_bytes + second.parts[0].text_bytes > task_bytes for first, second in pairs)


def test_a_task_holds_files_of_one_input_only(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.txt").write_text(name)
    (tmp_path / "c.txt").write_text("c")
    found = plan(tmp_path / "b", tmp_path / "c.txt", tmp_path / "a")
    assert [task.source for task in found.tasks] == [0, 1, 2]
    assert [(Path(source.input).name, source.files, source.bytes) for source in found.sources] == [
        ("b", 1, 1),
        ("c.txt", 1, 1),
        ("a", 1, 1),
    ]


def test_files_named_one_by_one_share_tasks_as_in_their_folder(tmp_path: Path) -> None:
    names = [tmp_path / "many" / f"{n:02d}.txt" for n in range(30)]
    (tmp_path / "many").mkdir()
    for name in names:
        name.write_bytes(bytes(10))
    found, folder = (
        plan_tasks([str(path) for path in paths], ReadOptions(task_bytes=100), join_files=True)
        for paths in (names, [tmp_path / "many"])
    )
    assert found.tasks == folder.tasks and len(found.tasks) == 3
    assert [(source.input, source.files) for source in found.sources] == [(f"{names[0]} … {names[-1]}", 30)]
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "x.txt").write_bytes(bytes(10))
    mixed = [*names[:3], tmp_path / "alone", *names[3:5]]
    plan_of_mixed = plan_tasks([str(path) for path in mixed], ReadOptions(), join_files=True)
    assert [len(task.parts) for task in plan_of_mixed.tasks] == [3, 1, 2]
    assert [task.source for task in plan_of_mixed.tasks] == [0, 1, 2]


def test_a_folder_is_walked_in_sorted_order_and_what_is_not_read_is_counted(tmp_path: Path) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text("outside")
    tree = tmp_path / "tree"
    for name in ("b/2.py", "a.txt", "b/1.py", "c.txt", ".git/x", ".git/y", "b/.hidden", "__pycache__/y.py", "b.txt"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(name)
    (tree / "b" / "3.jsonl").write_bytes(lines("line 1", "line 2"))
    (tree / "link.txt").symlink_to(outside)
    (tree / "linked").symlink_to(tmp_path)
    (tree / "broken").symlink_to(tmp_path / "missing")
    os.mkfifo(tree / "pipe")
    found = read(tree)
    assert texts(found) == ["a.txt", "b/1.py", "b/2.py", "line 1", "line 2", "b.txt", "c.txt"]
    assert rejections(found) == [
        (f"{tree}/.git", "hidden"),
        (f"{tree}/__pycache__", "hidden"),
        (f"{tree}/b/.hidden", "hidden"),
        *((f"{tree}/{name}", "link or special file") for name in ("broken", "link.txt", "linked", "pipe")),
    ]
    assert texts(read([outside, tree]))[:2] == ["outside", "a.txt"]


def test_a_link_that_is_named_is_followed(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a.txt").write_text("a")
    (tmp_path / "link").symlink_to(tmp_path / "tree")
    assert texts(read(tmp_path / "link")) == ["a"]


FORMATS = {
    "a.jsonl": "jsonl",
    "A.NDJSON": "jsonl",
    "a.jsonl.gz": "jsonl.gz",
    "a.json.gz": "jsonl.gz",
    "a.jsonl.zst": "jsonl.zst",
    "a.jsonl.ZSTD": "jsonl.zst",
    "a.jsonl.bz2": "jsonl.bz2",
    "a.jsonl.xz": "jsonl.xz",
    "a.txt.gz": "text.gz",
    "a.md.zst": "text.zst",
    "a.parquet": "parquet",
    "a.tar": "tar",
    "a.json": "text",
    "a.py": "text",
    "README": "text",
    "a.csv.gz": "archive",
    "a.gz": "archive",
    "a.tar.gz": "archive",
    "a.parquet.gz": "archive",
    "a.zip": "archive",
    "a.arrow": "archive",
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_name_says_the_format(name: str) -> None:
    assert format_of(f"folder.tar/{name}") == FORMATS[name]


@pytest.mark.parametrize("suffix", ["gz", "jsonl.lz4", "tar.gz", "ZIP"])
def test_an_archive_that_is_named_is_refused_with_a_hint(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b"x")
    with pytest.raises(DataError, match="not readable") as caught:
        plan(path)
    assert "unpack" in str(caught.value)
    assert caught.value.exit_code == 2


def make_empty_folder(folder: Path) -> list[Path]:
    (folder / "empty").mkdir()
    return [folder / "empty"]


def make_twice(folder: Path) -> list[Path]:
    (folder / "tree").mkdir()
    (folder / "tree" / "a.txt").write_text("a")
    (folder / "other").mkdir()
    return [folder / "tree", folder / "other", folder / "tree" / ".." / "tree" / "a.txt"]


def make_neighbours(folder: Path) -> list[Path]:
    """Their names begin alike, and between a folder and what it holds sorts another name."""
    for name in ("a", "a-b", "a/b"):
        (folder / name).mkdir()
        (folder / name / "x.txt").write_text(name)
    return [folder / "a" / "b", folder / "a-b", folder / "a"]


def make_pipe(folder: Path) -> list[Path]:
    os.mkfifo(folder / "pipe")
    return [folder / "pipe"]


def make_below_a_file(folder: Path) -> list[Path]:
    (folder / "a.txt").write_text("a")
    return [folder / "a.txt" / "b.txt"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: [], "no input was given"),
        (lambda folder: [folder / "missing.txt"], r"missing\.txt: no such file or folder"),
        (make_empty_folder, "no file in it"),
        (make_twice, "would be read twice"),
        (make_neighbours, r"a/b is part of .*/a, "),
        (make_pipe, "neither a regular file nor a folder"),
        (make_below_a_file, "cannot be read: Not a directory"),
    ],
)
def test_an_unusable_input_is_refused(tmp_path: Path, make: Callable[[Path], list[Path]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        plan(*make(tmp_path))


@pytest.mark.parametrize(
    ("name", "value"),
    [("task_bytes", 0), ("max_document_bytes", -1), ("max_ratio", 0), ("text_field", ""), ("separator", "")],
)
def test_an_impossible_option_is_refused(name: str, value: str | int) -> None:
    with pytest.raises(DataError, match=name) as caught:
        replace(ReadOptions(), **{name: value})  # type: ignore[arg-type]
    assert caught.value.exit_code == 2


def test_neighbours_with_names_that_begin_alike_are_no_overlap(tmp_path: Path) -> None:
    for name in ("a", "a-b", "ab"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.txt").write_text(name)
    assert texts(read([tmp_path / "ab", tmp_path / "a", tmp_path / "a-b"])) == ["ab", "a", "a-b"]


def test_a_plan_follows_from_files_and_options_alone(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(*"abc"))
    (tmp_path / "b.txt").write_text("b")
    first = plan(tmp_path)
    assert plan(tmp_path) == first
    fingerprints = {first.fingerprint}
    fingerprints |= {plan(tmp_path, **{name: 50}).fingerprint for name in ("task_bytes", "max_document_bytes")}
    (tmp_path / "b.txt").write_text("bb")
    fingerprints.add(plan(tmp_path).fingerprint)
    (tmp_path / "b.txt").rename(tmp_path / "c.txt")
    fingerprints.add(plan(tmp_path).fingerprint)
    assert len(fingerprints) == 5


def test_a_task_can_be_written_down_and_sent(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(*"abc"))
    name = os.fsdecode(b"not utf-8 \xff.txt")
    (tmp_path / name).write_text("b")
    for task in plan(tmp_path, task_bytes=20).tasks:
        assert CorpusTask.from_json(json.loads(json.dumps(task.to_json()))) == task
        assert pickle.loads(pickle.dumps(task)) == task
    assert len(texts(read(tmp_path))) == 4
    assert len(plan(tmp_path).fingerprint) == 64


def test_the_output_may_not_lie_in_the_input(tmp_path: Path) -> None:
    refuse_output_inside([tmp_path / "corpus", "memory://bucket/corpus"], tmp_path / "corpus2")
    for inputs in ([tmp_path], [str(tmp_path)], ["memory://bucket", f"file://{tmp_path}"]):
        with pytest.raises(DataError, match="lies inside the input"):
            refuse_output_inside(inputs, tmp_path / "x" / ".." / "shards")
