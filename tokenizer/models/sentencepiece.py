"""Loading a SentencePiece model, and what this toolkit needs of one."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizer.models.base import SPACE_MARK, load_sentencepiece, read_tokenizer_file

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

_BPE = 2  # SentencePiece's `TrainerSpec.ModelType`


def tokenizer_sha256(path: Path) -> str:
    """SHA-256 (hex) of a tokenizer file. Raises DataError if it cannot be read."""
    return hashlib.sha256(read_tokenizer_file(path)).hexdigest()


def load_sentencepiece_model(tokenizer: Path | bytes) -> SentencePieceProcessor:
    """The SentencePiece model in a file, or in the bytes of one.

    Raises DataError unless it is one with byte_fallback (else unknown characters are lost), a bos id and an eos id
    (which mark the documents).
    """
    if isinstance(tokenizer, bytes):
        return load_sentencepiece(tokenizer, "the tokenizer")
    return load_sentencepiece(read_tokenizer_file(tokenizer), str(tokenizer))


def read_proto(model: SentencePieceProcessor) -> Any:
    """The `ModelProto` of a loaded model: what its own methods do not tell."""
    from sentencepiece import sentencepiece_model_pb2

    return sentencepiece_model_pb2.ModelProto.FromString(  # type: ignore[attr-defined]
        model.serialized_model_proto()
    )


def can_cut(model: SentencePieceProcessor) -> bool:
    """Whether `tokenizer.models.splitting.cut` keeps the ids of this model: see there."""
    return not reason_not_to_cut(read_proto(model))


def reason_not_to_cut(proto: Any) -> str:
    """Why cutting may change the ids of the model of this `ModelProto`; empty where it cannot.

    Besides the vocabulary this asks for BPE (in a unigram model rounding decides between near-equal splits) and for
    spaces left as they are: a dummy prefix would be added to each part, and where a rule turns another character into
    a space, runs of spaces are not what they seem.
    """
    spec, spaces = proto.trainer_spec, proto.normalizer_spec
    if spec.model_type != _BPE:
        return "it is no BPE model"
    if spaces.precompiled_charsmap:
        return f"it normalizes text ({spaces.name or 'unnamed rule'})"
    if spaces.add_dummy_prefix or spaces.remove_extra_whitespaces or not spaces.escape_whitespaces:
        return "it adds, removes or keeps spaces in its own way"
    if spec.treat_whitespace_as_suffix:
        return "its spaces end a word"
    for piece in proto.pieces:
        if SPACE_MARK in piece.piece.lstrip(SPACE_MARK):
            return f"its piece {piece.piece!r} holds a space after another character"
    return ""
