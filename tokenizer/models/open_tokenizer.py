"""Open a tokenizer of either kind: a SentencePiece model or a Hugging Face tokenizer.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tokenizer.models.base import SENTENCEPIECE_MODEL, TOKENIZER_JSON, Tokenizer, read_tokenizer
from tokenizer.models.hf_json import hf_tokenizer
from tokenizer.models.sentencepiece import load_sentencepiece


def load_tokenizer(path: Path) -> Tokenizer:
    """Load the tokenizer in a file. Raises DataError, and UserError if the package `tokenizers` is missing."""
    return tokenizer_from_files(read_tokenizer(path), str(path))


def tokenizer_from_files(files: Mapping[str, bytes], where: str = "the tokenizer") -> Tokenizer:
    """The tokenizer in the files of `read_tokenizer`; `where` begins error messages. Raises as `load_tokenizer`."""
    if TOKENIZER_JSON in files:
        return hf_tokenizer(files, where)
    tokenizer: Tokenizer = load_sentencepiece(files[SENTENCEPIECE_MODEL], where)
    return tokenizer
