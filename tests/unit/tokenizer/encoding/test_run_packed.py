"""Encoding in the layout "packed"."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from pretrain.cli.cmd_tokenizer import tokenizer as cli
from pretrain.config.schema import SourceConfig
from pretrain.data.loader import split_targets
from pretrain.data.source import Source
from pretrain.errors import DataError
from pretrain.model.loss import IGNORE
from pretrain.shards import packed_writer as write_bins
from pretrain.shards.manifest_file import read_manifest
from tests.support.encoded import TEXTS, files_of, task_streams
from tests.support.processes import pretrain
from tokenizer.corpus.readers import ReadOptions
from tokenizer.encoding.run import encode_corpus
from tokenizer.models.sentencepiece import load_sentencepiece_model
from tokenizer.training.train_bpe import SETTINGS, train_model

BLOCK = 64


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


@pytest.mark.parametrize("task_bytes", [1 << 20, 2_000])
@pytest.mark.parametrize("seq_len", [16, 64])
def test_bins_hold_every_document_and_the_counts_are_those_of_training(
    tokenizer: Path, corpus: Path, tmp_path: Path, seq_len: int, task_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_bins, "WINDOW_TOKENS", 1_000)
    options = {"layout": "packed", "seq_len": seq_len, "block_tokens": BLOCK, "shard_bytes": 20 * BLOCK}
    options["reading"] = ReadOptions(task_bytes=task_bytes)
    manifest = encode_corpus(tokenizer, [corpus], tmp_path / "out", workers=1, **options)
    assert manifest == read_manifest(tmp_path / "out")
    assert (manifest.layout, manifest.packed_seq_len, manifest.pad_id) == ("packed", seq_len, 3)
    sp = load_sentencepiece_model(tokenizer)
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
        (["--layout", "packed"], "hint: --seq-len N, where N is data.seq_len of the training"),
        (["--seq-len", "1000"], "hint: --seq-len 2048, or another power of two"),
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
    (ids,) = map(np.array, task_streams(tmp_path / "out", manifest))
    assert rows["sequences"] == f"{len(ids) // 256:,} of 256"
    assert rows["filled"] == f"{(ids != 3).mean():.2%}, {(ids == 3).sum():,} padding"
    assert rows["documents cut"] == f"{manifest.documents_cut}, {manifest.documents_cut / len(TEXTS):.1%}"
