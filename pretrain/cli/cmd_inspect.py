"""`pretrain inspect`: attention maps of a text, and statistics of the weights. Commands import torch when they run."""

from pathlib import Path

import click

from pretrain.report.numbers import format_megabytes
from pretrain.report.terminal import transient_progress

WEIGHTS = click.argument("path", metavar="RUN|DIR", type=click.Path(path_type=Path))
STEP = click.option("--step", type=int, help="Checkpoint to inspect.  [default: the newest]")


@click.group()
def inspect() -> None:
    """Inspect a model: attention maps and weight statistics."""


@inspect.command()
@WEIGHTS
@click.argument("text")
@STEP
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("attention.html"),
    show_default=True,
    metavar="FILE",
)
@click.option(
    "--max-tokens", type=click.IntRange(1, 512), default=64, show_default=True, help="Longer texts are truncated."
)
def attention(path: Path, text: str, step: int | None, out: Path, max_tokens: int) -> None:
    """Write the attention maps of TEXT as an HTML page."""
    from pretrain.convert.weight_sources import open_weights
    from pretrain.inspection.attention_maps import attention_maps
    from pretrain.inspection.attention_page import attention_page
    from pretrain.report.page import write_page

    maps = attention_maps(open_weights(path, step), text, max_tokens)
    page = attention_page(maps, str(path))
    write_page(page, out)
    layers, heads, tokens, _ = maps.weights_LHTT.shape
    click.echo(f"{out}: {layers} layers × {heads} heads, {tokens} tokens, {format_megabytes(len(page.encode()), 2)}")
    if maps.left_out:
        click.echo(f"the last {maps.left_out} tokens of the text are left out; raise --max-tokens to include them")


@inspect.command()
@WEIGHTS
@STEP
@click.option("--against", type=int, metavar="STEP", help="Also show the change of each parameter since this step.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write an HTML page with charts."
)
@click.option(
    "--json",
    "json_out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write all statistics as JSON.",
)
@click.option(
    "--exact-up-to",
    type=click.IntRange(1),
    default=2048,
    show_default=True,
    help="Compute the full spectrum if the shorter side is at most this, else the 16 largest values with an error bound.",
)
def weights(
    path: Path, step: int | None, against: int | None, out: Path | None, json_out: Path | None, exact_up_to: int
) -> None:
    """Show norms, spectra and dead units of all matrices."""
    from rich.console import Console

    from pretrain.convert.weight_sources import open_weights
    from pretrain.inspection.weight_stats import inspect_weights
    from pretrain.inspection.weights_page import weights_page
    from pretrain.inspection.weights_table import print_report, report_json
    from pretrain.report.page import write_page

    source = open_weights(path, step)
    before = None if against is None else open_weights(path, against)
    with transient_progress() as progress:
        bar = progress.add_task("weights", total=len(source.shapes))
        report = inspect_weights(source, before, exact_up_to=exact_up_to, progress=lambda name: progress.advance(bar))
    if out is not None:
        write_page(weights_page(report, str(path)), out)
    if json_out is not None:
        write_page(report_json(report), json_out)
    if out is None and json_out is None:
        print_report(report, str(path), Console())
    for file in filter(None, (out, json_out)):
        click.echo(f"{file}: {len(report.matrices)} matrices")
