"""Lines and numbers on axes; the other charts are tested with the tokenizer's report."""

import math
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.report.charts import Line, line_chart, round_numbers


def lines(svg: str) -> list[list[tuple[float, float]]]:
    found = ElementTree.fromstring(svg).iter("polyline")
    return [[(float(x), float(y)) for x, y in (p.split(",") for p in line.attrib["points"].split())] for line in found]


def labels(svg: str, anchor: str) -> list[str | None]:
    return [e.text for e in ElementTree.fromstring(svg).iter("text") if e.attrib["text-anchor"] == anchor]


def test_a_value_is_as_high_as_its_tick() -> None:
    svg = line_chart([Line("a", [(0, 0), (1, 5), (2, 10)], "k", dots=True)], "label", "x")
    assert labels(svg, "end") == ["0", "2", "4", "6", "8", "10"]
    [[(_, low), (_, middle), (_, high)]] = lines(svg)
    grid = [float(e.attrib["y1"]) for e in ElementTree.fromstring(svg).iter("line") if e.attrib["class"] == "grid"]
    assert low == grid[0] and high == grid[-1] and middle == pytest.approx((low + high) / 2)
    assert "a at 1: 5" in svg


def test_on_a_logarithmic_axis_decades_are_equally_high() -> None:
    svg = line_chart([Line("", [(0, 1), (1, 10), (2, 100)], "k")], "label", "x", log=True)
    assert labels(svg, "end") == ["1", "10", "100"]
    [[(_, low), (_, middle), (_, high)]] = lines(svg)
    assert low - middle == pytest.approx(middle - high, abs=0.2)


def test_what_cannot_be_drawn_breaks_the_line() -> None:
    svg = line_chart([Line("a", [(0, 1), (1, 2), (2, math.nan), (3, 2), (4, 9), (5, 2), (6, 3)], "k")], "l", "x", top=4)
    assert [len(line) for line in lines(svg)] == [2, 2]
    assert lines(line_chart([Line("a", [(0, math.inf), (1, math.nan)], "k")], "l", "x")) == []
    assert len(lines(line_chart([Line("a", [(0, 0.0), (1, 1.0), (2, 2.0)], "k")], "l", "x", log=True))[0]) == 2


def test_names_are_escaped() -> None:
    svg = line_chart([Line("<b>&", [(0, 1), (1, 2)], "k", dots=True)], '"<', "<x>")
    assert "<b>" not in svg and "<x>" not in svg and ElementTree.fromstring(svg).attrib["aria-label"] == '"<'


@given(
    st.lists(
        st.tuples(st.integers(0, 10**7), st.floats(allow_nan=False, min_value=-1e30, max_value=1e30)), max_size=30
    ),
    st.booleans(),
)
def test_points_stay_within_the_chart(points: list[tuple[int, float]], log: bool) -> None:
    svg = line_chart([Line("", sorted(points), "k")], "label", "x", log=log)
    for line in lines(svg):
        assert all(51.9 <= x <= 406.1 and 9.9 <= y <= 182.1 for x, y in line)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e9), st.integers(3, 10))
def test_round_numbers_lie_within_and_are_few(low: float, span: float, most: int) -> None:
    found = round_numbers(low, low + span, most)
    assert len(found) <= most + 1
    assert all(low - span * 1e-6 <= number <= low + span * (1 + 1e-6) for number in found)
