import itertools
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from pretrain.cli.cmd_tokenizer import tokenizer as cli
from pretrain.config.schema import SourceConfig
from pretrain.data.source import Source
from pretrain.errors import DataError, PretrainError
from pretrain.shards.integrity import verify_shards
from pretrain.shards.manifest_file import read_manifest
from pretrain.storage.store import open_store
from tests.support.encoded import TEXTS, documents_of, files_of, task_streams, write_jsonl
from tokenizer.corpus.readers import ReadOptions
from tokenizer.corpus.task_plan import plan_tasks
from tokenizer.encoding import encode_task
from tokenizer.encoding.encode_options import EncodeOptions, make_encoding
from tokenizer.encoding.run import EncodeRun, encode_corpus
from tokenizer.encoding.shared_counts import EncodeProgress, SharedCounts, TaskCounter
from tokenizer.models.base import tokenizer_sha256
from tokenizer.models.fast import TextEncoder
from tokenizer.models.sentencepiece import load_sentencepiece_model

BLOCK = 64


@pytest.mark.parametrize("task_bytes", [1 << 20, 700])
def test_every_document_comes_back_from_the_shards(
    tokenizer: Path, corpus: Path, tmp_path: Path, task_bytes: int
) -> None:
    out = tmp_path / "deep" / "shards"
    reading = ReadOptions(task_bytes=task_bytes)
    options = {"block_tokens": BLOCK, "shard_bytes": 20 * BLOCK, "reading": reading}
    manifest = encode_corpus(tokenizer, [corpus], out, workers=1, **options)
    assert manifest == read_manifest(out)
    Source("a", SourceConfig(str(out)), BLOCK).check_shards()
    for _, problems in verify_shards(open_store(str(out)), manifest, workers=1):
        assert problems == []
    sp = load_sentencepiece_model(tokenizer)
    decoded = [sp.decode(document) for document in documents_of(out, manifest)]
    assert sorted(decoded) == sorted(TEXTS)
    assert decoded != TEXTS  # shuffled
    assert len(manifest.shards) > 2
    assert manifest.documents == len(TEXTS)
    streams = task_streams(out, manifest)
    assert len(streams) == len(plan_tasks([str(corpus)], reading).tasks)
    assert len(streams) == 1 if task_bytes > 700 else len(streams) > 15
    assert manifest.tokens == sum(len(stream) - 1 for stream in streams)
    assert manifest.text_bytes == sum(len(text.encode()) for text in TEXTS)
    assert (manifest.vocab_size, manifest.dtype, manifest.bos_id, manifest.eos_id) == (350, "<u2", 1, 2)
    assert (manifest.tokenizer_sha256, manifest.skipped) == (tokenizer_sha256(tokenizer), {})
    assert not (out / "tasks").exists() and not (out / "problems.jsonl").exists()


def test_keys_are_unique_in_the_corpus_and_sort_as_it_does(tokenizer: Path, corpus: Path, tmp_path: Path) -> None:
    options = {"block_tokens": BLOCK, "shard_bytes": 4 * BLOCK, "reading": ReadOptions(task_bytes=2_000)}
    manifest = encode_corpus(tokenizer, [corpus], tmp_path / "out", workers=1, **options)
    keys = []
    for entry in manifest.shards:
        with tarfile.open(tmp_path / "out" / entry.name) as tar:
            keys += [member.name.partition(".")[0] for member in tar if member.name.endswith(".tok.npy")]
    assert keys == sorted(set(keys))
    assert {key[:6] for key in keys} == {f"{task:06d}" for task in range(7)}


def test_bytes_do_not_depend_on_the_workers_and_follow_the_seed(tokenizer: Path, corpus: Path, tmp_path: Path) -> None:
    def run(workers: int, seed: int = 0) -> dict[str, bytes]:
        out = tmp_path / f"{workers}-{seed}"
        options = {"block_tokens": BLOCK, "shard_bytes": 20 * BLOCK, "reading": ReadOptions(task_bytes=1_000)}
        encode_corpus(tokenizer, [corpus], out, workers=workers, seed=seed, **options)
        return files_of(out)

    one = run(1)
    assert len(one) > 25
    assert run(2) == one
    assert run(7) == one
    assert run(1, seed=1)["shard-000003.tar"] != one["shard-000003.tar"]


def test_an_array_gives_the_bytes_of_one_process_and_names_what_is_missing(
    tokenizer: Path, corpus: Path, tmp_path: Path
) -> None:
    common = ["--tokenizer", str(tokenizer), "--input", str(corpus), "--task-megabytes", "0.001", "--workers", "1"]

    def run(out: str, *arguments: str) -> Result:
        return CliRunner().invoke(cli, ["encode", *common, "--output", str(tmp_path / out), *arguments])

    assert run("whole").exit_code == 0
    planned = run("array", "--plan")
    assert "14, numbered 0 to 13" in planned.output
    assert len((tmp_path / "array/tasks/plan.jsonl").read_text().splitlines()) == 14
    for task in (3, 0, 1):
        done = run("array", "--task-id", str(task), "--num-tasks", "4")
        assert done.exit_code == 0
    assert "3 tasks, here or elsewhere" in done.output
    early = run("array", "--merge")
    assert isinstance(early.exception, DataError) and early.exception.exit_code == 2
    assert "3 of 14 tasks are not encoded: 2, 6, 10" in str(early.exception)
    assert not (tmp_path / "array" / "manifest.json").exists()
    for task in (2, 6):
        assert run("array", "--task-id", str(task)).exit_code == 0
    assert "0 tasks, here or elsewhere" in run("array", "--task-id", "10", "--num-tasks", "14").output
    assert run("array", "--merge").exit_code == 0
    assert files_of(tmp_path / "array") == files_of(tmp_path / "whole")


def test_a_large_vocabulary_is_stored_in_four_bytes(tokenizer: Path, corpus: Path, tmp_path: Path) -> None:
    encoding = replace(make_encoding(tokenizer, EncodeOptions()), vocab_size=70_000)
    run = EncodeRun(encoding, [corpus], tmp_path / "out")
    sp = load_sentencepiece_model(tokenizer)
    counter = TaskCounter(SharedCounts(1), 0, 0)

    def encode(text: str) -> np.ndarray:
        return np.array(sp.encode(text), np.int32) + 66_000

    encode_task.encode_task(run.plan.tasks[0], run.encoding, TextEncoder(sp, "shifted", "", encode), run.work, counter)
    manifest = run.merge()
    assert manifest.dtype == "<u4"
    documents = documents_of(tmp_path / "out", manifest)
    assert sorted(sp.decode([token - 66_000 for token in document]) for document in documents) == sorted(TEXTS)


def test_bad_documents_are_left_out_counted_and_limited(tokenizer: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a.jsonl").write_bytes(
        b'{"text": "good one"}\n{"text": "bad \\ud800"}\n{"txt": 1}\n{"text": "caf\xe9"}\nxx\n'
    )
    (tree / "image.png").write_bytes(b"\0\1")
    (tree / "more.zip").write_bytes(b"x")
    (tree / "empty.py").touch()
    (tree / "good.py").write_text("good two")
    expected = {
        "binary file": 1,
        "broken JSON": 1,
        "compressed or archive": 1,
        "empty": 1,
        "invalid UTF-8": 1,
        "lone surrogate": 1,
        "no text field": 1,
    }
    for workers in (1, 2):
        out = tmp_path / f"out{workers}"
        manifest = encode_corpus(tokenizer, [tree], out, workers=workers, max_bad_documents=4)
        assert manifest.skipped == expected
        assert manifest.documents == 2
    with pytest.raises(DataError, match="more than max_bad_documents=3") as caught:
        encode_corpus(tokenizer, [tree], tmp_path / "out", workers=1, max_bad_documents=3)
    for place in ("a.jsonl:2: lone surrogate", "a.jsonl:3: no text", "a.jsonl:4: invalid UTF-8", "a.jsonl:5: broken"):
        assert place in str(caught.value)
    assert "image.png" not in str(caught.value)
    assert not (tmp_path / "out" / "manifest.json").exists()


def bad_only(folder: Path) -> dict[str, object]:
    (folder / "bad.jsonl").write_text('{"text": 1}\n')
    return {"inputs": [folder / "bad.jsonl"]}


def complete_output(folder: Path) -> dict[str, object]:
    (folder / "out").mkdir()
    (folder / "out" / "manifest.json").write_text("anything")
    return {}


def file_output(folder: Path) -> dict[str, object]:
    (folder / "out").touch()
    return {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (bad_only, "no document of it can be used; left out: 1 text is not a string"),
        (complete_output, "holds an encoded corpus already"),
        (file_output, "this is a file"),
        (lambda folder: {"workers": 0}, "workers=0"),
        (lambda folder: {"seed": -1}, "seed=-1 is negative"),
        (lambda folder: {"block_tokens": 0}, "block_tokens=0 is less than 1"),
        (lambda folder: {"tokenizer": folder / "none.model"}, "no such tokenizer"),
        (lambda folder: {"inputs": [folder]}, "lies inside the input"),
        (lambda folder: {"inputs": [folder / "none"]}, "no such file or folder"),
    ],
)
def test_an_unusable_request_is_refused(
    tokenizer: Path, corpus: Path, tmp_path: Path, change: Callable[[Path], dict[str, object]], message: str
) -> None:
    arguments = {"tokenizer": tokenizer, "inputs": [corpus], "output": tmp_path / "out", "workers": 1}
    with pytest.raises(DataError, match=message):
        encode_corpus(**{**arguments, **change(tmp_path)})


def test_progress_ends_with_the_sums(tokenizer: Path, corpus: Path, tmp_path: Path) -> None:
    seen: list[EncodeProgress] = []
    options = {"reading": ReadOptions(task_bytes=2_000), "progress": seen.append}
    manifest = encode_corpus(tokenizer, [corpus], tmp_path / "out", workers=1, **options)
    total = EncodeProgress(len(TEXTS), manifest.text_bytes, manifest.tokens + 7, 0, 7, 7, 1.0)
    assert seen[-1] == total
    assert all(earlier <= later for a, b in itertools.pairwise(seen) for earlier, later in zip(a, b, strict=True))


def test_a_full_disk_is_an_error_without_a_traceback(
    tokenizer: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pretrain.shards.writer.os.fsync", full)
    with pytest.raises(PretrainError, match="No space left on device"):
        encode_corpus(tokenizer, [corpus], tmp_path / "out", workers=1)


def test_the_command_encodes_and_errors_propagate(tokenizer: Path, corpus: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.txt"
    more.write_text("more text")
    arguments = ["encode", "--tokenizer", str(tokenizer), "--input", str(corpus), str(more)]
    arguments += ["--output", str(tmp_path / "out"), "--workers", "1"]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    manifest = read_manifest(tmp_path / "out")
    assert manifest.documents == len(TEXTS) + 1
    assert f"{manifest.tokens:,}" in result.output
    assert str(tmp_path / "out") in result.output
    again = CliRunner().invoke(cli, arguments)
    assert again.exit_code == 0 and "encoded before, with these options" in again.output
    assert isinstance(CliRunner().invoke(cli, [*arguments, "--seed", "1"]).exception, DataError)
    assert CliRunner().invoke(cli, [*arguments, "--overwrite"]).exit_code == 0


def test_help_needs_no_heavy_import_and_encoding_no_torch_in_workers() -> None:
    code = (
        "import sys, click.testing, pretrain.cli.cmd_tokenizer as c;"
        "click.testing.CliRunner().invoke(c.tokenizer, ['encode', '--help']);"
        "assert not {'torch', 'numpy', 'sentencepiece', 'webdataset', 'rich'} & set(sys.modules);"
        "import tokenizer.encoding.run;"
        "assert not {'torch', 'sentencepiece', 'webdataset', 'rich', 'pyarrow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_members_are_what_the_manifest_says(tokenizer: Path, corpus: Path, tmp_path: Path) -> None:
    manifest = encode_corpus(tokenizer, [corpus], tmp_path / "out", workers=1, block_tokens=BLOCK)
    (entry,) = manifest.shards
    with tarfile.open(tmp_path / "out" / entry.name) as tar:
        assert len(tar.getmembers()) == 2 * entry.blocks


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--plan", "--merge"], "--plan and --merge are different steps"),
        (["--task-id", "0", "--merge"], "--task-id and --merge are different steps"),
        (["--num-tasks", "2"], "--num-tasks has no meaning without --task-id"),
        (["--task-id", "0", "--overwrite"], "run --plan --overwrite before"),
        (["--merge", "--overwrite"], "run --plan --overwrite before"),
        (["--task-id", "1"], "task_id=1: the plan has tasks 0 to 0"),
        (["--task-id", "2", "--num-tasks", "2"], "task_id=2 is not below num_tasks=2"),
        (["--merge"], "1 of 1 tasks are not encoded: 0"),
        (["--merge", "--deduplicate"], "1 of 1 tasks are not hashed for deduplication: 0"),
        (["--where", "nonsense"], "nonsense"),
    ],
)
def test_steps_that_make_no_sense_end_with_2(
    tokenizer: Path, corpus: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    paths = ["--tokenizer", str(tokenizer), "--input", str(corpus), "--output", str(tmp_path / "out")]
    done = CliRunner().invoke(cli, ["encode", *paths, *options])
    assert message in f"{done.output}{done.exception}"
    assert (done.exception.exit_code if isinstance(done.exception, DataError) else done.exit_code) == 2


def test_an_array_that_deduplicates_runs_twice(tokenizer: Path, corpus: Path, tmp_path: Path) -> None:
    inputs = [str(corpus), str(write_jsonl(tmp_path / "again.jsonl", TEXTS[:9]))]
    common = ["encode", "--tokenizer", str(tokenizer), "--input", *inputs, "--workers", "1", "--deduplicate"]

    def run(out: str, *arguments: str) -> str:
        result = CliRunner().invoke(cli, [*common, "--output", str(tmp_path / out), *arguments], catch_exceptions=False)
        assert result.exit_code == 0
        return result.output

    assert "left out: duplicate  9" in run("whole")
    assert "then --task-id again" in run("array", "--task-id", "0", "--num-tasks", "1")
    assert "Run all tasks again" in run("array", "--merge")
    assert "0 tasks" in run("array", "--task-id", "0", "--num-tasks", "1")
    run("array", "--merge")
    assert files_of(tmp_path / "array") == files_of(tmp_path / "whole")


def test_raising_the_limit_goes_on_with_what_is_finished(
    tokenizer: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad").mkdir()  # a folder: two files would share a task
    (tmp_path / "bad/bad.jsonl").write_text('{"text": 1}\n' * 3 + '{"text": "good"}\n')
    inputs = [corpus, tmp_path / "bad"]  # the larger task comes first
    with pytest.raises(DataError, match="more than max_bad_documents=2"):
        encode_corpus(tokenizer, inputs, tmp_path / "out", workers=1, max_bad_documents=2)
    kept = (tmp_path / "out/tasks/task-000000/receipt.json").stat().st_mtime_ns
    assert not (tmp_path / "out/tasks/task-000001").exists()
    found: list[int] = []
    real = encode_task.encode_task
    monkeypatch.setattr(
        encode_task, "encode_task", lambda task, *rest: (found.append(task.number), real(task, *rest))[1]
    )
    manifest = encode_corpus(tokenizer, inputs, tmp_path / "out", workers=1, max_bad_documents=3)
    assert found == [1] and kept
    assert manifest.skipped == {"text is not a string": 3}
    assert '"count": 3' in (tmp_path / "out/problems.jsonl").read_text()


def test_what_was_begun_with_other_options_is_refused_until_it_is_overwritten(
    tokenizer: Path, corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    EncodeRun(make_encoding(tokenizer, EncodeOptions()), [corpus], out).run_tasks([], workers=1)
    with pytest.raises(DataError, match=r"seed: 0, now 5(.|\n)*--overwrite"):
        encode_corpus(tokenizer, [corpus], out, workers=1, seed=5)
    with corpus.open("a") as file:
        file.write('{"text": "more"}\n')
    with pytest.raises(DataError, match='plan: "'):
        encode_corpus(tokenizer, [corpus], out, workers=1)
    assert encode_corpus(tokenizer, [corpus], out, workers=1, overwrite=True).documents == len(TEXTS) + 1


def test_a_receipt_that_is_gone_while_shards_are_moved_is_an_error(
    tokenizer: Path, corpus: Path, tmp_path: Path
) -> None:
    run = EncodeRun(
        make_encoding(tokenizer, EncodeOptions(reading=ReadOptions(task_bytes=2_000))), [corpus], tmp_path / "out"
    )
    run.run_tasks(run.plan.tasks, workers=1)
    run.work.start_merging()
    (tmp_path / "out/tasks/task-000003/receipt.json").unlink()
    with pytest.raises(DataError, match=r"1 receipts are missing or corrupt\n  hint: remove .*tasks"):
        run.merge()
    (tmp_path / "out/tasks/merging").unlink()
    run.run_tasks(run.plan.tasks, workers=1)
    (tmp_path / "out/tasks/task-000003/shard-000000.tar").rename(tmp_path / "elsewhere")
    run.work.start_merging()
    with pytest.raises(DataError, match=r"shard-000000\.tar and .* are both missing"):
        run.merge()
    assert not (tmp_path / "out/manifest.json").exists()
