"""Shards that a tokenizer.json made: ids, where documents begin and end, and what the commands say of such a file."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from tokenizers import AddedToken, Tokenizer, decoders, models

from pretrain.cli.main import cli
from pretrain.config.schema import SourceConfig
from pretrain.data.documents import mark_documents
from pretrain.data.source import Source
from pretrain.errors import DataError
from pretrain.shards.manifest_file import read_manifest
from tests.support.encoded import TEXTS, documents_of, files_of, write_jsonl
from tests.support.json_tokenizers import KINDS, edit
from tokenizer.corpus.readers import ReadOptions
from tokenizer.encoding.foreign.framing import FramingOptions
from tokenizer.encoding.foreign.text_bytes import bytes_per_id
from tokenizer.encoding.run import encode_corpus
from tokenizer.encoding.shuffle import ShuffleWindow
from tokenizer.models.base import tokenizer_sha256
from tokenizer.models.open_tokenizer import load_tokenizer
from tokenizer.models.round_trip import losses_of
from tokenizer.training.inspect_hf import open_tokenizer_json

BLOCK = 64


@pytest.fixture(scope="module", name="kinds")
def kinds_fixture(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("kinds")
    return {name: make(folder / name) for name, make in KINDS.items()}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "corpus.jsonl", [*TEXTS, "a <|endoftext|> in a text", "<|begin_of_text|></s>"])


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["tokenizer", *map(str, arguments)], catch_exceptions=False)


@pytest.mark.parametrize(
    ("name", "bos", "eos"), [("gpt2", 900, 900), ("llama3", 900, 901), ("qwen", 900, 900), ("llama2", 1, 2)]
)
def test_every_document_comes_back_from_the_shards(
    name: str, bos: int, eos: int, kinds: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"block_tokens": BLOCK, "shard_bytes": 20 * BLOCK}
    manifest = encode_corpus(kinds[name], [corpus], tmp_path / "out", workers=1, **options)
    assert manifest == read_manifest(tmp_path / "out")
    codec, texts = load_tokenizer(kinds[name]), [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
    # A control symbol in a text ends no document: there are as many as there were.
    assert sorted(documents_of(tmp_path / "out", manifest)) == sorted(map(codec.encode, texts))
    assert manifest.documents == len(texts) and manifest.vocab_size == codec.vocab_size()
    assert (manifest.bos_id, manifest.eos_id, manifest.tokenizer_sha256) == (bos, eos, tokenizer_sha256(kinds[name]))
    ids = sum(len(codec.encode(text)) + 1 + (bos != eos) for text in texts)
    assert manifest.tokens == ids - 1
    assert manifest.sentencepiece_version.startswith("tokenizers 0.")


def test_documents_are_marked_where_one_token_stands_between_them(
    kinds: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    manifest = encode_corpus(kinds["gpt2"], [corpus], tmp_path / "out", workers=1, block_tokens=BLOCK)
    source = Source("a", SourceConfig(str(tmp_path / "out")), BLOCK)
    tokens = np.empty((len(source), BLOCK + 1), np.int64)
    source.read(np.arange(len(source)), tokens)
    inputs_BT = torch.from_numpy(tokens[:, :-1])
    marks_BT = mark_documents(inputs_BT, manifest.eos_id)
    following = marks_BT[:, 1:] - marks_BT[:, :-1]
    assert (following == (inputs_BT[:, :-1] == 900)).all() and following.sum() > 20


@pytest.mark.parametrize("task_bytes", [1 << 20, 2_000])
def test_bytes_do_not_depend_on_the_workers(
    kinds: dict[str, Path], corpus: Path, tmp_path: Path, task_bytes: int
) -> None:
    reading, outputs = ReadOptions(task_bytes=task_bytes), []
    for workers in (1, 2, 3):
        encode_corpus(kinds["qwen"], [corpus], tmp_path / str(workers), workers=workers, reading=reading)
        outputs.append(files_of(tmp_path / str(workers)))
    assert outputs[0] == outputs[1] == outputs[2]


def test_packed_shards_need_a_padding_token_of_their_own(kinds: dict[str, Path], corpus: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"workers": 1, "layout": "packed", "seq_len": 32, "block_tokens": BLOCK}
    for name, message in (("gpt2", "has no padding id"), ("qwen", "pads with id 900, which also marks")):
        with pytest.raises(DataError, match=message):
            encode_corpus(kinds[name], [corpus], tmp_path / name, **options)
    tokenizer = Tokenizer.from_file(str(kinds["qwen"]))
    tokenizer.add_special_tokens([AddedToken("<|pad|>", normalized=False, special=True)])
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}')
    manifest = encode_corpus(path, [corpus], tmp_path / "out", **options)
    assert (manifest.pad_id, manifest.eos_id, manifest.bos_id, manifest.layout) == (905, 900, 900, "packed")
    codec, found = load_tokenizer(path), []
    source = Source("a", SourceConfig(str(tmp_path / "out")), 32)
    tokens = np.empty((len(source), 33), np.int64)
    source.read(np.arange(len(source)), tokens)
    for row in tokens[:, :-1].tolist():
        found += [token for token in row if token != 905]
    texts = [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
    assert sorted(found) == sorted(token for text in texts for token in (*codec.encode(text), 900))


def test_another_end_beside_the_same_file_is_another_encoding(
    kinds: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    for file in kinds["qwen"].parent.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "tokenizer.json"
    first = encode_corpus(path, [corpus], tmp_path / "a", workers=1)
    edit(tmp_path / "tokenizer_config.json", eos_token="<|im_end|>")
    second = encode_corpus(path, [corpus], tmp_path / "b", workers=1)
    assert (first.eos_id, second.eos_id) == (900, 902)
    assert first.tokenizer_sha256 == second.tokenizer_sha256


@pytest.mark.parametrize(("bos", "expected"), [(7, [7, 1, 2, 8]), (-1, [1, 2, 8])])
def test_a_document_is_framed_by_what_there_is(bos: int, expected: list[int]) -> None:
    window = ShuffleWindow(16, "<u2")
    window.add(bos, np.array([1, 2]), 8)
    window.add(bos, np.array([], np.int64), 8)
    ((ids, lengths),) = window.drain(0)
    documents = sorted(document.tolist() for document in np.split(ids, np.cumsum(lengths)[:-1]))
    assert documents == sorted([expected, [7, 8] if bos >= 0 else [8]])


@pytest.mark.parametrize("unknown", [None, "?"])
def test_documents_whose_characters_the_tokenizer_lacks_are_left_out_and_limited(
    unknown: str | None, tmp_path: Path
) -> None:
    vocabulary = {character: token for token, character in enumerate("abcdefghijklmnopqrstuvwxyz ")}
    codec = Tokenizer(models.BPE({**vocabulary, "?": 27}, [], unk_token=unknown))
    codec.decoder = decoders.Fuse()
    codec.add_special_tokens([AddedToken("</s>", special=True)])
    codec.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    corpus = write_jsonl(tmp_path / "corpus.jsonl", ["plain text", "caf\u00e9 \u2014", "more of it"])
    paths = ["--tokenizer", tmp_path / "tokenizer.json", "--input", corpus, "--output", tmp_path / "out"]
    result = run("encode", *paths, "--workers", 1)
    manifest = read_manifest(tmp_path / "out")
    assert manifest.skipped == {"lost by the tokenizer": 1}
    assert (manifest.documents, manifest.text_bytes) == (2, len("plain text" + "more of it"))
    assert "lost by the tokenizer" in result.stdout and result.stderr == ""
    assert "'caf\\\\xe9 \\\\u2014' comes back as 'caf" in (tmp_path / "out/problems.jsonl").read_text()
    with pytest.raises(DataError, match=r"max_bad_documents=0 documents cannot be used\n.*:2.*lost by the tokenizer"):
        run("encode", *paths, "--workers", 1, "--max-bad-documents", 0, "--overwrite")


def test_nothing_is_said_of_losses_where_nothing_is_lost(kinds: dict[str, Path], corpus: Path, tmp_path: Path) -> None:
    """A normalizer's own changes, which the weights are used to, are no loss."""
    for name in ("gpt2", "llama2", "qwen"):
        result = run(
            "encode", "--tokenizer", kinds[name], "--input", corpus, "--output", tmp_path / name, "--workers", 1
        )
        assert (result.exit_code, result.stderr) == (0, "") and "left out" not in result.stdout
        losses = losses_of(open_tokenizer_json(kinds[name]))
        assert losses is None  # so that no text has to be decoded


@pytest.mark.parametrize(
    ("name", "shown", "failed"),
    [
        ("gpt2", ["type BPE", "documents ids, 900", "normalizer none"], {"pad differs from eos"}),
        ("llama3", ["documents 900, ids, 901", "pre-tokenizer Split(", "ByteLevel("], {"pad differs from eos"}),
        (
            "qwen",
            [
                "of 1,023 stress texts change; the first: ",
                "normalizer NFC",
                "other added tokens <think> </think>",
                "special ids unk none bos none eos 900 pad 900",
            ],
            {"pad differs from eos", "lossless", "text as it is"},
        ),
        ("llama2", ["type BPE, byte fallback, fuse unk", "documents 1, ids, 2"], {"pad differs from eos"}),
    ],
)
def test_inspect_says_what_a_file_is(name: str, shown: list[str], failed: set[str], kinds: dict[str, Path]) -> None:
    result = run("inspect", kinds[name])
    assert result.exit_code == 0
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert all(any(part in line for line in lines) for part in shown), lines
    assert f"sha256 {tokenizer_sha256(kinds[name])}" in lines
    marked = {line[2:] for line in lines if line.startswith("✘")}
    assert {check for check in failed if not any(line.startswith(check) for line in marked)} == set()
    assert len(marked) == len(failed)


def test_inspect_shows_tokens_and_ids_of_a_text(kinds: dict[str, Path]) -> None:
    result = run("inspect", kinds["gpt2"], "def <|endoftext|>")
    ids = load_tokenizer(kinds["gpt2"]).encode("def <|endoftext|>")
    shown = result.stdout.splitlines()[-3]
    assert [int(word) for word in shown.split() if word.isdigit()] == ids
    assert f"{len(ids)} tokens, 17 bytes" in result.stdout


def test_what_a_file_ignores_of_its_own_is_said(kinds: dict[str, Path], tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(kinds["gpt2"]))
    tokenizer.enable_truncation(4)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    assert "ignored" in run("inspect", tmp_path / "tokenizer.json").stdout


def test_a_report_is_of_sentencepiece_models_only(kinds: dict[str, Path], corpus: Path) -> None:
    with pytest.raises(DataError, match=r"reports cover SentencePiece models only\n.*tokenizer inspect"):
        run("report", kinds["gpt2"], "--input", corpus)


@pytest.mark.parametrize(("name", "before"), [("gpt2", 0), ("llama3", 0), ("llama2", 1)])
def test_foreign_ids_are_measured_by_the_tokenizer_that_made_them(
    name: str, before: int, kinds: dict[str, Path]
) -> None:
    """`before` bytes of each text are the space that the tokenizer puts there."""
    codec = load_tokenizer(kinds[name])
    reading = FramingOptions(vocab_size=codec.vocab_size(), eos_id=codec.eos_id())
    sizes = bytes_per_id(kinds[name], reading)
    assert sizes.shape == (codec.vocab_size(),) and sizes[codec.eos_id()] == 0
    for text in TEXTS:
        assert sizes[codec.encode(text)].sum() == len(text.encode()) + before
    with pytest.raises(DataError, match=r"bos_id=5, and .* has (none|900|1)\n.*hint: "):
        bytes_per_id(kinds[name], replace(reading, bos_id=5))
