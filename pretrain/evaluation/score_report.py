"""What an evaluation found, as JSON and as tables."""

import json
import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pretrain.errors import UserError
from pretrain.evaluation.held_out import Score, together
from pretrain.evaluation.request import Opened, Request
from pretrain.storage.files import publish_file


def describe(
    request: Request, opened: Opened, device: str, scores: dict[str, Score], tasks: dict[str, Any]
) -> dict[str, Any]:
    """Everything that was found, and what it depends on. The number of processes is not part of it."""
    trained = opened.checkpoint is not None  # a directory of Hugging Face does not say how long
    found: dict[str, Any] = {
        "model": request.path,
        "step": opened.weights.step if trained else None,
        "tokens": opened.weights.tokens if trained else None,
        "device": device,
        "dtype": request.dtype,
        "threads": request.threads,
        "micro_batch_size": request.micro_batch_size,
    }
    if scores:
        found["held_out"] = {
            "seq_len": opened.seq_len,
            "document_mask": opened.document_mask,
            **_numbers(together(list(scores.values()))),
            "sources": {
                source.name: {"shards": source.folder, **_numbers(scores[source.name])} for source in opened.sources
            },
        }
    return found | ({"tasks": tasks} if tasks else {})


def write_json(found: dict[str, Any], path: Path) -> None:
    """Write what was found, whole or not at all. Raises UserError."""
    try:
        publish_file(path, json.dumps(found, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(f"--json {path}: cannot be written: {error.strerror}") from None


def show(found: dict[str, Any], console: Console) -> None:
    """Print a table for people."""
    step = "" if found["step"] is None else f", step {found['step']}"
    how = f"{found['dtype']} on {found['device']}"
    console.print(f"{found['model']}{step}, {how}", highlight=False, markup=False, soft_wrap=True)
    if "held_out" in found:
        console.print(_held_out(found["held_out"]))
    if "tasks" in found:
        console.print(_tasks(found["tasks"]))


def _numbers(score: Score) -> dict[str, Any]:
    values = {
        "loss": score.loss,
        "perplexity": score.perplexity,
        "bits_per_byte": score.bits_per_byte,
        "accuracy": score.accuracy,
        "sequences": score.sequences,
        "targets": score.targets,
    }
    return {name: finite(value) for name, value in values.items()}


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _held_out(held_out: dict[str, Any]) -> Table:
    table = _table("source", "sequences", "targets", "loss", "perplexity", "bits/byte", "accuracy")
    rows = list(held_out["sources"].items())
    for name, values in [*rows, *([("together", held_out)] if len(rows) > 1 else [])]:
        table.add_row(
            name,
            f"{values['sequences']:,}",
            f"{values['targets']:,}",
            _shown(values["loss"], ".4f"),
            _shown(values["perplexity"], ",.2f"),
            _shown(values["bits_per_byte"], ".4f"),
            _shown(values["accuracy"], ".2%"),
        )
    return table


def _tasks(tasks: dict[str, Any]) -> Table:
    table = _table("task", "metric", "value", "± stderr", "samples")
    for task, values in tasks.items():
        for metric, value in values["metrics"].items():
            error = values["stderr"].get(metric)
            table.add_row(task, metric, _shown(value, ".4f"), _shown(error, ".4f"), _shown(values["samples"], ","))
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="left" if name == "metric" else "right")
    return table


def _shown(value: Any, form: str) -> str:
    return "–" if value is None else f"{value:{form}}"
