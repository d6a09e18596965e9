"""A SentencePiece BPE model → the tokenizer files of a Hugging Face directory, id for id.

    1. read the model; refuse one that `tokenizers` cannot express, listing every reason
    2. merges from the scores (`merges_from_scores`)
    3. normalizer: space → `▁`, nothing else. No pre-tokenizer: SentencePiece merges across words as well
    4. decoder: `▁` → space, byte pieces → bytes
    5. control symbols become added special tokens; a template puts `<s>` before each text

The two libraries differ on purpose in one case: control symbols spelled in a text. SentencePiece never matches them:
`</s> <s>` in a document is eight ordinary characters, so a corpus cannot inject an end of text. A Hugging Face tokenizer
*does* match them, because chat templates render `<|im_start|>` as text and fine-tuning depends on it. For texts that
spell no control symbol both give the same ids. For untrusted text, `tokenizer(text, split_special_tokens=True)` gives
SentencePiece's ids. `pretrain.convert.verify.token_ids` compares both ways.

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
from tokenizer.models.sentencepiece import (
    BPE,
    BYTE,
    CONTROL,
    MODEL_TYPES,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    merges_from_scores,
    read_proto,
)

if TYPE_CHECKING:
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class SpecialTokens:
    """(id, spelling) of the special tokens for config.json and tokenizer_config.json; None if there is no such token.

    An exportable SentencePiece model has all four, with different ids. A tokenizer.json has at least eos.
    """

    unk: tuple[int, str] | None
    bos: tuple[int, str] | None
    eos: tuple[int, str]
    pad: tuple[int, str] | None


def incompatibilities(model: "ModelProto") -> list[str]:
    """All reasons why `model` cannot be exported with the same ids; empty if it can be."""
    return [*_trainer_reasons(model), *_normalizer_reasons(model), *_special_reasons(model), *_piece_reasons(model)]


def refuse_unless_exportable(model: "ModelProto", name: str) -> None:
    """Raises DataError that lists `incompatibilities`, if there are any."""
    reasons = incompatibilities(model)
    if reasons:
        raise DataError(
            f"the tokenizer {name} cannot be exported id for id:\n" + "\n".join(f"  - {reason}" for reason in reasons),
            hint="models of `pretrain tokenizer train` can be; a trained model cannot change its tokenizer",
        )


def build_tokenizer(model: "ModelProto") -> "Tokenizer":
    """A `tokenizers.Tokenizer` that encodes as `model` does and puts the bos token before each text.

    Raises UserError if the package is missing.
    """
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


def special_tokens(model: "ModelProto") -> SpecialTokens:
    """The special tokens of an exportable model."""
    return SpecialTokens(**_named_tokens(model))


def control_symbols(model: "ModelProto") -> list[str]:
    """Spellings of the control symbols and `<unk>`, ordered by id."""
    return [piece.piece for _, piece in _special_pieces(model)]


def write_tokenizer(model_file: Path, folder: Path, *, max_tokens: int) -> SpecialTokens:
    """Write tokenizer.json, tokenizer_config.json, special_tokens_map.json and tokenizer.model into `folder`.

    `max_tokens` is the context length, to which `truncation=True` truncates. Raises as `refuse_unless_exportable`.
    """
    model = read_proto(model_file)
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
        # transformers 5 rebuilds a LlamaTokenizer from its vocabulary, with other ids.
        "tokenizer_class": "PreTrainedTokenizerFast",
        **names,
        "add_bos_token": True,
        "add_eos_token": False,
        "add_prefix_space": False,  # without this, llama.cpp's converter puts a space before each text
        "added_tokens_decoder": added,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_tokens,
    }
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "special_tokens_map.json", names)
    shutil.copyfile(model_file, folder / "tokenizer.model")  # for llama.cpp's converter
    return special_tokens(model)


def _named_tokens(model: "ModelProto") -> dict[str, tuple[int, str]]:
    spec = model.trainer_spec
    ids = {"unk": spec.unk_id, "bos": spec.bos_id, "eos": spec.eos_id, "pad": spec.pad_id}
    return {name: (token, model.pieces[token].piece) for name, token in ids.items()}


def _special_pieces(model: "ModelProto") -> list[tuple[int, Any]]:
    return [(index, piece) for index, piece in enumerate(model.pieces) if piece.type in (UNKNOWN, CONTROL)]


def _trainer_reasons(model: "ModelProto") -> list[str]:
    spec, reasons = model.trainer_spec, []
    if spec.model_type != BPE:
        kind = MODEL_TYPES.get(spec.model_type, spec.model_type)
        reasons.append(f"model_type is {kind}; only bpe has merges (unigram ids also differ between releases)")
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
        reasons.append("add_dummy_prefix is on: it puts a space before each text")
    if spec.remove_extra_whitespaces:
        reasons.append("remove_extra_whitespaces is on: it collapses runs of spaces")
    if not spec.escape_whitespaces:
        reasons.append("escape_whitespaces is off")
    return reasons


def _special_reasons(model: "ModelProto") -> list[str]:
    spec, reasons = model.trainer_spec, []
    named = {"unk_id": spec.unk_id, "bos_id": spec.bos_id, "eos_id": spec.eos_id, "pad_id": spec.pad_id}
    absent = [name for name, index in named.items() if not 0 <= index < len(model.pieces)]
    if absent:
        reasons.append(f"no {' and no '.join(absent)}: fine-tuning needs all four, and a pad that differs from eos")
    elif len(set(named.values())) < 4:
        reasons.append(f"special tokens share an id: {named}")
    short = [piece.piece for _, piece in _special_pieces(model) if len(piece.piece) < 2]
    if short:
        reasons.append(f"control symbols of one character, which a merge list would produce from text: {short}")
    return reasons


def _piece_reasons(model: "ModelProto") -> list[str]:
    reasons = []
    for kind, label in (
        (USER_DEFINED, "user_defined_symbols, which are matched before BPE"),
        (UNUSED, "unused pieces"),
    ):
        found = [piece.piece for piece in model.pieces if piece.type == kind]
        if found:
            reasons.append(f"it has {label}: {', '.join(map(repr, found[:5]))}{' …' if len(found) > 5 else ''}")
    normal = {piece.piece for piece in model.pieces if piece.type == NORMAL}
    # SentencePiece can merge a character that is not a piece; a merge list cannot.
    loose = sorted({char for piece in normal for char in piece if char not in normal})
    if loose:
        reasons.append(f"characters occur in pieces but are not pieces themselves: {loose[:5]}")
    scores = Counter(piece.score for piece in model.pieces if piece.type == NORMAL and len(piece.piece) > 1)
    if any(count > 1 for count in scores.values()):
        reasons.append("pieces share a score, so the merge order depends on the text")
    return reasons


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
