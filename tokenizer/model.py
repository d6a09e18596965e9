"""Loading a SentencePiece model, and what this toolkit needs of one."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.errors import DataError

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

_BPE = 2  # SentencePiece's `TrainerSpec.ModelType`
_SPACE = "\u2581"
_TRAIN = "train one with `pretrain tokenizer train`"


def tokenizer_sha256(path: Path) -> str:
    """SHA-256 (hex) of a tokenizer.model file. Raises DataError if it cannot be read."""
    return hashlib.sha256(_read(path)).hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such tokenizer", hint=_TRAIN) from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a folder", hint=f"name the file in it: {path / 'tokenizer.model'}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def load_tokenizer(tokenizer: Path | bytes) -> SentencePieceProcessor:
    """The SentencePiece model in a file, or in the bytes of one.

    Raises DataError unless it is one with byte_fallback (else unknown characters are lost), a bos id and an eos id
    (which mark the documents).
    """
    import sentencepiece

    proto, name = (tokenizer, "the tokenizer") if isinstance(tokenizer, bytes) else (_read(tokenizer), tokenizer)
    try:
        # An empty file is a valid empty message, and SentencePiece loads it.
        if not proto:
            raise RuntimeError("the file is empty")
        model = sentencepiece.SentencePieceProcessor(model_proto=proto)
        size = model.get_piece_size()
    except RuntimeError as error:
        raise DataError(f"{name}: not a SentencePiece model: {error}", hint=_TRAIN) from None
    if sum(model.is_byte(i) for i in range(size)) != 256:
        raise DataError(
            f"{name}: has no byte_fallback, so characters outside its vocabulary would be lost", hint=_TRAIN
        )
    for mark, token in (("bos", model.bos_id()), ("eos", model.eos_id())):
        if token < 0:
            raise DataError(f"{name}: has no {mark} id, which marks the documents in the shards", hint=_TRAIN)
    return model


def read_proto(model: SentencePieceProcessor) -> Any:
    """The `ModelProto` of a loaded model: what its own methods do not tell."""
    from sentencepiece import sentencepiece_model_pb2

    return sentencepiece_model_pb2.ModelProto.FromString(  # type: ignore[attr-defined]
        model.serialized_model_proto()
    )


def can_cut(model: SentencePieceProcessor) -> bool:
    """Whether `tokenizer.cutting.cut` keeps the ids of this model: see there."""
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
        if _SPACE in piece.piece.lstrip(_SPACE):
            return f"its piece {piece.piece!r} holds a space after another character"
    return ""
