"""Weight statistics as an HTML page without scripts: charts by depth, spectra, tables."""

from collections.abc import Callable
from html import escape

from pretrain.inspection.weight_stats import MatrixStats, WeightsReport
from pretrain.inspection.weights_table import MATRIX_HEAD, VECTOR_HEAD, matrix_row, remarks, vector_row
from pretrain.report.charts import Line, line_chart
from pretrain.report.page import document, figure, origin, resource, table

# Matrices of one chart, each in its own color.
GROUPS = {
    "Attention": {"query": "attention.query", "key": "attention.key", "value": "attention.value", "output": "attention.output"},
    "Feed-forward": {"up": "feed_forward.up", "gate": "feed_forward.gate", "down": "feed_forward.down"},
}  # fmt: skip
COLORS = "abcd"


def weights_page(report: WeightsReport, name: str) -> str:
    """The complete page. The same report gives the same bytes."""
    items = "".join(f"<li>{escape(line)}</li>" for line in remarks(report))
    changes = () if report.against is None else (f"change since {report.against}",)
    about = f"{origin(_printable(name), report.step)} · {report.parameters:,} parameters"
    parts = [
        f'<h1>Weights</h1><p class="soft path">{escape(about)}</p>',
        f'<div class="card remarks"><ul>{items}</ul></div>',
        "<h2>By depth</h2>",
        _charts(report),
        "<h2>Spectra</h2>",
        _spectra(report),
        "<h2>Matrices</h2>",
        _card(table((*MATRIX_HEAD, *changes), (matrix_row(matrix, report) for matrix in report.matrices))),
        "<h2>Norms and biases</h2>",
        _card(table((*VECTOR_HEAD, *changes), (vector_row(vector, report) for vector in report.vectors))),
    ]
    style = resource("pretrain.inspection", "weights.css")
    return document("Weights", f"<main>{''.join(parts)}</main>", style=style)


def _charts(report: WeightsReport) -> str:
    charts: list[tuple[str, str, Callable[[MatrixStats], float | None]]] = [
        ("root mean square", "", lambda matrix: matrix.rms),
        ("largest singular value", "", lambda matrix: matrix.values[0][1] if matrix.values else None),
        ("stable rank", "‖W‖² / σ₁²: small if one direction dominates.", lambda matrix: matrix.stable_rank),
        (
            "effective rank",
            "Exponential of the entropy of the spectrum, relative to the shorter side.",
            lambda matrix: None if matrix.effective_rank is None else matrix.effective_rank / min(matrix.shape),
        ),
    ]
    if report.against is not None:
        caption = f"‖W − W₀‖ / ‖W₀‖, W₀ from step {report.against}."
        charts.append(("change", caption, lambda matrix: matrix.change))
    drawn = []
    for name, caption, value in charts:
        for group, parts in GROUPS.items():
            chart = _by_depth(report, parts, value, f"{group}: {name}")
            drawn.append(figure(f"{group}: {name}", chart, caption) if chart else "")
    return f'<div class="charts">{"".join(drawn)}{_norms(report)}{_dead(report)}</div>'


def _by_depth(
    report: WeightsReport, parts: dict[str, str], value: Callable[[MatrixStats], float | None], label: str
) -> str:
    lines = []
    for color, (name, part) in zip(COLORS, parts.items(), strict=False):
        of_part = [(matrix.layer, value(matrix)) for matrix in report.matrices if matrix.part == part]
        points = [(float(layer or 0), y) for layer, y in of_part if y is not None]
        if points:
            lines.append(Line(name, points, color, dots=True))
    return line_chart(lines, label, "layer") if lines else ""


def _norms(report: WeightsReport) -> str:
    drawn = []
    for part, title in (
        ("attention_norm.weight", "Norm of attention"),
        ("feed_forward_norm.weight", "Norm of feed-forward"),
    ):
        found = [vector for vector in report.vectors if vector.part == part and vector.median is not None]
        if found:
            rows = {"min": "least", "median": "median", "max": "most"}
            lines = [
                Line(name, [(float(v.layer or 0), getattr(v, key)) for v in found], color, dots=True)
                for color, (name, key) in zip("bac", rows.items(), strict=True)
            ]
            drawn.append(figure(f"{title}: weights", line_chart(lines, title, "layer")))
    return "".join(drawn)


def _dead(report: WeightsReport) -> str:
    points = [(float(layer), float(count)) for layer, count in enumerate(report.dead) if count is not None]
    if not any(count for _, count in points):
        return ""
    chart = line_chart([Line("", points, "bad", dots=True)], "dead units by layer", "layer")
    return figure("Dead feed-forward units", chart, f"Of {report.units:,} per layer.")


def _spectra(report: WeightsReport) -> str:
    layers = sorted({matrix.layer for matrix in report.matrices if matrix.layer is not None})
    chosen = sorted({layers[0], layers[len(layers) // 2], layers[-1]})
    drawn = []
    for parts in GROUPS.values():
        for part in parts.values():
            lines = []
            for color, layer in zip(COLORS, chosen, strict=False):
                for matrix in report.matrices:
                    if (matrix.layer, matrix.part) == (layer, part) and matrix.values and matrix.values[0][1] > 0:
                        top = matrix.values[0][1]
                        points = [(100 * at, value / top) for at, value in matrix.values if value >= 1e-5 * top]
                        lines.append(Line(f"layer {layer}", points, color))
            if lines:
                chart = line_chart(lines, f"singular values of {part}", "% of the spectrum", log=True, height=200)
                drawn.append(figure(part.replace("_", "-").replace(".", ": "), chart))
    caption = "Singular values relative to the largest, for the first, middle and last layer."
    return f'<p class="soft">{caption}</p><div class="charts">{"".join(drawn)}</div>'


def _card(content: str) -> str:
    return f'<div class="card scroll">{content}</div>'


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
