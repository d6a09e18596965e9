"""Costs that must not depend on the size of a corpus, shown at 10^13 tokens: opening, the first batch, reading and planning."""

import dataclasses
import resource
import shutil
import statistics
import time
import tracemalloc
from itertools import islice
from pathlib import Path

import numpy as np

from benchmarks.loader import simple
from pretrain.config.schema import BatchConfig
from pretrain.data.loader import PLANNED_SAMPLES, Position, rank_samples
from pretrain.data.order import Order, OrderedSource, Stage
from pretrain.distributed.world import World
from pretrain.shards.format import index_name
from pretrain.shards.manifest_file import read_manifest, write_manifest
from pretrain.shards.table import TABLE_NAME, ShardTable, shard_name

SHARDS = 78_000
TOKENS = 10**13
BATCH, SEQ_LEN = 16, 2048
READ_BATCHES = 5_000


def read_large_corpus(shards: Path, folder: Path) -> str:
    """A corpus of 78,000 shards, each a link to the one whole shard in `shards`; then open it, and read."""
    _make_large_corpus(shards, folder)
    table = folder / TABLE_NAME
    tokens = read_manifest(folder).tokens
    lines = [
        f"{SHARDS:,} shards, {tokens:.3g} tokens, a table of shards of {table.stat().st_size / 1e6:.1f} MB",
        "",
        "| | |",
        "|---|---|",
    ]
    for name, sample in (("at the start", 0), ("at 90 % of an epoch", tokens // SEQ_LEN * 9 // 10)):
        opening, first = (
            statistics.median(part) for part in zip(*(_open_s(folder, sample) for _ in range(5)), strict=True)
        )
        lines.append(f"| opening {name} | {opening:.3f} s |")
        lines.append(f"| first batch {name} | {first:.3f} s |")
    running = simple.ours(folder, BATCH, SEQ_LEN, start=0, prefetch=0)
    next(running)
    started = time.process_time()
    for _ in islice(running, READ_BATCHES):
        pass
    speed = READ_BATCHES * BATCH * SEQ_LEN / (time.process_time() - started) / 1e6
    lines.append(f"| reading {READ_BATCHES:,} batches of {BATCH} × {SEQ_LEN:,} | {speed:,.0f} M tokens / CPU s |")
    lines.append(f"| largest memory of the process | {_largest_memory_mb():,.0f} MB |")
    return "\n".join(lines)


def _make_large_corpus(shards: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    one = read_manifest(shards)
    entry = one.shards[0]
    names = [shard_name(number) for number in range(SHARDS)]
    for name in names:
        (folder / name).symlink_to(shards / entry.name)
        (folder / index_name(name)).symlink_to(shards / index_name(entry.name))
    write_manifest(
        folder,
        dataclasses.replace(
            one,
            shards=ShardTable.of(dataclasses.replace(entry, name=name) for name in names),
            tokens=SHARDS * entry.tokens,
            documents=SHARDS * entry.documents,
            text_bytes=4 * SHARDS * entry.tokens,
        ),
    )


def _open_s(folder: Path, sample: int) -> tuple[float, float]:
    """Seconds until the stream stands: manifest, order, stages; and from there to the first batch."""
    started = time.perf_counter()
    stream = simple.ours(folder, BATCH, SEQ_LEN, start=sample // BATCH, prefetch=0)
    opened = time.perf_counter()
    next(stream)
    return opened - started, time.perf_counter() - opened


def plan(sources: int = 40, ranks: int = 4096, per_rank: int = 1) -> str:
    """Planning for one rank of many: no file is read. Sizes of sources fall off like 1/n; weights are the sizes."""
    shares = 1 / np.arange(1, sources + 1)
    sequences = (shares / shares.sum() * TOKENS / SEQ_LEN).astype(int).tolist()
    ordered = [OrderedSource(f"source-{n:02d}", size, f"{n:064x}") for n, size in enumerate(sequences)]
    stages = [Stage(0, {source.name: float(source.sequences) for source in ordered})]
    batch = BatchConfig(global_batch_size=ranks * per_rank, micro_batch_size=per_rank)
    last = sum(sequences) // batch.global_batch_size * 9 // 10
    steps = max(1, PLANNED_SAMPLES // per_rank)  # of one array of rank_samples

    def make() -> Order:
        return Order(ordered, stages, seq_len=SEQ_LEN, seed=0, lanes=256, span=64)

    def plan_steps(order: Order, calls: int) -> None:
        world, position = World(rank=ranks - 1, size=ranks), Position(last, last * batch.global_batch_size)
        for g in islice(rank_samples(batch, world, position), calls):
            order(g.ravel())

    started = time.perf_counter()
    order = make()
    made_s = time.perf_counter() - started
    seconds = []
    for _ in range(20):
        started = time.perf_counter()
        plan_steps(order, 1)
        seconds.append(time.perf_counter() - started)
    tracemalloc.start()
    plan_steps(make(), 100)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return "\n".join(
        [
            f"{sources} sources, {TOKENS:.0e} tokens, {ranks:,} ranks, {per_rank} sequences a rank and step, at 90 %",
            "",
            "| | |",
            "|---|---|",
            f"| making the order | {made_s * 1e3:.1f} ms |",
            f"| planning {steps} steps of a rank, one call | {statistics.median(seconds) * 1e3:.2f} ms |",
            f"| planning a step | {statistics.median(seconds) / steps * 1e3:.4f} ms |",
            f"| largest memory of order and planning | {peak / 1e6:.1f} MB |",
            f"| largest memory of the process, torch included | {_largest_memory_mb():,.0f} MB |",
        ]
    )


def _largest_memory_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
