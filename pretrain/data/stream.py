"""Micro-batches of one rank, from the order to the model, as stages of a WebDataset pipeline.

    g of this rank     →  plan_batches   which sequences make up each micro-batch   (order.py)
    sequence numbers   →  read_tokens    (B, T + 1) tokens                          (source.py)
    tokens             →  split_targets  inputs (B, T) and targets (B, T)
                       →  prefetch       a thread keeps a few micro-batches ready

Each stage is a function from an iterator to an iterator; `stream.append(stage)` adds one of your own.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import webdataset

from pretrain.data.order import Order
from pretrain.data.permute import I64
from pretrain.data.source import Source

Item = dict[str, Any]
PLANNED_STEPS = 64  # steps that are planned in one vectorized call


class RankBatches:
    """Which g a rank reads: of each `global_batch_size` consecutive ones a contiguous part, cut into micro-batches."""

    def __init__(self, *, global_batch_size: int, micro_batch_size: int, rank: int, world_size: int) -> None:
        self.global_batch_size, self.micro_batch_size = global_batch_size, micro_batch_size
        self.per_rank = global_batch_size // world_size
        self.offset = rank * self.per_rank

    def steps(self, start: int, count: int) -> I64:
        """The g of `count` steps from sample `start` on: (count, micro-batches, micro_batch_size)."""
        steps = start + np.arange(count)[:, None] * self.global_batch_size
        g = steps + self.offset + np.arange(self.per_rank)[None, :]
        return g.reshape(count, -1, self.micro_batch_size)


def plan_batches(order: Order, batches: RankBatches, start: int) -> Callable[[], Iterator[Item]]:
    """Endless items with `samples` (g), `source`, `epoch` and `sequence`, each of shape (B,)."""

    def plan() -> Iterator[Item]:
        first = start
        while True:
            g = batches.steps(first, PLANNED_STEPS)
            samples = order(g.ravel())
            shape = (-1, batches.micro_batch_size)
            columns = [g.reshape(shape), *(part.reshape(shape) for part in samples)]
            for row in zip(*columns, strict=True):
                yield dict(zip(("samples", "source", "epoch", "sequence"), row, strict=True))
            first += PLANNED_STEPS * batches.global_batch_size

    return plan


def read_tokens(sources: Sequence[Source]) -> Callable[[Iterator[Item]], Iterator[Item]]:
    """Adds `tokens`, int64 (B, T + 1)."""

    def read(items: Iterator[Item]) -> Iterator[Item]:
        for item in items:
            tokens = np.empty((len(item["source"]), sources[0].seq_len + 1), dtype=np.int64)
            for row, number, sequence in zip(tokens, item["source"], item["sequence"], strict=True):
                sources[number].read(int(sequence), row)
            yield {**item, "tokens": tokens}

    return read


def split_targets(items: Iterator[Item]) -> Iterator[Item]:
    """Adds `inputs` and `targets`: each position's target is the next token."""
    for item in items:
        tokens = torch.from_numpy(item["tokens"])
        yield {**item, "inputs": tokens[:, :-1].contiguous(), "targets": tokens[:, 1:].contiguous()}


class _Failed:
    def __init__(self, error: BaseException) -> None:
        self.error = error


def prefetch(depth: int) -> Callable[[Iterator[Item]], Iterator[Item]]:
    """Read ahead in one thread, `depth` items at most; an error in it is raised where the items are used.

    A thread and not DataLoader workers: reading is a copy out of the page cache, and sending int64 between processes cost
    10–20 times as much.
    """

    def ahead(items: Iterator[Item]) -> Iterator[Item]:
        ready: queue.Queue = queue.Queue(maxsize=depth)
        closed = threading.Event()

        def put(value: object) -> bool:
            while not closed.is_set():
                try:
                    ready.put(value, timeout=0.1)
                    return True
                except queue.Full:
                    continue
            return False

        def fill() -> None:
            try:
                for item in items:
                    if not put(item):
                        return
                put(None)
            except BaseException as error:
                put(_Failed(error))

        threading.Thread(target=fill, name="prefetch", daemon=True).start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, _Failed):
                    raise item.error
                yield item
        finally:
            closed.set()

    return ahead if depth else lambda items: items


def build_stream(
    order: Order, sources: Sequence[Source], batches: RankBatches, *, start: int, prefetch_batches: int
) -> webdataset.DataPipeline:
    """The whole pipeline from global sample `start` on."""
    return webdataset.DataPipeline(
        plan_batches(order, batches, start), read_tokens(sources), split_targets, prefetch(prefetch_batches)
    )
