import json
import random
from pathlib import Path

import numpy as np
import pytest

from pretrain.errors import DataError
from pretrain.shards.manifest_file import read_manifest
from tests.support.encoded import documents_of, files_of, write_jsonl
from tests.support.tokenizers import sentencepiece_model_fixture  # noqa: F401
from tokenizer.corpus.readers import ReadOptions
from tokenizer.encoding import deduplicate as duplicates
from tokenizer.encoding.deduplicate import HashWorker, find_repeated, hashed_documents, load_duplicates
from tokenizer.encoding.encode_options import EncodeOptions, make_encoding
from tokenizer.encoding.run import EncodeRun, encode_corpus
from tokenizer.encoding.shared_counts import SharedCounts
from tokenizer.encoding.work_folder import WorkFolder
from tokenizer.models.sentencepiece import load_sentencepiece_model


def some_texts(n: int, distinct: int, seed: int = 0) -> list[str]:
    generator = random.Random(seed)
    return [f"text {generator.randrange(distinct)} of a few" for _ in range(n)]


def first_of_each(texts: list[str]) -> list[bool]:
    seen: set[str] = set()
    return [not (text in seen or seen.add(text)) for text in texts]


@pytest.fixture
def run(tmp_path: Path, sentencepiece_model: Path) -> EncodeRun:
    write_jsonl(tmp_path / "a.jsonl", some_texts(150, 100))
    write_jsonl(tmp_path / "b.jsonl", some_texts(150, 100, seed=1))
    encoding = make_encoding(
        sentencepiece_model, EncodeOptions(deduplicate=True, reading=ReadOptions(task_bytes=1_000))
    )
    return EncodeRun(encoding, [tmp_path / "a.jsonl", tmp_path / "b.jsonl"], tmp_path / "out")


@pytest.mark.parametrize(
    ("run_documents", "range_documents"), [(1, 1 << 22), (7, 40), (1 << 22, 7), (1 << 22, 1 << 22)]
)
def test_the_first_of_equal_texts_is_kept_however_they_are_cut(
    run: EncodeRun, monkeypatch: pytest.MonkeyPatch, run_documents: int, range_documents: int
) -> None:
    monkeypatch.setattr(duplicates, "RUN_DOCUMENTS", run_documents)
    monkeypatch.setattr(duplicates, "RANGE_DOCUMENTS", range_documents)
    worker, tasks = HashWorker(ReadOptions(), run.work, 0), run.plan.tasks
    for task in reversed(tasks):
        worker(task, SharedCounts(1), 0)
    find_repeated(run.work, len(tasks))
    kept = []
    for task in tasks:
        found = load_duplicates(run.work, task.number)
        assert found.documents == hashed_documents(run.work, task.number)
        keep = np.ones(found.documents, bool)
        keep[found.repeated.astype(np.int64)] = False
        kept += keep.tolist()
    assert len(tasks) > 5
    assert kept == first_of_each(some_texts(150, 100) + some_texts(150, 100, seed=1))


def test_duplicates_are_left_out_and_counted_whatever_the_number_of_workers(
    run: EncodeRun, tmp_path: Path, sentencepiece_model: Path
) -> None:
    outputs = []
    for workers in (1, 2):
        out = tmp_path / str(workers)
        options = {"deduplicate": True, "reading": ReadOptions(task_bytes=1_000), "workers": workers}
        manifest = encode_corpus(sentencepiece_model, [tmp_path / "a.jsonl", tmp_path / "b.jsonl"], out, **options)
        outputs.append(files_of(out))
    assert outputs[0] == outputs[1]
    texts = some_texts(150, 100) + some_texts(150, 100, seed=1)
    sp = load_sentencepiece_model(sentencepiece_model)
    assert sorted(sp.decode(ids) for ids in documents_of(out, manifest)) == sorted(set(texts))
    repeated = len(texts) - len(set(texts))
    assert manifest.skipped == {"duplicate": repeated}
    lines = [json.loads(line) for line in (out / "problems.jsonl").read_text().splitlines()]
    assert [line["file"].rpartition("/")[2] for line in lines] == ["a.jsonl", "b.jsonl"]
    assert sum(line["count"] for line in lines) == repeated
    assert manifest == read_manifest(out)


class Colliding:
    """Instead of sha256: texts with "low" in them share the first half, those with "high" the second."""

    def __init__(self, text: bytes) -> None:
        self.text = text

    def digest(self) -> bytes:
        own, shared = self.text.ljust(8)[-8:], bytes(8)
        return shared + own if b"low" in self.text else own + shared


def test_other_texts_with_half_of_a_hash_in_common_are_kept(
    tmp_path: Path, sentencepiece_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["low    1", "low    2", "low    1", "high   1", "high   2", "high   2"]
    encoding = make_encoding(sentencepiece_model, EncodeOptions(deduplicate=True))
    run = EncodeRun(encoding, [write_jsonl(tmp_path / "a.jsonl", texts)], tmp_path / "out")
    monkeypatch.setattr(duplicates, "sha256", Colliding)
    run.run_tasks(run.plan.tasks, workers=1)
    run.finish_hash_pass()
    assert load_duplicates(run.work, 0).repeated.tolist() == [2, 5]


def test_a_corpus_that_changed_between_the_passes_is_refused(run: EncodeRun, tmp_path: Path) -> None:
    run.run_tasks(run.plan.tasks, workers=1)
    run.finish_hash_pass()
    path = tmp_path / "a.jsonl"
    path.write_text(path.read_text().replace("\n", " ", 1))  # the same size
    with pytest.raises(DataError, match="documents in the deduplication pass, and has"):
        run.run_tasks(run.plan.tasks, workers=1, progress=None)


def test_what_was_hashed_before_is_not_hashed_again(run: EncodeRun) -> None:
    tasks = run.plan.tasks
    assert run.in_hash_pass and run.run_tasks(tasks[::2], workers=1) == len(tasks[::2])
    assert run.run_tasks(tasks, workers=1) == len(tasks[1::2])
    assert run.in_hash_pass
    run.finish_hash_pass()
    assert not run.in_hash_pass and run.unfinished(tasks) == list(tasks)


def test_an_empty_corpus_has_no_duplicates(tmp_path: Path) -> None:
    work = WorkFolder(tmp_path / "out", {})
    work.open()
    find_repeated(work, 0)
    assert list((work.path / "repeated").iterdir()) == []
