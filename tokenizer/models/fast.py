"""The ids that SentencePiece gives, by the fastest way that is proved to give them. A tokenizer.json has one way.

1. The model's settings are read. What gigatoken cannot do by its construction is left to SentencePiece.
2. Normal pieces and bytes become a tokenizer.json in memory, with merges from the scores. Control symbols are not in it:
   spelt in a text they are plain characters, as they are to SentencePiece.
3. gigatoken and SentencePiece encode the probe texts. One difference, and SentencePiece does it.
4. SentencePiece goes word by word with a memory where cutting keeps the ids, else over whole texts.

gigatoken (https://github.com/marcelroed/gigatoken) is optional: docs/decisions/0008-gigatoken.md has what was measured.
"""

import json
import os
import re
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenizer.models.base import Tokenizer, is_tokenizer_json, load_tokenizer
from tokenizer.models.hf_json import HFTokenizer
from tokenizer.models.probe_texts import probe_texts
from tokenizer.models.sentencepiece import load_sentencepiece_model, read_proto, reason_not_to_cut
from tokenizer.models.splitting import words
from tokenizer.models.splitting_json import can_cut, cut_at_words

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

Encode = Callable[[str], np.ndarray]

# The releases with which tests/unit/tokenizer/models/test_fast.py passed. Another one may differ where no probe looks.
COMPARED = "0.10."
# Bytes of text after which gigatoken is loaded anew: it forgets no word by itself, and takes up to 13 bytes of memory for
# each byte of text (random words; natural text 1.5).
REMEMBERED_BYTES = 64 << 20
# Words whose ids the SentencePiece encoder remembers, some 300 bytes each, and the longest of them in characters.
REMEMBERED_WORDS = 1 << 18
LONGEST_REMEMBERED = 32

# SentencePiece's `ModelProto.SentencePiece.Type`.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_BYTE_LOOKALIKE = re.compile(r"<0x..>", re.DOTALL)


@dataclass(frozen=True)
class TextEncoder:
    """What encodes texts with one model in this process, on one thread. It is loaded in each process, not sent there."""

    model: Tokenizer
    name: str  # what does it, for a report
    note: str  # why nothing faster does; empty where nothing faster is known
    encode: Encode  # a text without lone surrogates -> int32 [tokens], no bos, no eos


def load_encoder(tokenizer: Path | bytes) -> TextEncoder:
    """The fastest encoder that gives the ids of SentencePiece for a tokenizer.model: its path, or its bytes.

    It takes about half a second for 32,000 pieces. For a tokenizer.json (a path) it is the package `tokenizers`, on one
    thread. Raises DataError as `load_sentencepiece_model`, and UserError where that package is missing.
    """
    if isinstance(tokenizer, Path) and is_tokenizer_json(tokenizer):
        # Else each process would start a thread for every core, for one text at a time.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        codec = load_tokenizer(tokenizer)
        assert isinstance(codec, HFTokenizer)
        name = f"tokenizers {version('tokenizers')}"
        if can_cut(codec):
            return TextEncoder(codec, name, "", _in_parts(codec))
        return TextEncoder(codec, f"{name}, whole texts", "cutting may change its ids", _whole(codec))
    model = load_sentencepiece_model(tokenizer)
    proto = read_proto(model)
    uncut = reason_not_to_cut(proto)
    if uncut:
        return TextEncoder(model, "SentencePiece, whole texts", f"cutting may change its ids: {uncut}", _whole(model))
    note = reason_against_gigatoken(proto)
    if not note:
        fast = GigatokenEncoder(proto)
        note = difference(fast, model, proto)
        if not note:
            return TextEncoder(model, f"gigatoken {version('gigatoken')}", "", fast)
    return TextEncoder(model, "SentencePiece, word by word", note, WordEncoder(model))


def reason_against_gigatoken(proto: Any) -> str:
    """Why gigatoken is not even tried for this `ModelProto`, which may be cut; empty where it is."""
    try:
        import gigatoken  # noqa: F401
    except ImportError as error:
        return f"gigatoken would be some 5 times as fast: {error}; pip install 'pretrain-toolkit[fast]'"
    if not version("gigatoken").startswith(COMPARED):
        return f"gigatoken {version('gigatoken')} is installed, and only {COMPARED}x was compared with SentencePiece"
    scores = Counter(piece.score for piece in proto.pieces if piece.type == _NORMAL)
    for piece in proto.pieces:
        if piece.type in (_USER_DEFINED, _UNUSED):
            return f"the model has a piece that is user-defined or unused: {piece.piece!r}"
        if piece.type == _NORMAL and scores[piece.score] > 1:
            return f"the piece {piece.piece!r} has the score of another, which leaves the order of merges open"
        if piece.type == _NORMAL and _BYTE_LOOKALIKE.fullmatch(piece.piece):
            return f"the piece {piece.piece!r} looks like a byte"
    return ""


def difference(encode: Encode, model: "SentencePieceProcessor", proto: Any) -> str:
    """The first probe text to which `encode` gives other ids than `model`, in words; empty where there is none."""
    normal = [piece.piece for piece in proto.pieces if piece.type == _NORMAL]
    symbols = [piece.piece for piece in proto.pieces if piece.type in (_UNKNOWN, _CONTROL)]
    bytes_ = [piece.piece for piece in proto.pieces if piece.type == _BYTE]
    for text in probe_texts(normal, [*symbols[:64], *bytes_[::16]]):
        if encode(text).tolist() != model.encode(text):
            return f"gigatoken gives other ids than SentencePiece for {text[:80]!r}"
    return ""


class GigatokenEncoder:
    """Encodes with gigatoken, in bounded memory."""

    def __init__(self, proto: Any) -> None:
        self._definition = tokenizer_json(proto)
        self._load()

    def _load(self) -> None:
        from gigatoken import Tokenizer

        self._tokenizer = Tokenizer.from_json(self._definition)
        self._seen = 0

    def __call__(self, text: str) -> np.ndarray:
        """int32 [tokens]."""
        # Bytes, since a str would keep its UTF-8 form as long as it lives. They are trusted: they must come from encode().
        data = text.encode()
        if self._seen and self._seen + len(data) > REMEMBERED_BYTES:
            self._load()
        self._seen += len(data)
        return self._tokenizer.encode(data).view(np.int32)


class WordEncoder(dict[str, bytes]):
    """Encodes with SentencePiece word by word, and remembers the words: their ids as the bytes of an int32 array."""

    def __init__(self, model: "SentencePieceProcessor") -> None:
        self._model = model

    def __missing__(self, word: str) -> bytes:
        ids = array("i", self._model.encode(word)).tobytes()
        if len(word) <= LONGEST_REMEMBERED:
            # Starting again costs less than never learning the words of the language that comes next.
            if len(self) >= REMEMBERED_WORDS:
                self.clear()
            self[word] = ids
        return ids

    def __call__(self, text: str) -> np.ndarray:
        """int32 [tokens]."""
        return np.frombuffer(b"".join(map(self.__getitem__, words(text))), np.int32)


def _whole(model: Tokenizer) -> Encode:
    return lambda text: np.array(model.encode(text), np.int32)


def _in_parts(codec: HFTokenizer) -> Encode:
    return lambda text: np.concatenate([np.array(codec.encode(part), np.int32) for part in cut_at_words(text)])


def tokenizer_json(proto: Any) -> str:
    """A BPE model with identity normalization as the tokenizer.json that gigatoken reads. Only texts can be encoded with it.

    Every way to make a piece is a merge, ranked by the piece's score: SentencePiece joins the pair whose *result* has the
    best score, the leftmost on a tie. Kudo & Richardson 2018, https://arxiv.org/abs/1808.06226.
    """
    normal = {piece.piece for piece in proto.pieces if piece.type == _NORMAL}
    ranked = sorted((piece for piece in proto.pieces if piece.type == _NORMAL), key=lambda piece: -piece.score)
    splits = chain.from_iterable(
        ((piece.piece[:cut], piece.piece[cut:]) for cut in range(1, len(piece.piece))) for piece in ranked
    )
    vocabulary = {piece.piece: token for token, piece in enumerate(proto.pieces) if piece.type in (_NORMAL, _BYTE)}
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
                "merges": [split for split in splits if split[0] in normal and split[1] in normal],
            },
        }
    )
