"""Terminal output of an encoding: a progress bar while it runs, a table at its end."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

from pretrain.cli.views.unread_targets import unread_rows
from pretrain.report.numbers import format_megabytes
from pretrain.report.terminal import transient_progress
from pretrain.shards.manifest import PACKED, Manifest
from pretrain.shards.writer import PROBLEMS_NAME
from tokenizer.corpus.file_summary import describe_files, describe_left_out
from tokenizer.corpus.readers import CorpusTask
from tokenizer.corpus.task_plan import TaskPlan
from tokenizer.encoding.run import EncodeRun
from tokenizer.encoding.shared_counts import EncodeProgress

_BAR_STEPS = 10_000


def plan_rows(run: EncodeRun) -> dict[str, str]:
    """Rows for --plan: inputs, estimated text, tasks, and the path of the written plan."""
    tasks = len(run.plan.tasks)
    return {
        **{source.input: f"{source.files:,} files, {format_megabytes(source.bytes)}" for source in run.plan.sources},
        "text": f"about {format_megabytes(run.plan.text_bytes)}",
        **_file_rows(run.plan),
        "tasks": f"{tasks:,}, numbered 0 to {tasks - 1:,}, in {run.write_plan()}",
    }


def task_rows(run: EncodeRun, tasks: Sequence[CorpusTask]) -> dict[str, str]:
    """Rows for --task-id: finished and remaining tasks, and the next step."""
    left = len(run.unfinished(run.plan.tasks))
    again = ", then --task-id again, which encodes" if run.in_hash_pass else ""
    return {
        "done here": f"{len(tasks):,} of {len(run.plan.tasks):,} tasks",
        "left": f"{left:,} tasks, here or elsewhere",
        "next": f"--merge, when none is left{again}",
    }


def corpus_rows(manifest: Manifest, plan: TaskPlan, output: Path, seq_len: int | None = None) -> dict[str, str]:
    """Rows for a finished corpus that is to be read at `seq_len`."""
    files = _file_rows(plan)
    rows = {
        "read as": files.pop("read as"),
        "documents": f"{manifest.documents:,}",
        "text": format_megabytes(manifest.text_bytes),
        "tokens": f"{manifest.tokens:,}",
        "bytes per token": f"{manifest.text_bytes / manifest.tokens:.2f}",
        **(_packing_rows(manifest) if manifest.layout == PACKED else {}),
        **{f"left out: {reason}": f"{count:,}" for reason, count in manifest.skipped.items()},
        **files,
        **unread_rows(manifest, seq_len),
        "shards": f"{len(manifest.shards)} in {output}",
    }
    return rows | ({"by file": str(output / PROBLEMS_NAME)} if manifest.skipped else {})


def _file_rows(plan: TaskPlan) -> dict[str, str]:
    left_out = describe_left_out(plan.tasks)
    return {
        "read as": describe_files(plan.tasks) or "no file",
        **{f"left out: {reason}": text for reason, text in left_out.items()},
    }


def _packing_rows(manifest: Manifest) -> dict[str, str]:
    ids = manifest.stored_targets + 1
    return {
        "sequences": f"{manifest.stored_targets // manifest.packed_seq_len:,} of {manifest.packed_seq_len:,}",
        "filled": f"{1 - manifest.padding_tokens / ids:.2%}, {manifest.padding_tokens:,} padding",
        "documents cut": f"{manifest.documents_cut:,}, {manifest.documents_cut / manifest.documents:.1%}",
    }


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[EncodeProgress], None] | None]:
    """A callback that draws tasks, documents, MB/s, tokens, problems and the time left on a terminal; None elsewhere."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[counts]}"),
        TimeRemainingColumn(),
    )
    with transient_progress(*columns) as bar:
        if bar.disable:
            yield None
            return
        drawn = bar.add_task(what, total=_BAR_STEPS, counts="")

        def show(progress: EncodeProgress) -> None:
            seconds = max(bar.tasks[0].elapsed or 0.0, 1e-9)
            bar.update(drawn, completed=int(progress.share * _BAR_STEPS), counts=_counts(progress, seconds))

        yield show


def _counts(progress: EncodeProgress, seconds: float) -> str:
    parts = [
        f"{progress.tasks:,}/{progress.total_tasks:,} tasks",
        f"{progress.documents:,} documents",
        f"{progress.text_bytes / 1e6 / seconds:.1f} MB/s",
        *([f"{progress.tokens:,} tokens"] if progress.tokens else []),
        *([f"{progress.problems:,} problems"] if progress.problems else []),
    ]
    return "  ".join(parts)
