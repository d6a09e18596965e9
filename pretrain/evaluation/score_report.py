"""Results of an evaluation as JSON and as terminal tables."""

import json
import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pretrain.errors import UserError
from pretrain.evaluation.held_out import Score, combined_score
from pretrain.evaluation.request import EvaluationRequest, OpenedEvaluation
from pretrain.storage.files import publish_file


def describe(
    request: EvaluationRequest, opened: OpenedEvaluation, device: str, scores: dict[str, Score], tasks: dict[str, Any]
) -> dict[str, Any]:
    """All results and the settings that they depend on; the number of processes is not one."""
    trained = opened.checkpoint is not None  # a Hugging Face directory has no step
    results: dict[str, Any] = {
        "model": request.path,
        "step": opened.weights.step if trained else None,
        "tokens": opened.weights.tokens if trained else None,
        "device": device,
        "dtype": request.dtype,
        "threads": request.threads,
        "micro_batch_size": request.micro_batch_size,
    }
    if scores:
        results["held_out"] = {
            "seq_len": opened.seq_len,
            "document_mask": opened.document_mask,
            **_metrics(combined_score(list(scores.values()))),
            "sources": {
                source.name: {"shards": source.folder, **_metrics(scores[source.name])} for source in opened.sources
            },
        }
    return results | ({"tasks": tasks} if tasks else {})


def write_json(results: dict[str, Any], path: Path) -> None:
    """Write the results atomically. Raises UserError."""
    try:
        publish_file(path, json.dumps(results, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(f"--json {path}: cannot be written: {error.strerror}") from None


def print_results(results: dict[str, Any], console: Console) -> None:
    """Print the results as tables."""
    step = "" if results["step"] is None else f", step {results['step']}"
    how = f"{results['dtype']} on {results['device']}"
    console.print(f"{results['model']}{step}, {how}", highlight=False, markup=False, soft_wrap=True)
    if "held_out" in results:
        console.print(_held_out_table(results["held_out"]))
    if "tasks" in results:
        console.print(_tasks_table(results["tasks"]))


def _metrics(score: Score) -> dict[str, Any]:
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
    """None for NaN and infinity, which JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _held_out_table(held_out: dict[str, Any]) -> Table:
    table = _table("source", "sequences", "targets", "loss", "perplexity", "bits/byte", "accuracy")
    rows = list(held_out["sources"].items())
    for name, values in [*rows, *([("together", held_out)] if len(rows) > 1 else [])]:
        table.add_row(
            name,
            f"{values['sequences']:,}",
            f"{values['targets']:,}",
            _format(values["loss"], ".4f"),
            _format(values["perplexity"], ",.2f"),
            _format(values["bits_per_byte"], ".4f"),
            _format(values["accuracy"], ".2%"),
        )
    return table


def _tasks_table(tasks: dict[str, Any]) -> Table:
    table = _table("task", "metric", "value", "± stderr", "samples")
    for task, values in tasks.items():
        for metric, value in values["metrics"].items():
            error = values["stderr"].get(metric)
            table.add_row(task, metric, _format(value, ".4f"), _format(error, ".4f"), _format(values["samples"], ","))
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="left" if name == "metric" else "right")
    return table


def _format(value: Any, spec: str) -> str:
    return "–" if value is None else f"{value:{spec}}"
