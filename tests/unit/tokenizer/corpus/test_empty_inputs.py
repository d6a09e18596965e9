"""Inputs without a document: named, with the reason and what to type."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from pretrain.cli.cmd_tokenizer import tokenizer as cli
from pretrain.errors import DataError
from tests.support.corpora import lines
from tokenizer.corpus.readers import ReadOptions
from tokenizer.corpus.task_plan import plan_tasks
from tokenizer.encoding.run import encode_corpus
from tokenizer.training.budget import SampleSource
from tokenizer.training.train_bpe import train_model, train_tokenizer

WORDS = " ".join(f"{number} word{number % 7}" for number in range(3_000))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tokenizer.model"
    path.write_bytes(train_model([WORDS[:4_000]], 290))
    return path


@pytest.fixture
def good(tmp_path: Path) -> Path:
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "a.txt").write_text(WORDS)
    return tmp_path / "good"


def folder(tmp_path: Path, **files: bytes) -> Path:
    path = tmp_path / "bad"
    path.mkdir()
    for name, content in files.items():
        (path / name.replace("_", ".")).write_bytes(content)
    return path


def test_a_folder_without_readable_files_is_refused_by_its_plan(tmp_path: Path, good: Path) -> None:
    manuals = folder(tmp_path, **{f"man{n}_1_gz": b"x" for n in range(3)})
    with pytest.raises(DataError, match="bad: no document of it can be used; left out: 3 compressed") as caught:
        plan_tasks([str(good), str(manuals)], ReadOptions())
    assert "unpack" in str(caught.value.hint)


def test_a_folder_of_links_is_refused_with_a_way_to_read_it(tmp_path: Path, good: Path) -> None:
    links = folder(tmp_path)
    (links / "a.txt").symlink_to(good / "a.txt")
    with pytest.raises(DataError, match="left out: 1 link or special file") as caught:
        plan_tasks([str(links)], ReadOptions())
    assert "cp -rL" in str(caught.value.hint) and "--input FOLDER/*" in str(caught.value.hint)


def test_a_source_whose_documents_are_all_left_out_is_an_error(tmp_path: Path, good: Path, model: Path) -> None:
    pictures = folder(tmp_path, a_png=b"\0\1", b_py=b"")
    with pytest.raises(DataError, match="bad: no document of it can be used; left out: 1 binary file, 1 empty"):
        encode_corpus(model, [good, pictures], tmp_path / "out", workers=1)
    sources = [SampleSource("good", (str(good),)), SampleSource("bad", (str(pictures),))]
    with pytest.raises(DataError, match="bad: no document of it can be used; left out: 1 binary file, 1 empty"):
        train_tokenizer(sources, 290, tmp_path / "trained")


def test_a_condition_that_nothing_meets_is_an_error_for_a_folder(tmp_path: Path, good: Path, model: Path) -> None:
    records = folder(tmp_path, a_jsonl=lines("one"))
    with pytest.raises(DataError, match="filter field missing") as caught:
        encode_corpus(model, [records], tmp_path / "out", workers=1, reading=ReadOptions(where=("lang=en",)))
    assert "--where" in str(caught.value.hint)


def test_an_empty_file_among_others_that_are_named_is_no_error(tmp_path: Path, good: Path, model: Path) -> None:
    empty = tmp_path / "__init__.py"
    empty.touch()
    assert encode_corpus(model, [good / "a.txt", empty], tmp_path / "out", workers=1).documents == 1


def test_duplicates_are_documents_of_their_source(tmp_path: Path, good: Path, model: Path) -> None:
    again = folder(tmp_path, a_txt=WORDS.encode())
    assert encode_corpus(model, [good, again], tmp_path / "out", workers=1, deduplicate=True).documents == 1


@pytest.mark.parametrize(
    ("record", "hint"),
    [
        ({"id": "1", "content": "x", "url": "long one"}, "--text-field content"),
        ({"id": "1", "story text": "once upon a time"}, "--text-field 'story text'"),
        ({"id": 1}, "name the field that holds the text with --text-field"),
    ],
)
def test_records_without_text_are_refused_with_the_field_to_name(
    tmp_path: Path, model: Path, record: dict[str, object], hint: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text((json.dumps(record) + "\n") * 200)
    for allowed, message in ((100, "more than max_bad_documents=100"), (200, "no document of it can be used")):
        with pytest.raises(DataError, match=message) as caught:
            encode_corpus(model, [path], tmp_path / f"{allowed}", workers=1, max_bad_documents=allowed)
        assert hint in str(caught.value.hint)


def test_columns_without_text_are_refused_with_the_column_to_name(tmp_path: Path, model: Path) -> None:
    pq.write_table(pa.table({"id": ["1"], "content": ["text"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no document of it can be used") as caught:
        encode_corpus(model, [tmp_path / "a.parquet"], tmp_path / "out", workers=1)
    assert "--text-field content" in str(caught.value.hint)


def test_the_table_says_what_was_read_as_what(tmp_path: Path, good: Path, model: Path) -> None:
    (good / "b.json").write_bytes(lines("one", "two"))
    (good / "README.md").write_text("about")
    common = ["encode", "--tokenizer", str(model), "--input", str(good), "--workers", "1"]
    done = CliRunner().invoke(cli, [*common, "--output", str(tmp_path / "out")])
    assert done.exit_code == 0, done.exception
    assert "1 jsonl (1 not by name: b.json), 1 text" in done.output
    assert "1: README.md" in done.output
    forced = CliRunner().invoke(cli, [*common, "--output", str(tmp_path / "forced"), "--format", "text"])
    assert "3 text" in forced.output
