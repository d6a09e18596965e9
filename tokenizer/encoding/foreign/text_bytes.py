"""How many bytes of text each id stands for, so that a corpus of ids alone can be measured in bits per byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pretrain.errors import DataError
from tokenizer.models.base import SPACE_MARK, is_tokenizer_json
from tokenizer.models.open_tokenizer import load_tokenizer
from tokenizer.models.sentencepiece import load_sentencepiece_model

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

    from tokenizer.encoding.foreign.framing import Reading
    from tokenizer.models.hf_json import HFTokenizer


def bytes_of_ids(tokenizer: Path, reading: Reading) -> np.ndarray:
    """UTF-8 bytes of text that each id of a tokenizer stands for, int64 [tokens]; 0 for special tokens.

    Raises DataError where the tokenizer and the options contradict each other.
    """
    model: Any = load_tokenizer(tokenizer) if is_tokenizer_json(tokenizer) else load_sentencepiece_model(tokenizer)
    tokens = model.vocab_size()
    if tokens > reading.vocab_size:
        raise DataError(
            f"vocab_size={reading.vocab_size}, and {tokenizer} has {tokens} pieces", hint=f"--vocab-size {tokens}"
        )
    for name, given, own in (("eos", reading.eos_id, model.eos_id()), ("bos", reading.bos_id, model.bos_id())):
        if given is not None and given != own:
            raise DataError(
                f"{name}_id={given}, and {tokenizer} has {own if own >= 0 else 'none'}",
                hint=f"--{name}-id {own}" if own >= 0 else f"leave out --{name}-id",
            )
    size_of = _size_in_definition(model) if is_tokenizer_json(tokenizer) else _size_in_model(model)
    return np.array([size_of(token) for token in range(tokens)], np.int64)


def _size_in_model(model: SentencePieceProcessor) -> Callable[[int], int]:
    def size(token: int) -> int:
        if model.is_byte(token):
            return 1
        silent = model.is_control(token) or model.is_unknown(token) or model.is_unused(token)
        return 0 if silent else len(model.id_to_piece(token).replace(SPACE_MARK, " ").encode())

    return size


def _size_in_definition(codec: HFTokenizer) -> Callable[[int], int]:
    added = codec.backend.get_added_tokens_decoder()
    decoder = _types(codec.tokenizer_json.get("decoder"))

    def size(token: int) -> int:
        spelling = codec.backend.id_to_token(token)
        if spelling is None or token in codec.special_tokens:
            return 0
        if token in added:
            return len(added[token].content.encode())
        if "ByteLevel" in decoder:  # a character stands for each byte
            return len(spelling)
        is_byte = "ByteFallback" in decoder and len(spelling) == 6 and spelling.startswith("<0x")
        return 1 if is_byte else len(spelling.replace(SPACE_MARK, " ").encode())

    return size


def _types(decoder: Any) -> set[str]:
    """The types in a decoder, those of a sequence included."""
    if not isinstance(decoder, dict):
        return set()
    return {str(decoder.get("type"))}.union(*map(_types, decoder.get("decoders", ())))
