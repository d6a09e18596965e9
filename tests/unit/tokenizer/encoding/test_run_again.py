"""A second encoding into the same folder: the same one, another one, beside files of others, or replacing the first."""

from pathlib import Path

import pytest

from pretrain.errors import DataError
from pretrain.shards.manifest_file import read_manifest
from tests.support.encoded import files_of
from tokenizer.encoding.encode_options import EncodeOptions, make_encoding
from tokenizer.encoding.run import EncodeRun, encode_corpus

BLOCK = 64


def test_the_same_encoding_again_is_done_and_another_is_refused_with_the_differences(
    tokenizer: Path, corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = encode_corpus(tokenizer, [corpus], out, workers=1)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert encode_corpus(tokenizer, [corpus], out, workers=1) == first
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    with pytest.raises(DataError, match="already, encoded with other options:\n  - seed: 0, now 1") as caught:
        encode_corpus(tokenizer, [corpus], out, workers=1, seed=1)
    assert "To add documents, encode them alone" in str(caught.value.hint)
    with corpus.open("a") as file:
        file.write('{"text": "one more"}\n')
    with pytest.raises(DataError, match="plan: "):
        encode_corpus(tokenizer, [corpus], out, workers=1)
    (out / "encoding.json").unlink()  # made by an earlier release
    with pytest.raises(DataError, match=r"holds an encoded corpus already\n  hint"):
        encode_corpus(tokenizer, [corpus], out, workers=1)


def test_overwrite_and_leftovers_give_the_bytes_of_a_fresh_run(tokenizer: Path, corpus: Path, tmp_path: Path) -> None:
    options = {"workers": 1, "block_tokens": BLOCK}
    encode_corpus(tokenizer, [corpus], tmp_path / "fresh", **options)
    encode_corpus(tokenizer, [corpus], tmp_path / "out", **options, shard_bytes=2 * BLOCK)
    assert len(files_of(tmp_path / "out")) > len(files_of(tmp_path / "fresh"))
    encode_corpus(tokenizer, [corpus], tmp_path / "out", **options, overwrite=True)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "fresh")
    (tmp_path / "out" / "manifest.json").unlink()
    for name in ("shard-000007.tar", "shard-000000.tar.tmp", "shard-000000.idx.npy.tmp", "manifest.json.tmp"):
        (tmp_path / "out" / name).write_text("left by a killed run")
    encode_corpus(tokenizer, [corpus], tmp_path / "out", **options)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "fresh")


def test_a_failed_overwrite_leaves_no_manifest_for_shards_that_are_gone(
    tokenizer: Path, corpus: Path, tmp_path: Path
) -> None:
    encode_corpus(tokenizer, [corpus], tmp_path / "out", workers=1)
    corpus.write_text('{"text": 1}\n')
    with pytest.raises(DataError, match="no document"):
        encode_corpus(tokenizer, [corpus], tmp_path / "out", workers=1, overwrite=True)
    with pytest.raises(DataError, match=r"no manifest\.json"):
        read_manifest(tmp_path / "out")


def test_a_file_of_the_user_that_has_our_name_is_not_lost(tokenizer: Path, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "problems.jsonl").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(DataError, match=r"problems\.jsonl: is not from an encoding run"):
            encode_corpus(tokenizer, [corpus], tmp_path / "out", workers=1, overwrite=overwrite)
    assert (tmp_path / "out" / "problems.jsonl").read_text() == "mine"


def test_problems_of_an_earlier_corpus_go_with_it(tokenizer: Path, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": 1}\n{"text": "good"}\n')
    encode_corpus(tokenizer, [corpus, tmp_path / "bad.jsonl"], tmp_path / "out", workers=1)
    assert (tmp_path / "out" / "problems.jsonl").exists()
    encode_corpus(tokenizer, [corpus], tmp_path / "out", workers=1, overwrite=True)
    assert not (tmp_path / "out" / "problems.jsonl").exists()


def test_a_merge_whose_receipts_a_concurrent_merge_removed_gives_that_corpus(
    tokenizer: Path, corpus: Path, tmp_path: Path
) -> None:
    options = make_encoding(tokenizer, EncodeOptions())
    first = EncodeRun(options, [corpus], tmp_path / "out")
    first.run_tasks(first.plan.tasks, workers=1)
    second = EncodeRun(options, [corpus], tmp_path / "out")
    merged = first.merge()  # publishes the corpus, and removes the folder of tasks that `second` has open
    assert second.merge() == merged
