"""A small tokenizer and a small corpus."""

from pathlib import Path

import pytest

from tests.support.encoded import TEXTS, write_jsonl
from tokenizer.training.train_bpe import train_model


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(train_model(TEXTS * 2, 350))
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "corpus.jsonl")
