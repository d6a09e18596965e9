"""Tokens per second of our trainer's step against a bare loop over the same model, batch and threads.

Interleaved in one process, in rounds of a few steps each, so that a machine whose speed drifts slows all of them alike.
What a step of the trainer includes: the data stream, the agreement of all ranks, DeepSpeed, the loss in chunks, metrics.jsonl.

    bare          model → logits → torch's cross_entropy → backward → clip → fused AdamW; batches made beforehand
    bare, chunked the same with our chunked loss in place of logits and cross_entropy
    ours, stage N the trainer

`python benchmarks/step_cpu.py [--config configs/quickstart.yaml] [--device cpu] [--stages 0 2] [--rounds 8] [KEY=VALUE …]`
"""

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from pretrain.config import Config, load_config
from pretrain.data.loader import Position, build_stream
from pretrain.distributed.collectives import end_group, pick_device, start_group
from pretrain.distributed.process_exit import leave
from pretrain.distributed.world import World
from pretrain.health.stop_request import StopRequest
from pretrain.health.watchdog import Watchdog
from pretrain.model.decoder import Decoder
from pretrain.model.init import init_weights
from pretrain.model.loss import plain_cross_entropy
from pretrain.optim.adamw import build_optimizer
from pretrain.plan.counts import plan_batch
from pretrain.run_folder import RunFolder
from pretrain.training.process import _configure_torch
from pretrain.training.startup.preflight import OpenedData, prepare
from pretrain.training.trainer import Trainer
from tests.support.shards import write_corpus

Step = Callable[[], None]


def bare_step(config: Config, data: OpenedData, device: torch.device, *, chunked: bool) -> Step:
    """One optimizer step of a loop that a person would write first."""
    model = Decoder(config.model).to(device)
    init_weights(model, config.model, config.run.seed)
    optimizer = build_optimizer(model, config.optimizer)
    stream = build_stream(data.order(), data.train, config.batch, World(), Position(0, 0), config.data)
    accumulate = plan_batch(config, 1).grad_accum_steps
    ready = [(item["inputs"].to(device), item["targets"].to(device)) for item in islice(stream, 8 * accumulate)]
    steps = cycle_in_groups(ready, accumulate)

    def step() -> None:
        model.train()
        group = next(steps)
        targets_of_step = sum(targets.numel() for _, targets in group)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.engine.precision == "bf16"):
            for inputs, targets in group:
                if chunked:
                    loss = model(inputs, targets, 0.0, config.loss.chunk_tokens).total
                else:
                    loss = plain_cross_entropy(model(inputs), targets)
                (loss / targets_of_step).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    return step


def cycle_in_groups(items: list, size: int) -> Iterator[list]:
    """Groups of `size`, over and over."""
    while True:
        for start in range(0, len(items), size):
            yield items[start : start + size]


def our_step(trainer: Trainer) -> Step:
    """One turn of the trainer's loop, its data stream included."""

    def step() -> None:
        started = time.perf_counter()
        batches = trainer.feed.next(trainer.progress)
        targets, _ = trainer._agree(batches)
        trainer._step(batches, int(targets), started)

    return step


def measure(contenders: dict[str, Step], *, rounds: int, steps: int, tokens_per_step: int) -> dict[str, list[float]]:
    """Tokens per second of each contender in each round; the first round warms up and is not counted."""
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, step in contenders.items():
            started = time.perf_counter()
            for _ in range(steps):
                step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:
                speeds[name].append(steps * tokens_per_step / (time.perf_counter() - started))
    return speeds


def report(speeds: dict[str, list[float]], config: Config, device: torch.device, arguments: str) -> str:
    """A Markdown table: medians, and the median of the ratios round by round."""
    baseline = speeds["bare"]
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    lines = [
        f"`python benchmarks/step_cpu.py {arguments}` · {date.today()} · {where} · {platform.machine()}, "
        f"Python {platform.python_version()}, torch {torch.__version__}, deepspeed {version('deepspeed')} · "
        f"{config.engine.precision}, {len(baseline)} rounds",
        "",
        "| | tokens/s (median) | against bare (median of rounds) | min | max |",
        "|---|---|---|---|---|",
    ]
    for name, values in speeds.items():
        ratios = [value / base for value, base in zip(values, baseline, strict=True)]
        lines.append(
            f"| {name} | {statistics.median(values):,.0f} | {statistics.median(ratios):.3f} | {min(ratios):.3f} | "
            f"{max(ratios):.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/quickstart.yaml")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    device = pick_device(options.device, 0)
    with tempfile.TemporaryDirectory() as scratch:
        corpus = Path(scratch) / "corpus"
        configs = {
            stage: load_config(
                options.config,
                [
                    f"data.train.random.path={corpus}",
                    f"run.dir={scratch}/stage-{stage}",
                    f"engine.zero_stage={stage}",
                    f"engine.device={options.device}",
                    "log.tensorboard=false",
                    "log.every_steps=1000000",
                    "eval.every_steps=0",
                    *options.overrides,
                ],
            ).config
            for stage in options.stages
        }
        config = configs[options.stages[0]]
        vocab = config.model.vocab_size
        random_tokens = np.random.default_rng(0).integers(0, vocab, 1_000_001)
        write_corpus(corpus, random_tokens, vocab_size=vocab, block_tokens=1 << 17, blocks_per_shard=100)
        _configure_torch(config, 1)
        start_group(World(), device)
        data = prepare(config, 1)
        contenders = {
            "bare": bare_step(config, data, device, chunked=False),
            "bare, chunked loss": bare_step(config, data, device, chunked=True),
        }
        for stage, stage_config in configs.items():
            stage_data = prepare(stage_config, 1)
            watchdog = Watchdog(0, RunFolder(Path(stage_config.run.dir)), World())
            trainer = Trainer(stage_config, World(), device, stage_data, StopRequest(), watchdog)
            trainer._open()
            contenders[f"ours, ZeRO-{stage}"] = our_step(trainer)
        tokens = plan_batch(config, 1).tokens_per_step
        speeds = measure(contenders, rounds=options.rounds, steps=options.steps, tokens_per_step=tokens)
        print(report(speeds, config, device, " ".join(__import__("sys").argv[1:])))
        end_group()
    leave(0)


if __name__ == "__main__":
    main()
