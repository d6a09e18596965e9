"""Training curve for the model card, one SVG file.

Drawn from metrics.jsonl (a line per step) and evaluations.jsonl (a line per evaluation). Long runs are averaged over equal
intervals of steps. The background is white in dark mode too: a page's style does not apply inside an image.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from pretrain.convert.files.weight_files import WeightSource
from pretrain.report.charts import Line, line_chart
from pretrain.run_folder import RunFolder, parse_lines

CURVE = "training-curve.svg"
MOST_POINTS = 400
# Fraction of first losses outside the scale: at about ln(vocab_size) they would take most of the height.
LEFT_OUT_OF_SCALE = 0.02
STYLE = """
svg { font-family: system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, "Noto Sans", sans-serif; }
text { font-size: 12px; fill: #5d6673; } text.name { fill: #1c2128; }
.paper { fill: #fff; stroke: #d5d9df; } .grid { stroke: #e6e9ee; } .axis { stroke: #8b95a3; }
.line { fill: none; stroke-linejoin: round; stroke-width: 1.75; }
.train { stroke: #8fb4ee; } .valid { stroke: #c2410c; stroke-width: 2.25; }
.dot { fill: #c2410c; stroke: #fff; stroke-width: 1; }
""".replace("\n", " ")


@dataclass(frozen=True)
class History:
    """Logs of a run: (step, training loss in nats per token), and the lines of evaluations.jsonl."""

    losses: tuple[tuple[int, float], ...]
    evaluations: tuple[dict[str, Any], ...]


def training_history(source: WeightSource) -> History | None:
    """Logs up to the step of a checkpoint; None for weights outside a run folder."""
    folder = getattr(source, "folder", None)
    if folder is None or Path(folder).parent.name not in ("checkpoints", "weights"):
        return None
    return read_history(RunFolder(Path(folder).parent.parent), source.step)


def read_history(run: RunFolder, step: int) -> History:
    """Both files up to `step`, without lines that have no loss or are truncated."""
    losses = tuple((line["step"], float(line["loss"])) for line in _lines(run.metrics, step))
    return History(losses, tuple(_lines(run.evaluations, step)))


def write_curve(folder: Path, history: History) -> str | None:
    """Write CURVE into `folder` and return its name; None without a file if there are fewer than two losses."""
    if len(history.losses) < 2:
        return None
    (folder / CURVE).write_text(curve(history), encoding="utf-8")
    return CURVE


def curve(history: History) -> str:
    """Text of the SVG file."""
    losses = _thinned(history.losses)
    valid = [(float(line["step"]), float(line["loss"])) for line in history.evaluations]
    settled = [*losses[int(len(losses) * LEFT_OUT_OF_SCALE) :], *(point for point in valid if point[0] > 0)]
    lines = [Line("training loss", losses, "train")]
    if valid:
        lines.append(Line("validation loss", valid, "valid", dots=len(valid) <= 40))
    drawn = line_chart(
        lines,
        "training and validation loss by step",
        "optimizer steps (loss in nats per token)",
        width=720,
        height=300,
        top=max(loss for _, loss in settled),
    )
    head, _, content = drawn.partition(">")
    size = 'xmlns="http://www.w3.org/2000/svg" width="752" height="324" viewBox="-16 -16 752 324"'
    paper = '<rect class="paper" x="-15.5" y="-15.5" width="751" height="323" rx="8"/>'
    attributes = head.partition("role=")[2]
    return f"<svg {size} role={attributes}><style>{STYLE}</style>{paper}{content}\n"


def _thinned(losses: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """Means of neighbouring steps, at most MOST_POINTS."""
    interval = math.ceil(len(losses) / MOST_POINTS)
    means = []
    for _, group in groupby(enumerate(losses), key=lambda item: item[0] // interval):
        members = [point for _, point in group]
        means.append((sum(x for x, _ in members) / len(members), sum(y for _, y in members) / len(members)))
    return means


def _lines(path: Path, step: int) -> Iterator[dict[str, Any]]:
    """Intact lines up to a step that have a finite `loss`."""
    if not path.is_file():
        return
    for line in parse_lines(path.read_bytes())[0]:
        loss = line.get("loss")
        if line["step"] <= step and isinstance(loss, int | float) and math.isfinite(loss):
            yield line
