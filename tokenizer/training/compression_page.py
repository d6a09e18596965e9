"""A tokenizer report as one self-contained HTML file without scripts.

All text from the corpus or the model is escaped, and unprintable characters are shown as escapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

from pretrain.report.charts import Bar, bar_chart, column_chart, log_curve
from pretrain.report.page import document, figure, resource, table
from tokenizer.models.base import SPACE_MARK
from tokenizer.training.compression_report import SourceReport, TokenizerReport
from tokenizer.training.inspect_sentencepiece import describe_round_trip, visible

HUES = 6  # classes h0 to h5 of compression.css
FAILURES_SHOWN = 10
SCRIPTS_SHOWN = 12
_BYTE = re.compile("<0x([0-9A-F]{2})>")


def report_page(report: TokenizerReport) -> str:
    """The complete page. The same report gives the same bytes."""
    parts = [
        _heading(report),
        _sources(report),
        _vocabulary(report),
        _fallback(report),
        _round_trip(report),
        _excerpts(report.sources),
        _training(report),
    ]
    style = resource("tokenizer.training", "compression.css")
    return document("Tokenizer report", f"<main>{''.join(parts)}</main>", style=style)


def _heading(report: TokenizerReport) -> str:
    used = report.vocabulary
    trip = report.round_trip
    figures = {
        "pieces": f"{report.vocab_size:,}",
        "bytes per token": f"{report.total.bytes_per_token:.2f}",
        "of tokens are bytes": _percent(report.total.byte_share),
        "of the vocabulary used": _percent(used.used / used.pieces if used.pieces else 0.0),
        "stress texts round-trip": f"{trip.texts - len(trip.failures):,} of {trip.texts:,}"
        if trip.failures
        else f"all {trip.texts:,}",
    }
    cards = "".join(
        f'<div class="card figure"><b>{escape(value)}</b><span class="soft">{escape(name)}</span></div>'
        for name, value in figures.items()
    )
    return (
        f'<h1>Tokenizer report</h1><p class="soft path">{escape(visible(report.model))} · sha256 {report.sha256[:16]}…</p>'
        f'<div class="figures">{cards}</div>'
    )


def _sources(report: TokenizerReport) -> str:
    head = ("source", "bytes per token", "characters per token", "byte tokens", "tokens", "MB", "documents")
    rows = [_source_row(source) for source in report.sources]
    total = _source_row(report.total) if len(rows) > 1 else None
    length = [Bar(visible(s.name), s.bytes_per_token, f"{s.bytes_per_token:.2f}") for s in report.sources]
    bytes_ = [Bar(visible(s.name), s.byte_share, _percent(s.byte_share)) for s in report.sources]
    figures = figure(
        "Bytes per token",
        bar_chart(length, "bytes per token by source"),
        "More is better: shorter sequences. In UTF-8 a Latin letter takes one byte, a Cyrillic letter two, a Han character "
        "three, so compare within a script.",
    ) + figure(
        "Byte tokens",
        bar_chart(bytes_, "share of byte tokens by source"),
        "Share of tokens that are bytes of characters without a piece.",
    )
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in report.left_out.items())
    notes = [*report.notes, *([f"Left out: {left_out}."] if left_out else [])]
    return (
        f'<h2>Held-out text by source</h2><div class="card wide scroll">{table(head, rows, total)}</div>'
        f'<div class="charts">{figures}</div>'
        + "".join(f'<p class="soft">{escape(visible(note))}</p>' for note in notes)
    )


def _source_row(source: SourceReport) -> list[str]:
    return [
        visible(source.name),
        f"{source.bytes_per_token:.2f}",
        f"{source.characters_per_token:.2f}",
        _percent(source.byte_share),
        f"{source.tokens:,}",
        f"{source.bytes / 1e6:,.2f}",
        f"{source.documents:,}",
    ]


def _vocabulary(report: TokenizerReport) -> str:
    vocabulary = report.vocabulary
    never = vocabulary.pieces - vocabulary.used
    curve = log_curve(
        vocabulary.curve,
        vocabulary.pieces,
        "uses of pieces by rank",
        "pieces by rank",
        f"{never:,} never",
    )
    scripts = [Bar(name, count, f"{count:,}") for name, count in list(vocabulary.scripts.items())[:SCRIPTS_SHOWN]]
    if rest := list(vocabulary.scripts.values())[SCRIPTS_SHOWN:]:
        scripts.append(Bar(f"{len(rest)} other scripts", sum(rest), f"{sum(rest):,}"))
    lengths = column_chart(vocabulary.lengths, "pieces by length", "characters of a piece")
    unused = f"{never:,} of {vocabulary.pieces:,} pieces do not occur in the held-out text (shaded)."
    return (
        '<h2>Vocabulary</h2><div class="charts">'
        + figure("Frequency of pieces", curve, unused)
        + figure("Length of pieces", lengths, "Without control symbols and the 256 byte pieces.")
        + figure("Script of pieces", bar_chart(scripts, "pieces by script"), "By the first letter of each piece.")
        + (
            _list("Never used, in the order of merges", _pieces((p, None) for p in vocabulary.never_used))
            if never
            else ""
        )
        + "</div>"
        + _list("Most frequent", _pieces(vocabulary.most_frequent))
        + _list("Longest pieces in use", _pieces(vocabulary.longest))
    )


def _fallback(report: TokenizerReport) -> str:
    if not report.fallback:
        return "<h2>Characters without a piece</h2><p>None: every character of the held-out text has a piece.</p>"
    chips = _pieces((visible(char), count) for char, count in report.fallback)
    count = report.total.fallback_characters
    text = f"{count:,} of {report.total.characters:,} characters became {report.total.byte_tokens:,} byte tokens."
    return f'<h2>Characters without a piece</h2><p class="soft">{text}</p>' + _list("Most frequent", chips)


def _round_trip(report: TokenizerReport) -> str:
    trip = report.round_trip
    shown = "".join(
        f"<li><code>{escape(ascii(text))}</code> decodes to <code>{escape(ascii(back))}</code></li>"
        for text, back in trip.failures[:FAILURES_SHOWN]
    )
    kind, sign = ("bad", "✘") if trip.failures else ("good", "✔")
    said = f'<p><span class="{kind}">{sign}</span> {escape(describe_round_trip(trip))}.</p>'
    return f'<h2>Round trip</h2><div class="card wide">{said}{f"<ul>{shown}</ul>" if shown else ""}</div>'


def _excerpts(sources: Sequence[SourceReport]) -> str:
    cards = "".join(
        f'<div class="card wide"><h3>{escape(visible(source.name))}</h3>'
        f'<div class="text">{_colored(source.excerpt)}</div></div>'
        for source in sources
        if source.excerpt
    )
    return f'<h2>Examples</h2><p class="soft">The beginning of one held-out document per source.</p>{cards}'


def _colored(pieces: Sequence[tuple[str, int]]) -> str:
    """Pieces in alternating colors. A byte shows as two hexadecimal digits, a line break as ⏎ and a break."""
    marks = []
    for number, (piece, token) in enumerate(pieces):
        byte = _BYTE.fullmatch(piece)
        text = escape("\n".join(map(visible, piece.replace(SPACE_MARK, " ").split("\n")))).replace("\n", "⏎\n")
        kind = f"h{number % HUES}{' byte' if byte else ''}"
        marks.append(f'<mark class="{kind}" title="{token}">{byte[1] if byte else text}</mark>')
    return "".join(marks)


def _training(report: TokenizerReport) -> str:
    if not report.trained_on:
        return ""
    rows = "".join(
        f"<tr><td>{escape(visible(name))}</td><td>{escape(visible(str(value)))}</td></tr>"
        for name, value in report.trained_on.items()
    )
    return f'<h2>Training</h2><div class="card wide"><table class="facts">{rows}</table></div>'


def _list(title: str, content: str) -> str:
    return f'<div class="card wide"><h3>{title}</h3><div class="pieces">{content}</div></div>'


def _pieces(pieces: Iterable[tuple[str, int | None]]) -> str:
    return "".join(
        f'<span><mark class="h{number % HUES}">{escape(_shown(piece))}</mark>'
        + (f"<small>{count:,}</small>" if count is not None else "")
        + "</span>"
        for number, (piece, count) in enumerate(pieces)
    )


def _shown(piece: str) -> str:
    """A run of one character, e.g. an indentation, as the character and its count."""
    if len(piece) > 3 and len(set(piece)) == 1:
        return f"{visible(piece[0])} × {len(piece)}"
    return visible(piece)


def _percent(share: float) -> str:
    return f"{share:.2%}" if share < 0.1 else f"{share:.1%}"
