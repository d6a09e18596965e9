"""Saving and loading checkpoints against the disk, torch.save and DeepSpeed's own; what training notices of a save.

All in one run, contenders in turn within each round, so that a machine whose speed drifts slows all of them alike. Ranks
are processes of one thread each. GB are 10^9 bytes, of all ranks together; seconds are those of the slowest rank.

    disk            each rank writes as many bytes as in `ours` from one buffer, in chunks of 8 MiB, and fsyncs
    ours            take_snapshot, write_snapshot (sha256 and fsync of each file), manifest, rename, fsync of the folders
    torch.save      each rank saves the same tensors, and fsyncs
    DeepSpeed       engine.save_checkpoint, then fsync of all files; its files also hold the weights once more

Loading begins with files that the kernel does not hold, as after a crash:

    disk            each rank reads its part of the files into one buffer
    ours, load      load_checkpoint; `verify` is what rank 0 does before, once: sha256 of all files
    torch.load      weights_only, and a copy into the engine's tensors
    DeepSpeed       engine.load_checkpoint

`python benchmarks/checkpoint.py [--stages 1 2 3] [--ranks 2] [--rounds 5] [--layers 12] [--place DIR]`
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.checkpoint import layout
from pretrain.checkpoint.restore import load_checkpoint
from pretrain.checkpoint.snapshot import Snapshot, lower_priority, take_snapshot, write_snapshot
from pretrain.config.schema import BatchConfig, Config, DataConfig, EngineConfig, ModelConfig, ScheduleConfig
from pretrain.distributed.collectives import gather_to_all
from pretrain.distributed.engine import Batch, Engine
from pretrain.distributed.world import World
from pretrain.distributed.zero_partitions import all_kinds, partitions
from pretrain.plan.counts import count_parameters
from pretrain.run_folder import Progress
from tests.support.elastic import CPU, run_group

CHUNK = 8 << 20
FILES = {"save: disk": "disk-*", "save: ours": "ours", "save: torch.save": "torch-*", "save: DeepSpeed": "deepspeed"}
STATE = {"order": {}, "ledger": {}, "jumps": [], "losses": [], "validation_loss": None}
Seconds = dict[str, list[float]]


def make_config(stage: int, ranks: int, layers: int) -> Config:
    """57 million parameters with 12 layers; so few tokens a step that several steps fit into a save."""
    return Config(
        model=ModelConfig(8_000, layers, 576, 9, 9, 1_536, max_seq_len=32),
        data=DataConfig(seq_len=32),
        batch=BatchConfig(global_batch_size=ranks, micro_batch_size=1),
        schedule=ScheduleConfig(warmup_steps=10),
        engine=EngineConfig(zero_stage=stage, precision="fp32", device="cpu"),
    )


class Bench:
    """One rank's engine, and what it saves and loads, each to be called by all ranks together."""

    def __init__(self, world: World, config: Config, place: Path) -> None:
        self.world, self.place, self.engine = world, place, Engine(config, world, CPU)
        self.buffers: dict[str, Tensor] = {}
        tokens = torch.randint(config.model.vocab_size, (1, config.data.seq_len + 1))
        self.batch = Batch(tokens[:, :-1], tokens[:, 1:])
        self.step()
        self.tensors = [part.flat(kind) for part in partitions(self.engine) for kind in all_kinds(self.engine)]
        self.bytes = sum(4 * tensor.numel() for tensor in self.tensors)
        self.noise = memoryview(bytearray(os.urandom(1 << 20) * (self.bytes >> 20)))

    def step(self) -> None:
        self.engine.train_step([self.batch], self.world.size * self.batch.targets.numel(), 1e-5)

    def snapshot(self) -> Snapshot:
        return take_snapshot(self.engine, self.world, Progress(1, 1, 1), STATE, tokenizer=None, buffers=self.buffers)

    def copy(self, into: list[Tensor]) -> None:
        for tensor, copy in zip(self.tensors, into, strict=True):
            copy.copy_(tensor)

    def save_ours(self) -> None:
        written = gather_to_all(write_snapshot(layout.staging_folder(self.place / "ours", 1, 1), self.snapshot()))
        if self.world.is_main:
            layout.commit(self.place / "ours", 1, [entry for entries in written for entry in entries], 1)

    def save_torch(self) -> None:
        with (self.place / f"torch-{self.world.rank}").open("wb") as file:
            torch.save(self.tensors, file)
            file.flush()
            os.fsync(file.fileno())

    def save_disk(self) -> None:
        with (self.place / f"disk-{self.world.rank}").open("wb") as file:
            for start in range(0, len(self.noise), CHUNK):
                file.write(self.noise[start : start + CHUNK])
            file.flush()
            os.fsync(file.fileno())

    def save_deepspeed(self) -> None:
        self.engine.deepspeed.save_checkpoint(str(self.place / "deepspeed"), tag="one")
        dist.barrier()
        if self.world.is_main:
            for path in files(self.place / "deepspeed"):
                with path.open("rb") as file:
                    os.fsync(file.fileno())

    def load_ours(self) -> None:
        folder = self.place / "ours" / layout.checkpoint_name(1)
        load_checkpoint(folder, layout.read_json(folder / layout.STATE), self.engine, self.world)

    def verify(self) -> None:
        if self.world.is_main:
            layout.verify(self.place / "ours" / layout.checkpoint_name(1))

    def load_torch(self) -> None:
        found = torch.load(self.place / f"torch-{self.world.rank}", weights_only=True)
        for tensor, value in zip(self.tensors, found, strict=True):
            tensor.copy_(value)

    def load_disk(self) -> None:
        with (self.place / f"disk-{self.world.rank}").open("rb", buffering=0) as file:
            for start in range(0, len(self.noise), CHUNK):
                file.readinto(self.noise[start : start + CHUNK])

    def load_deepspeed(self) -> None:
        self.engine.deepspeed.load_checkpoint(str(self.place / "deepspeed"), tag="one")

    def timed(self, work: Callable[[], None]) -> float:
        """From all ranks' start to the end of the last."""
        dist.barrier()
        started = time.perf_counter()
        work()
        dist.barrier()
        return time.perf_counter() - started


def files(folder: Path) -> Iterable[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def remove(place: Path, pattern: str) -> None:
    """A save is of new files: to free the old ones takes a tenth of a second, and is not what is measured."""
    for path in place.glob(pattern):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def forget(place: Path) -> None:
    """Take everything out of the kernel's cache."""
    for path in files(place):
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def measure(world: World, config: Config, place: Path, rounds: int) -> None:
    """Fill place/seconds.json, place/bytes.json and place/training.json; a first round warms up and is not counted."""
    bench, seconds = Bench(world, config, place), {}
    contenders = {
        "save: disk": bench.save_disk,
        "save: ours": bench.save_ours,
        "save: torch.save": bench.save_torch,
        "save: DeepSpeed": bench.save_deepspeed,
        "load: disk": bench.load_disk,
        "load: ours, verify": bench.verify,
        "load: ours, load": bench.load_ours,
        "load: torch.load": bench.load_torch,
        "load: DeepSpeed": bench.load_deepspeed,
    }
    for number in range(rounds + 1):
        for name, work in contenders.items():
            if world.is_main and name.startswith("load"):
                forget(place)
            elif world.is_main:
                remove(place, FILES[name])
            took = bench.timed(work)
            if number:
                seconds.setdefault(name, []).append(took)
        # What is dirty now must not slow down the next round.
        os.sync()
    stall(bench, seconds, rounds)
    training: dict[str, list[float]] = {"quiet": [], "saving": [], "steps": [], "seconds": []}
    slowdown(bench, training, rounds)
    if world.is_main:
        sizes = {name: sum(path.stat().st_size for path in files(place / name)) for name in ("ours", "deepspeed")}
        (place / "seconds.json").write_text(json.dumps(seconds))
        (place / "bytes.json").write_text(json.dumps(sizes))
        (place / "training.json").write_text(json.dumps(training))
    bench.engine.close()


def stall(bench: Bench, seconds: Seconds, rounds: int) -> None:
    """Wait of training for a save, against a plain copy of the same bytes to memory that has been used before."""
    into = [torch.zeros_like(tensor) for tensor in bench.tensors]
    for _ in range(2 * rounds):
        seconds.setdefault("stall: one copy", []).append(bench.timed(lambda: bench.copy(into)))
        seconds.setdefault("stall: take_snapshot", []).append(bench.timed(lambda: bench.snapshot() and None))


def slowdown(bench: Bench, training: dict[str, list[float]], rounds: int) -> None:
    """By round, the mean seconds of a step without a save, and of the steps that began while the files were written."""
    for number in range(rounds + 1):
        os.sync()
        quiet = [bench.timed(bench.step) for _ in range(6)]
        snapshot = bench.snapshot()
        started = time.perf_counter()
        thread = threading.Thread(target=write_behind, args=(bench.place / "background", snapshot))
        thread.start()
        saving, seconds = [], 0.0
        while any(gather_to_all(thread.is_alive())):
            saving.append(bench.timed(bench.step))
            seconds = time.perf_counter() - started
        if number:
            training["quiet"].append(statistics.mean(quiet))
            training["saving"].append(statistics.mean(saving))
            training["steps"].append(len(saving))
            training["seconds"].append(seconds)


def write_behind(folder: Path, snapshot: Snapshot) -> None:
    """Write as the trainer's thread does."""
    lower_priority()
    write_snapshot(folder, snapshot)


def save_table(seconds: Seconds, sizes: dict[str, int], what: str) -> list[str]:
    """Rows of Markdown: GB/s, and the ratio to the disk in the same round."""
    lines = []
    disk = seconds[f"{what}: disk"]
    for name, values in seconds.items():
        if not name.startswith(f"{what}: "):
            continue
        size = sizes["deepspeed" if "DeepSpeed" in name else "ours"] / 1e9
        other = sizes["ours"] / 1e9
        ratios = [size / value / (other / base) for value, base in zip(values, disk, strict=True)]
        lines.append(
            f"| {name} | {size:.2f} | {statistics.median(values):.2f} | {size / statistics.median(values):.2f} | "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f}) |"
        )
    return lines


def report(stage: int, ranks: int, place: Path) -> str:
    seconds, sizes, training = (json.loads((place / f"{n}.json").read_text()) for n in ("seconds", "bytes", "training"))
    lines = [f"### ZeRO stage {stage}, {ranks} rank{'s' if ranks > 1 else ''}", ""]
    lines += ["| | GB | seconds | GB/s | of the disk's bandwidth |", "|---|---|---|---|---|"]
    lines += save_table(seconds, sizes, "save") + save_table(seconds, sizes, "load")
    copy, shot = (statistics.median(seconds[f"stall: {name}"]) for name in ("one copy", "take_snapshot"))
    ratio = statistics.median(
        shot / copy for copy, shot in zip(seconds["stall: one copy"], seconds["stall: take_snapshot"], strict=True)
    )
    slower = [saving / quiet - 1 for saving, quiet in zip(training["saving"], training["quiet"], strict=True)]
    quiet, steps, took = (statistics.median(training[name]) for name in ("quiet", "steps", "seconds"))
    lines += [
        "",
        f"Training waits {1e3 * shot:.0f} ms for a snapshot; a plain copy of the same bytes takes {1e3 * copy:.0f} ms: "
        f"{ratio:.2f} times (median of {len(seconds['stall: one copy'])}).",
        f"A step takes {1e3 * quiet:.0f} ms. While a save is written ({steps:.0f} steps, {took:.1f} s) it takes "
        f"{100 * statistics.median(slower):+.0f} % ({100 * min(slower):+.0f} to {100 * max(slower):+.0f}; {len(slower)} "
        f"rounds).",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--place", type=Path, help="a folder on the disk to be measured")
    options = parser.parse_args()
    parameters = count_parameters(make_config(1, 1, options.layers).model)
    print(
        f"{date.today()} · {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start · {platform.machine()}, Python "
        f"{platform.python_version()}, torch {torch.__version__}, deepspeed {version('deepspeed')} · "
        f"{parameters / 1e6:.0f}M parameters, fp32, {options.rounds} rounds\n"
    )
    for stage in options.stages:
        place = Path(tempfile.mkdtemp(dir=options.place))
        try:
            config = make_config(stage, options.ranks, options.layers)
            run_group(options.ranks, measure, config, place, options.rounds, scratch=place)
            print(report(stage, options.ranks, place), flush=True)
        finally:
            shutil.rmtree(place)


if __name__ == "__main__":
    main()
