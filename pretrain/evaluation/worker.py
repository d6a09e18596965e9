"""One process of an evaluation: `python -m pretrain.evaluation.worker REQUEST` under torchrun, or `run` in-process.

Each process has the complete model and computes every n-th batch. The number of threads does not depend on n, because the
last bits of a sum may depend on it.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from pretrain.config.schema import LossConfig
from pretrain.convert.weight_sources import load_finite
from pretrain.distributed.collectives import end_group, gather_to_all, pick_device, start_group, sum_over_ranks
from pretrain.distributed.engine import Batch
from pretrain.distributed.process_exit import leave
from pretrain.distributed.world import World
from pretrain.errors import PretrainError, UserError
from pretrain.evaluation.held_out import BatchSums, Score, count_sequences, score_sources
from pretrain.evaluation.request import EvaluationRequest, OpenedEvaluation, open_request
from pretrain.evaluation.score_report import describe, print_results, write_json
from pretrain.model.decoder import Decoder
from pretrain.report.terminal import transient_progress

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def check_devices(request: EvaluationRequest, nproc: int) -> None:
    """Raise UserError if there are fewer devices than processes."""
    device = pick_device(request.device, 0, option="--device ")
    if device.type == "cuda" and nproc > torch.cuda.device_count():
        raise UserError(
            f"--nproc {nproc} is above the {torch.cuda.device_count()} CUDA devices of this machine",
            hint=f"--nproc {torch.cuda.device_count()}, or --device cpu",
        )


def load(request: EvaluationRequest, opened: OpenedEvaluation, world: World) -> Decoder:
    """The model on this process's device. Raises UserError if a weight is not finite."""
    torch.set_num_threads(request.threads)
    model = load_finite(opened.weights, request.path)
    return model.to(pick_device(request.device, world.local_rank, option="--device "), DTYPES[request.dtype])


def run(request: EvaluationRequest, opened: OpenedEvaluation, model: Decoder, world: World) -> None:
    """Evaluate; rank 0 prints and writes the results. With several processes, the group must be up. A collective."""
    scores: dict[str, Score] = {}
    if opened.sources:
        scores = _score_held_out(request, opened, world, model)
    tasks: dict[str, Any] = {}
    if request.tasks:
        from pretrain.evaluation.tasks import run_tasks

        tasks = run_tasks(request, opened, model, world, gather_to_all if world.size > 1 else lambda value: [value])
    if world.is_main:
        results = describe(request, opened, model.head.weight.device.type, scores, tasks)
        print_results(results, Console())
        if request.json_file is not None:
            write_json(results, Path(request.json_file))


def _score_held_out(
    request: EvaluationRequest, opened: OpenedEvaluation, world: World, model: Decoder
) -> dict[str, Score]:
    device = model.head.weight.device
    batches = sum(
        -(
            -count_sequences(source, request.max_sequences, len(opened.sources))
            // (request.micro_batch_size * world.size)
        )
        for source in opened.sources
    )
    with transient_progress(visible=world.is_main) as progress:
        bar = progress.add_task("evaluate", total=batches)
        return score_sources(
            opened.sources,
            partial(_loss, model, partial(progress.advance, bar)),
            max_sequences=request.max_sequences,
            micro_batch_size=request.micro_batch_size,
            world=world,
            add=partial(sum_over_ranks, device=device) if world.size > 1 else lambda values: values,
            document_mask=opened.document_mask,
        )


@torch.no_grad()
def _loss(model: Decoder, advance: Callable[[], None], batch: Batch) -> BatchSums:
    # The default, not the run's setting: a checkpoint and its export must give the same loss.
    chunk_tokens = LossConfig().chunk_tokens
    device = model.head.weight.device
    inputs, targets, *documents = (None if part is None else part.to(device) for part in batch)
    sums = model(inputs, targets, 0.0, chunk_tokens, *documents)
    advance()
    return BatchSums(float(sums.cross_entropy), float(sums.correct))


def main(text: str) -> None:
    """Evaluate under torchrun. An error in one process ends all of them."""
    world = World.from_environment()
    request = EvaluationRequest.from_json(text)
    same_everywhere = True  # errors before the group is up occur in all processes
    try:
        opened = open_request(request)
        model = load(request, opened, world)
        start_group(world, pick_device(request.device, world.local_rank, option="--device "))
        same_everywhere = False
        run(request, opened, model, world)
        end_group()
    except PretrainError as error:
        if world.is_main or not same_everywhere:
            print(f"error{'' if same_everywhere else f' on rank {world.rank}'}: {error}", file=sys.stderr)
        leave(error.exit_code)
    leave(0)


if __name__ == "__main__":
    main(sys.argv[1])
