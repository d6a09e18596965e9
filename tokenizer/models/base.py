"""Text to ids and back, by whichever tokenizer a run has.

    tokenizer.model    SentencePiece; its processor is a `Tokenizer` as it is
    tokenizer.json     Hugging Face, through the package `tokenizers`                           -> codec_json.py
      + tokenizer_config.json, special_tokens_map.json    which tokens begin and end a document
      + generation_config.json, config.json               the same, where those two do not say

What a file holds is data: nothing in it is run, and a broken one is a DataError. A tokenizer travels as a mapping of file
name to bytes, so that a checkpoint keeps it whatever becomes of the folder; one with a tokenizer.json is of that kind.

A document is [bos] + ids + eos. Control symbols that a text spells are plain characters: a corpus cannot end a document.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pretrain.errors import DataError

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

SENTENCEPIECE_MODEL, TOKENIZER_JSON = "tokenizer.model", "tokenizer.json"
# Beside a tokenizer.json. What is copied wherever it goes, and what is only asked for the ids of special tokens.
BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
FALLBACK = ("generation_config.json", "config.json")
SPACE_MARK = "▁"  # U+2581: how SentencePiece, and tokenizers made from it, spell a space in a token
LARGEST_BYTES = 256 << 20  # the largest in use, of 262,000 tokens, has 33 MB
_TRAIN = "train one with `pretrain tokenizer train`"


class Tokenizer(Protocol):
    """What is needed of a tokenizer. Ids of special tokens are -1 where there is none.

    `encode` adds no special tokens, and takes no lone surrogates; `decode` leaves special tokens out. `bos_id` is the id
    that the tokenizer puts before each text, and `eos_id` the one that ends a document. All ids are below `vocab_size`.
    """

    def encode(self, text: str) -> list[int]: ...  # noqa: D102
    def decode(self, ids: Sequence[int]) -> str: ...  # noqa: D102
    def bos_id(self) -> int: ...  # noqa: D102
    def eos_id(self) -> int: ...  # noqa: D102
    def pad_id(self) -> int: ...  # noqa: D102
    def vocab_size(self) -> int: ...  # noqa: D102


def is_tokenizer_json(path: Path) -> bool:
    """Whether a tokenizer file is a tokenizer.json, by its name, and not a SentencePiece model."""
    return path.suffix == ".json"


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a file. Raises DataError, and UserError where a package is missing."""
    return tokenizer_from_files(read_tokenizer(path), str(path))


def tokenizer_from_files(files: Mapping[str, bytes], where: str = "the tokenizer") -> Tokenizer:
    """The tokenizer of `read_tokenizer`; `where` opens the messages. Raises as `load_tokenizer`."""
    if TOKENIZER_JSON in files:
        from tokenizer.models.hf_json import hf_tokenizer

        return hf_tokenizer(files, where)
    codec: Tokenizer = load_sentencepiece(files[SENTENCEPIECE_MODEL], where)
    return codec


def read_tokenizer(path: Path) -> dict[str, bytes]:
    """The files of a tokenizer under the names that a checkpoint keeps them by: the given one, and what belongs to it.

    Beside a tokenizer.json these are BESIDE; those of FALLBACK only where it takes them to know the end of a document.
    Raises DataError for a file that cannot be read.
    """
    if not is_tokenizer_json(path):
        return {SENTENCEPIECE_MODEL: read_tokenizer_file(path)}
    files = {TOKENIZER_JSON: read_tokenizer_file(path)}
    files |= {name: read_tokenizer_file(path.with_name(name)) for name in BESIDE if path.with_name(name).is_file()}
    for name in FALLBACK:
        if special_token(files, "eos", str(path)) is None and path.with_name(name).is_file():
            files[name] = read_tokenizer_file(path.with_name(name))
    return files


def special_token(files: Mapping[str, bytes], name: str, where: str) -> str | int | None:
    """The spelling or the id of the token `name` ("bos", "eos", "pad", "unk"), as the first file says that names one.

    Raises DataError where that is neither.
    """
    for file in (*BESIDE[:2], *FALLBACK):
        if file not in files:
            continue
        key = f"{name}_token" if file in BESIDE else f"{name}_token_id"
        value = read_object(files[file], f"{where}: {file}").get(key)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, list) and value:  # several tokens end a text: the first is the end of a document
            value = value[0]
        if value is None or value == []:
            continue
        if type(value) is not (str if file in BESIDE else int):
            raise DataError(f"{where}: {file} has {key}={str(value)[:60]}, which is no token")
        if isinstance(value, str) or value >= 0:
            return value
    return None


def read_object(data: bytes, where: str) -> dict[str, Any]:
    """A JSON object. Raises DataError."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({type(error).__name__}: {str(error)[:200]})") from None
    if not isinstance(value, dict):
        raise DataError(f"{where}: not a JSON object")
    return value


def load_sentencepiece(data: bytes, where: str) -> SentencePieceProcessor:
    """The model in the bytes of a tokenizer.model.

    Raises DataError unless it is one with byte_fallback (else unknown characters are lost), a bos id and an eos id
    (which mark the documents).
    """
    import sentencepiece

    try:
        # An empty file is a valid empty message, and SentencePiece loads it.
        if not data:
            raise RuntimeError("the file is empty")
        model = sentencepiece.SentencePieceProcessor(model_proto=data)
        size = model.get_piece_size()
    except RuntimeError as error:
        raise DataError(f"{where}: not a SentencePiece model: {error}", hint=_TRAIN) from None
    if sum(model.is_byte(i) for i in range(size)) != 256:
        raise DataError(
            f"{where}: has no byte_fallback, so characters outside its vocabulary would be lost", hint=_TRAIN
        )
    for mark, token in (("bos", model.bos_id()), ("eos", model.eos_id())):
        if token < 0:
            raise DataError(f"{where}: has no {mark} id, which marks the documents in the shards", hint=_TRAIN)
    return model


def read_tokenizer_file(path: Path) -> bytes:
    """The bytes of one file. Raises DataError."""
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_BYTES + 1)
    except FileNotFoundError:
        raise DataError(f"{path}: no such tokenizer", hint=_TRAIN) from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a folder", hint=f"name the file in it: {path / SENTENCEPIECE_MODEL}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > LARGEST_BYTES:
        raise DataError(f"{path}: is longer than {LARGEST_BYTES} bytes, and no tokenizer is")
    return data
