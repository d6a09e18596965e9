"""A SentencePiece BPE model → the tokenizer files of a Hugging Face directory, id for id.

    1. read the model, and refuse one that `tokenizers` cannot express, with every reason
    2. merges from the scores: piece `abc` of score -7 becomes the merges (a, bc) and (ab, c) of one rank group
    3. normalizer: space → `▁`, nothing else. No pre-tokenizer: SentencePiece merges across words as well
    4. decoder: `▁` → space, byte pieces → bytes
    5. control symbols become added special tokens; a template puts `<s>` before each text

Control symbols in a text are the one place where the two libraries differ on purpose. SentencePiece never matches them:
the eight characters of a document's `</s> <s>` are ordinary pieces, so that a corpus cannot inject an end of text. In a
Hugging Face tokenizer they *are* matched, because chat templates render `<|im_start|>` as text and fine-tuning depends
on it. So: for every text that spells no control symbol both give the same ids; for untrusted text that may spell one,
`tokenizer(text, split_special_tokens=True)` gives SentencePiece's ids again. `proof.py` compares both ways.

The loader's class is PreTrainedTokenizerFast: transformers 5 rebuilds a LlamaTokenizer from its vocabulary, with other
ids. `tokenizer.model` lies beside the JSON for llama.cpp's converter.

Source: Sennrich et al. 2016, https://arxiv.org/abs/1508.07909; Kudo & Richardson 2018, https://arxiv.org/abs/1808.06226.
"""

import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.errors import DataError, UserError
from tokenizer.models.base import SPACE_MARK

if TYPE_CHECKING:
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]
    from tokenizers import Tokenizer

# SentencePiece's `ModelProto.SentencePiece.Type` and `TrainerSpec.ModelType`.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}


@dataclass(frozen=True)
class SpecialTokens:
    """Ids and spellings that config.json and tokenizer_config.json need; None where the tokenizer has no such token.

    In an exportable SentencePiece model all four are there and differ. A tokenizer.json has an eos at least.
    """

    unk: tuple[int, str] | None
    bos: tuple[int, str] | None
    eos: tuple[int, str]
    pad: tuple[int, str] | None


def read_model(path: Path) -> "ModelProto":
    """The `ModelProto` of a SentencePiece model file.

    Raises UserError without the optional packages, DataError where the file is none.
    """
    try:
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise UserError(
            f"export needs the package {error.name}", hint="pip install 'pretrain-toolkit[export]'"
        ) from error
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        model.ParseFromString(path.read_bytes())
    except (OSError, DecodeError) as error:
        raise DataError(f"cannot read the SentencePiece model {path}: {error}") from error
    if not model.pieces:
        raise DataError(f"{path} is no SentencePiece model: it holds no pieces")
    return model


def incompatibilities(model: "ModelProto") -> list[str]:
    """Everything that keeps `model` from an export with the same ids; empty when it can be exported."""
    return [*_trainer_reasons(model), *_normalizer_reasons(model), *_special_reasons(model), *_piece_reasons(model)]


def refuse_unless_exportable(model: "ModelProto", name: str) -> None:
    """Raise DataError with every reason of `incompatibilities`."""
    reasons = incompatibilities(model)
    if reasons:
        raise DataError(
            f"the tokenizer {name} cannot be exported id for id:\n" + "\n".join(f"  - {reason}" for reason in reasons),
            hint="`pretrain tokenizer train` makes models that can; this one's ids are fixed by the weights",
        )


def build_tokenizer(model: "ModelProto") -> "Tokenizer":
    """The `tokenizers.Tokenizer` that encodes as `model` does, and puts the bos token before each text."""
    try:
        from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
        from tokenizers.models import BPE
    except ImportError as error:
        raise UserError("export needs the package tokenizers", hint="pip install 'pretrain-toolkit[export]'") from error
    special = _named_tokens(model)
    vocabulary = {piece.piece: index for index, piece in enumerate(model.pieces)}
    tokenizer = Tokenizer(
        BPE(vocab=vocabulary, merges=merges_from_scores(model), unk_token=special["unk"][1], byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", SPACE_MARK)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(
        [AddedToken(piece.piece, normalized=False, special=True) for _, piece in _special_pieces(model)]
    )
    bos_id, bos = special["bos"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos}:0 $A:0", pair=f"{bos}:0 $A:0 {bos}:1 $B:1", special_tokens=[(bos, bos_id)]
    )
    return tokenizer


def merges_from_scores(model: "ModelProto") -> list[tuple[str, str]]:
    """Pairs of pieces in the order in which BPE joins them.

    SentencePiece joins the pair whose *result* has the best score, the leftmost on a tie, whatever its two halves are;
    a merge list ranks the halves. Every way to make a piece is therefore listed, next to each other. Only normal pieces
    take part: `<0x0A>` in a text is six characters, never the byte.
    """
    usable = {piece.piece for piece in model.pieces if piece.type == NORMAL}
    by_score = sorted((piece for piece in model.pieces if piece.type == NORMAL), key=lambda piece: -piece.score)
    merges: list[tuple[str, str]] = []
    for text in (piece.piece for piece in by_score):
        splits = ((text[:cut], text[cut:]) for cut in range(1, len(text)))
        merges.extend((left, right) for left, right in splits if left in usable and right in usable)
    return merges


def special_tokens(model: "ModelProto") -> SpecialTokens:
    """Ids and spellings of the four named special tokens of an exportable model."""
    return SpecialTokens(**_named_tokens(model))


def control_symbols(model: "ModelProto") -> list[str]:
    """Spellings of everything that is a token only by name, `<unk>` included, in the order of the ids."""
    return [piece.piece for _, piece in _special_pieces(model)]


def write_tokenizer(model_file: Path, folder: Path, *, max_tokens: int) -> SpecialTokens:
    """Write tokenizer.json, tokenizer_config.json, special_tokens_map.json and tokenizer.model into `folder`.

    `max_tokens` is the context length that `truncation=True` cuts to. Raises DataError as `refuse_unless_exportable`.
    """
    model = read_model(model_file)
    refuse_unless_exportable(model, str(model_file))
    build_tokenizer(model).save(str(folder / "tokenizer.json"))
    special = _named_tokens(model)
    names = {f"{name}_token": special[name][1] for name in ("bos", "eos", "unk", "pad")}
    added = {
        str(index): {
            "content": piece.piece,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for index, piece in _special_pieces(model)
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **names,
        "add_bos_token": True,
        "add_eos_token": False,
        "add_prefix_space": False,  # llama.cpp's converter puts a space before each text unless this is said
        "added_tokens_decoder": added,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_tokens,
    }
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "special_tokens_map.json", names)
    shutil.copyfile(model_file, folder / "tokenizer.model")
    return special_tokens(model)


def _named_tokens(model: "ModelProto") -> dict[str, tuple[int, str]]:
    spec = model.trainer_spec
    ids = {"unk": spec.unk_id, "bos": spec.bos_id, "eos": spec.eos_id, "pad": spec.pad_id}
    return {name: (token, model.pieces[token].piece) for name, token in ids.items()}


def _special_pieces(model: "ModelProto") -> list[tuple[int, Any]]:
    return [(index, piece) for index, piece in enumerate(model.pieces) if piece.type in (UNKNOWN, CONTROL)]


def _trainer_reasons(model: "ModelProto") -> list[str]:
    spec, reasons = model.trainer_spec, []
    if spec.model_type != 2:
        kind = MODEL_TYPES.get(spec.model_type, spec.model_type)
        reasons.append(f"model_type is {kind}, and only bpe has merges (unigram ids also differ between releases)")
    bytes_found = {piece.piece for piece in model.pieces if piece.type == BYTE}
    if not spec.byte_fallback or bytes_found != {f"<0x{byte:02X}>" for byte in range(256)}:
        reasons.append("byte_fallback is off or its 256 pieces are incomplete: unknown characters would be lost")
    if spec.treat_whitespace_as_suffix:
        reasons.append("treat_whitespace_as_suffix is on")
    return reasons


def _normalizer_reasons(model: "ModelProto") -> list[str]:
    spec, reasons = model.normalizer_spec, []
    if spec.precompiled_charsmap:
        reasons.append(f"normalization_rule_name={spec.name or 'unnamed'} rewrites characters (identity does not)")
    if model.denormalizer_spec.precompiled_charsmap:
        reasons.append("it has a denormalizer")
    if spec.add_dummy_prefix:
        reasons.append("add_dummy_prefix is on: a space is put before each text")
    if spec.remove_extra_whitespaces:
        reasons.append("remove_extra_whitespaces is on: runs of spaces would be lost")
    if not spec.escape_whitespaces:
        reasons.append("escape_whitespaces is off")
    return reasons


def _special_reasons(model: "ModelProto") -> list[str]:
    spec, reasons = model.trainer_spec, []
    named = {"unk_id": spec.unk_id, "bos_id": spec.bos_id, "eos_id": spec.eos_id, "pad_id": spec.pad_id}
    absent = [name for name, index in named.items() if not 0 <= index < len(model.pieces)]
    if absent:
        reasons.append(f"no {' and no '.join(absent)}: fine-tuning needs all four, and pad apart from eos")
    elif len(set(named.values())) < 4:
        reasons.append(f"special tokens share an id: {named}")
    short = [piece.piece for _, piece in _special_pieces(model) if len(piece.piece) < 2]
    if short:
        reasons.append(f"control symbols of one character, which a merge list cannot hide from texts: {short}")
    return reasons


def _piece_reasons(model: "ModelProto") -> list[str]:
    reasons = []
    for kind, label in (
        (USER_DEFINED, "user_defined_symbols, which are cut out of the text first"),
        (UNUSED, "unused pieces"),
    ):
        found = [piece.piece for piece in model.pieces if piece.type == kind]
        if found:
            reasons.append(f"it has {label}: {', '.join(map(repr, found[:5]))}{' …' if len(found) > 5 else ''}")
    normal = {piece.piece for piece in model.pieces if piece.type == NORMAL}
    # SentencePiece can join a character that is no piece of its own; a merge list can't.
    loose = sorted({char for piece in normal for char in piece if char not in normal})
    if loose:
        reasons.append(f"characters occur in pieces but are none: {loose[:5]}")
    scores = Counter(piece.score for piece in model.pieces if piece.type == NORMAL and len(piece.piece) > 1)
    if any(count > 1 for count in scores.values()):
        reasons.append("pieces share a score, so that their order of merging depends on the text")
    return reasons


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
