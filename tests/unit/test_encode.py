import json
import os
import random
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from pretrain.config.schema import SourceConfig
from pretrain.data.manifest import Manifest, read_manifest
from pretrain.data.shards import OFFSET, TOKENS, index_name
from pretrain.data.source import Source
from pretrain.data.stream import split_targets
from pretrain.errors import DataError, PretrainError
from pretrain.loss import IGNORE
from tests.support.processes import pretrain
from tokenizer import encode, encoder, write_bins
from tokenizer.cli import tokenizer as cli
from tokenizer.corpus import Document
from tokenizer.encode import Progress, encode_corpus
from tokenizer.encoder import Encoder
from tokenizer.model import load_tokenizer, tokenizer_sha256
from tokenizer.train import SETTINGS, train_model

BLOCK = 64
TEXTS = [
    "def f(x):\n\treturn  x  # <s> </s> <|im_start|>\r\n",
    "e\u0301 עברית 👩‍👩‍👧 漢字\u2028\u00a0",
    "   ",
    "\n",
    *(f"document {i}: " + " ".join(f"word{i * k % 97}" for k in range(i)) for i in range(60)),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(train_model(TEXTS * 2, 350))
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


def stream_of(folder: Path, manifest: Manifest) -> list[int]:
    """All ids in order, read by offset as the reader does."""
    ids: list[int] = []
    for entry in manifest.shards:
        data = (folder / entry.name).read_bytes()
        for row in np.load(folder / index_name(entry.name)):
            payload = data[row[OFFSET] : row[OFFSET] + row[TOKENS] * np.dtype(manifest.dtype).itemsize]
            block = np.frombuffer(payload, manifest.dtype).tolist()
            assert not ids or ids[-1] == block[0]
            ids += block[1:] if ids else block
    return ids


def documents_of(folder: Path, manifest: Manifest) -> list[list[int]]:
    """The stream split after each eos; bos and eos taken off."""
    documents: list[list[int]] = [[]]
    for token in stream_of(folder, manifest):
        documents[-1].append(token)
        if token == manifest.eos_id:
            documents.append([])
    assert documents.pop() == []
    assert all(document[0] == manifest.bos_id for document in documents)
    return [document[1:-1] for document in documents]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_every_document_comes_back_from_the_shards(tokenizer: Path, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "shards"
    manifest = encode_corpus(tokenizer, [corpus], out, workers=1, block_tokens=BLOCK, shard_bytes=20 * BLOCK)
    assert manifest == read_manifest(out)
    Source("a", SourceConfig(str(out)), BLOCK).check_shards()
    sp = load_tokenizer(tokenizer)
    decoded = [sp.decode(document) for document in documents_of(out, manifest)]
    assert sorted(decoded) == sorted(TEXTS)
    assert decoded != TEXTS  # shuffled
    assert len(manifest.shards) > 2
    assert manifest.documents == len(TEXTS)
    assert manifest.tokens == len(stream_of(out, manifest)) - 1
    assert manifest.text_bytes == sum(len(text.encode()) for text in TEXTS)
    assert (manifest.vocab_size, manifest.dtype, manifest.bos_id, manifest.eos_id) == (350, "<u2", 1, 2)
    assert (manifest.tokenizer_sha256, manifest.skipped) == (tokenizer_sha256(tokenizer), {})


def test_bytes_do_not_depend_on_the_workers_and_follow_the_seed(
    tokenizer: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "BATCH_BYTES", 500)  # many batches, so that order can go wrong

    def run(workers: int, seed: int = 0) -> dict[str, bytes]:
        out = tmp_path / f"{workers}-{seed}"
        encode_corpus(tokenizer, [corpus], out, workers=workers, seed=seed, block_tokens=BLOCK, shard_bytes=20 * BLOCK)
        return files_of(out)

    one = run(1)
    assert len(one) > 6
    assert run(2) == one
    assert run(3) == one
    assert run(1, seed=1)["shard-000000.tar"] != one["shard-000000.tar"]


def test_ids_are_those_of_sentencepiece(tokenizer: Path) -> None:
    encoding = Encoder(tokenizer, "text")
    assert encoding.cuttable
    generator = random.Random(0)
    alphabet = [" ", "  ", "\u2581", "\n", "\t", "word3", "document", ":", "漢", "<s>", "x" * 40]
    for _ in range(300):
        text = "".join(generator.choices(alphabet, k=30))
        assert encoding.encode_text(text) == encoding.model.encode(text)
    encoding.cuttable = False
    assert encoding.encode_text("a b") == encoding.model.encode("a b")


def test_the_memory_of_words_is_bounded(tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "REMEMBERED_WORDS", 5)
    encoding = Encoder(tokenizer, "text")
    text = "y" * 50 + " " + " ".join(f"w{i}" for i in range(50))
    assert encoding.encode_text(text) == encoding.model.encode(text)
    assert encoding._ids_of_word.keys() == {" w0", " w1", " w2", " w3", " w4"}


def test_a_large_vocabulary_is_stored_in_four_bytes(
    tokenizer: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Padded:
        """The model, with a vocabulary over 65,536."""

        def __init__(self, path: Path) -> None:
            self.inner = load_tokenizer(path)

        def __getattr__(self, name: str) -> object:
            return getattr(self.inner, name)

        def get_piece_size(self) -> int:
            return 70_000

        def encode(self, text: str) -> list[int]:
            return [token + 66_000 for token in self.inner.encode(text)]

    for module in (encode, encoder):
        monkeypatch.setattr(module, "load_tokenizer", Padded)
    monkeypatch.setattr(encoder, "can_cut", lambda model: True)
    manifest = encode_corpus(tokenizer, [corpus], tmp_path / "out", workers=1)
    assert manifest.dtype == "<u4"
    sp = load_tokenizer(tokenizer)
    documents = documents_of(tmp_path / "out", manifest)
    assert sorted(sp.decode([token - 66_000 for token in document]) for document in documents) == sorted(TEXTS)


def test_bad_documents_are_left_out_counted_and_limited(tokenizer: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a.jsonl").write_bytes(
        b'{"text": "good one"}\n{"text": "bad \\ud800"}\n{"txt": 1}\n{"text": "caf\xe9"}\nxx\n'
    )
    (tree / "image.png").write_bytes(b"\0\1")
    (tree / "more.tar").write_bytes(b"x")
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
        (bad_only, "no document of the corpus can be used; left out: 1 text is not a string"),
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


def test_progress_reports_each_batch(
    tokenizer: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "BATCH_BYTES", 1_000)
    seen: list[Progress] = []
    manifest = encode_corpus(tokenizer, [corpus], tmp_path / "out", workers=1, progress=seen.append)
    assert len(seen) > 3
    assert seen[-1] == Progress(len(TEXTS), len(TEXTS), manifest.text_bytes, manifest.tokens + 1)
    assert [progress.documents for progress in seen] == sorted({progress.documents for progress in seen})


def die_on_call(batch: list[Document]) -> None:
    os._exit(9)


def test_a_killed_worker_is_an_error_and_not_a_hang(
    tokenizer: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "_encode_in_worker", die_on_call)
    with pytest.raises(PretrainError, match="one of the 2 encoding processes died"):
        encode_corpus(tokenizer, [corpus], tmp_path / "out", workers=2)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_full_disk_is_an_error_without_a_traceback(
    tokenizer: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tokenizer.write_shards.os.fsync", full)
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
    assert isinstance(again.exception, DataError)
    assert CliRunner().invoke(cli, [*arguments, "--overwrite"]).exit_code == 0


def pieces_of(tokens: np.ndarray, eos: int, pad: int) -> list[tuple[int, ...]]:
    """Sequences (n, seq_len) cut after every eos, padding taken off."""
    pieces: list[list[int]] = []
    for row in tokens.tolist():
        pieces.append([])
        for token in row:
            pieces[-1] += [token] * (token != pad)
            if token == eos:
                pieces.append([])
    return sorted(tuple(piece) for piece in pieces if piece)


@pytest.mark.parametrize("seq_len", [16, 64])
def test_bins_hold_every_document_and_the_counts_are_those_of_training(
    tokenizer: Path, corpus: Path, tmp_path: Path, seq_len: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_bins, "WINDOW_TOKENS", 1_000)
    options = {"layout": "packed", "seq_len": seq_len, "block_tokens": BLOCK, "shard_bytes": 20 * BLOCK}
    manifest = encode_corpus(tokenizer, [corpus], tmp_path / "out", workers=1, **options)
    assert manifest == read_manifest(tmp_path / "out")
    assert (manifest.layout, manifest.packed_seq_len, manifest.pad_id) == ("packed", seq_len, 3)
    sp = load_tokenizer(tokenizer)
    documents = [[sp.bos_id(), *sp.encode(text), sp.eos_id()] for text in TEXTS]
    expected = [tuple(ids[i : i + seq_len]) for ids in documents for i in range(0, len(ids), seq_len)]
    source = Source("a", SourceConfig(str(tmp_path / "out")), seq_len)
    tokens = np.empty((len(source), seq_len + 1), np.int64)
    source.read(np.arange(len(source)), tokens)
    assert pieces_of(tokens[:, :-1], sp.eos_id(), sp.pad_id()) == sorted(expected)
    assert manifest.documents == len(TEXTS)
    assert manifest.documents_cut == sum(len(ids) > seq_len for ids in documents) > 0
    stage = split_targets([source])
    (item,) = stage(iter([{"tokens": tokens, "source": np.zeros(len(source), np.int64)}]))
    assert manifest.tokens == (item["targets"] != IGNORE).sum()
    assert source.bytes_per_token == sum(len(text.encode()) for text in TEXTS) / manifest.tokens


def test_packed_bytes_do_not_depend_on_the_workers(
    tokenizer: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "BATCH_BYTES", 500)
    monkeypatch.setattr(write_bins, "WINDOW_TOKENS", 700)
    outputs = []
    for workers in (1, 2):
        out = tmp_path / str(workers)
        encode_corpus(tokenizer, [corpus], out, workers=workers, layout="packed", seq_len=32, block_tokens=BLOCK)
        outputs.append(files_of(out))
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pad_id": -1}, "has no padding id"),
        ({"pad_id": -1, "pad_piece": "</s>"}, "pads with id 2, which also marks the documents"),
    ],
)
def test_a_tokenizer_that_cannot_pad_writes_streams_only(
    corpus: Path, tmp_path: Path, settings: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in settings.items():
        monkeypatch.setitem(SETTINGS, name, value)
    path = tmp_path / "tokenizer.model"
    path.write_bytes(train_model(TEXTS * 2, 350))
    with pytest.raises(DataError, match=message) as caught:
        encode_corpus(path, [corpus], tmp_path / "out", workers=1, layout="packed", seq_len=128)
    assert "--layout stream" in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert encode_corpus(path, [corpus], tmp_path / "out", workers=1).layout == "stream"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layout", "packed"], "hint: --seq-len with the data.seq_len of the training"),
        (["--seq-len", "128"], "hint: leave --seq-len out, or add --layout packed"),
        (["--layout", "packed", "--seq-len", "1000"], "hint: --seq-len 1024"),
        (["--layout", "packed", "--seq-len", "1"], "--seq-len"),
        (["--layout", "sorted"], "--layout"),
    ],
)
def test_layout_options_that_make_no_sense_end_with_2(
    tokenizer: Path, corpus: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    paths = ["--tokenizer", tokenizer, "--input", corpus, "--output", tmp_path / "out"]
    done = pretrain("tokenizer", "encode", *paths, *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_command_packs_and_says_how_well(tokenizer: Path, corpus: Path, tmp_path: Path) -> None:
    arguments = ["encode", "--tokenizer", str(tokenizer), "--input", str(corpus), "--output", str(tmp_path / "out")]
    arguments += ["--workers", "1", "--layout", "packed", "--seq-len", "256"]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    manifest = read_manifest(tmp_path / "out")
    rows = {line[:15].strip(): line[15:].strip() for line in result.output.splitlines()}
    ids = np.array(stream_of(tmp_path / "out", manifest))
    assert rows["sequences"] == f"{len(ids) // 256:,} of 256"
    assert rows["filled"] == f"{(ids != 3).mean():.2%}, {(ids == 3).sum():,} padding"
    assert rows["documents cut"] == f"{manifest.documents_cut}, {manifest.documents_cut / len(TEXTS):.1%}"


def test_help_needs_no_heavy_import_and_encoding_no_torch_in_workers() -> None:
    code = (
        "import sys, click.testing, tokenizer.cli as c;"
        "click.testing.CliRunner().invoke(c.tokenizer, ['encode', '--help']);"
        "assert not {'torch', 'numpy', 'sentencepiece', 'webdataset', 'rich'} & set(sys.modules);"
        "import tokenizer.encode; assert not {'torch', 'sentencepiece', 'webdataset'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_members_are_what_the_manifest_says(tokenizer: Path, corpus: Path, tmp_path: Path) -> None:
    manifest = encode_corpus(tokenizer, [corpus], tmp_path / "out", workers=1, block_tokens=BLOCK)
    (entry,) = manifest.shards
    with tarfile.open(tmp_path / "out" / entry.name) as tar:
        assert len(tar.getmembers()) == 2 * entry.blocks
