"""`pretrain tokenizer`: the commands `train` and `encode`. What they need is imported when they run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pretrain.data.manifest import Manifest
    from tokenizer.encode import Progress


def repeat_option(arguments: list[str], option: str) -> list[str]:
    """`--input A B C` written as `--input A --input B --input C`, which is what click understands."""
    expanded: list[str] = []
    inside = False
    for argument in arguments:
        if argument.startswith("-") and argument != "-":
            inside = argument == option or argument.startswith(f"{option}=")
            repeats = False
        else:
            repeats = inside and expanded[-1] != option
        expanded += [option, argument] if repeats else [argument]
    return expanded


class ManyInputs(click.Command):
    """A command whose `--input` takes several paths, up to the next option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse after expanding `--input`."""
        return super().parse_args(ctx, repeat_option(args, "--input"))


input_option = click.option(
    "--input",
    "inputs",
    required=True,
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="PATH...",
    help="Text files (one document each), .jsonl files (one a line) or folders.",
)
text_field_option = click.option("--text-field", default="text", show_default=True, help="Field of a .jsonl line.")
max_bad_option = click.option(
    "--max-bad-documents",
    default=100,
    show_default=True,
    type=click.IntRange(min=0),
    help="Give up above this many documents that cannot be used.",
)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace what --output holds.")


@click.group()
def tokenizer() -> None:
    """Train a tokenizer, and turn a corpus into token shards."""


@tokenizer.command(cls=ManyInputs)
@input_option
@click.option("--vocab-size", required=True, type=click.IntRange(min=1), help="Pieces, all special ones included.")
@click.option("--output", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Folder for the model.")
@click.option(
    "--sample-megabytes",
    default=100.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Text to train on, drawn uniformly from the corpus.",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Seed of the sample.")
@text_field_option
@max_bad_option
@overwrite_option
def train(
    inputs: tuple[Path, ...],
    vocab_size: int,
    output: Path,
    sample_megabytes: float,
    seed: int,
    text_field: str,
    max_bad_documents: int,
    overwrite: bool,
) -> None:
    """Train a SentencePiece model: BPE with byte fallback, lossless."""
    import json

    from tokenizer.train import RECORD_NAME, train_tokenizer

    path = train_tokenizer(
        inputs,
        vocab_size,
        output,
        sample_bytes=int(sample_megabytes * 1e6),
        seed=seed,
        text_field=text_field,
        max_bad_documents=max_bad_documents,
        overwrite=overwrite,
    )
    record = json.loads((output / RECORD_NAME).read_text())
    rows = {
        "pieces": f"{vocab_size:,}",
        "trained on": f"{record['sample_bytes'] / 1e6:,.1f} MB, {record['sample_documents']:,} documents"
        f" of {record['corpus_documents']:,}",
        **_skipped_rows(record["skipped"]),
        "model": str(path),
    }
    _print_table(rows)


@tokenizer.command(cls=ManyInputs)
@click.option(
    "--tokenizer",
    "model",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR/tokenizer.model",
    help="SentencePiece model, as `train` writes it.",
)
@input_option
@click.option("--output", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Folder for the shards.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes.  [default: one a core]")
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Seed of the order of the documents."
)
@click.option(
    "--layout",
    default="stream",
    show_default=True,
    type=click.Choice(["stream", "packed"]),
    help="stream: one document after the other, cut where a sequence ends. packed: documents whole where they can be, in "
    "bins of --seq-len.",
)
@click.option("--seq-len", type=click.IntRange(min=2), help="packed only: data.seq_len of the training.")
@text_field_option
@max_bad_option
@overwrite_option
def encode(
    model: Path,
    inputs: tuple[Path, ...],
    output: Path,
    workers: int | None,
    seed: int,
    layout: str,
    seq_len: int | None,
    text_field: str,
    max_bad_documents: int,
    overwrite: bool,
) -> None:
    """Encode a corpus into token shards."""
    from tokenizer.encode import encode_corpus

    with _progress_bar() as progress:
        manifest = encode_corpus(
            model,
            inputs,
            output,
            workers=workers,
            text_field=text_field,
            seed=seed,
            layout=layout,
            seq_len=seq_len,
            max_bad_documents=max_bad_documents,
            overwrite=overwrite,
            progress=progress,
        )
    rows = {
        "documents": f"{manifest.documents:,}",
        "text": f"{manifest.text_bytes / 1e6:,.1f} MB",
        "tokens": f"{manifest.tokens:,}",
        "bytes per token": f"{manifest.text_bytes / manifest.tokens:.2f}",
        **(_packing_rows(manifest) if manifest.layout == "packed" else {}),
        **_skipped_rows(manifest.skipped),
        "shards": f"{len(manifest.shards)} in {output}",
    }
    _print_table(rows)


def _packing_rows(manifest: Manifest) -> dict[str, str]:
    ids = manifest.stored_targets + 1
    return {
        "sequences": f"{manifest.stored_targets // manifest.packed_seq_len:,} of {manifest.packed_seq_len:,}",
        "filled": f"{1 - manifest.padding_tokens / ids:.2%}, {manifest.padding_tokens:,} padding",
        "documents cut": f"{manifest.documents_cut:,}, {manifest.documents_cut / manifest.documents:.1%}",
    }


def _skipped_rows(skipped: dict[str, int]) -> dict[str, str]:
    return {f"left out: {reason}": f"{count:,}" for reason, count in skipped.items()}


def _print_table(rows: dict[str, str]) -> None:
    # Not rich's table: it breaks a long path into two lines, also when the output is piped.
    width = max(map(len, rows))
    for name, value in rows.items():
        click.echo(f"{name:<{width}}  {value}")


@contextmanager
def _progress_bar() -> Iterator[Callable[[Progress], None] | None]:
    """A callback that draws documents, MB/s and tokens on a terminal; None elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("documents  {task.fields[speed]}"), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("encode", total=None, speed="")

        def show(progress: Progress) -> None:
            seconds = max(bar.tasks[0].elapsed or 0.0, 1e-9)
            speed = f"{progress.text_bytes / 1e6 / seconds:.1f} MB/s  {progress.tokens:,} tokens"
            bar.update(task, total=progress.total_documents, completed=progress.documents, speed=speed)

        yield show
