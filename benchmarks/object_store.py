"""Tokens per second from an object store that answers 40 ms late: whole blocks along the order, against single sequences.

All ways read the same corpus in the same order, those from the store through s3fs and the same proxy, which adds the latency;
the server behind it is moto's, on this machine. They take turns, round by round, so that a machine whose speed drifts slows all
of them alike.

    per sequence                one range request after the other, for one sequence each: what a plain map-style dataset does
    per sequence, 16 at a time  the same by 16 threads, as many as data.store.connections
    whole blocks                our stream with its defaults; the time begins before the corpus is opened
    whole blocks, cached        the same, from the data.store.cache_dir that an earlier round filled
    local disk                  our stream from the page cache: what remains without a network

`python -m benchmarks.object_store [--latency-ms 40] [--seq-len 2048] [--blocks 1024] [--rounds 3]`
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pretrain.config.schema import BatchConfig, DataConfig, SourceConfig
from pretrain.data.loader import Position, build_stream
from pretrain.data.order import Order, Stage
from pretrain.data.source import Source, open_sources
from pretrain.distributed.world import World
from pretrain.shards.format import OFFSET, read_index
from tests.support.faulty_proxy import Faults, Proxy
from tests.support.object_store import ObjectStore
from tests.support.shards import write_corpus

FOLDER = "bench/corpus"
VOCAB = 32_000
BLOCK_TOKENS = 1 << 17
# Small shards: moto's server copies an object for each range of it, and a large one would make its requests slower than S3's.
BLOCKS_PER_SHARD = 16
BATCH = BatchConfig(global_batch_size=64, micro_batch_size=8)
TURNS = 4  # spans that each lane reads in a round: with the defaults, an epoch of the corpus

Way = Callable[[int], int]  # the number of a round → tokens read


def order_over(source: Source, data: DataConfig) -> Order:
    """The order of a run with this one source."""
    stages = [Stage(0, {source.name: 1.0})]
    return Order([source.ordered()], stages, seq_len=data.seq_len, seed=data.seed, lanes=data.lanes, span=data.span)


def streamed(path: str, data: DataConfig) -> Way:
    """Our stream over the corpus at `path`, from opening it on."""

    def read(number: int) -> int:
        # Another limit each time: sources with the same ones share the blocks in memory, as long as one of them lives.
        limits = replace(data.store, memory_mib=data.store.memory_mib + number)
        (source,) = open_sources({"web": SourceConfig(path)}, data.seq_len, limits)
        stream = build_stream(order_over(source, data), [source], BATCH, World(), Position(0, 0), data)
        count = TURNS * data.lanes * data.span // BATCH.micro_batch_size
        return sum(item["inputs"].numel() for item in islice(iter(stream), count))

    return read


def per_sequence(corpus: Path, store: ObjectStore, data: DataConfig, *, threads: int, count: int) -> Way:
    """One range request for each sequence, into a tensor of int64."""
    source = Source("web", SourceConfig(str(corpus)), data.seq_len)
    order, files = order_over(source, data), store.file_system()
    entries = source.manifest.shards
    offsets = {entry.name: read_index(source.store, entry, source.manifest.dtype)[:, OFFSET] for entry in entries}

    def fetch(sequence: int) -> torch.Tensor:
        name, block, row = source.place(sequence)
        start = int(offsets[name][block]) + row * data.seq_len * 2
        payload = files.cat_file(f"{FOLDER}/{name}", start=start, end=start + (data.seq_len + 1) * 2)
        return torch.from_numpy(np.frombuffer(payload, "<u2").astype(np.int64))

    def read(number: int) -> int:
        sequences = order(np.arange(number * count, (number + 1) * count)).sequence.tolist()
        if threads == 1:
            return sum(len(fetch(sequence)) - 1 for sequence in sequences)
        with ThreadPoolExecutor(threads) as pool:
            return sum(len(row) - 1 for row in pool.map(fetch, sequences))

    return read


class Round(NamedTuple):
    """One way in one round."""

    tokens: int
    seconds: float
    requests: int

    @property
    def speed(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


def measure(ways: dict[str, Way], proxy: Proxy, faults: Faults, rounds: int) -> dict[str, list[Round]]:
    """Each way in each round; the first round warms up, fills the cache, and is not counted."""
    measured: dict[str, list[Round]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, read in ways.items():
            proxy.inject(faults)
            started = time.perf_counter()
            tokens = read(number)
            found = Round(tokens, time.perf_counter() - started, len(proxy.requests()))
            if number:
                measured[name].append(found)
    return measured


def report(measured: dict[str, list[Round]], options: argparse.Namespace) -> str:
    """A Markdown table: medians, and the median of the ratios round by round."""
    baseline = next(iter(measured.values()))
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "fsspec", "s3fs", "aiobotocore", "moto"))
    lines = [
        f"`python -m benchmarks.object_store {' '.join(sys.argv[1:])}` · {date.today()} · "
        f"{len(os.sched_getaffinity(0))} CPU cores, {platform.machine()}, Python {platform.python_version()}, {packages} · "
        f"{options.latency_ms:g} ms added to each answer, sequences of {options.seq_len} tokens, corpus of "
        f"{options.blocks * BLOCK_TOKENS / 1e6:.0f} million tokens, {options.rounds} rounds",
        "",
        "| | tokens/s (median) | against per sequence (median of rounds) | min | max | requests for a million tokens |",
        "|---|---|---|---|---|---|",
    ]
    for name, rounds in measured.items():
        ratios = [one.speed / base.speed for one, base in zip(rounds, baseline, strict=True)]
        middle, least, most = (f"{figure:,.1f}" for figure in (statistics.median(ratios), min(ratios), max(ratios)))
        speed = statistics.median(one.speed for one in rounds)
        requests = 1e6 * sum(one.requests for one in rounds) / sum(one.tokens for one in rounds)
        lines.append(f"| {name} | {speed:,.0f} | {middle} | {least} | {most} | {requests:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency-ms", type=float, default=40)
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--blocks", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    data = DataConfig(seq_len=options.seq_len)
    store = ObjectStore()
    os.environ.update(store.environment)
    with tempfile.TemporaryDirectory() as scratch:
        corpus = Path(scratch) / "corpus"
        tokens = np.random.default_rng(0).integers(0, VOCAB, options.blocks * BLOCK_TOKENS + 1, dtype=np.uint16)
        write_corpus(corpus, tokens, vocab_size=VOCAB, block_tokens=BLOCK_TOKENS, blocks_per_shard=BLOCKS_PER_SHARD)
        store.upload(corpus, f"s3://{FOLDER}")
        cached = replace(data, store=replace(data.store, cache_dir=f"{scratch}/cache", memory_mib=600))
        ways = {
            "per sequence": per_sequence(corpus, store, data, threads=1, count=64),
            "per sequence, 16 at a time": per_sequence(corpus, store, data, threads=16, count=512),
            "whole blocks": streamed(f"s3://{FOLDER}", data),
            "whole blocks, cached": streamed(f"s3://{FOLDER}", cached),
            "local disk": streamed(str(corpus), data),
        }
        faults = Faults(latency_s=options.latency_ms / 1000)
        print(report(measure(ways, store.proxy, faults, options.rounds), options))
    store.stop()


if __name__ == "__main__":
    main()
