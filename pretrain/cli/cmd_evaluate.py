"""`pretrain evaluate`. Nothing heavy is imported before it runs."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import click

if TYPE_CHECKING:
    from pretrain.evaluation.request import EvaluationRequest

# For tasks, before anything reads them: what the harness loads data sets and shows progress with, at import. A person may
# have set any to something else, e.g. HF_DATASETS_OFFLINE=0 HF_HUB_OFFLINE=0 to let it fetch.
QUIET_AND_OFFLINE = {
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "DISABLE_MULTIPROC": "1",  # it would fork processes that hold a model, to compute standard errors
}


def _sources(_context: click.Context, _option: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """NAME=SHARDS, several times."""
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
    """NAME,NAME,… or the option several times; each once."""
    return tuple(dict.fromkeys(name.strip() for value in values for name in value.split(",") if name.strip()))


@click.command()
@click.argument("path", metavar="RUN|DIR")
@click.option(
    "--data",
    multiple=True,
    callback=_sources,
    metavar="NAME=SHARDS",
    help="Held-out shards; several times for several.  [default: data.valid of the run]",
)
@click.option("--step", type=int, help="Checkpoint of a run.  [default: the newest]")
@click.option(
    "--nproc", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="Processes; one a GPU."
)
@click.option("--max-sequences", type=click.IntRange(1), help="The first so many of all sources.  [default: all]")
@click.option("--micro-batch-size", type=click.IntRange(1), default=8, show_default=True, help="Sequences a forward.")
@click.option("--seq-len", type=click.IntRange(1), help="Tokens a sequence.  [default: as the model was trained]")
@click.option(
    "--document-mask/--no-document-mask", default=None, help="Attend within documents.  [default: as in training]"
)
@click.option("--dtype", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Of each process, on CPU.")
@click.option(
    "--tasks",
    multiple=True,
    callback=_names,
    metavar="NAME,…",
    help="Tasks of lm-evaluation-harness, instead of the default data.",
)
@click.option("--tasks-path", metavar="DIR", help="Look for tasks there, and not among those of the harness.")
@click.option("--json", "json_file", metavar="FILE", help="Write everything in full precision.")
def evaluate(nproc: int, **options: object) -> None:
    """Measure the weights of a run, or of a Hugging Face directory.

    Loss, perplexity, bits per byte and token accuracy on held-out shards, the same to the last bit for any --nproc; and
    tasks of lm-evaluation-harness.
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
    # A run may save another checkpoint while the processes start.
    pinned = None if opened.checkpoint is None else str(opened.checkpoint)
    sys.exit(run_processes(replace(request, checkpoint=pinned), nproc))


def run_processes(request: "EvaluationRequest", nproc: int) -> int:
    """The same under torchrun. Returns its exit code."""
    from launch.processes import kill_tree

    def end(number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    options = ["--standalone", "--nnodes=1", f"--nproc-per-node={nproc}", "--module", "--"]
    arguments = [*options, "pretrain.evaluation.worker", request.to_json()]
    # Not set, torchrun warns and sets 1.
    environment = {**os.environ, "OMP_NUM_THREADS": str(request.threads)}
    command = [sys.executable, "-m", "torch.distributed.run", *arguments]
    # In a session of its own: it has nothing to save, and would answer Ctrl-C with a page of tracebacks.
    child = subprocess.Popen(command, env=environment, start_new_session=True)
    previous = signal.signal(signal.SIGTERM, end)
    try:
        return child.wait()
    finally:
        signal.signal(signal.SIGTERM, previous)
        if child.poll() is None:
            kill_tree(child.pid)
