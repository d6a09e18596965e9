"""Micro-batches of one rank, from the order to the model, as stages of a WebDataset pipeline.

    g of this rank     →  plan_batches   sequences of each micro-batch              (order.py)
    sequence numbers   →  fetch_ahead    prefetch blocks of remote stores           (prefetch.py)
                       →  read_tokens    (B, T + 1) tokens                          (source.py)
    tokens             →  split_targets  inputs and targets (B, T), and document numbers for data.document_mask
                       →  prefetch       a thread keeps a few micro-batches ready

Each stage is a function from an iterator to an iterator; `stream.append(stage)` adds another one.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import webdataset

from pretrain.config.schema import BatchConfig, DataConfig
from pretrain.data.documents import mark_documents
from pretrain.data.gaps import Gap, samples_at
from pretrain.data.order import Order
from pretrain.data.permute import I64
from pretrain.data.prefetch import fetch_ahead
from pretrain.data.source import Source
from pretrain.distributed.world import World
from pretrain.model.loss import IGNORE
from pretrain.optim.schedule import batch_levels

Item = dict[str, Any]
PLANNED_SAMPLES = 4_096  # per rank and vectorized call; more does not fit into the processor's cache


class Position(NamedTuple):
    """Position of a run: optimizer steps done and samples consumed."""

    step: int
    samples: int


def rank_samples(batch: BatchConfig, world: World, position: Position, gaps: Sequence[Gap] = ()) -> Iterator[I64]:
    """Global sample ids g of this rank from a position on, endless: arrays (steps, micro-batches, micro_batch_size).

    A step reads the next global_batch_size g that are in no gap; each rank takes a contiguous part. The batch size is
    constant within an array.
    """
    step, done = position.step, 0
    levels = batch_levels(batch)
    for number, (start, size) in enumerate(levels):
        end = levels[number + 1][0] if number + 1 < len(levels) else None
        per_rank = size // world.size
        step = max(step, start)
        planned = max(1, PLANNED_SAMPLES // per_rank)
        while end is None or step < end:
            count = planned if end is None else min(planned, end - step)
            firsts = done + world.rank * per_rank + np.arange(count)[:, None] * size
            numbers = (firsts + np.arange(per_rank)[None, :]).reshape(count, -1, batch.micro_batch_size)
            yield samples_at(numbers, position.samples, gaps)
            step, done = step + count, done + count * size


def plan_batches(
    order: Order, batch: BatchConfig, world: World, position: Position, gaps: Sequence[Gap] = ()
) -> Callable[[], Iterator[Item]]:
    """Endless items with `samples` (g), `source`, `epoch` and `sequence`, each of shape (B,)."""

    def plan() -> Iterator[Item]:
        for g in rank_samples(batch, world, position, gaps):
            samples = order(g.ravel())
            shape = (-1, batch.micro_batch_size)
            columns = [g.reshape(shape), *(part.reshape(shape) for part in samples)]
            for row in zip(*columns, strict=True):
                yield dict(zip(("samples", "source", "epoch", "sequence"), row, strict=True))

    return plan


def read_tokens(sources: Sequence[Source]) -> Callable[[Iterator[Item]], Iterator[Item]]:
    """Add `tokens`, int64 (B, T + 1)."""

    def read(items: Iterator[Item]) -> Iterator[Item]:
        for item in items:
            numbers, sequences = item["source"], item["sequence"]
            tokens = np.empty((len(numbers), sources[0].seq_len + 1), dtype=np.int64)
            for number in range(len(sources)):
                rows = np.flatnonzero(numbers == number)
                if len(rows):
                    sources[number].read(sequences[rows], tokens, rows)
            yield {**item, "tokens": tokens}

    return read


def split_targets(
    sources: Sequence[Source], *, document_mask: bool = False, pin: bool = False
) -> Callable[[Iterator[Item]], Iterator[Item]]:
    """Add `inputs` and `targets`: the target of a position is the next token, or IGNORE beside padding.

    `document_mask` adds `documents`, the document number of each position. `pin` copies to page-locked memory, from which a
    GPU copies asynchronously.
    """
    manifests = [source.manifest for source in sources]
    packed = np.array([manifest.layout == "packed" for manifest in manifests])
    some_packed = bool(packed.any())
    pad = torch.tensor([manifest.pad_id for manifest in manifests])

    def split(items: Iterator[Item]) -> Iterator[Item]:
        for item in items:
            tokens = torch.from_numpy(item["tokens"])
            parts = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}
            if some_packed and packed[item["source"]].any():
                parts["targets"] = _without_padding(tokens, pad[item["source"]], packed[item["source"]])
            if document_mask:
                parts["documents"] = mark_documents(parts["inputs"], manifests[0].eos_id)
            if pin:
                parts = {name: part.contiguous().pin_memory() for name, part in parts.items()}
            yield {**item, **parts}

    return split


def _without_padding(tokens: torch.Tensor, pad: torch.Tensor, packed: np.ndarray) -> torch.Tensor:
    """Targets of packed rows, with IGNORE for padding, after padding, and for the first token of the next row."""
    targets = tokens[:, 1:].clone()
    padding = tokens == pad[:, None]
    ignored = padding[:, 1:] | padding[:, :-1]
    ignored[:, -1] = True
    targets[ignored & torch.from_numpy(packed)[:, None]] = IGNORE
    return targets


class _Failed:
    def __init__(self, error: BaseException) -> None:
        self.error = error


def prefetch(depth: int) -> Callable[[Iterator[Item]], Iterator[Item]]:
    """Read ahead in a thread, `depth` items at most; its errors are raised in the consumer."""

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

        # A thread, not DataLoader workers: reading is a copy out of the page cache, and sending int64 tensors between
        # processes took 10–20 times as long.
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
    order: Order,
    sources: Sequence[Source],
    batch: BatchConfig,
    world: World,
    position: Position,
    data: DataConfig,
    *,
    gaps: Sequence[Gap] = (),
    pin: bool = False,
) -> webdataset.DataPipeline:
    """The pipeline of one rank, from a position on."""
    return webdataset.DataPipeline(
        plan_batches(order, batch, world, position, gaps),
        fetch_ahead(sources),
        read_tokens(sources),
        split_targets(sources, document_mask=data.document_mask, pin=pin),
        prefetch(data.prefetch_batches),
    )
