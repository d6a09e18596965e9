"""Small charts as inline SVG: bars, columns, lines, and a log-log curve. No scripts, fonts or libraries.

A chart is WIDTH units wide by default and scales with its column. Colors are classes of page.css, for light and dark mode.
`<title>` is the tooltip, `aria-label` the text for screen readers.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import NamedTuple

from pretrain.report.numbers import short_number

WIDTH = 420
_NAME_WIDTH, _VALUE_WIDTH, _ROW = 112, 64, 25
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 10, 38
_LONGEST_NAME = 17
_LEGEND = 20


class Bar(NamedTuple):
    """A name, its value, and the formatted value."""

    name: str
    value: float
    shown: str


class Line(NamedTuple):
    """Points (x, y) in ascending x, in the color of the CSS class `kind`; `dots` marks each point."""

    name: str
    points: Sequence[tuple[float, float]]
    kind: str
    dots: bool = False


def bar_chart(bars: Sequence[Bar], label: str) -> str:
    """Horizontal bars from zero."""
    span = WIDTH - _NAME_WIDTH - _VALUE_WIDTH
    largest = max((bar.value for bar in bars), default=0.0) or 1.0
    rows = []
    for number, bar in enumerate(bars):
        y = number * _ROW
        # At least half a unit, or small values would vanish.
        length = max(bar.value / largest * span, 0.5 if bar.value else 0.0)
        rows.append(
            f"<g><title>{escape(bar.name)}: {escape(bar.shown)}</title>"
            f'<text class="name" x="{_NAME_WIDTH - 8}" y="{y + 17}" text-anchor="end">{_shortened(bar.name)}</text>'
            f'<path class="mark" d="{_bar_path(_NAME_WIDTH, y + 5, length, _ROW - 9)}"/>'
            f'<text class="value" x="{_NAME_WIDTH + length + 6:.1f}" y="{y + 17}">{escape(bar.shown)}</text></g>'
        )
    axis = f'<line class="axis" x1="{_NAME_WIDTH}" x2="{_NAME_WIDTH}" y1="0" y2="{len(bars) * _ROW}"/>'
    return _svg(len(bars) * _ROW + 2, label, "".join(rows) + axis)


def column_chart(values: Mapping[int, int], label: str, x_title: str, height: int = 220) -> str:
    """One column per integer from the smallest to the largest key, on a linear scale."""
    first, last = min(values), max(values)
    step = (WIDTH - _LEFT - _RIGHT) / (last - first + 1)
    bottom, tall = height - _BOTTOM, height - _TOP - _BOTTOM
    top_tick, ticks = _linear_ticks(max(values.values()))
    drawn = [_horizontal(bottom - tick / top_tick * tall, f"{tick:,}") for tick in ticks]
    every = math.ceil((last - first + 1) / 16)
    for x in range(first, last + 1):
        left, count = _LEFT + (x - first) * step, values.get(x, 0)
        up = count / top_tick * tall
        drawn.append(
            f"<g><title>{x}: {count:,}</title>"
            f'<path class="mark" d="{_column_path(left + 1, bottom, max(step - 2, 1), up)}"/></g>'
        )
        if (x - first) % every == 0:
            drawn.append(_text(left + step / 2, bottom + 15, str(x), "middle"))
    drawn += [_axis(bottom), _text((WIDTH + _LEFT) / 2, height - 4, x_title, "middle")]
    return _svg(height, label, "".join(drawn))


def log_curve(
    points: Sequence[tuple[int, int]], end: int, label: str, x_title: str, end_title: str, height: int = 220
) -> str:
    """Counts over ranks on logarithmic axes; ranks beyond the last point, up to `end`, are shaded."""
    bottom, tall, wide = height - _BOTTOM, height - _TOP - _BOTTOM, WIDTH - _LEFT - _RIGHT
    x_decades = max(math.log10(max(end, points[-1][0])), 1e-9)
    y_decades = max(math.ceil(math.log10(max(points[0][1], 10))), 1)

    def x(rank: float) -> float:
        return _LEFT + math.log10(rank) / x_decades * wide

    def y(count: float) -> float:
        return bottom - math.log10(count) / y_decades * tall

    drawn = [_horizontal(y(10**decade), _power(decade)) for decade in range(y_decades + 1)]
    drawn += [_text(x(10**d), bottom + 15, _power(d), "middle") for d in range(int(x_decades) + 1)]
    last = points[-1][0]
    if end > last:
        drawn.append(
            f'<rect class="shade" x="{x(last):.1f}" y="{_TOP}" width="{x(end) - x(last):.1f}" height="{tall}">'
            f"<title>{escape(end_title)}</title></rect>"
        )
    path = " ".join(f"{x(rank):.1f},{y(count):.1f}" for rank, count in points)
    drawn.append(f'<polyline class="curve" points="{path}"/>')
    drawn += [_axis(bottom), _text((WIDTH + _LEFT) / 2, height - 4, x_title, "middle")]
    return _svg(height, label, "".join(drawn))


def line_chart(
    lines: Sequence[Line],
    label: str,
    x_title: str,
    *,
    width: int = WIDTH,
    height: int = 220,
    log: bool = False,
    top: float | None = None,
) -> str:
    """Lines over a linear x axis, with a legend. Points above `top` are cut off.

    Values that are not finite, or not positive with `log`, break their line.
    """
    points = [(x, y) for line in lines for x, y in line.points if _drawable(y, log)]
    first, last = (f([x for x, _ in points], default=0.0) for f in (min, max))
    ticks = _scale([y for _, y in points if top is None or y <= top] or [1.0, 10.0], log)
    low, high = (math.log10(ticks[i]) if log else ticks[i] for i in (0, -1))
    head = _LEGEND if any(line.name for line in lines) else 0
    bottom, tall, wide = height - _BOTTOM, height - _TOP - _BOTTOM - head, width - _LEFT - _RIGHT

    def place(x: float, y: float) -> tuple[float, float]:
        up = ((math.log10(y) if log else y) - low) / (high - low)
        return _LEFT + (x - first) / ((last - first) or 1.0) * wide, bottom - up * tall

    drawn = [_horizontal(place(first, tick)[1], short_number(tick), width) for tick in ticks]
    integers = all(float(x).is_integer() for x, _ in points)  # no half layers or steps on the axis
    below = [x for x in round_numbers(first, last, 6) if not integers or x.is_integer()]
    drawn += [_text(place(x, ticks[0])[0], bottom + 15, short_number(x), "middle") for x in below]
    drawn += [_axis(bottom, width), _text((width - _RIGHT + _LEFT) / 2, height - 4, x_title, "middle")]
    limit = ticks[-1] if top is None else top
    drawn += [_line(line, place, limit, log) for line in lines]
    return _svg(height, label, "".join(drawn) + _legend(lines), width)


def round_numbers(low: float, high: float, most: int) -> list[float]:
    """At most `most` + 1 multiples of 1, 2 or 5 times a power of ten within [low, high]."""
    span = high - low
    if span <= 0:
        return [float(low)]
    size = 10.0 ** math.floor(math.log10(span / most))
    step = next(size * factor for factor in (1, 2, 5, 10) if span / (size * factor) <= most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [_twelve_digits(number * step) for number in range(first, last + 1)]


def _twelve_digits(value: float) -> float:
    """0.30000000000000004 → 0.3."""
    return float(f"{value:.12g}")


def _drawable(y: float, log: bool) -> bool:
    # Not 0: a power of ten below the smallest float64 underflows.
    return math.isfinite(y) and (y > 1e-300 or not log)


def _scale(values: Sequence[float], log: bool) -> list[float]:
    """Round ticks that enclose all values."""
    low, high = min(values), max(values)
    if log:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        return [10.0**power for power in range(first, max(last, first + 1) + 1)]
    size = max(abs(low), abs(high))
    if high - low <= 1e-9 * size or size < 1e-30:
        low, high = (low - size / 2, high + size / 2) if size >= 1e-30 else (0.0, 1.0)
    inner = round_numbers(low, high, 5)
    step = inner[1] - inner[0] if len(inner) > 1 else high - low
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [_twelve_digits(number * step) for number in range(first, last + 1)]


def _line(line: Line, place: Callable[[float, float], tuple[float, float]], top: float, log: bool) -> str:
    pieces: list[list[str]] = [[]]
    dots = []
    for x, y in line.points:
        if not _drawable(y, log) or y > top:
            pieces.append([])
            continue
        at_x, at_y = place(x, y)
        pieces[-1].append(f"{at_x:.1f},{at_y:.1f}")
        if line.dots:
            title = f"{line.name} at {short_number(x)}: {y:.4g}".strip()
            dots.append(
                f'<circle class="dot {line.kind}" cx="{at_x:.1f}" cy="{at_y:.1f}" r="3"><title>{escape(title)}</title>'
                "</circle>"
            )
    drawn = [f'<polyline class="line {line.kind}" points="{" ".join(piece)}"/>' for piece in pieces if len(piece) > 1]
    return "".join(drawn + dots)


def _legend(lines: Sequence[Line]) -> str:
    x, drawn = float(_LEFT), []
    for line in lines:
        if line.name:
            drawn.append(f'<line class="line {line.kind}" x1="{x:.1f}" x2="{x + 16:.1f}" y1="10" y2="10"/>')
            drawn.append(_text(x + 21, 14, line.name, "start", "name"))
            x += 21 + 6.6 * len(line.name) + 16
    return "".join(drawn)


def _svg(height: float, label: str, content: str, width: float = WIDTH) -> str:
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}">{content}</svg>'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _horizontal(y: float, name: str, width: float = WIDTH) -> str:
    line = f'<line class="grid" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return line + _text(_LEFT - 7, y + 4, name, "end")


def _axis(y: float, width: float = WIDTH) -> str:
    return f'<line class="axis" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{y}" y2="{y}"/>'


def _bar_path(x: float, y: float, length: float, height: float) -> str:
    """A bar with rounded corners at its end."""
    r = min(3.0, length / 2)
    return f"M{x} {y}h{length - r:.1f}q{r:.1f} 0 {r:.1f} {r:.1f}v{height - 2 * r:.1f}q0 {r:.1f} {-r:.1f} {r:.1f}H{x}z"


def _column_path(x: float, bottom: float, width: float, up: float) -> str:
    r = min(3.0, up / 2, width / 2)
    return (
        f"M{x:.1f} {bottom}v{r - up:.1f}q0 {-r:.1f} {r:.1f} {-r:.1f}h{width - 2 * r:.1f}"
        f"q{r:.1f} 0 {r:.1f} {r:.1f}V{bottom}z"
    )


def _linear_ticks(largest: int) -> tuple[int, list[int]]:
    """Top of a scale from zero, and three to five round ticks."""
    size = 10 ** int(math.log10(max(largest, 1)))
    step = next(size * factor // 10 or 1 for factor in (2, 5, 10, 20, 50) if largest <= 4 * (size * factor // 10 or 1))
    top = step * math.ceil(max(largest, 1) / step)
    return top, list(range(0, top + 1, step))


def _power(decade: int) -> str:
    """1, 10, 100, 1k, 10k, 100k, 1M, …"""
    return f"{10 ** (decade % 3)}{['', 'k', 'M', 'G', 'T'][decade // 3]}"


def _shortened(name: str) -> str:
    return escape(name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…")
