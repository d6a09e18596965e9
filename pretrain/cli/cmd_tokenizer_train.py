"""`pretrain tokenizer train`, `report` and `inspect`. Heavy modules are imported when a command runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pretrain.cli.cmd_tokenizer import (
    ManyInputs,
    PieceCount,
    format_option,
    limit_options,
    overwrite_option,
    repeat_option,
    text_field_option,
)
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

REPORT_NAME = "report.json"
PAGE_NAME = "report.html"
sources_option = click.option(
    "--input",
    "inputs",
    required=True,
    multiple=True,
    metavar="[NAME=]PATH...",
    help="Files, folders or URLs, as for `encode`; NAME= begins a source with its own row in the report.",
)
held_out_option = click.option(
    "--held-out-bytes",
    default="2MB",
    show_default=True,
    metavar="B",
    help="Text to hold out of each source for the report.",
)
seed_option = click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Seed of the sample."
)


class ManyValues(ManyInputs):
    """Command whose `--source-bytes` and `--control-symbol` also take several values."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Expand the repeated values, then parse."""
        for option in ("--source-bytes", "--control-symbol"):
            args = repeat_option(args, option)
        return super().parse_args(ctx, args)


def reading_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options for the fields of `ReadOptions`, of the same names."""
    for option in (
        click.option("--member", metavar="PATTERN", help="Text members of a tar file, e.g. '*.txt'."),
        click.option("--separator", help="Separator between documents in a text file.  [default: one document a file]"),
        click.option(
            "--where",
            multiple=True,
            metavar="FIELD=VALUE",
            help="Keep only records that satisfy this condition; also !=, >=, <=, >, <.",
        ),
        text_field_option,
        format_option,
    ):
        command = option(command)
    return command


@click.command(cls=ManyValues)
@sources_option
@click.option("--vocab-size", required=True, type=PieceCount(), help="Number of pieces, special ones included.")
@click.option("--output", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Folder for the model.")
@click.option("--sample-bytes", default="100MB", show_default=True, metavar="B", help="Text to train on in total.")
@click.option(
    "--source-bytes",
    multiple=True,
    metavar="NAME=B...",
    help="Text of one source; the other sources share the rest in proportion to their sizes.",
)
@held_out_option
@click.option(
    "--control-symbol",
    multiple=True,
    metavar="SYMBOL...",
    help="Reserve an id that text never produces, e.g. <|tool|>.",
)
@click.option(
    "--character-coverage",
    default=0.9995,
    show_default=True,
    type=click.FloatRange(0.98, 1),
    help="Share of the sample's characters that get a piece; rarer ones are encoded as bytes.",
)
@seed_option
@reading_options
@limit_options
@overwrite_option
def train(
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
    max_bad_files: int,
    overwrite: bool,
    **reading: Any,
) -> None:
    """Train a SentencePiece model: BPE with byte fallback, lossless.

    Also writes report.html, a report on held-out text.
    """
    from tokenizer.corpus.readers import ReadOptions
    from tokenizer.training.budget import parse_size, parse_source_bytes, parse_sources
    from tokenizer.training.compression_report import make_report, measure_sources
    from tokenizer.training.inspect_sentencepiece import open_model
    from tokenizer.training.record import describe_record
    from tokenizer.training.train_bpe import size_warning, train_tokenizer

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
            max_bad_files=max_bad_files,
            overwrite=overwrite,
            progress=progress,
        )
    print_rows(training_rows(training))
    if warning := size_warning(vocab_size, training.record["sample_bytes"]):
        click.echo(f"warning: {warning}", err=True)
    model = open_model(training.path)
    held_out = {sample.name: sample.held_out for sample in training.samples}
    if not any(held_out.values()):
        click.echo("\nno report: the sample took every document. hint: use `pretrain tokenizer report` on other text")
        return
    report = make_report(
        model,
        measure_sources(model, held_out),
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
@limit_options
@overwrite_option
def report(
    model: Path,
    inputs: tuple[str, ...],
    output: Path | None,
    held_out_bytes: str,
    seed: int,
    max_bad_documents: int,
    max_bad_files: int,
    overwrite: bool,
    **reading: Any,
) -> None:
    """Report on MODEL: compression of each source, and use of the vocabulary.

    Documents that MODEL was trained on are excluded, if its training.json is beside it.
    """
    from tokenizer.corpus.readers import ReadOptions
    from tokenizer.corpus.rejection_log import RejectionLog
    from tokenizer.training.budget import Budget, parse_size, parse_sources
    from tokenizer.training.compression_report import make_report, measure_sources
    from tokenizer.training.inspect_sentencepiece import open_model
    from tokenizer.training.record import describe_record, read_record
    from tokenizer.training.sample import draw_samples, drop_known

    folder = output or model.parent
    if (folder / REPORT_NAME).exists() and not overwrite:
        raise DataError(f"{folder / REPORT_NAME}: exists already", hint="use --overwrite, or another --output")
    opened, sources, problems = open_model(model), parse_sources(inputs), RejectionLog()
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
            max_bad_files=max_bad_files,
            progress=progress,
        )
    texts = {sample.name: sample.held_out for sample in samples}
    known = sum(drop_known(held_out, digests) for held_out in texts.values())
    notes = _notes(known, texts)
    if record is None:
        notes.append("The texts that the model was trained on are unknown; some of these may be among them.")
    report = make_report(
        opened,
        measure_sources(opened, texts),
        left_out=problems.counts,
        notes=notes,
        trained_on=describe_record(record) if record else {},
    )
    _publish(report, folder)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("text", required=False)
def inspect(model: Path, text: str | None) -> None:
    """Show MODEL's settings, and check that it is fit for training and export.

    MODEL is a tokenizer.model or a Hugging Face tokenizer.json. With TEXT, also show its pieces and their ids; - reads TEXT
    from standard input.
    """
    from tokenizer.models.base import is_tokenizer_json
    from tokenizer.training import inspect_hf, inspect_sentencepiece

    if text is not None:
        text = _standard_input() if text == "-" else _argument(text)
    if is_tokenizer_json(model):
        hf = inspect_hf.open_tokenizer_json(model)
        rows, checks = inspect_hf.facts(model, hf), inspect_hf.run_checks(hf)
        pieces = inspect_hf.pieces_of(hf, text or "")
    else:
        opened = inspect_sentencepiece.open_model(model)
        rows, checks = inspect_sentencepiece.facts(opened), inspect_sentencepiece.run_checks(opened)
        pieces = inspect_sentencepiece.pieces_of(opened, text or "")
    print_rows(rows)
    click.echo()
    print_checks(checks)
    if text is not None:
        click.echo()
        print_pieces(pieces, text)


def _argument(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"the text is not UTF-8 at character {error.start}") from None
    return text


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"standard input is not UTF-8: {error.reason} at byte {error.start}") from None


def _notes(known: int, held_out: Mapping[str, Sequence[str]]) -> list[str]:
    notes = [f"Excluded {known:,} documents that the model was trained on."] if known else []
    if empty := [name for name, texts in held_out.items() if not texts]:
        notes.append(f"Nothing was held out of {', '.join(empty)}: all of its text that was read is in the sample.")
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
