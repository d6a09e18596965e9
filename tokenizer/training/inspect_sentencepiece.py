"""Inspection of a SentencePiece model: its training settings, checks, and the pieces of a text.

The settings are read from the model file, so any SentencePiece model can be inspected.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pretrain.errors import DataError
from tokenizer.models.base import SPACE_MARK, is_tokenizer_json, read_tokenizer_file
from tokenizer.models.sentencepiece import (
    BYTE,
    CONTROL,
    MODEL_TYPES,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    parse_proto,
    why_not_split,
)
from tokenizer.models.sentencepiece_to_hf import control_symbols, incompatibilities
from tokenizer.models.stress_texts import stress_texts

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]

KINDS = {
    NORMAL: "normal",
    UNKNOWN: "unknown",
    CONTROL: "control",
    USER_DEFINED: "user-defined",
    UNUSED: "unused",
    BYTE: "byte",
}
LISTED_TOKENS = 20


class SentencePieceModel(NamedTuple):
    """A model file: its `ModelProto` (settings, scores) and its processor (encoding)."""

    path: Path
    sha256: str
    proto: ModelProto
    processor: SentencePieceProcessor

    @property
    def control_symbols(self) -> list[str]:
        """Spellings of the control symbols and `<unk>`, ordered by id."""
        return control_symbols(self.proto)


class Check(NamedTuple):
    """One required property. `detail` says what it means, or why it is missing."""

    name: str
    passed: bool
    detail: str


class RoundTrip(NamedTuple):
    """decode(encode(text)) == text, for `texts` strings.

    `space_marks` counts strings that differ only by U+2581 decoded as a space; `failures` lists (text, decoded text).
    """

    texts: int
    space_marks: int
    failures: list[tuple[str, str]]


def open_model(path: Path) -> SentencePieceModel:
    """Open a model file, even one that `tokenizer.models.sentencepiece.load_sentencepiece_model` refuses.

    Raises DataError if the file cannot be read or is not a SentencePiece model.
    """
    from sentencepiece import SentencePieceProcessor

    if is_tokenizer_json(path):
        raise DataError(
            f"{path}: reports cover SentencePiece models only",
            hint=f"`pretrain tokenizer inspect {path}` takes a tokenizer.json",
        )
    data = read_tokenizer_file(path)
    proto = parse_proto(data, str(path))
    try:
        processor = SentencePieceProcessor(model_proto=data)
    except RuntimeError as error:
        raise DataError(f"{path}: not a SentencePiece model: {error}") from None
    return SentencePieceModel(path, hashlib.sha256(data).hexdigest(), proto, processor)


def facts(model: SentencePieceModel) -> dict[str, str]:
    """Training settings from the model file, by name, in display order."""
    spec, normalizer = model.proto.trainer_spec, model.proto.normalizer_spec
    kinds = {kind: sum(piece.type == kind for piece in model.proto.pieces) for kind in KINDS}
    named = {"unk": spec.unk_id, "bos": spec.bos_id, "eos": spec.eos_id, "pad": spec.pad_id}
    return {
        "sha256": model.sha256,
        "type": MODEL_TYPES.get(spec.model_type, str(spec.model_type)),
        "pieces": f"{len(model.proto.pieces):,}: "
        + ", ".join(f"{n:,} {KINDS[kind]}" for kind, n in kinds.items() if n),
        "special ids": "  ".join(f"{name} {token if token >= 0 else 'none'}" for name, token in named.items()),
        "control symbols": listed(model.control_symbols),
        "normalization": visible(normalizer.name) or "unnamed",
        "dummy prefix": _yes(normalizer.add_dummy_prefix),
        "extra spaces removed": _yes(normalizer.remove_extra_whitespaces),
        "byte fallback": _yes(spec.byte_fallback),
        "digits split": _yes(spec.split_digits),
        "split at spaces": _yes(spec.split_by_whitespace),
        "whitespace-only pieces": _yes(spec.allow_whitespace_only_pieces),
        "character coverage": f"{spec.character_coverage:g}",
        "longest piece": f"{spec.max_sentencepiece_length} characters",
        "longest sentence": f"{spec.max_sentence_length:,} bytes, longer ones were dropped",
    }


def run_checks(model: SentencePieceModel) -> list[Check]:
    """Check the properties that this toolkit and later users of its models need."""
    spec, pieces = model.proto.trainer_spec, model.proto.pieces
    missing_bytes = 256 - sum(piece.type == BYTE for piece in pieces)
    rewriting = _rewriting(model)
    user_defined = [piece.piece for piece in pieces if piece.type == USER_DEFINED]
    not_split = why_not_split(model.proto)
    trip = measure_round_trip(model, stress_texts(model.control_symbols))
    not_exportable = incompatibilities(model.proto)
    return [
        Check(
            "byte fallback",
            not missing_bytes,
            f"{missing_bytes} of 256 bytes have no piece: unknown characters would be lost"
            if missing_bytes
            else "characters without a piece become their UTF-8 bytes",
        ),
        Check("text as it is", not rewriting, ", ".join(rewriting) or "no normalization, no added or removed spaces"),
        Check("lossless", not trip.failures, describe_round_trip(trip)),
        Check(
            "bos and eos",
            min(spec.bos_id, spec.eos_id) >= 0,
            f"bos {spec.bos_id}, eos {spec.eos_id}: they delimit documents in the shards",
        ),
        Check(
            "pad differs from eos",
            0 <= spec.pad_id != spec.eos_id,
            "there is no pad id" if spec.pad_id < 0 else f"pad {spec.pad_id}, eos {spec.eos_id}",
        ),
        Check(
            "text stays text",
            not user_defined,
            "a text that spells one of these gets its id: " + listed(user_defined)
            if user_defined
            else "a text that spells a control symbol stays text",
        ),
        Check(
            "word by word",
            not not_split,
            f"{visible(not_split)}: whole documents are encoded in one call, which is slower"
            if not_split
            else "encoding word by word is fast and gives the same ids",
        ),
        Check(
            "exports to Hugging Face",
            not not_exportable,
            "; ".join(map(visible, not_exportable)) or "tokenizer.json will have the same ids",
        ),
    ]


def measure_round_trip(model: SentencePieceModel, texts: Sequence[str]) -> RoundTrip:
    """Encode and decode each of `texts`."""
    processor, failures, space_marks = model.processor, [], 0
    for text in texts:
        decoded = processor.decode(processor.encode(text))
        expected = text.replace(SPACE_MARK, " ")
        space_marks += decoded == expected != text
        if decoded != expected:
            failures.append((text, decoded))
    return RoundTrip(len(texts), space_marks, failures)


def describe_round_trip(trip: RoundTrip) -> str:
    """Describe the result in one sentence."""
    if trip.failures:
        text, decoded = trip.failures[0]
        return f"{len(trip.failures):,} of {trip.texts:,} stress texts change; the first: {text!a} becomes {decoded!a}"
    marks = f", except U+2581 as a space in {trip.space_marks:,}" if trip.space_marks else ""
    return f"{trip.texts:,} stress texts are restored exactly{marks}"


def pieces_of(model: SentencePieceModel, text: str) -> list[tuple[str, int]]:
    """(piece, id) of each token of `text`, with `▁` for a space."""
    ids = model.processor.encode(text)
    return [(model.proto.pieces[token].piece, token) for token in ids]


def visible(text: str) -> str:
    """Escape (as `\\n`) characters that do not print, or that would reorder or recolor a terminal's output."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def listed(spellings: list[str]) -> str:
    """The first LISTED_TOKENS, and how many there are if that is not all."""
    more = f" … {len(spellings):,} in all" if len(spellings) > LISTED_TOKENS else ""
    return " ".join(map(visible, spellings[:LISTED_TOKENS])) + more if spellings else "none"


def _rewriting(model: SentencePieceModel) -> list[str]:
    spec = model.proto.normalizer_spec
    found = {
        f"normalization {visible(spec.name) or 'unnamed'} rewrites characters": bool(spec.precompiled_charsmap),
        "it puts a space before each text": spec.add_dummy_prefix,
        "it collapses runs of spaces": spec.remove_extra_whitespaces,
        "it does not mark spaces": not spec.escape_whitespaces,
        "it has a denormalizer": bool(model.proto.denormalizer_spec.precompiled_charsmap),
    }
    return [description for description, present in found.items() if present]


def _yes(value: bool) -> str:
    return "yes" if value else "no"
