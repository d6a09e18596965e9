"""Compression of held-out text by a tokenizer, per source.

1. `SourceMeter.add` encodes a document and counts tokens, bytes, and characters that fell back to bytes.
2. `make_report` sums the sources, counts how the vocabulary is used, and round-trips the stress texts.
3. The report holds only numbers and strings and is deterministic; `as_json` serializes it, and
   `tokenizer.training.compression_page` draws it.
"""

from __future__ import annotations

import dataclasses
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pretrain.errors import DataError
from tokenizer.models.base import SPACE_MARK
from tokenizer.models.sentencepiece import BYTE, NORMAL, why_not_split
from tokenizer.models.splitting import split_at_spaces
from tokenizer.models.stress_texts import stress_texts
from tokenizer.training.inspect_sentencepiece import RoundTrip, SentencePieceModel, measure_round_trip

if TYPE_CHECKING:
    from collections.abc import Mapping

LISTED = 24  # pieces in each list
EXCERPT_CHARACTERS = 400
CURVE_POINTS = 160
CALL_CHARACTERS = 1 << 16  # per call of SentencePiece, whose cost grows faster than the length of its text
NEVER_USED_LISTED = 60
_SCRIPTS = {"CJK": "Han", "IDEOGRAPHIC": "Han"} | {
    **dict.fromkeys(("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "HALFWIDTH"), "Kana"),
    **dict.fromkeys(("FULLWIDTH", "MASCULINE", "FEMININE"), "Latin"),
    **dict.fromkeys(("MODIFIER", "MICRO", "MATHEMATICAL", "DOUBLE-STRUCK", "SCRIPT", "BLACK-LETTER"), "Other"),
}


@dataclass(frozen=True)
class SourceReport:
    """Counts over the held-out text of one source.

    `byte_tokens` encode `fallback_characters`, which have no piece. `unknown_tokens` are lost characters: 0 with byte
    fallback. `excerpt` is the beginning of one document: (piece, id).
    """

    name: str
    documents: int
    bytes: int
    characters: int
    tokens: int
    byte_tokens: int
    fallback_characters: int
    unknown_tokens: int
    excerpt: list[tuple[str, int]]

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes per token: higher is better, and comparable across vocabularies."""
        return self.bytes / self.tokens if self.tokens else 0.0

    @property
    def characters_per_token(self) -> float:
        """Characters per token."""
        return self.characters / self.tokens if self.tokens else 0.0

    @property
    def byte_share(self) -> float:
        """Share of the tokens that are bytes."""
        return self.byte_tokens / self.tokens if self.tokens else 0.0


@dataclass(frozen=True)
class VocabularyReport:
    """Use of the normal pieces (those that text can become) on all held-out text.

    `curve` has (rank, count) by descending count, at ranks evenly spaced on a logarithmic scale; `lengths` counts pieces by
    characters, `scripts` by the script of their letters; `never_used` lists the first unused pieces by id, which is the
    order in which they were learned.
    """

    pieces: int
    used: int
    curve: list[tuple[int, int]]
    lengths: dict[int, int]
    scripts: dict[str, int]
    most_frequent: list[tuple[str, int]]
    longest: list[tuple[str, int]]
    never_used: list[str]


@dataclass(frozen=True)
class TokenizerReport:
    """The complete report; `total` is the sum of `sources`, without an excerpt.

    `fallback` lists the characters that fell back to bytes most often: (character, count). `left_out` counts documents by
    reason. `trained_on` describes the training, if it is known.
    """

    model: str
    sha256: str
    vocab_size: int
    sources: list[SourceReport]
    total: SourceReport
    vocabulary: VocabularyReport
    fallback: list[tuple[str, int]]
    round_trip: RoundTrip
    left_out: dict[str, int]
    notes: list[str]
    trained_on: dict[str, object]

    def as_json(self) -> str:
        """The report as JSON, with the ratios computed."""
        tree = dataclasses.asdict(self)
        for source, entry in zip([*self.sources, self.total], [*tree["sources"], tree["total"]], strict=True):
            entry["bytes_per_token"] = source.bytes_per_token
            entry["characters_per_token"] = source.characters_per_token
            entry["byte_share"] = source.byte_share
        tree["round_trip"] = self.round_trip._asdict()
        return json.dumps(tree, indent=1, ensure_ascii=True) + "\n"


class SourceMeter:
    """Encodes the held-out documents of one source and counts; `use` int64 [pieces]."""

    def __init__(self, name: str, model: SentencePieceModel) -> None:
        self.name, self.model = name, model
        self.use = np.zeros(len(model.proto.pieces), np.int64)
        self.fallback: Counter[str] = Counter()
        self.documents = self.bytes = self.characters = 0
        self.excerpt: list[tuple[str, int]] = []
        self._can_split = not why_not_split(model.proto)
        self._byte_of_id = _byte_of_id(model)

    def add(self, text: str) -> None:
        """Count a document."""
        for part in split_at_spaces(text, CALL_CHARACTERS) if self._can_split else [text]:
            ids = np.array(self.model.processor.encode(part), np.int64)
            np.add.at(self.use, ids, 1)
            self.fallback.update(fallback_characters(self._byte_of_id[ids]))
        if not self.documents:
            ids = self.model.processor.encode(text[:EXCERPT_CHARACTERS])
            self.excerpt = [(self.model.proto.pieces[token].piece, token) for token in ids]
        self.documents += 1
        self.bytes += len(text.encode())
        self.characters += len(text)

    def result(self) -> SourceReport:
        """The counts so far."""
        return SourceReport(
            name=self.name,
            documents=self.documents,
            bytes=self.bytes,
            characters=self.characters,
            tokens=int(self.use.sum()),
            byte_tokens=int(self.use[self._byte_of_id >= 0].sum()),
            fallback_characters=self.fallback.total(),
            unknown_tokens=int(self.use[self.model.processor.unk_id()]),
            excerpt=self.excerpt,
        )


def measure_sources(model: SentencePieceModel, texts: Mapping[str, Iterable[str]]) -> list[SourceMeter]:
    """A meter for each source of `texts` (name: documents)."""
    meters = []
    for name, documents in texts.items():
        meter = SourceMeter(name, model)
        for text in documents:
            meter.add(text)
        meters.append(meter)
    return meters


def make_report(
    model: SentencePieceModel,
    meters: Sequence[SourceMeter],
    *,
    left_out: Mapping[str, int],
    notes: Sequence[str] = (),
    trained_on: Mapping[str, object] | None = None,
) -> TokenizerReport:
    """The report on what `meters` counted. Raises DataError if they counted no token."""
    use = np.sum([meter.use for meter in meters], axis=0)
    if not meters or not use.sum():
        raise DataError(
            "no held-out text to report on",
            hint="the sample took every document: give more text, or use `pretrain tokenizer report` on other text",
        )
    sources = [meter.result() for meter in meters]
    total = _total(sources)
    lost = f"{total.unknown_tokens:,} tokens are <unk>: their characters are lost."
    fallback = sum((meter.fallback for meter in meters), Counter())
    return TokenizerReport(
        model=str(model.path),
        sha256=model.sha256,
        vocab_size=len(model.proto.pieces),
        sources=sources,
        total=total,
        vocabulary=_vocabulary(model, use),
        # Ties by code point: a Counter's order depends on the order of the texts.
        fallback=sorted(fallback.items(), key=lambda item: (-item[1], item[0]))[:LISTED],
        round_trip=measure_round_trip(model, stress_texts(model.control_symbols)),
        left_out=dict(left_out),
        notes=[*notes, *([lost] if total.unknown_tokens else [])],
        trained_on=dict(trained_on or {}),
    )


def fallback_characters(byte_of_token: np.ndarray) -> list[str]:
    """The characters that were encoded as bytes. `byte_of_token` int [tokens]: the byte of a byte token, else -1."""
    places = np.flatnonzero(byte_of_token >= 0)
    if not len(places):
        return []
    # A run of byte tokens decodes on its own, since SentencePiece falls back by character.
    runs = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
    return list("".join(byte_of_token[run].astype(np.uint8).tobytes().decode("utf-8", "replace") for run in runs))


def script_of(piece: str) -> str:
    """The script of a piece's first letter; "space", "digit" or "sign" if it has no letter.

    The script is the first word of the letter's Unicode name, except for the few in `_SCRIPTS`.
    """
    text = piece.replace(SPACE_MARK, " ")
    letter = next((char for char in text if char.isalpha()), None)
    if letter is None:
        if text.isspace():
            return "space"
        return "digit" if any(char.isdigit() for char in text) else "sign"
    word = unicodedata.name(letter, "OTHER").split()[0]
    return _SCRIPTS.get(word, word.capitalize())


def write_report(report: TokenizerReport, path: Path) -> None:
    """Write report.json. Raises DataError if it cannot be written."""
    try:
        path.write_text(report.as_json(), encoding="ascii")
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from None


def _total(sources: Sequence[SourceReport]) -> SourceReport:
    counted = ("documents", "bytes", "characters", "tokens", "byte_tokens", "fallback_characters", "unknown_tokens")
    return SourceReport(
        "all", **{name: sum(getattr(source, name) for source in sources) for name in counted}, excerpt=[]
    )


def _vocabulary(model: SentencePieceModel, use: np.ndarray) -> VocabularyReport:
    """`use` int64 [pieces]: occurrences of each piece."""
    pieces = model.proto.pieces
    normal = [token for token, piece in enumerate(pieces) if piece.type == NORMAL]
    counts = {token: int(use[token]) for token in normal}
    used = sorted((token for token in normal if counts[token]), key=lambda token: (-counts[token], token))
    return VocabularyReport(
        pieces=len(normal),
        used=len(used),
        curve=_thinned([counts[token] for token in used]),
        lengths=dict(sorted(Counter(len(pieces[token].piece) for token in normal).items())),
        scripts=dict(Counter(script_of(pieces[token].piece) for token in normal).most_common()),
        most_frequent=[(pieces[token].piece, counts[token]) for token in used[:LISTED]],
        longest=[
            (pieces[token].piece, counts[token])
            for token in sorted(used, key=lambda token: (-len(pieces[token].piece), token))[:LISTED]
        ],
        never_used=[pieces[token].piece for token in normal if not counts[token]][:NEVER_USED_LISTED],
    )


def _thinned(counts: Sequence[int]) -> list[tuple[int, int]]:
    """(rank, count) at up to CURVE_POINTS log-spaced ranks, including the first and the last."""
    if not counts:
        return []
    ranks = np.unique(np.geomspace(1, len(counts), CURVE_POINTS).round().astype(int))
    return [(int(rank), counts[rank - 1]) for rank in ranks]


def _byte_of_id(model: SentencePieceModel) -> np.ndarray:
    """The byte of each byte piece, -1 for other pieces: int64 [pieces]."""
    bytes_ = {f"<0x{byte:02X}>": byte for byte in range(256)}
    return np.array([bytes_.get(p.piece, -1) if p.type == BYTE else -1 for p in model.proto.pieces], np.int64)
