"""Terminal output of `pretrain tokenizer train`, `report` and `inspect`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from pretrain.report.numbers import format_megabytes
from pretrain.report.terminal import transient_progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

    from tokenizer.training.compression_report import SourceReport, TokenizerReport
    from tokenizer.training.inspect_sentencepiece import Check
    from tokenizer.training.sample import Progress
    from tokenizer.training.train_bpe import Training

# Backgrounds of neighboring pieces, on which black is readable.
COLORS = ("light_sky_blue1", "khaki1", "dark_sea_green1", "plum1", "light_salmon1", "grey82")


def training_rows(training: Training) -> dict[str, str]:
    """Sample per source, skipped documents, time and memory of a training."""
    from tokenizer.training.record import describe_sample

    record = training.record
    return {
        "pieces": f"{record['settings']['vocab_size']:,}",
        **{f"sample: {name}": describe_sample(source) for name, source in record["sources"].items()},
        **{f"read as: {sample.name}": sample.files for sample in training.samples},
        **{f"left out: {reason}": f"{count:,}" for reason, count in record["skipped"].items()},
        **{
            f"left out of {sample.name}: {reason}": names
            for sample in training.samples
            for reason, names in sample.files_left_out.items()
        },
        **({"left out: U+2585": f"{record['unknown_signs_left_out']:,}"} if record["unknown_signs_left_out"] else {}),
        "time": f"reading {training.sampling_seconds:.1f} s, training {training.training_seconds:.1f} s",
        "memory": f"{format_megabytes(training.peak_bytes, 0)} at most",
        "model": str(training.path),
    }


def print_checks(checks: Sequence[Check]) -> None:
    """A line per check."""
    width = max(len(check.name) for check in checks)
    for check in checks:
        sign = click.style("✔", fg="green") if check.passed else click.style("✘", fg="red")
        click.echo(f"{sign} {check.name:<{width}}  {check.detail}")


def print_pieces(pieces: Sequence[tuple[str, int]], text: str) -> None:
    """Pieces of `text` in alternating colors, each with its id; unprintable characters are escaped."""
    from rich.text import Text

    from tokenizer.training.inspect_sentencepiece import visible

    line = Text()
    for number, (piece, token) in enumerate(pieces):
        line.append(visible(piece), style=f"black on {COLORS[number % len(COLORS)]}")
        line.append(f" {token}", style="dim")
        line.append("\n" if piece.endswith("\n") else "  ")
    _console().print(line, soft_wrap=True)
    size = len(text.encode())
    click.echo(f"\n{len(pieces):,} tokens, {size:,} bytes, {size / max(len(pieces), 1):.2f} bytes per token")


def print_sources(report: TokenizerReport) -> None:
    """A row per source, and a total."""
    from rich.table import Table

    table = Table(title="held-out text", title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("source", overflow="fold")
    for name in ("documents", "MB", "tokens", "bytes/token", "chars/token", "byte tokens"):
        table.add_column(name, justify="right", no_wrap=True)
    for source in report.sources:
        table.add_row(*_cells(source))
    if len(report.sources) > 1:
        table.add_row(*_cells(report.total), style="bold")
    _console().print(table)


def _cells(source: SourceReport) -> list[str]:
    return [
        source.name,
        f"{source.documents:,}",
        f"{source.bytes / 1e6:,.2f}",
        f"{source.tokens:,}",
        f"{source.bytes_per_token:.2f}",
        f"{source.characters_per_token:.2f}",
        f"{source.byte_share:.2%}",
    ]


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False)


@contextmanager
def sample_progress() -> Iterator[Progress | None]:
    """A callback that draws a bar per task and its bytes; None if stderr is not a terminal."""
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with transient_progress(*columns) as bars:
        if bars.disable:
            yield None
            return
        tasks: dict[str, TaskID] = {}

        def update(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total or None)
            bars.update(tasks[name], completed=done, total=max(done, total) or None)

        yield update
