"""Steps of real sizes on one device: tokens/s, model FLOPs, and the peak of memory against the plan.

A process for each setting, so that none inherits another's memory. The first settings are the baselines of their model.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu.table import Row
from tests.support.repository import ROOT

WARMUP, MEASURED = 3, 6

# name: (model, sequences a micro-batch, tokens a sequence, changes)
FULL: dict[str, tuple[str, int, int, list[str]]] = {
    "125M": ("125m", 16, 2048, []),
    "125M, compiled": ("125m", 16, 2048, ["engine.compile=true"]),
    "125M, attention within documents": ("125m", 16, 2048, ["data.document_mask=true"]),
    "125M, ZeRO 3": ("125m", 16, 2048, ["engine.zero_stage=3"]),
    "1B": ("1b", 4, 4096, ["engine.activation_checkpoint_every=0"]),
    "1B, all blocks recomputed": ("1b", 4, 4096, ["engine.activation_checkpoint_every=1"]),
    "1B, compiled": ("1b", 4, 4096, ["engine.activation_checkpoint_every=0", "engine.compile=true"]),
    "1B, attention within documents": (
        "1b",
        4,
        4096,
        ["engine.activation_checkpoint_every=0", "data.document_mask=true"],
    ),
    "1B, not deterministic": ("1b", 4, 4096, ["engine.activation_checkpoint_every=0", "run.deterministic=false"]),
}
SMALL = ["engine.precision=fp32", "model.d_model=48", "model.d_ff=96", "model.n_heads=4", "model.n_kv_heads=2"]
TINY: dict[str, tuple[str, int, int, list[str]]] = {
    "tiny": ("2m", 2, 64, SMALL),
    "tiny, all blocks recomputed": ("2m", 2, 64, [*SMALL, "engine.activation_checkpoint_every=1"]),
    "tiny, attention within documents": ("2m", 2, 64, [*SMALL, "data.document_mask=true"]),
}


def measure(folder: Path, size: str, device: str, deadline: float) -> list[Row]:
    """A row for each setting; one that does not fit, or comes after `deadline`, says so."""
    rows: list[Row] = []
    baselines: dict[str, float] = {}
    for name, (model, micro_batch, seq_len, changes) in (FULL if size == "full" else TINY).items():
        left = deadline - time.monotonic()
        if left < 0:
            rows.append({"setting": name, "tokens/s": "left out: no time left"})
            continue
        overrides = [
            f"batch.micro_batch_size={micro_batch}",
            f"batch.global_batch_size={micro_batch}",
            f"data.seq_len={seq_len}",
            f"engine.device={device}",
            f"run.dir={folder}/run",
            *changes,
        ]
        command = [sys.executable, "-m", "benchmarks.gpu.steps", f"configs/models/{model}.yaml", *overrides]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=left)
        except subprocess.TimeoutExpired:
            rows.append({"setting": name, "tokens/s": "left out: no time left"})
            continue
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["no message"]
            rows.append({"setting": name, "tokens/s": f"failed: {last[0][:100]}"})
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        speed = found["tokens_per_s"]
        rows.append(
            {
                "setting": name,
                "tokens/s": f"{speed:,.0f}",
                "against the first": f"{speed / baselines.setdefault(model, speed):.2f}",
                "model TFLOP/s": f"{speed * found['flops_per_token'] / 1e12:.3g}",
                "peak, GB": f"{found['peak'] / 1e9:.2f}",
                "planned, GB": f"{found['planned'] / 1e9:.2f}",
                "loss": f"{found['loss']:.3f}",
            }
        )
    return rows


def measure_one(config_path: str, overrides: list[str]) -> dict[str, float]:
    """Median tokens/s of the engine's step on random ids, in this process; peak and planned bytes (0 on a CPU)."""
    import torch

    from pretrain.config import load_config
    from pretrain.distributed.collectives import pick_device, start_group
    from pretrain.distributed.engine import Batch, Engine
    from pretrain.distributed.world import World
    from pretrain.plan.counts import flops_per_token
    from pretrain.plan.memory import plan_memory
    from pretrain.training.process import _configure_torch

    config = load_config(config_path, ["data.train.random.path=none", *overrides]).config
    device = pick_device(config.engine.device, 0)
    _configure_torch(config, 1)
    start_group(World(), device)
    engine = Engine(config, World(), device)
    generator = torch.Generator().manual_seed(0)
    shape = (config.batch.micro_batch_size, config.data.seq_len + 1)
    seconds, loss = [], 0.0
    for _ in range(WARMUP + MEASURED):
        ids = torch.randint(config.model.vocab_size, shape, generator=generator)
        documents = (torch.arange(shape[1] - 1) // max(1, shape[1] // 4)).expand(shape[0], -1).contiguous()
        batch = Batch(ids[:, :-1], ids[:, 1:], documents if config.data.document_mask else None)
        started = time.perf_counter()
        sums = engine.train_step([batch], batch.targets.numel(), config.optimizer.lr)  # ends with a read of the device
        seconds.append(time.perf_counter() - started)
        loss = sums.cross_entropy / batch.targets.numel()
    return {
        "tokens_per_s": shape[0] * (shape[1] - 1) / statistics.median(seconds[WARMUP:]),
        "flops_per_token": flops_per_token(config.model, config.data.seq_len),
        "peak": torch.cuda.max_memory_allocated() if device.type == "cuda" else 0,
        "planned": plan_memory(config, 1).total,
        "loss": loss,
    }


if __name__ == "__main__":
    from pretrain.distributed.process_exit import leave

    print(json.dumps(measure_one(sys.argv[1], sys.argv[2:])), flush=True)
    leave(0)
