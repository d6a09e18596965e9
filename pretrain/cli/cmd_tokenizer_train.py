"""`pretrain tokenizer train`, `report` and `inspect`. What they need is imported when they run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pretrain.cli.cmd_tokenizer import ManyInputs, max_bad_option, overwrite_option, repeat_option, text_field_option
from pretrain.cli.views.compression_table import (
    print_checks,
    print_pieces,
    print_sources,
    sample_progress,
    training_rows,
)
from pretrain.errors import DataError
from pretrain.report.terminal import print_rows

if TYPE_CHECKING:
    from tokenizer.training.compression_report import TokenizerReport
    from tokenizer.training.inspect_sentencepiece import Checks

REPORT_NAME = "report.json"
PAGE_NAME = "report.html"
sources_option = click.option(
    "--input",
    "inputs",
    required=True,
    multiple=True,
    metavar="[NAME=]PATH...",
    help="Files, folders or addresses, as for `encode`; NAME= begins a source, which gets a row of its own.",
)
held_out_option = click.option(
    "--held-out-bytes", default="2MB", show_default=True, metavar="B", help="Text of each source to report on."
)
seed_option = click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of the sample.")


class ManyValues(ManyInputs):
    """`--source-bytes` and `--control-symbol` take several values too."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse after expanding them."""
        for option in ("--source-bytes", "--control-symbol"):
            args = repeat_option(args, option)
        return super().parse_args(ctx, args)


def reading_options(command: Callable[..., None]) -> Callable[..., None]:
    """The fields of `ReadOptions` that a command line sets, by their names."""
    for option in (
        click.option("--member", metavar="PATTERN", help="Members of a tar that hold text, such as '*.txt'."),
        click.option(
            "--separator", help="What separates the documents of a text file.  [default: a file is a document]"
        ),
        click.option(
            "--where",
            multiple=True,
            metavar="FIELD=VALUE",
            help="Only records for which this holds; also !=, >=, <=, >, <.",
        ),
        text_field_option,
    ):
        command = option(command)
    return command


@click.command(cls=ManyValues)
@sources_option
@click.option("--vocab-size", required=True, type=click.IntRange(min=1), help="Pieces, all special ones included.")
@click.option("--output", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Folder for the model.")
@click.option("--sample-bytes", default="100MB", show_default=True, metavar="B", help="Text to train on, in all.")
@click.option(
    "--source-bytes", multiple=True, metavar="NAME=B...", help="Of it, text of one source; others share by their sizes."
)
@held_out_option
@click.option(
    "--control-symbol", multiple=True, metavar="SYMBOL...", help="Reserve an id that no text becomes, e.g. <|tool|>."
)
@click.option(
    "--character-coverage",
    default=0.9995,
    show_default=True,
    type=click.FloatRange(0.98, 1),
    help="Share of the sample's characters that get a piece; the rarer ones become bytes.",
)
@seed_option
@reading_options
@max_bad_option
@overwrite_option
@click.pass_obj
def train(
    checks: Checks,
    /,
    inputs: tuple[str, ...],
    vocab_size: int,
    output: Path,
    sample_bytes: str,
    source_bytes: tuple[str, ...],
    held_out_bytes: str,
    control_symbol: tuple[str, ...],
    character_coverage: float,
    seed: int,
    max_bad_documents: int,
    overwrite: bool,
    **reading: Any,
) -> None:
    """Train a SentencePiece model: BPE with byte fallback, lossless.

    Beside it lies report.html, on text that it was not trained on.
    """
    from tokenizer.corpus.readers import ReadOptions
    from tokenizer.training.budget import parse_size, parse_source_bytes, parse_sources
    from tokenizer.training.compression_report import make_report, measure_sources
    from tokenizer.training.inspect_sentencepiece import open_model
    from tokenizer.training.record import describe_record
    from tokenizer.training.train_bpe import train_tokenizer

    with sample_progress() as progress:
        training = train_tokenizer(
            parse_sources(inputs),
            vocab_size,
            output,
            sample_bytes=parse_size(sample_bytes),
            source_bytes=parse_source_bytes(source_bytes),
            held_out_bytes=parse_size(held_out_bytes),
            control_symbols=control_symbol,
            character_coverage=character_coverage,
            seed=seed,
            options=ReadOptions(**reading),
            max_bad_documents=max_bad_documents,
            overwrite=overwrite,
            progress=progress,
        )
    print_rows(training_rows(training))
    model = open_model(training.path)
    held_out = {sample.name: sample.held_out for sample in training.samples}
    if not any(held_out.values()):
        click.echo("\nno report: the sample took every document. hint: `pretrain tokenizer report` on other text")
        return
    report = make_report(
        model,
        measure_sources(model, held_out),
        checks.nasty_texts(model.control_symbols),
        left_out=training.record["skipped"],
        notes=_notes(training.record["held_out_duplicates"], held_out),
        trained_on=describe_record(training.record),
    )
    _publish(report, output)


@click.command(cls=ManyInputs)
@click.argument("model", type=click.Path(path_type=Path))
@sources_option
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="DIR", help="Folder for the report.  [default: the model's]"
)
@held_out_option
@seed_option
@reading_options
@max_bad_option
@overwrite_option
@click.pass_obj
def report(
    checks: Checks,
    /,
    model: Path,
    inputs: tuple[str, ...],
    output: Path | None,
    held_out_bytes: str,
    seed: int,
    max_bad_documents: int,
    overwrite: bool,
    **reading: Any,
) -> None:
    """Report on MODEL: what it makes of text of each source, and which pieces it uses.

    Documents that `train` took MODEL's sample from are left out.
    """
    from tokenizer.corpus.readers import ReadOptions
    from tokenizer.corpus.rejection_log import Problems
    from tokenizer.training.budget import Budget, parse_size, parse_sources
    from tokenizer.training.compression_report import make_report, measure_sources
    from tokenizer.training.inspect_sentencepiece import open_model
    from tokenizer.training.record import describe_record, read_record
    from tokenizer.training.sample import draw_samples, drop_known

    folder = output or model.parent
    if (folder / REPORT_NAME).exists() and not overwrite:
        raise DataError(f"{folder / REPORT_NAME}: exists already", hint="replace it with --overwrite, or use --output")
    opened, sources, problems = open_model(model), parse_sources(inputs), Problems()
    record, digests = read_record(model, opened.sha256)
    with sample_progress() as progress:
        samples = draw_samples(
            sources,
            ReadOptions(**reading),
            budget=Budget(0, {source.name: 0 for source in sources}),
            held_out_bytes=parse_size(held_out_bytes),
            seed=seed,
            problems=problems,
            max_bad_documents=max_bad_documents,
            progress=progress,
        )
    texts = {sample.name: sample.held_out for sample in samples}
    known = sum(drop_known(held_out, digests) for held_out in texts.values())
    notes = _notes(known, texts)
    if record is None:
        notes.append("It is not known which texts the model was trained on: some of these may be among them.")
    report = make_report(
        opened,
        measure_sources(opened, texts),
        checks.nasty_texts(opened.control_symbols),
        left_out=problems.counts,
        notes=notes,
        trained_on=describe_record(record) if record else {},
    )
    _publish(report, folder)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("text", required=False)
@click.pass_obj
def inspect(checks: Checks, /, model: Path, text: str | None) -> None:
    """What MODEL is: how it was trained, and whether it is fit for training and export.

    MODEL is a tokenizer.model, or a Hugging Face tokenizer.json. With TEXT, also its pieces and their ids; - reads it from
    standard input.
    """
    from tokenizer.models.base import is_tokenizer_json
    from tokenizer.training import inspect_hf as inspect_json
    from tokenizer.training import inspect_sentencepiece as inspect_model

    if text is not None:
        text = _standard_input() if text == "-" else _argument(text)
    if is_tokenizer_json(model):
        codec = inspect_json.open_tokenizer_json(model)
        rows, found = inspect_json.facts(model, codec), inspect_json.run_checks(codec, checks)
        pieces = inspect_json.pieces_of(codec, text or "")
    else:
        opened = inspect_model.open_model(model)
        rows, found = inspect_model.facts(opened), inspect_model.run_checks(opened, checks)
        pieces = inspect_model.pieces_of(opened, text or "")
    print_rows(rows)
    click.echo()
    print_checks(found)
    if text is not None:
        click.echo()
        print_pieces(pieces, text)


def _argument(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"the text is no UTF-8 from character {error.start} on") from None
    return text


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"standard input is no UTF-8: {error.reason} at byte {error.start}") from None


def _notes(known: int, held_out: Mapping[str, Sequence[str]]) -> list[str]:
    notes = [f"Left out, since the model was trained on the same text: {known:,} documents."] if known else []
    if empty := [name for name, texts in held_out.items() if not texts]:
        notes.append(
            f"Nothing was held out of {', '.join(empty)}: all of it is in the sample, or it has no other text."
        )
    return notes


def _publish(report: TokenizerReport, folder: Path) -> None:
    """Write report.json and report.html, and print their numbers."""
    from pretrain.report.page import write_page
    from tokenizer.training.compression_page import report_page
    from tokenizer.training.compression_report import write_report
    from tokenizer.training.inspect_sentencepiece import describe_round_trip

    write_report(report, folder / REPORT_NAME)
    write_page(report_page(report), folder / PAGE_NAME)
    click.echo()
    print_sources(report)
    vocabulary = report.vocabulary
    rows = {
        "vocabulary used": f"{vocabulary.used:,} of {vocabulary.pieces:,} pieces that text can become",
        "round trip": describe_round_trip(report.round_trip),
        **{f"note {number}": note for number, note in enumerate(report.notes, 1)},
        "report": str(folder / PAGE_NAME),
    }
    click.echo()
    print_rows(rows)
