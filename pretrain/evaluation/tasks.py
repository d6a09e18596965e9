"""Tasks of lm-evaluation-harness, from local files, without network access or its console output."""

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

BOOTSTRAP_ITERS = 1_000  # for the standard error of metrics without a formula for it
FEWSHOT_SEED = 1234  # the harness's default
LISTED_TASKS = 12


def check_tasks(request: EvaluationRequest, *, data: bool) -> None:
    """Raise UserError if the harness is missing or a task is unknown; with `data`, also if its data does not load."""
    if request.tasks_path is not None and not Path(request.tasks_path).is_dir():
        raise UserError(
            f"--tasks-path {request.tasks_path}: no such folder", hint="give the folder of the tasks' YAML files"
        )
    manager = _manager(request)
    if data:
        with _temporary_dataset_cache(), _as_user_error(request), redirect_stdout(io.StringIO()):
            manager.load(list(request.tasks))


def run_tasks(
    request: EvaluationRequest,
    opened: OpenedEvaluation,
    model: "Decoder",
    world: World,
    gather: Callable[[Any], list[Any]],
) -> dict[str, Any]:
    """Metrics per task. A collective."""
    from tokenizer.models.open_tokenizer import load_tokenizer

    assert opened.weights.tokenizer is not None  # checked by open_request
    tokenizer = load_tokenizer(opened.weights.tokenizer)
    manager = _manager(request)
    from lm_eval.evaluator import evaluate

    from pretrain.evaluation.harness import DecoderLM

    lm = DecoderLM(
        model,
        tokenizer,
        max_length=opened.seq_len,
        batch_size=request.micro_batch_size,
        world=world,
        gather=gather,
    )
    with _temporary_dataset_cache(), _as_user_error(request), redirect_stdout(io.StringIO()):
        _seed()
        loaded = manager.load(list(request.tasks))
        for task in loaded["tasks"].values():
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=FEWSHOT_SEED)
        results = evaluate(lm, loaded, bootstrap_iters=BOOTSTRAP_ITERS, log_samples=False)
    return tidy(results["results"], results["n-samples"])


def _seed() -> None:
    """The harness's default seeds: a task may sample while it loads, and all processes must agree."""
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(FEWSHOT_SEED)
    torch.manual_seed(FEWSHOT_SEED)


def tidy(results: dict[str, Any], samples: dict[str, Any]) -> dict[str, Any]:
    """Split `{"acc,none": 0.5, "acc_stderr,none": 0.1, …}` into metrics and stderr; a filter other than none is named."""
    tidied = {}
    for task, values in results.items():
        metrics: dict[str, float] = {}
        errors: dict[str, float] = {}
        for key, value in values.items():
            name, comma, filter_name = key.partition(",")
            if not comma or not isinstance(value, int | float):
                continue
            into = errors if name.endswith("_stderr") else metrics
            into[name.removesuffix("_stderr") + ("" if filter_name == "none" else f" ({filter_name})")] = finite(
                float(value)
            )
        tidied[task] = {"metrics": metrics, "stderr": errors, "samples": samples.get(task, {}).get("effective")}
    return tidied


def _manager(request: EvaluationRequest) -> "TaskManager":
    """The harness's index of tasks. Raises UserError if a requested task is not in it."""
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
        few = ", ".join(known[:LISTED_TASKS]) + (
            f" and {len(known) - LISTED_TASKS} more" if len(known) > LISTED_TASKS else ""
        )
        raise UserError(
            f"{where} has no task {', '.join(unknown)}",
            hint="for your own tasks: --tasks-path DIR"
            if path is None
            else f"it has {few or 'none'}; a task is a .yaml file with the keys task and dataset_path",
        )
    return manager


@contextmanager
def _temporary_dataset_cache() -> Iterator[None]:
    """Cache data sets in a temporary folder, unless HF_DATASETS_CACHE is set."""
    import datasets

    if "HF_DATASETS_CACHE" in os.environ:
        yield
        return
    previous = datasets.config.HF_DATASETS_CACHE
    with tempfile.TemporaryDirectory(prefix="pretrain-tasks-") as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder)
        try:
            yield
        finally:
            datasets.config.HF_DATASETS_CACHE = previous


@contextmanager
def _as_user_error(request: EvaluationRequest) -> Iterator[None]:
    """Errors in the harness are UserErrors: a mistake in a task's file, or missing data."""
    try:
        yield
    except Exception as error:
        from pretrain.distributed.collectives import lost_peer

        if isinstance(error, PretrainError) or lost_peer(error):
            raise
        raise UserError(
            f"tasks {', '.join(request.tasks)}: {type(error).__name__}: {error}",
            hint="data sets are local files; relative paths start at the current folder",
        ) from error
