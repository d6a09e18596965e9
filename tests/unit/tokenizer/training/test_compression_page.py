import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.report.charts import Bar, bar_chart, column_chart, log_curve
from pretrain.report.page import write_page
from tests.support.tokenizers import train_sentencepiece
from tokenizer.training.compression_page import report_page
from tokenizer.training.compression_report import TokenizerReport, make_report, measure_sources
from tokenizer.training.inspect_sentencepiece import RoundTrip, open_model

EVIL = "<script>alert(1)</script><img src=http://x/y onerror=z>\"'&amp;\u202e\x1b[31m"
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Tags and their attributes in order; fails where tags do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> TokenizerReport:
    path = tmp_path_factory.mktemp("model") / "tokenizer.model"
    model = open_model(
        train_sentencepiece(path, 400, [EVIL * 40, "the cat sat\n    on the mat " * 40], hard_vocab_limit=False)
    )
    texts = {"plain": ["the cat\n" * 20], EVIL: [EVIL * 3, "漢字"]}
    return make_report(
        model,
        measure_sources(model, texts),
        left_out={EVIL: 3},
        notes=[EVIL],
        trained_on={EVIL: EVIL, "seed": 0},
    )


def test_a_page_needs_nothing_from_elsewhere_and_runs_nothing(report: TokenizerReport) -> None:
    html = report_page(report)
    page = Page(html)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "form", "a", "base"}
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "href")]
    assert "default-src 'none'; style-src 'sha256-" in html and "unsafe-inline" not in html
    style = re.search("<style>(.*?)</style>", html, re.DOTALL)
    assert style and "url(" not in style[1] and "@import" not in style[1] and "prefers-color-scheme: dark" in style[1]


def test_what_a_corpus_or_a_model_says_stays_text(report: TokenizerReport) -> None:
    evil = dataclasses.replace(report, model=EVIL, round_trip=RoundTrip(2, 0, [(EVIL, EVIL + "x")]))
    html = report_page(evil)
    page = Page(html)
    assert "alert(1)" in page.text and "<script>" not in html
    assert "\x1b" not in html and "\u202e" not in html and "\\u202e" in page.text
    assert "1 of 2 stress texts change" in page.text


def test_the_page_shows_the_numbers_of_the_report(report: TokenizerReport) -> None:
    text = Page(report_page(report)).text
    plain = report.sources[0]
    for shown in (
        f"{plain.bytes_per_token:.2f}",
        f"{plain.tokens:,}",
        f"{report.vocab_size:,}",
        f"all {report.round_trip.texts:,}",
        report.sha256[:16],
    ):
        assert shown in text
    never = report.vocabulary.pieces - report.vocabulary.used
    assert f"{never:,} of {report.vocabulary.pieces:,} pieces do not occur" in text
    assert report_page(report) == report_page(report)


def test_a_report_of_one_source_and_nothing_left_over_has_a_page(report: TokenizerReport, tmp_path: Path) -> None:
    vocabulary = dataclasses.replace(report.vocabulary, never_used=[], used=report.vocabulary.pieces)
    lean = dataclasses.replace(
        report, sources=report.sources[:1], fallback=[], notes=[], left_out={}, trained_on={}, vocabulary=vocabulary
    )
    write_page(report_page(lean), tmp_path / "report.html")
    text = Page((tmp_path / "report.html").read_text()).text
    assert "every character of the held-out text has a piece" in text
    assert "Never used" not in text and "Training" not in text and "Left out" not in text


def drawn(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def paths(svg: str) -> list[str]:
    return [element.attrib["d"] for element in drawn(svg).iter("path")]


def test_bars_are_as_long_as_their_values() -> None:
    svg = bar_chart(
        [Bar("a", 2, "2.0"), Bar("b", 1, "1.0"), Bar("c", 0, "0.0"), Bar("x" * 40, 0.0001, "tiny")], "label"
    )
    ends = [float(re.match(r"M112 [\d.]+h([\d.]+)q([\d.]+)", path)[1]) for path in paths(svg)]  # type: ignore[index]
    assert ends[0] + 3 == pytest.approx(2 * (ends[1] + 3)) and ends[2] == 0 and 0 < ends[3] < 1
    assert [e.text for e in drawn(svg).iter("text")][-2:] == ["x" * 16 + "…", "tiny"]
    assert drawn(svg).attrib["aria-label"] == "label"


@given(st.dictionaries(st.integers(1, 60), st.integers(0, 10**9), min_size=1).filter(lambda d: max(d.values()) > 0))
def test_columns_stay_within_the_chart_whatever_the_counts(values: dict[int, int]) -> None:
    svg = column_chart(values, "label", "x")
    assert len(paths(svg)) == max(values) - min(values) + 1
    ticks = [float(line.attrib["y1"]) for line in drawn(svg).iter("line")]
    assert all(10 <= y <= 182 for y in ticks)
    assert 2 <= len([line for line in drawn(svg).iter("line") if line.attrib["class"] == "grid"]) <= 6
    for path in paths(svg):
        up = float(re.search(r"v(-?[\d.]+)", path)[1])  # type: ignore[index]
        assert -172 <= up <= 0


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=50), st.integers(0, 1000))
def test_a_curve_stays_within_the_chart_and_shades_what_is_never_used(counts: list[int], never: int) -> None:
    points = list(enumerate(sorted(counts, reverse=True), 1))
    svg = log_curve(points, len(points) + never, "label", "x", f"{never} never")
    [line] = drawn(svg).iter("polyline")
    for x, y in (map(float, point.split(",")) for point in line.attrib["points"].split()):
        assert 52 <= x <= 406.1 and 9.9 <= y <= 182
    assert len(list(drawn(svg).iter("rect"))) == (never > 0)
