"""A run with somebody else's tokenizer: shards, training, and what its checkpoints keep of the tokenizer."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from pretrain.checkpoint.checkpoint_reader import CheckpointReader, open_checkpoint
from pretrain.config import load_config
from pretrain.errors import ConfigError, DataError
from pretrain.shards.manifest_file import read_manifest
from pretrain.training.startup.preflight import open_data
from tests.support.encoded import TEXTS, write_jsonl
from tests.support.json_tokenizers import edit, qwen
from tests.support.processes import pretrain
from tests.support.runs import make_run
from tests.support.tokenizers import train_sentencepiece
from tokenizer.encoding.run import encode_corpus
from tokenizer.models.open_tokenizer import load_tokenizer

ROWS = 1_024  # more than any of the tokenizers has tokens


def trained(folder: Path, tokenizer: Path, *overrides: str) -> CheckpointReader:
    encode_corpus(tokenizer, [write_jsonl(folder / "corpus.jsonl", TEXTS * 4)], folder / "shards", workers=1)
    config = make_run(folder)
    sources = {"train": {"a": {"path": str(folder / "shards")}}, "valid": None, "tokenizer": str(tokenizer)}
    values = yaml.safe_load(config.read_text())
    values["data"] |= sources
    values["model"] |= {"vocab_size": ROWS}
    values["schedule"] |= {"total_steps": 3, "warmup_steps": 1}
    config.write_text(yaml.safe_dump(values))
    done = pretrain("train", config, *overrides)
    assert done.returncode == 0, done.stderr
    return open_checkpoint(folder / "run")


def test_a_checkpoint_keeps_the_tokenizer_with_what_lies_beside_it(tmp_path: Path) -> None:
    tokenizer = qwen(tmp_path / "theirs")
    template = tokenizer.with_name("chat_template.jinja")
    template.write_text("{{ messages[0].content }}")
    reader = trained(tmp_path, tokenizer, "data.document_mask=true")
    assert read_manifest(tmp_path / "shards").vocab_size == 905 < ROWS
    assert reader.tokenizer == reader.folder / "tokenizer.json"
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (reader.folder / name).read_bytes() == tokenizer.with_name(name).read_bytes()
    assert not (reader.folder / "special_tokens_map.json").exists()
    expected = load_tokenizer(tokenizer)
    shutil.rmtree(tokenizer.parent)
    found = load_tokenizer(reader.tokenizer)
    assert (found.bos_id(), found.eos_id(), found.encode("a <think>")) == (-1, 900, expected.encode("a <think>"))


def test_a_name_of_one_s_own_is_kept_as_tokenizer_json(tmp_path: Path) -> None:
    """`state.json` would be another file of the checkpoint."""
    tokenizer = qwen(tmp_path / "theirs").rename(tmp_path / "theirs" / "state.json")
    tokenizer.with_name("tokenizer_config.json").unlink()
    edit(tokenizer.with_name("config.json"), eos_token_id=900)
    reader = trained(tmp_path, tokenizer)
    assert reader.tokenizer is not None and reader.tokenizer.read_bytes() == tokenizer.read_bytes()
    assert load_tokenizer(reader.tokenizer).eos_id() == 900
    assert reader.state["step"] == 3


def test_a_sentencepiece_run_keeps_its_model_under_its_name(tmp_path: Path) -> None:
    model = train_sentencepiece(tmp_path / "mine.model", 500)
    reader = trained(tmp_path, model)
    assert reader.tokenizer == reader.folder / "tokenizer.model"
    assert reader.tokenizer.read_bytes() == model.read_bytes()
    names = {path.name for path in reader.folder.iterdir()}
    assert {name for name in names if "token" in name or "template" in name} == {"tokenizer.model"}


def opened(folder: Path, *overrides: str) -> Any:
    return open_data(load_config(folder / "config.yaml", overrides).config)


def test_a_source_of_more_tokens_than_rows_is_refused_and_of_fewer_is_not(tmp_path: Path) -> None:
    make_run(tmp_path)
    opened(tmp_path, "model.vocab_size=500")
    opened(tmp_path, "model.vocab_size=128")
    with pytest.raises(
        ConfigError, match=r"vocabulary of 128, and model.vocab_size is only 127\n.*vocab_size=128, or more"
    ):
        opened(tmp_path, "model.vocab_size=127")


def test_sources_that_end_documents_otherwise_are_refused_with_a_document_mask(tmp_path: Path) -> None:
    corpus = write_jsonl(tmp_path / "corpus.jsonl", TEXTS * 4)
    first, second = qwen(tmp_path / "a"), qwen(tmp_path / "b")
    edit(second.with_name("tokenizer_config.json"), eos_token="<|im_end|>")
    for tokenizer, name in ((first, "one"), (second, "two")):
        encode_corpus(tokenizer, [corpus], tmp_path / name, workers=1)
    make_run(tmp_path)
    paths = [f"data.train.a.path={tmp_path / 'one'}", f"data.train.c.path={tmp_path / 'two'}"]
    rest = [*paths, "data.valid=null", f"model.vocab_size={ROWS}", f"data.tokenizer={first}"]
    opened(tmp_path, *rest)
    with pytest.raises(DataError, match=r"source c .* ends documents with the id 902, and a .* with 900"):
        opened(tmp_path, *rest, "data.document_mask=true")
