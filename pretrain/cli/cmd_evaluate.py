"""`pretrain evaluate`. Heavy modules are imported when the command runs."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import click

if TYPE_CHECKING:
    from pretrain.evaluation.request import EvaluationRequest

# For tasks. Set before the harness and datasets are imported, because they read these at import. Values of the user win, e.g.
# HF_DATASETS_OFFLINE=0 HF_HUB_OFFLINE=0 to allow downloads.
QUIET_AND_OFFLINE = {
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "DISABLE_MULTIPROC": "1",  # or the harness forks processes with a copy of the model for standard errors
}


def _sources(_context: click.Context, _option: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Parse NAME=SHARDS, repeatable."""
    named: dict[str, str] = {}
    for value in values:
        name, _, path = value.partition("=")
        if not name or not path or "/" in name:
            raise click.BadParameter(f"{value!r} is not NAME=SHARDS", param_hint="--data")
        if name in named:
            raise click.BadParameter(f"the name {name!r} is given twice", param_hint="--data")
        named[name] = path
    return named


def _names(_context: click.Context, _option: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Parse NAME,NAME,…, repeatable; duplicates are dropped."""
    return tuple(dict.fromkeys(name.strip() for value in values for name in value.split(",") if name.strip()))


@click.command()
@click.argument("path", metavar="RUN|DIR")
@click.option(
    "--data",
    multiple=True,
    callback=_sources,
    metavar="NAME=SHARDS",
    help="Held-out shards. Repeatable.  [default: data.valid of the run]",
)
@click.option("--step", type=int, help="Checkpoint of a run.  [default: the newest]")
@click.option(
    "--nproc", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="Processes, one per GPU."
)
@click.option(
    "--max-sequences",
    type=click.IntRange(1),
    help="Sequences to read, split over the sources.  [default: all]",
)
@click.option("--micro-batch-size", type=click.IntRange(1), default=8, show_default=True, help="Sequences per forward.")
@click.option("--seq-len", type=click.IntRange(1), help="Tokens per sequence.  [default: as in training]")
@click.option(
    "--document-mask/--no-document-mask", default=None, help="Attend within documents only.  [default: as in training]"
)
@click.option("--dtype", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="CPU threads per process.")
@click.option(
    "--tasks",
    multiple=True,
    callback=_names,
    metavar="NAME,…",
    help="Tasks of lm-evaluation-harness, instead of the default data.",
)
@click.option("--tasks-path", metavar="DIR", help="Folder of your own tasks, instead of those of the harness.")
@click.option("--json", "json_file", metavar="FILE", help="Write all results in full precision.")
def evaluate(nproc: int, **options: object) -> None:
    """Evaluate the weights of a run or of a Hugging Face directory.

    Loss, perplexity, bits per byte and token accuracy on held-out shards, bitwise equal for any --nproc; and tasks of
    lm-evaluation-harness.
    """
    if options["tasks"]:
        for name, value in QUIET_AND_OFFLINE.items():
            os.environ.setdefault(name, value)
    elif options["tasks_path"] is not None:
        raise click.UsageError("--tasks-path needs --tasks")
    from pretrain.evaluation.request import EvaluationRequest, open_request

    request = EvaluationRequest(**options)  # type: ignore[arg-type]
    if request.tasks:
        from pretrain.evaluation.tasks import check_tasks

        check_tasks(request, data=nproc > 1)
    from pretrain.distributed.world import World
    from pretrain.evaluation.worker import check_devices, load, run

    check_devices(request, nproc)
    opened = open_request(request)
    if nproc == 1:
        run(request, opened, load(request, opened, World()), World())
        return
    # Pin the checkpoint: a run may save a newer one while the processes start.
    pinned = None if opened.checkpoint is None else str(opened.checkpoint)
    sys.exit(run_processes(replace(request, checkpoint=pinned), nproc))


def run_processes(request: "EvaluationRequest", nproc: int) -> int:
    """Evaluate with `nproc` processes under torchrun. Returns the exit code of the one that failed, or 0."""
    from launch.agent import agent_command
    from launch.processes import kill_tree

    def end(number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    options = ["--standalone", "--nnodes=1", f"--nproc-per-node={nproc}", "--module", "--"]
    arguments = [*options, "pretrain.evaluation.worker", request.to_json()]
    # Without it, torchrun warns and sets 1.
    environment = {**os.environ, "OMP_NUM_THREADS": str(request.threads)}
    command = [*agent_command(Path(os.devnull)), *arguments]
    # In its own session, so that Ctrl-C reaches only this process: torchrun would print tracebacks of all ranks.
    child = subprocess.Popen(command, env=environment, start_new_session=True)
    previous = signal.signal(signal.SIGTERM, end)
    try:
        return child.wait()
    finally:
        signal.signal(signal.SIGTERM, previous)
        if child.poll() is None:
            kill_tree(child.pid)
