"""Weight statistics as rows for the terminal and the page, and as JSON."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from pretrain.inspection.weight_stats import DEAD_BELOW, MatrixStats, VectorStats, WeightsReport
from pretrain.report.page import origin

MATRIX_HEAD = ("layer", "matrix", "shape", "RMS", "largest", "σ₁", "stable rank", "effective rank")
VECTOR_HEAD = ("layer", "weights", "length", "min", "median", "max")


def print_report(report: WeightsReport, name: str, console: Console) -> None:
    """Print tables of matrices and of vectors, then the remarks."""
    about = f"{origin(name, report.step)} · {report.parameters:,} parameters"
    console.print(about, markup=False, highlight=False)
    changes = () if report.against is None else (f"change since {report.against}",)
    layers: tuple[tuple[int | None, ...], ...] = tuple(
        tuple(found.layer for found in listed) for listed in (report.matrices, report.vectors)
    )
    console.print(_table((*MATRIX_HEAD, *changes), [matrix_row(m, report, 3) for m in report.matrices], layers[0]))
    console.print(_table((*VECTOR_HEAD, *changes), [vector_row(v, report, 3) for v in report.vectors], layers[1]))
    for line in remarks(report):
        console.print(f"- {line}", markup=False, highlight=False)


def report_json(report: WeightsReport) -> str:
    """All statistics as one JSON object; null if there is no number."""
    return json.dumps(asdict(report), indent=1, allow_nan=False) + "\n"


def remarks(report: WeightsReport) -> Iterator[str]:
    """Notes on defects, untrained parts and the accuracy of the spectra."""
    yield from report.notes
    if any(count is not None for count in report.dead):
        listed = ", ".join(f"{count} in layer {layer}" for layer, count in enumerate(report.dead) if count)
        yield (
            f"dead feed-forward units (a row of up or gate, or a column of down, below {DEAD_BELOW:.0%} of the median): "
            f"{listed or 'none'}, of {report.units:,} per layer"
        )
    for matrix in report.matrices:
        if matrix.untouched is not None:
            yield (
                f"{matrix.name}: {matrix.untouched:,} of {matrix.shape[0]:,} rows still have the direction of their "
                "random initialization: they were never trained"
            )
    yield "input embedding and output head are " + ("tied (one matrix)" if report.tied else "not tied (two matrices)")
    approximate = [matrix for matrix in report.matrices if not matrix.exact]
    if approximate:
        worst = max(matrix.error or 0.0 for matrix in approximate)
        yield (
            f"spectra of {len(approximate)} large matrices: largest values only, by subspace iteration, relative error up "
            f"to {worst:.1e}; raise --exact-up-to to compute all"
        )


def matrix_row(matrix: MatrixStats, report: WeightsReport, digits: int = 4) -> list[str]:
    """Cells for MATRIX_HEAD, and the change if there is one."""
    sigma = matrix.values[0][1] if matrix.values else None
    rank = None if matrix.effective_rank is None else matrix.effective_rank / min(matrix.shape)
    return [
        "" if matrix.layer is None else str(matrix.layer),
        matrix.part,
        f"{matrix.shape[0]}×{matrix.shape[1]}",
        "not finite" if matrix.not_finite else _short(matrix.rms, digits),
        *(_short(value, digits) for value in (matrix.largest, sigma, matrix.stable_rank)),
        "–" if rank is None else f"{rank:.0%}",
        *_change(matrix.change, report),
    ]


def vector_row(vector: VectorStats, report: WeightsReport, digits: int = 4) -> list[str]:
    """Cells for VECTOR_HEAD, and the change if there is one."""
    return [
        "" if vector.layer is None else str(vector.layer),
        vector.part.removesuffix(".weight"),
        str(vector.length),
        "not finite" if vector.not_finite else _short(vector.least, digits),
        *(_short(value, digits) for value in (vector.median, vector.most)),
        *_change(vector.change, report),
    ]


def _change(change: float | None, report: WeightsReport) -> list[str]:
    if report.against is None:
        return []
    return ["–" if change is None else f"{change:.2%}"]


def _short(value: float | None, digits: int) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}g}"


def _table(head: tuple[str, ...], rows: list[list[str]], layers: tuple[int | None, ...]) -> Table:
    """At most 80 columns wide, with a blank line between layers."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    for column, name in enumerate(head):
        wraps = name.endswith("rank") or name.startswith("change")
        table.add_column(
            name.replace(" ", "\n") if wraps else name, justify="left" if column == 1 else "right", no_wrap=True
        )
    for row, layer, following in zip(rows, layers, (*layers[1:], layers[-1] if layers else None), strict=True):
        table.add_row(*row, end_section=layer != following)
    return table
