"""Bytes of text per token id, for bits per byte on a corpus that has ids only."""

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

    from tokenizer.encoding.foreign.framing import FramingOptions
    from tokenizer.models.hf_json import HFTokenizer


def bytes_per_id(tokenizer: Path, framing: FramingOptions) -> np.ndarray:
    """UTF-8 bytes of text of each id of a tokenizer, int64 [tokens]; 0 for special tokens.

    Raises DataError if the tokenizer contradicts the options.
    """
    model: Any = load_tokenizer(tokenizer) if is_tokenizer_json(tokenizer) else load_sentencepiece_model(tokenizer)
    tokens = model.vocab_size()
    if tokens > framing.vocab_size:
        raise DataError(
            f"vocab_size={framing.vocab_size}, and {tokenizer} has {tokens} tokens", hint=f"--vocab-size {tokens}"
        )
    for name, given, own in (("eos", framing.eos_id, model.eos_id()), ("bos", framing.bos_id, model.bos_id())):
        if given is not None and given != own:
            raise DataError(
                f"{name}_id={given}, and {tokenizer} has {own if own >= 0 else 'none'}",
                hint=f"--{name}-id {own}" if own >= 0 else f"leave out --{name}-id",
            )
    size_of = _json_sizes(model) if is_tokenizer_json(tokenizer) else _sentencepiece_sizes(model)
    return np.array([size_of(token) for token in range(tokens)], np.int64)


def _sentencepiece_sizes(model: SentencePieceProcessor) -> Callable[[int], int]:
    def size(token: int) -> int:
        if model.is_byte(token):
            return 1
        silent = model.is_control(token) or model.is_unknown(token) or model.is_unused(token)
        return 0 if silent else len(model.id_to_piece(token).replace(SPACE_MARK, " ").encode())

    return size


def _json_sizes(model: HFTokenizer) -> Callable[[int], int]:
    added = model.backend.get_added_tokens_decoder()
    decoder = _decoder_types(model.tokenizer_json.get("decoder"))

    def size(token: int) -> int:
        spelling = model.backend.id_to_token(token)
        if spelling is None or token in model.special_tokens:
            return 0
        if token in added:
            return len(added[token].content.encode())
        if "ByteLevel" in decoder:  # byte-level BPE spells each byte as one character
            return len(spelling)
        is_byte = "ByteFallback" in decoder and len(spelling) == 6 and spelling.startswith("<0x")
        return 1 if is_byte else len(spelling.replace(SPACE_MARK, " ").encode())

    return size


def _decoder_types(decoder: Any) -> set[str]:
    """The types in a decoder, including those inside a Sequence."""
    if not isinstance(decoder, dict):
        return set()
    return {str(decoder.get("type"))}.union(*map(_decoder_types, decoder.get("decoders", ())))
