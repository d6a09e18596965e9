"""SentencePiece models: loading, the `ModelProto` behind a model, its merges, and whether texts can be split for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pretrain.errors import DataError
from tokenizer.models.base import SPACE_MARK, TRAIN_HINT, read_tokenizer_file

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]

# `ModelProto.SentencePiece.Type` and `TrainerSpec.ModelType` of sentencepiece_model.proto.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
BPE = 2


def load_sentencepiece_model(tokenizer: Path | bytes) -> SentencePieceProcessor:
    """`load_sentencepiece` from a path or from bytes."""
    if isinstance(tokenizer, bytes):
        return load_sentencepiece(tokenizer, "the tokenizer")
    return load_sentencepiece(read_tokenizer_file(tokenizer), str(tokenizer))


def load_sentencepiece(data: bytes, where: str) -> SentencePieceProcessor:
    """Load the content of a tokenizer.model; `where` begins error messages.

    Raises DataError unless the model has byte_fallback (without it unknown characters are lost) and bos and eos ids (they
    delimit documents).
    """
    import sentencepiece

    try:
        # SentencePiece loads an empty file without complaint: it is a valid empty protobuf message.
        if not data:
            raise RuntimeError("the file is empty")
        model = sentencepiece.SentencePieceProcessor(model_proto=data)
        size = model.get_piece_size()
    except RuntimeError as error:
        raise DataError(f"{where}: not a SentencePiece model: {error}", hint=TRAIN_HINT) from None
    if sum(model.is_byte(i) for i in range(size)) != 256:
        raise DataError(
            f"{where}: has no byte_fallback, so characters outside its vocabulary would be lost", hint=TRAIN_HINT
        )
    for name, token in (("bos", model.bos_id()), ("eos", model.eos_id())):
        if token < 0:
            raise DataError(f"{where}: has no {name} id, which delimits documents in the shards", hint=TRAIN_HINT)
    return model


def read_proto(path: Path) -> ModelProto:
    """The `ModelProto` in a file, of any SentencePiece model. Raises DataError."""
    return parse_proto(read_tokenizer_file(path), str(path))


def proto_of(model: SentencePieceProcessor) -> ModelProto:
    """The `ModelProto` of a loaded model: settings and scores that the processor does not expose."""
    return parse_proto(model.serialized_model_proto(), "the tokenizer")


def parse_proto(data: bytes, where: str) -> ModelProto:
    """Parse a `ModelProto`; `where` begins error messages. Raises DataError if `data` is not one or has no pieces."""
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    try:
        proto = sentencepiece_model_pb2.ModelProto.FromString(data)  # type: ignore[attr-defined]
    except DecodeError as error:
        raise DataError(f"{where}: not a SentencePiece model: {error}", hint=TRAIN_HINT) from None
    if not proto.pieces:
        raise DataError(f"{where}: not a SentencePiece model: it has no pieces", hint=TRAIN_HINT)
    return proto


def merges_from_scores(proto: ModelProto) -> list[tuple[str, str]]:
    """BPE merges (left, right), best first, equivalent to the scores of a SentencePiece BPE model.

    SentencePiece merges the pair whose *result* has the best score, the leftmost on a tie, whatever its two halves are; a
    merge list ranks the halves. So every way to split a piece into two pieces is listed, adjacent in rank: piece `abc`
    gives (a, bc) and (ab, c). Only normal pieces take part: `<0x0A>` in a text is six characters, never the byte.

    Source: Kudo & Richardson 2018, https://arxiv.org/abs/1808.06226.
    """
    normal = {piece.piece for piece in proto.pieces if piece.type == NORMAL}
    ranked = sorted((piece for piece in proto.pieces if piece.type == NORMAL), key=lambda piece: -piece.score)
    return [
        (text[:place], text[place:])
        for text in (piece.piece for piece in ranked)
        for place in range(1, len(text))
        if text[:place] in normal and text[place:] in normal
    ]


def why_not_split(proto: ModelProto) -> str:
    """Why splitting a text (`splitting.py`) may change the ids of this model; empty if it cannot.

    Besides a vocabulary without inner spaces, the model must be BPE (in a unigram model rounding decides between near-equal
    segmentations) and must keep spaces as they are: a dummy prefix would be added to each part, and a rule that maps another
    character to a space may create runs of spaces.
    """
    spec, normalizer = proto.trainer_spec, proto.normalizer_spec
    if spec.model_type != BPE:
        return "it is not a BPE model"
    if normalizer.precompiled_charsmap:
        return f"it normalizes text ({normalizer.name or 'unnamed rule'})"
    if normalizer.add_dummy_prefix or normalizer.remove_extra_whitespaces or not normalizer.escape_whitespaces:
        return "it adds, removes or does not mark spaces"
    if spec.treat_whitespace_as_suffix:
        return "its spaces end a word"
    for piece in proto.pieces:
        if SPACE_MARK in piece.piece.lstrip(SPACE_MARK):
            return f"its piece {piece.piece!r} has a space after another character"
    return ""
