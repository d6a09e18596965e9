"""Loading a SentencePiece model, and what this toolkit needs of one."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from pretrain.errors import DataError

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

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


def load_tokenizer(path: Path) -> SentencePieceProcessor:
    """The SentencePiece model at `path`.

    Raises DataError unless it is one with byte_fallback (else unknown characters are lost), a bos id and an eos id
    (which mark the documents).
    """
    import sentencepiece

    proto = _read(path)
    try:
        # An empty file is a valid empty message, and SentencePiece loads it.
        if not proto:
            raise RuntimeError("the file is empty")
        model = sentencepiece.SentencePieceProcessor(model_proto=proto)
        size = model.get_piece_size()
    except RuntimeError as error:
        raise DataError(f"{path}: not a SentencePiece model: {error}", hint=_TRAIN) from None
    if sum(model.is_byte(i) for i in range(size)) != 256:
        raise DataError(
            f"{path}: has no byte_fallback, so characters outside its vocabulary would be lost", hint=_TRAIN
        )
    for name, token in (("bos", model.bos_id()), ("eos", model.eos_id())):
        if token < 0:
            raise DataError(f"{path}: has no {name} id, which marks the documents in the shards", hint=_TRAIN)
    return model


def can_cut(model: SentencePieceProcessor) -> bool:
    """Whether `tokenizer.cutting.cut` keeps the ids of this model: see there.

    Besides the vocabulary, this asks for BPE (its scores are ranks, whole numbers; in a unigram model rounding decides
    between near-equal splits) and for spaces left as they are (a dummy prefix would be added to each part).
    """
    probe = " a  b\n c "
    # Decoding takes a dummy prefix away again; in the pieces of a lone space it shows.
    if model.decode(model.encode(probe)) != probe or "".join(model.encode(" ", out_type=str)) != _SPACE:
        return False
    for token in range(model.get_piece_size()):
        if _SPACE in model.id_to_piece(token).lstrip(_SPACE) or not model.get_score(token).is_integer():
            return False
    return True
