"""The page as bytes, and in a real browser."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pretrain.errors import UserError
from pretrain.inspection.attention_maps import AttentionMaps, head_stats
from pretrain.inspection.attention_page import (
    LARGEST_PAGE,
    attention_page,
    encode_triangle,
    encoded_bytes,
)
from pretrain.report.page import write_page
from tests.support.browser import Browser, browser

EVIL = "</script><script>document.title='run'</script><img src=x onerror=\"document.title='run'\">"


def random_maps(layers: int, heads: int, count: int, tokens: list[str] | None = None) -> AttentionMaps:
    generator = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(layers, heads, count, count, generator=generator)
    weights_LHTT = scores.masked_fill(torch.ones(count, count).triu(1).bool(), float("-inf")).softmax(-1)
    return AttentionMaps(200, tuple(tokens or [f"t{i}" for i in range(count)]), 3, weights_LHTT)


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, flags=re.DOTALL)
    assert found
    return json.loads(found[1])


@pytest.mark.parametrize("count", [1, 2, 3, 64])
def test_a_triangle_comes_back_within_half_a_unit(count: int) -> None:
    weights_TT = random_maps(1, 1, count).weights_LHTT[0, 0]
    text = encode_triangle(weights_TT)
    assert len(text) == encoded_bytes(count)
    stored = np.frombuffer(base64.b64decode(text), "<u2") / 65_535
    assert len(stored) == count * (count + 1) // 2
    rows, columns = np.tril_indices(count)
    assert np.abs(stored - weights_TT.numpy()[rows, columns]).max() <= 1 / 131_070 + 1e-9


def test_a_page_of_twelve_layers_and_heads_stays_small() -> None:
    page = attention_page(random_maps(12, 12, 64), "run")
    assert len(page.encode()) < 1_000_000
    data = data_of(page)
    assert (data["layers"], data["heads"], len(data["tokens"]), data["leftOut"]) == (12, 12, 64, 3)


def test_a_page_that_would_be_too_large_is_refused_with_what_fits() -> None:
    maps = AttentionMaps(0, tuple("x" * 512), 0, torch.empty(()).expand(32, 32, 512, 512))
    with pytest.raises(UserError, match=r"32 × 32 maps of 512 tokens take 35\d MB; the largest page has 64 MB") as e:
        attention_page(maps, "run")
    assert e.value.hint is not None
    most = int(e.value.hint.removeprefix("--max-tokens "))
    assert 1024 * encoded_bytes(most) <= LARGEST_PAGE < 1024 * encoded_bytes(most + 1)


def test_a_page_runs_its_own_script_and_no_other() -> None:
    page = attention_page(random_maps(2, 3, 4, [EVIL, "<b>", "&amp;", "]]>"]), EVIL)
    assert EVIL not in page and "<b>" not in page.partition('id="data"')[2].partition("</script>")[0]
    assert [data_of(page)[key] for key in ("origin", "tokens")] == [f"{EVIL} · step 200", [EVIL, "<b>", "&amp;", "]]>"]]
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    styles = re.findall(r"<style>(.*?)</style>", page, flags=re.DOTALL)
    assert len(scripts) == len(styles) == 1
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy
    assert policy[1] == f"default-src 'none'; style-src {digest(styles[0])}; script-src {digest(scripts[0])}"
    assert not re.search(r"https?://|\bsrc=|\bhref=|url\(|@import|innerHTML|eval\(|fetch\(", scripts[0] + styles[0])


def digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_a_page_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    write_page("page", tmp_path / "none" / "page.html")
    assert (tmp_path / "none" / "page.html").read_text() == "page"
    with pytest.raises(UserError, match="cannot be written: "):
        write_page("", tmp_path / "none" / "page.html" / "deeper.html")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture(scope="module")
def maps() -> AttentionMaps:
    return random_maps(3, 4, 16, ["<s>", EVIL, "␣a", "\\n", *(f"t{i}" for i in range(4, 16))])


@pytest.fixture(scope="module")
def page(maps: AttentionMaps, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "attention.html"
    write_page(attention_page(maps, f"run {EVIL}"), path)
    return path


def shown_weight(weights_TT: Tensor, query: int, key: int) -> str:
    return f"{round(float(weights_TT[query, key]) * 65_535) / 65_535:.4f}"


def test_a_browser_shows_the_head_and_the_weight_that_the_address_names(
    chromium: Browser, page: Path, maps: AttentionMaps
) -> None:
    chromium.open(page, "#layer=1&head=2&query=9&key=4")
    assert chromium.text("#head-name") == "layer 1, head 2"
    weights_TT = maps.weights_LHTT[1, 2]
    assert chromium.text("#cell") == f"token 9 t9 attends to token 4 t4 with weight {shown_weight(weights_TT, 9, 4)}"
    found = head_stats(weights_TT)
    assert chromium.text("#entropy") == f"{found.entropy:.2f}"
    assert chromium.text("#sink") == f"{100 * found.sink:.1f}%"
    assert chromium.text("#previous") == f"{100 * found.previous:.1f}%"
    assert chromium.run("document.querySelectorAll('#overview canvas').length") == 3 * 5
    chromium.open(page, "#layer=2&head=mean&query=9&key=4")
    assert chromium.text("#head-name") == "layer 2, mean of all heads"
    # Each head is rounded to 1/65535 before the mean.
    assert float(chromium.text("#weight")) == pytest.approx(float(maps.weights_LHTT[2].mean(0)[9, 4]), abs=6e-5)
    assert chromium.problems == []


def test_a_browser_runs_nothing_that_a_token_says(chromium: Browser, page: Path) -> None:
    chromium.open(page, "#layer=0&head=0&query=1&key=1")
    assert chromium.run("document.title") == "Attention maps"
    assert chromium.run("document.images.length") == 0
    assert chromium.run("document.scripts.length") == 2
    assert EVIL in chromium.text("#text") and EVIL in chromium.text("#about")
    assert chromium.problems == []


def test_an_address_that_makes_no_sense_is_ignored(chromium: Browser, page: Path) -> None:
    chromium.open(page, "#layer=99&head=-1&query=x&key=1e3&%3Cb%3E")
    assert chromium.text("#head-name") == "layer 0, mean of all heads"
    assert chromium.problems == []


def test_arrows_move_between_heads_and_layers_and_stop_at_the_edge(chromium: Browser, page: Path) -> None:
    chromium.open(page, "#layer=0&head=2")
    names = []
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp", "ArrowUp"):
        chromium.key(key)
        names.append(chromium.text("#head-name"))
    assert names == [f"layer {layer}, head {head}" for layer, head in ((0, 3), (0, 3), (1, 3), (1, 2), (0, 2), (0, 2))]
    assert chromium.run("location.hash") == "#layer=0&head=2"
    assert chromium.run("document.querySelectorAll('#overview button.chosen').length") == 1


def middle_of(chromium: Browser, query: int, key: int) -> tuple[float, float]:
    """Where a cell of the large map is in the window."""
    place = chromium.run(
        "(() => { const box = element('map').getBoundingClientRect();"
        "return [box.left, box.top, frame.margin, frame.cell]; })()"
    )
    left, top, margin, cell = place
    return left + margin + (key + 0.5) * cell, top + margin + (query + 0.5) * cell


@pytest.mark.parametrize("dark", [False, True])
def test_hovering_spells_out_the_cell_and_a_click_keeps_it(
    dark: bool, chromium: Browser, page: Path, maps: AttentionMaps
) -> None:
    chromium.open(page, "#layer=2&head=1", dark=dark)
    weights_TT = maps.weights_LHTT[2, 1]

    def said(query: int, key: int) -> str:
        weight = shown_weight(weights_TT, query, key)
        return f"token {query} t{query} attends to token {key} t{key} with weight {weight}"

    chromium.hover(*middle_of(chromium, 12, 5))
    assert chromium.text("#cell") == said(12, 5)
    assert chromium.run("[...document.querySelectorAll('#text .query')].map((e) => e.textContent)") == ["t12"]
    chromium.click(*middle_of(chromium, 10, 10))
    chromium.hover(*middle_of(chromium, 6, 5))
    assert chromium.text("#cell") == said(10, 10)
    chromium.click(*middle_of(chromium, 10, 10))
    chromium.hover(*middle_of(chromium, 6, 5))
    assert chromium.text("#cell") == said(6, 5)
    # Above the diagonal there is a row, and no key.
    chromium.hover(*middle_of(chromium, 6, 9))
    assert chromium.text("#cell") == "token 6 t6 attends mostly to"
    assert chromium.problems == []


def test_the_page_paints_what_it_says(chromium: Browser, page: Path, maps: AttentionMaps) -> None:
    """The darker a pixel of a thumbnail, the larger its weight."""
    chromium.open(page)
    blues = chromium.run(
        "(() => { const canvas = buttons.get('1 3').canvas, pixels = canvas.getContext('2d').getImageData(0, 0, 16, 16).data;"
        "return Array.from({length: 256}, (_, i) => pixels[4 * i]); })()"
    )
    reds_TT = torch.tensor(blues, dtype=torch.float64).view(16, 16)
    weights_TT = maps.weights_LHTT[1, 3]
    rows, columns = torch.tril_indices(16, 16)
    order = weights_TT[rows, columns].argsort()
    reds = reds_TT[rows, columns][order]
    assert (reds[1:] <= reds[:-1] + 1e-9).all() and reds[0] - reds[-1] > 100
    assert (reds_TT.triu(1)[0, 1:] == 255).all()
    # A click on a thumbnail opens that head.
    box = chromium.run(
        "(({x, y, width}) => [x + width / 2, y + width / 2])(buttons.get('1 3').button.getBoundingClientRect())"
    )
    chromium.click(*box)
    assert chromium.text("#head-name") == "layer 1, head 3"


@pytest.mark.parametrize("width", [700, 1500])
def test_sixty_four_tokens_have_labels_that_do_not_overlap(chromium: Browser, width: int, tmp_path: Path) -> None:
    write_page(attention_page(random_maps(1, 2, 64), "run"), tmp_path / "page.html")
    chromium.open(tmp_path / "page.html", width=width)
    assert chromium.run("frame.cell * frame.every") >= 11
    assert chromium.run("frame.every") == 1
    assert chromium.run("document.documentElement.scrollWidth <= innerWidth")
