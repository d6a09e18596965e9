"""The fastest encoder that provably gives the ids of SentencePiece. A tokenizer.json has only one encoder.

1. Read the model's settings. Models outside of gigatoken's design are encoded by SentencePiece.
2. Normal pieces and bytes become a tokenizer.json in memory, with merges from the scores. Control symbols are left out:
   spelled in a text they are plain characters, as for SentencePiece.
3. gigatoken and SentencePiece encode the probe texts. After a single difference, SentencePiece is used.
4. SentencePiece encodes word by word with a cache if splitting keeps the ids, else whole texts.

gigatoken (https://github.com/marcelroed/gigatoken) is optional; measurements are in docs/decisions/0008-gigatoken.md.
"""

import json
import os
import re
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tokenizer.models.base import Tokenizer, is_tokenizer_json
from tokenizer.models.hf_json import HFTokenizer
from tokenizer.models.open_tokenizer import load_tokenizer
from tokenizer.models.probe_texts import probe_texts
from tokenizer.models.round_trip import Losses, losses_of
from tokenizer.models.sentencepiece import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    load_sentencepiece_model,
    merges_from_scores,
    proto_of,
    why_not_split,
)
from tokenizer.models.splitting import split_words
from tokenizer.models.splitting_json import can_split, split_at_words

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]

Encode = Callable[[str], np.ndarray]

# tests/unit/tokenizer/models/test_fast.py passed with these. Another release may differ on texts that no probe covers.
TESTED_RELEASES = "0.10."
# gigatoken's word cache grows without limit, by up to 13 bytes a byte of text (random words; natural text 1.5), so it is
# reloaded after this many bytes.
GIGATOKEN_RELOAD_BYTES = 64 << 20
# Words in the cache of `WordEncoder`, about 300 bytes each, and the longest of them in characters.
CACHED_WORDS = 1 << 18
LONGEST_CACHED_WORD = 32

_BYTE_LOOKALIKE = re.compile(r"<0x..>", re.DOTALL)


@dataclass(frozen=True)
class TextEncoder:
    """Encoder of one model, on one thread. Each process loads its own."""

    model: Tokenizer
    name: str  # for reports
    note: str  # why not a faster encoder; empty if there is none
    encode: Encode  # text without lone surrogates -> int32 [tokens], without bos and eos
    losses: Losses | None = None  # None: no text loses anything


def load_encoder(tokenizer: Path | bytes) -> TextEncoder:
    """The fastest encoder with the ids of SentencePiece for a tokenizer.model (path or bytes).

    Loading takes about half a second for 32,000 pieces. A tokenizer.json (path only) is encoded by the package
    `tokenizers`, on one thread. Raises DataError as `load_sentencepiece_model`, and UserError if that package is missing.
    """
    if isinstance(tokenizer, Path) and is_tokenizer_json(tokenizer):
        # Otherwise each worker process starts a thread per core, though it encodes one text at a time.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        hf = load_tokenizer(tokenizer)
        assert isinstance(hf, HFTokenizer)
        name = f"tokenizers {version('tokenizers')}"
        if can_split(hf):
            return TextEncoder(hf, name, "", _encode_in_parts(hf), losses_of(hf))
        note = "splitting may change its ids"
        return TextEncoder(hf, f"{name}, whole texts", note, _encode_whole(hf), losses_of(hf))
    model = load_sentencepiece_model(tokenizer)
    proto = proto_of(model)
    if reason := why_not_split(proto):
        note = f"splitting may change its ids: {reason}"
        return TextEncoder(model, "SentencePiece, whole texts", note, _encode_whole(model))
    note = why_not_gigatoken(proto)
    if not note:
        fast = GigatokenEncoder(proto)
        note = first_difference(fast, model, proto)
        if not note:
            return TextEncoder(model, f"gigatoken {version('gigatoken')}", "", fast)
    return TextEncoder(model, "SentencePiece, word by word", note, WordEncoder(model))


def why_not_gigatoken(proto: "ModelProto") -> str:
    """Why gigatoken is not tried for this model, whose texts can be split; empty if it is."""
    try:
        import gigatoken  # noqa: F401
    except ImportError as error:
        return f"gigatoken would be about 5 times as fast: {error}; pip install 'pretrain-toolkit[fast]'"
    if not version("gigatoken").startswith(TESTED_RELEASES):
        return f"gigatoken {version('gigatoken')} is installed; only {TESTED_RELEASES}x was compared with SentencePiece"
    scores = Counter(piece.score for piece in proto.pieces if piece.type == NORMAL)
    for piece in proto.pieces:
        if piece.type in (USER_DEFINED, UNUSED):
            return f"the model has a piece that is user-defined or unused: {piece.piece!r}"
        if piece.type == NORMAL and scores[piece.score] > 1:
            return f"the piece {piece.piece!r} shares its score with another, which makes the merge order ambiguous"
        if piece.type == NORMAL and _BYTE_LOOKALIKE.fullmatch(piece.piece):
            return f"the piece {piece.piece!r} looks like a byte"
    return ""


def first_difference(encode: Encode, model: "SentencePieceProcessor", proto: "ModelProto") -> str:
    """A sentence about the first probe text with different ids from `encode` and `model`; empty if there is none."""
    normal = [piece.piece for piece in proto.pieces if piece.type == NORMAL]
    symbols = [piece.piece for piece in proto.pieces if piece.type in (UNKNOWN, CONTROL)]
    bytes_ = [piece.piece for piece in proto.pieces if piece.type == BYTE]
    for text in probe_texts(normal, [*symbols[:64], *bytes_[::16]]):
        if encode(text).tolist() != model.encode(text):
            return f"gigatoken and SentencePiece give different ids for {text[:80]!r}"
    return ""


class GigatokenEncoder:
    """Encodes with gigatoken, in bounded memory."""

    def __init__(self, proto: "ModelProto") -> None:
        self._json = gigatoken_json(proto)
        self._load()

    def _load(self) -> None:
        from gigatoken import Tokenizer

        self._tokenizer = Tokenizer.from_json(self._json)
        self._seen_bytes = 0

    def __call__(self, text: str) -> np.ndarray:
        """int32 [tokens]."""
        # Pass bytes: a str would cache its UTF-8 form for its lifetime. gigatoken does not validate them as UTF-8.
        data = text.encode()
        if self._seen_bytes and self._seen_bytes + len(data) > GIGATOKEN_RELOAD_BYTES:
            self._load()
        self._seen_bytes += len(data)
        return self._tokenizer.encode(data).view(np.int32)


class WordEncoder(dict[str, bytes]):
    """Encodes with SentencePiece word by word; a cache from words to the bytes of their int32 ids."""

    def __init__(self, model: "SentencePieceProcessor") -> None:
        self._model = model

    def __missing__(self, word: str) -> bytes:
        ids = array("i", self._model.encode(word)).tobytes()
        if len(word) <= LONGEST_CACHED_WORD:
            # Clear when full: refilling costs less than never caching the words of the next language.
            if len(self) >= CACHED_WORDS:
                self.clear()
            self[word] = ids
        return ids

    def __call__(self, text: str) -> np.ndarray:
        """int32 [tokens]."""
        return np.frombuffer(b"".join(map(self.__getitem__, split_words(text))), np.int32)


def _encode_whole(model: Tokenizer) -> Encode:
    return lambda text: np.array(model.encode(text), np.int32)


def _encode_in_parts(tokenizer: HFTokenizer) -> Encode:
    return lambda text: np.concatenate([np.array(tokenizer.encode(part), np.int32) for part in split_at_words(text)])


def gigatoken_json(proto: "ModelProto") -> str:
    """The tokenizer.json that gigatoken reads, of a BPE model with identity normalization. For encoding only."""
    vocabulary = {piece.piece: token for token, piece in enumerate(proto.pieces) if piece.type in (NORMAL, BYTE)}
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
            "pre_tokenizer": None,
            "post_processor": None,
            "decoder": None,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": True,
                "ignore_merges": False,
                "vocab": vocabulary,
                "merges": merges_from_scores(proto),
            },
        }
    )
