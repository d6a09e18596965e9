"""`pretrain tokenizer encode`; cmd_tokenizer_train.py has the other commands. Heavy imports wait until the command runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from tokenizer.corpus.readers import CorpusTask, ReadOptions
    from tokenizer.encoding.run import EncodeRun


def repeat_option(arguments: list[str], option: str) -> list[str]:
    """Expand `--input A B C` to `--input A --input B --input C`, the form that click parses."""
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


def parse_share(ctx: click.Context, param: click.Parameter, text: str | None) -> float | None:
    """A share between 0 and 1, written `0.005` or `0.5%`."""
    if text is None:
        return None
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise click.BadParameter(f"{text!r} is not a share between 0 and 1. Write 0.5% or 0.005.", ctx, param)
    return share


class ManyInputs(click.Command):
    """Command whose `--input` takes several paths, up to the next option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse after expanding `--input`."""
        return super().parse_args(ctx, repeat_option(args, "--input"))


format_option = click.option(
    "--format",
    "file_format",
    type=click.Choice(["jsonl", "text", "parquet", "tar"]),
    help="Format of all files.  [default: by name and content]",
)
text_field_option = click.option(
    "--text-field", default="text", show_default=True, help="Field of a record that holds its text; a.b for nested."
)


def limit_options(command: Callable[..., None]) -> Callable[..., None]:
    """Limits on documents and files that cannot be used."""
    for name, default, unusable in (
        ("--max-bad-files", 0, "files that end early or cannot be read"),
        ("--max-bad-documents", 100, "unusable documents"),
    ):
        limit: dict[str, Any] = {"type": click.IntRange(min=0), "help": f"Stop above this many {unusable}."}
        command = click.option(name, default=default, show_default=True, **limit)(command)
    return command


overwrite_option = click.option("--overwrite", is_flag=True, help="Replace the contents of --output.")


class PieceCount(click.IntRange):
    """A number of at least 1; `32k` is refused with the two numbers that it may mean."""

    def __init__(self) -> None:
        super().__init__(min=1)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse a number with a suffix."""
        found = re.fullmatch(r"(\d+)[kK]i?", str(value))
        if found is not None:
            number = int(found[1])
            self.fail(f"{value!r} is not a plain number: write {1000 * number} or {1024 * number}", param, ctx)
        return super().convert(value, param, ctx)


@click.group()
def tokenizer() -> None:
    """Train a tokenizer, and encode a corpus into token shards."""


@tokenizer.command(cls=ManyInputs)
@click.option(
    "--tokenizer",
    "model",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="SentencePiece model, as written by `train`, or Hugging Face tokenizer.json.",
)
@click.option(
    "--input",
    "inputs",
    required=True,
    multiple=True,
    metavar="PATH...",
    help="Files (.jsonl, .parquet, .tar, text; also compressed), folders of them, or addresses such as s3://bucket/folder.",
)
@click.option("--output", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Folder for the shards.")
@click.option("--workers", type=click.IntRange(min=1), help="Number of processes.  [default: one per core]")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Seed of the document shuffle.")
@click.option(
    "--layout",
    default="stream",
    show_default=True,
    type=click.Choice(["stream", "packed"]),
    help="stream: concatenated documents, cut at sequence ends. packed: bins of --seq-len ids that keep documents intact "
    "where possible.",
)
@click.option("--seq-len", type=click.IntRange(min=2), help="data.seq_len of the training run; packed needs it.")
@click.option(
    "--deduplicate", is_flag=True, help="Leave out documents whose text occurs earlier. Reads the corpus twice."
)
@format_option
@click.option(
    "--holdout",
    metavar="SHARE",
    callback=parse_share,
    help="Share of documents, such as 0.5%, to hold out by a hash of their text: writes DIR/train and DIR/valid.",
)
@text_field_option
@click.option(
    "--where", multiple=True, metavar="FIELD=VALUE", help="Keep only matching records; also !=, >=, <=, >, <."
)
@click.option("--separator", help="Separator between the documents of a text file.  [default: one document per file]")
@click.option("--member", metavar="PATTERN", help="Tar members that hold text, such as '*.txt'.")
@click.option(
    "--task-megabytes",
    type=click.FloatRange(min=0, min_open=True),
    help="Megabytes of text per task.  [default: 268; less for a small corpus]",
)
@limit_options
@overwrite_option
@click.option("--plan", "only_plan", is_flag=True, help="Show the number of tasks; encode nothing.")
@click.option("--task-id", type=click.IntRange(min=0), metavar="N", help="Run only task N of the plan; do not merge.")
@click.option(
    "--num-tasks", type=click.IntRange(min=1), metavar="K", help="With --task-id N: every K-th task, from N on."
)
@click.option("--merge", "only_merge", is_flag=True, help="Merge the finished tasks into the corpus.")
def encode(
    model: Path,
    inputs: tuple[str, ...],
    output: Path,
    workers: int | None,
    overwrite: bool,
    only_plan: bool,
    task_id: int | None,
    num_tasks: int | None,
    only_merge: bool,
    holdout: float | None,
    **options: Any,
) -> None:
    """Encode a corpus into token shards.

    The corpus is split into tasks, which run in parallel. After a kill, run the same command again to resume. On a cluster,
    run --plan, then a job array with --task-id, then --merge, all with the same options.
    """
    from pretrain.cli.views.unread_targets import check_seq_len
    from pretrain.shards.format import BLOCK_TOKENS
    from tokenizer.encoding.encode_options import EncodeOptions, make_encoding
    from tokenizer.encoding.holdout import PARTS
    from tokenizer.encoding.run import EncodeRun, worker_count

    _refuse_contradictions(only_plan, task_id, num_tasks, only_merge, overwrite)
    seq_len = options["seq_len"]
    if options["layout"] == "stream":  # which any length can read: reported, but no option of the encoding
        options["seq_len"] = None
        if seq_len is not None:
            check_seq_len(seq_len, BLOCK_TOKENS)
    encode_options = EncodeOptions(reading=_pop_read_options(options), **options)
    encoding = make_encoding(model, encode_options)
    runs = [
        EncodeRun(replace(encoding, holdout=holdout or 0.0, part=part), inputs, output / part, overwrite=overwrite)
        for part in (PARTS if holdout else ("",))
    ]
    for run in runs:
        if holdout:
            click.echo(f"{run.output}:")
        _encode_run(run, worker_count(workers), only_plan, task_id, num_tasks, only_merge, seq_len)


def _encode_run(
    run: EncodeRun,
    workers: int,
    only_plan: bool,
    task_id: int | None,
    num_tasks: int | None,
    only_merge: bool,
    seq_len: int | None,
) -> None:
    """The steps of one output."""
    from pretrain.cli.views.encode_table import corpus_rows, plan_rows, task_rows
    from pretrain.report.terminal import print_rows
    from tokenizer.encoding.run import select_tasks

    if run.is_complete:
        click.echo(f"{run.output}: encoded before, with these options from these files; nothing to do", err=True)
        print_rows(corpus_rows(run.merge(), run.plan, run.output, seq_len))
        return
    if only_plan:
        print_rows(plan_rows(run))
        return
    tasks = run.plan.tasks if task_id is None else select_tasks(run.plan.tasks, task_id, num_tasks)
    if not only_merge:
        _work(run, tasks, workers)
    if task_id is not None:
        print_rows(task_rows(run, tasks))
        return
    hashed = run.in_hash_pass
    run.finish_hash_pass()
    if hashed and only_merge and not run.in_hash_pass:
        click.echo("Duplicates are found. Run all tasks again to encode them, then --merge again.")
        return
    if hashed and not only_merge:
        _work(run, tasks, workers)
    print_rows(corpus_rows(run.merge(), run.plan, run.output, seq_len))


def _refuse_contradictions(
    only_plan: bool, task_id: int | None, num_tasks: int | None, only_merge: bool, overwrite: bool
) -> None:
    chosen = [
        name
        for name, given in (("--plan", only_plan), ("--task-id", task_id is not None), ("--merge", only_merge))
        if given
    ]
    if len(chosen) > 1:
        raise click.UsageError(f"{' and '.join(chosen)} are different steps: give one of them")
    if num_tasks is not None and task_id is None:
        raise click.UsageError("--num-tasks has no meaning without --task-id")
    if overwrite and chosen and not only_plan:
        raise click.UsageError(
            f"--overwrite with {chosen[0]} would remove the output of other tasks: run --plan --overwrite before"
        )


def _pop_read_options(options: dict[str, Any]) -> ReadOptions:
    """Remove the fields of `ReadOptions` from `options` and return them."""
    from tokenizer.corpus.readers import ReadOptions

    megabytes = options.pop("task_megabytes")
    reading = ReadOptions(
        **{name: options.pop(name) for name in ("file_format", "text_field", "where", "separator", "member")}
    )
    return reading if megabytes is None else replace(reading, task_bytes=max(1, int(megabytes * 1e6)))


def _work(run: EncodeRun, tasks: Sequence[CorpusTask], workers: int) -> None:
    from pretrain.cli.views.encode_table import progress_bar

    with progress_bar("hashing" if run.in_hash_pass else "encoding") as progress:
        done = run.run_tasks(tasks, workers=workers, progress=progress)
    if done < len(tasks):
        click.echo(f"{len(tasks) - done} of {len(tasks)} tasks were finished before", err=True)
