"""What the commands that train and report on tokenizers show in a terminal, and in a file when they are piped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from tokenizer.training.compression_report import SourceReport, TokenizerReport
    from tokenizer.training.inspect_sentencepiece import Check
    from tokenizer.training.sample import Progress
    from tokenizer.training.train_bpe import Training

# Of neighbouring pieces: black on each of these can be read.
COLOURS = ("light_sky_blue1", "khaki1", "dark_sea_green1", "plum1", "light_salmon1", "grey82")


def training_rows(training: Training) -> dict[str, str]:
    """What a training took from each source, left out, and cost."""
    from tokenizer.training.record import describe_sample

    record = training.record
    return {
        "pieces": f"{record['settings']['vocab_size']:,}",
        **{f"sample: {name}": describe_sample(source) for name, source in record["sources"].items()},
        **{f"left out: {reason}": f"{count:,}" for reason, count in record["skipped"].items()},
        **({"left out: U+2585": f"{record['unknown_signs_left_out']:,}"} if record["unknown_signs_left_out"] else {}),
        "time": f"reading {training.sampling_seconds:.1f} s, training {training.training_seconds:.1f} s",
        "memory": f"{training.peak_bytes / 1e6:,.0f} MB at most",
        "model": str(training.path),
    }


def print_checks(checks: Sequence[Check]) -> None:
    """A line for each check."""
    width = max(len(check.name) for check in checks)
    for check in checks:
        sign = click.style("✔", fg="green") if check.passed else click.style("✘", fg="red")
        click.echo(f"{sign} {check.name:<{width}}  {check.detail}")


def print_pieces(pieces: Sequence[tuple[str, int]], text: str) -> None:
    """The pieces of `text`, in changing colours, each with its id; what does not print is escaped."""
    from rich.text import Text

    from tokenizer.training.inspect_sentencepiece import visible

    line = Text()
    for number, (piece, token) in enumerate(pieces):
        line.append(visible(piece), style=f"black on {COLOURS[number % len(COLOURS)]}")
        line.append(f" {token}", style="dim")
        line.append("\n" if piece.endswith("\n") else "  ")
    _console().print(line, soft_wrap=True)
    size = len(text.encode())
    click.echo(f"\n{len(pieces):,} tokens, {size:,} bytes, {size / max(len(pieces), 1):.2f} bytes per token")


def print_sources(report: TokenizerReport) -> None:
    """A row for each source, and one for all of them."""
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


def print_rows(rows: Mapping[str, str]) -> None:
    """Names and values in two columns."""
    # Not rich's table: it breaks a long path into two lines, also when the output is piped.
    width = max(map(len, rows))
    for name, value in rows.items():
        click.echo(f"{name:<{width}}  {value}")


@contextmanager
def progress_bar() -> Iterator[Progress | None]:
    """A callback that draws what is being done on a terminal, with its bytes; None elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Bar(*columns, console=console, transient=True) as bar:
        shown: dict[str, Any] = {}

        def show(name: str, done: int, total: int) -> None:
            if name not in shown:
                shown[name] = bar.add_task(name, total=total or None)
            bar.update(shown[name], completed=done, total=max(done, total) or None)

        yield show
