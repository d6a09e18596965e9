"""`pretrain data index`: token shards from tars of tokens of other tools. Heavy imports wait until the command runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pretrain.report.numbers import format_megabytes
from pretrain.report.terminal import print_rows, transient_progress

if TYPE_CHECKING:
    from tokenizer.encoding.foreign.rewrite import RewriteProgress


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option("--output", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Folder for the shards.")
@click.option("--vocab-size", required=True, type=click.IntRange(2, 1 << 31), help="All ids must be below it.")
@click.option("--eos-id", required=True, type=click.IntRange(0), help="End of document; appended where missing.")
@click.option("--bos-id", type=click.IntRange(0), help="Start of document; prepended where missing.  [default: none]")
@click.option("--pad-id", type=click.IntRange(0), help="Padding; stripped from the end of members.  [default: none]")
@click.option(
    "--member",
    type=click.Choice(["document", "chunk"]),
    default="document",
    show_default=True,
    help="Content of a member; a chunk of a longer stream gets neither bos nor eos.",
)
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Tokenizer (.model or .json) of the ids: checks them, and counts the bytes of text.",
)
@click.option(
    "--tokens-member",
    "pattern",
    metavar="PATTERN",
    help="Members that hold tokens, such as '*.tok.npy'.  [default: all .npy, .json, .npy.gz and .json.gz]",
)
@click.option("--field", help="Field of a JSON object that holds the tokens.  [default: tokens or input_ids]")
@click.option(
    "--max-bad-members",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Stop above this many unusable members.",
)
@click.option("--overwrite", is_flag=True, help="Replace the corpus in --output.")
def index(
    sources: tuple[str, ...],
    output: Path,
    tokenizer: Path | None,
    max_bad_members: int,
    overwrite: bool,
    **framing: Any,
) -> None:
    """Rewrite WebDataset tars of tokens as token shards for training.

    SOURCE is a tar, a folder of tars, or a glob. All contents are checked, and keep their order.
    """
    from tokenizer.encoding.foreign.framing import FramingOptions
    from tokenizer.encoding.foreign.rewrite import index_foreign

    with _progress_bar() as progress:
        manifest, members, other_members = index_foreign(
            sources,
            output,
            FramingOptions(**framing),
            tokenizer=tokenizer,
            max_bad_members=max_bad_members,
            overwrite=overwrite,
            progress=progress,
        )
    text = format_megabytes(manifest.text_bytes) if manifest.text_bytes else "size unknown without --tokenizer"
    rows = {
        "members": f"{members:,}",
        "other members": f"{other_members:,}",
        "documents": f"{manifest.documents:,}",
        "tokens": f"{manifest.tokens:,}",
        "text": text,
        **{f"left out: {reason}": f"{count:,}" for reason, count in manifest.skipped.items()},
        "shards": f"{len(manifest.shards)} in {output}",
    }
    print_rows(rows)


@contextmanager
def _progress_bar() -> Iterator[Callable[[RewriteProgress], None] | None]:
    """A callback that draws bytes and tokens on a terminal; None elsewhere."""
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), DownloadColumn(), TextColumn("{task.fields[tokens]:,} tokens"), TimeRemainingColumn())
    with transient_progress(*columns) as bar:
        if bar.disable:
            yield None
            return
        task = bar.add_task("index", total=None, tokens=0)
        yield lambda done: bar.update(task, total=done.total_bytes, completed=done.bytes, tokens=done.tokens)
