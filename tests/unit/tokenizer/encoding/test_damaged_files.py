"""Files that end early or cannot be opened: an error that names them, however few documents they seem to cost."""

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pretrain.errors import DataError
from tests.support.corpora import lines, read, rejections
from tests.support.encoded import files_of
from tests.support.tars import member
from tokenizer.corpus.readers.rejections import DAMAGED_REASONS, UNREADABLE, Rejection
from tokenizer.corpus.rejection_log import RejectionLog
from tokenizer.encoding.run import encode_corpus
from tokenizer.training.budget import SampleSource
from tokenizer.training.train_bpe import train_tokenizer

DRAW = random.Random(0)
TEXTS = ["".join(DRAW.choices("abcdefgh ", k=200)) for _ in range(2_000)]
CONTENT = lines(*TEXTS)


def parquet(path: Path) -> None:
    pq.write_table(pa.table({"text": TEXTS}), path, row_group_size=100)


MAKE: dict[str, Callable[[Path], object]] = {
    "a.jsonl": lambda path: path.write_bytes(CONTENT),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(CONTENT)),
    "a.parquet": parquet,
    "a.tar": lambda path: path.write_bytes(
        b"".join(member(b"%d.txt" % n, text.encode()) for n, text in enumerate(TEXTS)) + bytes(1024)
    ),
}


@pytest.fixture(params=MAKE)
def cut(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A tenth of a file, with a whole file beside it."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    path = folder / str(request.param)
    MAKE[path.name](path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 10 - 5])
    (folder / "z.txt").write_text("good")
    return path


@pytest.mark.parametrize("workers", [1, 2])
def test_a_file_that_ends_early_stops_an_encoding(tokenizer: Path, cut: Path, tmp_path: Path, workers: int) -> None:
    with pytest.raises(DataError, match="more than max_bad_files=0 files are damaged") as caught:
        encode_corpus(tokenizer, [cut.parent], tmp_path / "out", workers=workers)
    assert caught.value.exit_code == 2
    assert str(cut) in str(caught.value) and "read" in str(caught.value)
    assert "--max-bad-files 1" in str(caught.value.hint)
    manifest = encode_corpus(tokenizer, [cut.parent], tmp_path / "out", workers=workers, max_bad_files=1)
    (reason,) = manifest.skipped
    assert reason in DAMAGED_REASONS and manifest.skipped[reason] == 1
    assert 1 <= manifest.documents <= 250
    problem = json.loads((tmp_path / "out" / "problems.jsonl").read_text())
    assert problem["file"] == str(cut)


def test_a_file_that_ends_early_stops_a_training(cut: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="more than max_bad_files=0 files are damaged"):
        train_tokenizer([SampleSource("corpus", (str(cut.parent),))], 300, tmp_path / "out")


def test_a_cut_file_says_how_much_of_it_was_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines("one", "two") + b'{"text": "thr')
    assert "2 documents before it were read" in str(read(tmp_path)[-1])
    (tmp_path / "a.jsonl").write_bytes(lines("one") + b"no object")
    assert rejections(read(tmp_path)) == [(f"{tmp_path}/a.jsonl:2", "broken JSON")]


def test_a_damaged_file_counts_once_and_is_no_bad_document() -> None:
    log = RejectionLog()
    for _ in range(3):
        log.add("a", read_error())
    assert (len(log.damaged), log.bad) == (1, 0)
    log.check_limits(0, 1)
    again = RejectionLog.from_json(json.loads(json.dumps(log.to_json())))
    assert list(again.damaged) == ["a"]


def read_error() -> Rejection:
    return Rejection("a", UNREADABLE, "Input/output error")


def test_a_limit_does_not_change_the_corpus(tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(*TEXTS[:20]))
    for limit in (0, 5):
        encode_corpus(tokenizer, [tmp_path / "a.jsonl"], tmp_path / f"{limit}", workers=1, max_bad_files=limit)
    assert files_of(tmp_path / "0") == files_of(tmp_path / "5")
