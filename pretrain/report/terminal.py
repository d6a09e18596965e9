"""Rows and progress bars for terminals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn


def print_rows(rows: Mapping[str, str]) -> None:
    """Names and values in two columns, a line each."""
    # Not a rich table: it wraps long paths, even when the output is piped.
    width = max(map(len, rows))
    for name, value in rows.items():
        click.echo(f"{name:<{width}}  {value}")


def transient_progress(*columns: ProgressColumn, visible: bool = True) -> Progress:
    """Progress bars on stderr that vanish at the end; disabled unless stderr is a terminal. Default: rich's columns."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not (visible and console.is_terminal))
