"""What a SentencePiece model is: how it was trained, what it is checked for, and how it cuts a text.

The settings are read from the model itself, so they are there for any model, whoever trained it. A check says what
follows from it, and why it failed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pretrain.errors import DataError
from tokenizer.models.base import SPACE_MARK, is_tokenizer_json
from tokenizer.models.sentencepiece import reason_not_to_cut, tokenizer_sha256

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]

# `ModelProto.SentencePiece.Type` and `TrainerSpec.ModelType` of sentencepiece_model.proto.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
KINDS = {1: "normal", 2: "unknown", 3: "control", 4: "user-defined", 5: "unused", 6: "byte"}
MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
# SentencePiece's own sign for a space: written in a text, it comes back as a space.
SHOWN = 10


class Checks(NamedTuple):
    """What `pretrain.convert` knows about tokenizers, and this package may not import: the command line joins them.

    `nasty_texts` gives strings on which tokenizers disagree, the control symbols that it is given among them;
    `export_reasons` gives all that keeps a model file from an export with the same ids.
    """

    nasty_texts: Callable[[Sequence[str]], list[str]]
    export_reasons: Callable[[Path], list[str]]


class Model(NamedTuple):
    """A model file, opened twice: as its own description, and as what encodes."""

    path: Path
    sha256: str
    proto: ModelProto
    processor: SentencePieceProcessor

    @property
    def control_symbols(self) -> list[str]:
        """Spellings of everything that is a token only by name, `<unk>` included, in the order of the ids."""
        return [piece.piece for piece in self.proto.pieces if piece.type in (UNKNOWN, CONTROL)]


class Check(NamedTuple):
    """One property: whether the model has it, and what that means or why it has not."""

    name: str
    passed: bool
    detail: str


class RoundTrip(NamedTuple):
    """decode(encode(text)) == text, of `texts` strings.

    `space_marks` of them hold U+2581 and come back with a space in its place; `failures` are (text, what came back).
    """

    texts: int
    space_marks: int
    failures: list[tuple[str, str]]


def open_model(path: Path) -> Model:
    """The model at `path`, even one that `tokenizer.models.sentencepiece.load_tokenizer` refuses.

    Raises DataError where the file cannot be read or is no SentencePiece model.
    """
    if is_tokenizer_json(path):
        raise DataError(
            f"{path}: this describes SentencePiece models",
            hint="`pretrain tokenizer inspect` takes a tokenizer.json too",
        )
    sha256 = tokenizer_sha256(path)
    from google.protobuf.message import DecodeError
    from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

    data = path.read_bytes()
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        proto.ParseFromString(data)
        if not proto.pieces:
            raise DataError(f"{path}: not a SentencePiece model: it holds no pieces")
        processor = SentencePieceProcessor(model_proto=data)
    except (DecodeError, RuntimeError) as error:
        raise DataError(f"{path}: not a SentencePiece model: {error}") from None
    return Model(path, sha256, proto, processor)


def facts(model: Model) -> dict[str, str]:
    """What the model was trained with, as its own file says; name to value, in the order to show."""
    spec, normalizer = model.proto.trainer_spec, model.proto.normalizer_spec
    kinds = {kind: sum(piece.type == kind for piece in model.proto.pieces) for kind in KINDS}
    named = {"unk": spec.unk_id, "bos": spec.bos_id, "eos": spec.eos_id, "pad": spec.pad_id}
    return {
        "sha256": model.sha256,
        "type": MODEL_TYPES.get(spec.model_type, str(spec.model_type)),
        "pieces": f"{len(model.proto.pieces):,}: "
        + ", ".join(f"{n:,} {KINDS[kind]}" for kind, n in kinds.items() if n),
        "special ids": "  ".join(f"{name} {token if token >= 0 else 'none'}" for name, token in named.items()),
        "control symbols": " ".join(visible(symbol) for symbol in model.control_symbols),
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


def run_checks(model: Model, checks: Checks) -> list[Check]:
    """All that this toolkit, and those who use its models later, need of a tokenizer."""
    spec, pieces = model.proto.trainer_spec, model.proto.pieces
    missing_bytes = 256 - sum(piece.type == BYTE for piece in pieces)
    rewriting = _rewriting(model)
    injectable = [piece.piece for piece in pieces if piece.type == USER_DEFINED]
    uncut = reason_not_to_cut(model.proto)
    trip = round_trip(model, checks.nasty_texts(model.control_symbols))
    reasons = checks.export_reasons(model.path)
    return [
        Check(
            "byte fallback",
            not missing_bytes,
            f"{missing_bytes} of 256 bytes have no piece: characters would be lost"
            if missing_bytes
            else "characters without a piece become their UTF-8 bytes",
        ),
        Check("text as it is", not rewriting, ", ".join(rewriting) or "no normalization, no added or removed spaces"),
        Check("lossless", not trip.failures, describe_round_trip(trip)),
        Check(
            "bos and eos",
            min(spec.bos_id, spec.eos_id) >= 0,
            f"bos {spec.bos_id}, eos {spec.eos_id}: they mark the documents in the shards",
        ),
        Check(
            "pad differs from eos",
            0 <= spec.pad_id != spec.eos_id,
            "there is no pad id" if spec.pad_id < 0 else f"pad {spec.pad_id}, eos {spec.eos_id}",
        ),
        Check(
            "text stays text",
            not injectable,
            "a text that spells one of these gets its id: " + " ".join(map(visible, injectable[:SHOWN]))
            if injectable
            else "a text that spells a control symbol stays text",
        ),
        Check(
            "words can be cut",
            not uncut,
            f"{visible(uncut)}: documents are encoded whole, which is slower"
            if uncut
            else "encoding word by word gives the same ids, and is fast",
        ),
        Check(
            "exports to Hugging Face",
            not reasons,
            "; ".join(map(visible, reasons)) or "tokenizer.json will have the same ids",
        ),
    ]


def round_trip(model: Model, texts: Sequence[str]) -> RoundTrip:
    """Encode and decode each of `texts`."""
    processor, failures, marks = model.processor, [], 0
    for text in texts:
        back = processor.decode(processor.encode(text))
        expected = text.replace(SPACE_MARK, " ")
        marks += back == expected != text
        if back != expected:
            failures.append((text, back))
    return RoundTrip(len(texts), marks, failures)


def describe_round_trip(trip: RoundTrip) -> str:
    """One sentence."""
    if trip.failures:
        text, back = trip.failures[0]
        return f"{len(trip.failures):,} of {trip.texts:,} texts come back changed, the first: {text!a} as {back!a}"
    marks = f", but for U+2581 as a space in {trip.space_marks:,}" if trip.space_marks else ""
    return f"{trip.texts:,} nasty texts come back as they were{marks}"


def pieces_of(model: Model, text: str) -> list[tuple[str, int]]:
    """Pieces of `text` as they are stored (`▁` for a space) and their ids, in order."""
    ids = model.processor.encode(text)
    return [(model.proto.pieces[token].piece, token) for token in ids]


def visible(text: str) -> str:
    """`text` with what does not print, or would reorder or recolour its surroundings, as an escape such as `\\n`."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _rewriting(model: Model) -> list[str]:
    spec = model.proto.normalizer_spec
    found = {
        f"normalization {visible(spec.name) or 'unnamed'} rewrites characters": bool(spec.precompiled_charsmap),
        "a space is put before each text": spec.add_dummy_prefix,
        "runs of spaces are shortened": spec.remove_extra_whitespaces,
        "spaces are not marked": not spec.escape_whitespaces,
        "it has a denormalizer": bool(model.proto.denormalizer_spec.precompiled_charsmap),
    }
    return [what for what, present in found.items() if present]


def _yes(value: bool) -> str:
    return "yes" if value else "no"
