"""`pretrain data index`: token shards from tars of tokens that someone else wrote. What it needs is imported when it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from tokenizer.encoding.foreign.rewrite import RewriteProgress


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option("--output", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Folder for the shards.")
@click.option("--vocab-size", required=True, type=click.IntRange(2, 1 << 31), help="Every id must be below.")
@click.option("--eos-id", required=True, type=click.IntRange(0), help="Ends a document; appended where it is missing.")
@click.option(
    "--bos-id", type=click.IntRange(0), help="Put before documents where it is missing.  [default: nothing is]"
)
@click.option("--pad-id", type=click.IntRange(0), help="Taken off the end of members.  [default: nothing is]")
@click.option(
    "--member",
    type=click.Choice(["document", "chunk"]),
    default="document",
    show_default=True,
    help="What a member is; a chunk of a longer stream gets neither bos nor eos.",
)
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Tokenizer (.model or .json) that made the ids: they are held against it, and its text is counted.",
)
@click.option(
    "--tokens-member",
    "pattern",
    metavar="PATTERN",
    help="Members that hold tokens, such as '*.tok.npy'.  [default: all .npy, .json, .npy.gz and .json.gz]",
)
@click.option("--field", help="Field of a JSON object.  [default: tokens or input_ids]")
@click.option(
    "--max-bad-members",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Give up above this many members that cannot be used.",
)
@click.option("--overwrite", is_flag=True, help="Replace the corpus in --output.")
def index(
    sources: tuple[str, ...],
    output: Path,
    vocab_size: int,
    eos_id: int,
    bos_id: int | None,
    pad_id: int | None,
    member: str,
    tokenizer: Path | None,
    pattern: str | None,
    field: str | None,
    max_bad_members: int,
    overwrite: bool,
) -> None:
    """Make WebDataset tars of tokens readable for training.

    SOURCE is a tar, a folder of tars, or a glob. Nothing in them is trusted. What they hold is written anew, in the same
    order.
    """
    from tokenizer.encoding.foreign.framing import Reading
    from tokenizer.encoding.foreign.rewrite import index_foreign

    reading = Reading(
        vocab_size=vocab_size,
        eos_id=eos_id,
        bos_id=bos_id,
        pad_id=pad_id,
        member=member,
        pattern=pattern,
        field=field,
    )
    with _progress_bar() as progress:
        manifest, members, other_members = index_foreign(
            sources,
            output,
            reading,
            tokenizer=tokenizer,
            max_bad_members=max_bad_members,
            overwrite=overwrite,
            progress=progress,
        )
    text = f"{manifest.text_bytes / 1e6:,.1f} MB" if manifest.text_bytes else "size unknown without --tokenizer"
    rows = {
        "members": f"{members:,}",
        "other members": f"{other_members:,}",
        "documents": f"{manifest.documents:,}",
        "tokens": f"{manifest.tokens:,}",
        "text": text,
        **{f"left out: {reason}": f"{count:,}" for reason, count in manifest.skipped.items()},
        "shards": f"{len(manifest.shards)} in {output}",
    }
    width = max(map(len, rows))
    click.echo("\n".join(f"{name:<{width}}  {value}" for name, value in rows.items()))


@contextmanager
def _progress_bar() -> Iterator[Callable[[RewriteProgress], None] | None]:
    """A callback that draws bytes and tokens on a terminal; None elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (BarColumn(), DownloadColumn(), TextColumn("{task.fields[tokens]:,} tokens"), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("index", total=None, tokens=0)
        yield lambda done: bar.update(task, total=done.total_bytes, completed=done.bytes, tokens=done.tokens)
