"""`pretrain tokenizer encode`. What it needs is imported when it runs. The other commands are in `train_cli.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from tokenizer.corpus.readers import ReadOptions, Task
    from tokenizer.encoding.run import Run


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


text_field_option = click.option(
    "--text-field", default="text", show_default=True, help="Field of a record that holds its text; a.b is nested."
)
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
@click.option(
    "--tokenizer",
    "model",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="SentencePiece model, as `train` writes it, or a Hugging Face tokenizer.json.",
)
@click.option(
    "--input",
    "inputs",
    required=True,
    multiple=True,
    metavar="PATH...",
    help="Files (.jsonl, .parquet, .tar, text; also compressed), folders of these, or addresses such as s3://bucket/folder.",
)
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
@click.option(
    "--deduplicate", is_flag=True, help="Leave out a document whose text came before. Reads everything twice."
)
@text_field_option
@click.option(
    "--where", multiple=True, metavar="FIELD=VALUE", help="Only records for which this holds; also !=, >=, <=, >, <."
)
@click.option("--separator", help="What separates the documents of a text file.  [default: a file is a document]")
@click.option("--member", metavar="PATTERN", help="Members of a tar that hold text, such as '*.txt'.")
@click.option(
    "--task-megabytes", type=click.FloatRange(min=0, min_open=True), help="Text of a task.  [default: 268, or less]"
)
@max_bad_option
@overwrite_option
@click.option("--plan", "only_plan", is_flag=True, help="Say how many tasks there are, and encode nothing.")
@click.option(
    "--task-id", type=click.IntRange(min=0), metavar="N", help="Do only task N of the plan, and do not merge."
)
@click.option(
    "--num-tasks", type=click.IntRange(min=1), metavar="K", help="With --task-id N: every K-th task, from N on."
)
@click.option("--merge", "only_merge", is_flag=True, help="Make the corpus, when all tasks are done.")
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
    **options: Any,
) -> None:
    """Encode a corpus into token shards.

    The corpus is cut into tasks, which processes share. After a kill, the same command goes on with what is not finished. On
    a cluster, run --plan, then an array with --task-id, then --merge, all with the same options.
    """
    from pretrain.cli.views.encode_table import corpus_rows, part_rows, plan_rows
    from pretrain.report.terminal import print_rows
    from tokenizer.encoding.encode_options import describe
    from tokenizer.encoding.run import Run, check_workers, select

    _refuse_contradictions(only_plan, task_id, num_tasks, only_merge, overwrite)
    encoding = describe(model, reading=_reading(options), **options)
    run = Run(encoding, inputs, output, overwrite=overwrite)
    _warn_of_losses(model)
    if only_plan:
        print_rows(plan_rows(run))
        return
    workers = check_workers(workers)
    tasks = run.plan.tasks if task_id is None else select(run.plan.tasks, task_id, num_tasks)
    if not only_merge:
        _work(run, tasks, workers)
    if task_id is not None:
        print_rows(part_rows(run, tasks))
        return
    settles = run.looking_for_duplicates
    run.decide()
    if settles and only_merge and not run.looking_for_duplicates:
        click.echo(
            "It is settled which documents are duplicates. Run all tasks again, to encode them, and --merge again."
        )
        return
    if settles and not only_merge:
        _work(run, tasks, workers)
    print_rows(corpus_rows(run.merge(), output))


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
            f"--overwrite with {chosen[0]} would remove what other tasks have written: run --plan --overwrite before"
        )


def _warn_of_losses(model: Path) -> None:
    """Once: the ids are right for the weights that the tokenizer came with, and the text is not all there."""
    from tokenizer.models.base import is_tokenizer_json

    if is_tokenizer_json(model):
        from tokenizer.models.round_trip import losses
        from tokenizer.training.inspect_hf import open_tokenizer_json

        lost = losses(open_tokenizer_json(model))
        if lost:
            click.echo(f"warning: {model}: some texts do not come back from their ids: {'; '.join(lost)}", err=True)


def _reading(options: dict[str, Any]) -> ReadOptions:
    """The `ReadOptions` among the options, which are taken out."""
    from tokenizer.corpus.readers import ReadOptions

    megabytes = options.pop("task_megabytes")
    reading = ReadOptions(**{name: options.pop(name) for name in ("text_field", "where", "separator", "member")})
    return reading if megabytes is None else replace(reading, task_bytes=max(1, int(megabytes * 1e6)))


def _work(run: Run, tasks: Sequence[Task], workers: int) -> None:
    from pretrain.cli.views.encode_table import progress_bar

    with progress_bar("looking for duplicates" if run.looking_for_duplicates else "encoding") as progress:
        done = run.work_on(tasks, workers=workers, progress=progress)
    if done < len(tasks):
        click.echo(f"{len(tasks) - done} of {len(tasks)} tasks were done before", err=True)
