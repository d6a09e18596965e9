"""The tokenizer interface, and the files of a tokenizer as bytes.

    tokenizer.model    SentencePiece; its processor already satisfies `Tokenizer`               -> sentencepiece.py
    tokenizer.json     Hugging Face, through the package `tokenizers`                           -> hf_json.py
      + tokenizer_config.json, special_tokens_map.json    name the bos and eos tokens
      + generation_config.json, config.json               used only if those two name no eos token

Files are data: nothing in them is executed, and a corrupt one raises DataError. A tokenizer is passed around as a mapping
of file name to bytes, so that a checkpoint can store it; if a tokenizer.json is among the files, it is the tokenizer.

A document is [bos] + ids + eos. Control symbols spelled in a text stay plain characters: a corpus cannot end a document.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pretrain.errors import DataError

SENTENCEPIECE_MODEL, TOKENIZER_JSON = "tokenizer.model", "tokenizer.json"
# Copied along with a tokenizer.json.
COMPANION_FILES = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
# Read only for the ids of special tokens.
FALLBACK_FILES = ("generation_config.json", "config.json")
SPACE_MARK = "▁"  # U+2581: a space inside a SentencePiece token, and in tokenizers derived from SentencePiece
LARGEST_BYTES = 256 << 20  # the largest tokenizer in use (262,000 tokens) has 33 MB
TRAIN_HINT = "train one with `pretrain tokenizer train`"


class Tokenizer(Protocol):
    """Interface of all tokenizers. The id of a special token is -1 if the tokenizer has none.

    `encode` adds no special tokens and rejects lone surrogates; `decode` skips special tokens. `bos_id` is the id that the
    tokenizer puts before each text, `eos_id` the one that ends a document. All ids are below `vocab_size`.
    """

    def encode(self, text: str) -> list[int]: ...  # noqa: D102
    def decode(self, ids: Sequence[int]) -> str: ...  # noqa: D102
    def bos_id(self) -> int: ...  # noqa: D102
    def eos_id(self) -> int: ...  # noqa: D102
    def pad_id(self) -> int: ...  # noqa: D102
    def vocab_size(self) -> int: ...  # noqa: D102


def is_tokenizer_json(path: Path) -> bool:
    """Whether the file name is that of a tokenizer.json, not of a SentencePiece model."""
    return path.suffix == ".json"


def read_tokenizer(path: Path) -> dict[str, bytes]:
    """All files of the tokenizer at `path`, under the names that a checkpoint stores them by.

    With a tokenizer.json come COMPANION_FILES; those of FALLBACK_FILES only as far as needed to find the eos token.
    Raises DataError if a file cannot be read.
    """
    if not is_tokenizer_json(path):
        return {SENTENCEPIECE_MODEL: read_tokenizer_file(path)}
    files = {TOKENIZER_JSON: read_tokenizer_file(path)}
    companions = [path.with_name(name) for name in COMPANION_FILES]
    files |= {file.name: read_tokenizer_file(file) for file in companions if file.is_file()}
    for name in FALLBACK_FILES:
        if special_token(files, "eos", str(path)) is None and path.with_name(name).is_file():
            files[name] = read_tokenizer_file(path.with_name(name))
    return files


def special_token(files: Mapping[str, bytes], name: str, where: str) -> str | int | None:
    """The spelling or id of the special token `name` ("bos", "eos", "pad", "unk"); the first file that has it wins.

    Raises DataError if the value is neither a spelling nor an id.
    """
    for file in (*COMPANION_FILES[:2], *FALLBACK_FILES):
        if file not in files:
            continue
        key = f"{name}_token" if file in COMPANION_FILES else f"{name}_token_id"
        value = read_object(files[file], f"{where}: {file}").get(key)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, list) and value:  # several eos tokens: the first ends a document
            value = value[0]
        if value is None or value == []:
            continue
        if type(value) is not (str if file in COMPANION_FILES else int):
            raise DataError(f"{where}: {file} has {key}={str(value)[:60]}, which is not a token")
        if isinstance(value, str) or value >= 0:
            return value
    return None


def read_object(data: bytes, where: str) -> dict[str, Any]:
    """Parse a JSON object. Raises DataError."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({type(error).__name__}: {str(error)[:200]})") from None
    if not isinstance(value, dict):
        raise DataError(f"{where}: not a JSON object")
    return value


def tokenizer_sha256(path: Path) -> str:
    """SHA-256 (hex) of a tokenizer file. Raises DataError if it cannot be read."""
    return hashlib.sha256(read_tokenizer_file(path)).hexdigest()


def read_tokenizer_file(path: Path) -> bytes:
    """The bytes of one file. Raises DataError if it cannot be read or is larger than LARGEST_BYTES."""
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_BYTES + 1)
    except FileNotFoundError:
        raise DataError(f"{path}: no such tokenizer", hint=TRAIN_HINT) from None
    except IsADirectoryError:
        found = [path / name for name in (SENTENCEPIECE_MODEL, TOKENIZER_JSON) if (path / name).is_file()]
        hint = f"name the file in it: {found[0]}" if found else f"it has no {SENTENCEPIECE_MODEL} or {TOKENIZER_JSON}"
        raise DataError(f"{path}: is a folder", hint=hint) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > LARGEST_BYTES:
        raise DataError(f"{path}: larger than {LARGEST_BYTES} bytes, the limit for a tokenizer file")
    return data
