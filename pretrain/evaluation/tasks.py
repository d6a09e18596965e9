"""Tasks of lm-evaluation-harness, from local files, without the network and without what it prints."""

import io
import logging
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.distributed.world import World
from pretrain.errors import PretrainError, UserError
from pretrain.evaluation.request import EvaluationRequest, OpenedEvaluation
from pretrain.evaluation.score_report import finite

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

    from pretrain.model.decoder import Decoder

RESAMPLED = 1_000  # draws for the standard error of metrics that have no formula for it
FEWSHOT_SEED = 1234  # the harness's own
SHOWN = 12


def check_tasks(request: EvaluationRequest, *, data: bool) -> None:
    """Raise UserError where the harness is missing or knows no task of a name; with `data`, also where they don't load."""
    if request.tasks_path is not None and not Path(request.tasks_path).is_dir():
        raise UserError(
            f"--tasks-path {request.tasks_path}: no such folder", hint="the one with the YAML files of tasks"
        )
    manager = _manager(request)
    if data:
        with _data_sets_apart(), _blamed(request), redirect_stdout(io.StringIO()):
            manager.load(list(request.tasks))


def run_tasks(
    request: EvaluationRequest,
    opened: OpenedEvaluation,
    model: "Decoder",
    world: World,
    gather: Callable[[Any], list[Any]],
) -> dict[str, Any]:
    """Metrics of each task, by name. A collective."""
    from tokenizer.models.base import load_tokenizer

    assert opened.weights.tokenizer is not None  # request.py
    codec = load_tokenizer(opened.weights.tokenizer)
    manager = _manager(request)
    from lm_eval.evaluator import evaluate

    from pretrain.evaluation.harness import DecoderLM

    lm = DecoderLM(
        model,
        codec,
        max_length=opened.seq_len,
        batch_size=request.micro_batch_size,
        world=world,
        gather=gather,
    )
    with _data_sets_apart(), _blamed(request), redirect_stdout(io.StringIO()):
        _seed()
        loaded = manager.load(list(request.tasks))
        for task in loaded["tasks"].values():
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=FEWSHOT_SEED)
        results = evaluate(lm, loaded, bootstrap_iters=RESAMPLED, log_samples=False)
    return tidy(results["results"], results["n-samples"])


def _seed() -> None:
    """The harness's own seeds. A task may draw while it loads, and every process has to draw the same."""
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(FEWSHOT_SEED)
    torch.manual_seed(FEWSHOT_SEED)


def tidy(results: dict[str, Any], samples: dict[str, Any]) -> dict[str, Any]:
    """`{"acc,none": 0.5, "acc_stderr,none": 0.1, …}` → metrics and stderr apart, the filter named where there is one."""
    found = {}
    for task, values in results.items():
        metrics: dict[str, float] = {}
        errors: dict[str, float] = {}
        for key, value in values.items():
            name, comma, kept = key.partition(",")
            if not comma or not isinstance(value, int | float):
                continue
            into = errors if name.endswith("_stderr") else metrics
            into[name.removesuffix("_stderr") + ("" if kept == "none" else f" ({kept})")] = finite(float(value))
        found[task] = {"metrics": metrics, "stderr": errors, "samples": samples.get(task, {}).get("effective")}
    return found


def _manager(request: EvaluationRequest) -> "TaskManager":
    """The index of tasks, which holds all that were asked for. Raises UserError."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(
            f"--tasks needs lm-evaluation-harness, which cannot be imported: {error}",
            hint="pip install 'pretrain-toolkit[eval]'",
        ) from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    path = request.tasks_path
    manager = TaskManager(include_path=path, include_defaults=path is None)
    unknown = [name for name in request.tasks if name not in manager.task_index]
    if unknown:
        where = "lm-evaluation-harness" if path is None else path
        known = manager.all_tasks
        few = ", ".join(known[:SHOWN]) + (f" and {len(known) - SHOWN} more" if len(known) > SHOWN else "")
        raise UserError(
            f"{where} has no task {', '.join(unknown)}",
            hint="--tasks-path DIR names a folder of your own"
            if path is None
            else f"it has {few or 'none'}; a task is a .yaml file with the keys task and dataset_path",
        )
    return manager


@contextmanager
def _data_sets_apart() -> Iterator[None]:
    """Copies of data sets in a folder that goes away, unless the environment names one."""
    import datasets

    if "HF_DATASETS_CACHE" in os.environ:
        yield
        return
    usual = datasets.config.HF_DATASETS_CACHE
    with tempfile.TemporaryDirectory(prefix="pretrain-tasks-") as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder)
        try:
            yield
        finally:
            datasets.config.HF_DATASETS_CACHE = usual


@contextmanager
def _blamed(request: EvaluationRequest) -> Iterator[None]:
    """What fails in the harness is a mistake in a task's file, or data that is not there."""
    try:
        yield
    except Exception as error:
        from pretrain.distributed.collectives import lost_peer

        if isinstance(error, PretrainError) or lost_peer(error):
            raise
        raise UserError(
            f"tasks {', '.join(request.tasks)}: {type(error).__name__}: {error}",
            hint="data sets are read from local files, whose paths begin at the folder that you are in",
        ) from error
