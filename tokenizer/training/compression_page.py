"""A tokenizer report as one HTML file that needs nothing else: no script, no font, no address.

Everything that comes from a corpus or a model is escaped, what does not print is shown as an escape, and a strict
content security policy stands in the page: a document that spells HTML stays text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from pretrain.errors import DataError
from pretrain.report.charts import Bar, bar_chart, column_chart, log_curve
from tokenizer.models.base import SPACE_MARK
from tokenizer.training.compression_report import SourceReport, TokenizerReport
from tokenizer.training.inspect_sentencepiece import describe_round_trip, visible

HUES = 6  # of neighbouring pieces
FAILURES_SHOWN = 10
SCRIPTS_SHOWN = 12
_BYTE = re.compile("<0x([0-9A-F]{2})>")

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #1c2128; --soft: #5d6673; --line: #e1e4e9;
  --mark: #2f6fdb; --shade: #d0342c1f; --good: #1a7f37; --bad: #c4372b; --tint: 88%; --depth: 70%; }
@media (prefers-color-scheme: dark) { :root { --page: #0f1216; --card: #171b21; --ink: #e6e9ee; --soft: #98a2b0;
  --line: #2a3038; --mark: #5b9bff; --shade: #ff6b5e2b; --good: #4cc26a; --bad: #ff7b6e; --tint: 27%; --depth: 45%; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, "Noto Sans", "Noto Sans CJK SC", sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 28px 16px 56px; }
h1 { font-size: 25px; margin: 0 0 2px; letter-spacing: -.01em; }
h2 { font-size: 18px; margin: 38px 0 10px; }
h3 { font-size: 14px; margin: 0 0 10px; font-weight: 600; }
p { margin: 6px 0; max-width: 75ch; }
.soft, figcaption { color: var(--soft); font-size: 13.5px; }
figcaption { margin-top: 8px; }
.path { overflow-wrap: anywhere; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(155px, 1fr)); gap: 10px; margin: 20px 0 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 12px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px; margin: 0;
  min-width: 0; }
.card + .wide, .charts + .wide, .wide + .charts { margin-top: 12px; } .charts > .wide { margin: 0 !important; }
.figure b { display: block; font-size: 23px; font-weight: 600; letter-spacing: -.01em; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font-size: 12px; fill: var(--soft); }
svg .name, svg .value { fill: var(--ink); }
svg .value { font-variant-numeric: tabular-nums; }
.mark { fill: var(--mark); } .curve { fill: none; stroke: var(--mark); stroke-width: 2; stroke-linejoin: round; }
.shade { fill: var(--shade); } .axis { stroke: var(--soft); stroke-width: 1; }
.grid { stroke: var(--line); stroke-width: 1; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 5px 0 5px 18px; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 500; font-size: 13.5px; white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tr:last-child td { border-bottom: 0; } tr.total td { font-weight: 600; }
table.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; vertical-align: top; }
table.facts td:first-child { color: var(--soft); white-space: nowrap; width: 1%; }
code, .pieces, .text { font: 13.5px/1.75 ui-monospace, "SF Mono", Menlo, Consolas, "Noto Sans Mono CJK SC", monospace; }
.pieces { display: flex; flex-wrap: wrap; gap: 6px 8px; }
.pieces span { white-space: pre-wrap; overflow-wrap: anywhere; }
.pieces small { color: var(--soft); margin-left: 4px; font-size: 11.5px; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; }
mark { color: inherit; border-radius: 3px; padding: 1.5px 0; background: hsl(var(--hue) var(--depth) var(--tint)); }
.pieces mark { padding: 2px 5px; }
mark.byte { font-size: 11px; outline: 1px dashed var(--soft); outline-offset: -1px; padding: 2px; }
.good { color: var(--good); } .bad { color: var(--bad); }
ul { margin: 6px 0; padding-left: 20px; }
""" + "".join(f".h{i} {{ --hue: {(210 + i * 137) % 360}; }}\n" for i in range(HUES))


def write_page(report: TokenizerReport, path: Path) -> None:
    """Write the page. Raises DataError where that cannot be."""
    try:
        path.write_text(report_page(report), encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from None


def report_page(report: TokenizerReport) -> str:
    """The whole page: the same report, the same bytes."""
    parts = [
        _heading(report),
        _sources(report),
        _vocabulary(report),
        _fallback(report),
        _round_trip(report),
        _excerpts(report.sources),
        _training(report),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>Tokenizer report</title><style>{STYLE}</style></head>\n<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _heading(report: TokenizerReport) -> str:
    used = report.vocabulary
    trip = report.round_trip
    figures = {
        "pieces": f"{report.vocab_size:,}",
        "bytes per token": f"{report.total.bytes_per_token:.2f}",
        "of the tokens are bytes": _percent(report.total.byte_share),
        "of the vocabulary used": _percent(used.used / used.pieces if used.pieces else 0.0),
        "nasty texts come back": f"{trip.texts - len(trip.failures):,} of {trip.texts:,}"
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
    total = f'<tr class="total">{_cells(_source_row(report.total))}</tr>' if len(rows) > 1 else ""
    body = "".join(f"<tr>{_cells(row)}</tr>" for row in rows) + total
    table = f"<table><tr>{''.join(f'<th>{name}</th>' for name in head)}</tr>{body}</table>"
    length = [Bar(visible(s.name), s.bytes_per_token, f"{s.bytes_per_token:.2f}") for s in report.sources]
    bytes_ = [Bar(visible(s.name), s.byte_share, _percent(s.byte_share)) for s in report.sources]
    figures = _figure(
        "Bytes per token",
        bar_chart(length, "bytes per token by source"),
        "The more, the shorter are sequences. A Latin letter takes one byte, a Cyrillic one two, a Han character three, so "
        "compare within a script.",
    ) + _figure(
        "Byte tokens",
        bar_chart(bytes_, "share of byte tokens by source"),
        "Of characters that have no piece of their own.",
    )
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in report.left_out.items())
    said = [*report.notes, *([f"Left out: {left_out}."] if left_out else [])]
    return (
        f'<h2>Held-out text by source</h2><div class="card wide scroll">{table}</div>'
        f'<div class="charts">{figures}</div>'
        + "".join(f'<p class="soft">{escape(visible(note))}</p>' for note in said)
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
        "pieces, the most frequent first",
        f"{never:,} never",
    )
    scripts = [Bar(name, count, f"{count:,}") for name, count in list(vocabulary.scripts.items())[:SCRIPTS_SHOWN]]
    if rest := list(vocabulary.scripts.values())[SCRIPTS_SHOWN:]:
        scripts.append(Bar(f"{len(rest)} others", sum(rest), f"{sum(rest):,}"))
    lengths = column_chart(vocabulary.lengths, "pieces by length", "characters of a piece")
    unused = f"{never:,} of {vocabulary.pieces:,} pieces do not occur in the held-out text (shaded)."
    return (
        '<h2>Vocabulary</h2><div class="charts">'
        + _figure("How often pieces occur", curve, unused)
        + _figure("Length of the pieces", lengths, "The special ones and the 256 bytes are not counted.")
        + _figure("Script of the pieces", bar_chart(scripts, "pieces by script"), "By the first letter of each.")
        + (
            _list("Never used, the first learned first", _pieces((p, None) for p in vocabulary.never_used))
            if never
            else ""
        )
        + "</div>"
        + _list("Most frequent", _pieces(vocabulary.most_frequent))
        + _list("Longest of those that occur", _pieces(vocabulary.longest))
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
        f"<li><code>{escape(ascii(text))}</code> comes back as <code>{escape(ascii(back))}</code></li>"
        for text, back in trip.failures[:FAILURES_SHOWN]
    )
    kind, sign = ("bad", "✘") if trip.failures else ("good", "✔")
    said = f'<p><span class="{kind}">{sign}</span> {escape(describe_round_trip(trip))}.</p>'
    return f'<h2>Round trip</h2><div class="card wide">{said}{f"<ul>{shown}</ul>" if shown else ""}</div>'


def _excerpts(sources: Sequence[SourceReport]) -> str:
    cards = "".join(
        f'<div class="card wide"><h3>{escape(visible(source.name))}</h3>'
        f'<div class="text">{_coloured(source.excerpt)}</div></div>'
        for source in sources
        if source.excerpt
    )
    return (
        f'<h2>What it makes of them</h2><p class="soft">The beginning of a held-out document of each source.</p>{cards}'
    )


def _coloured(pieces: Sequence[tuple[str, int]]) -> str:
    """Text in pieces of changing colours; a byte is its two hexadecimal digits, and a line break stays one, after its sign."""
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
    return f'<h2>How it was trained</h2><div class="card wide"><table class="facts">{rows}</table></div>'


def _figure(title: str, chart: str, caption: str) -> str:
    return f'<figure class="card"><h3>{title}</h3>{chart}<figcaption>{escape(caption)}</figcaption></figure>'


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
    """A run of one character, such as the spaces of an indentation, as the character and how many."""
    if len(piece) > 3 and len(set(piece)) == 1:
        return f"{visible(piece[0])} × {len(piece)}"
    return visible(piece)


def _cells(values: Iterable[str]) -> str:
    return "".join(f"<td>{escape(value)}</td>" for value in values)


def _percent(share: float) -> str:
    return f"{share:.2%}" if share < 0.1 else f"{share:.1%}"
