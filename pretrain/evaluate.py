"""Loss on held-out sequences: always the same ones, the same sum whatever the number of ranks."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from pretrain.data.source import Source
from pretrain.data.stream import Item, split_targets
from pretrain.distributed import sum_over_ranks
from pretrain.engine import Batch
from pretrain.loss import IGNORE
from pretrain.world import World


def evaluate(
    sources: Sequence[Source],
    loss: Callable[[Batch], float],
    *,
    max_sequences: int,
    micro_batch_size: int,
    world: World,
    device: torch.device,
    document_mask: bool = False,
) -> dict[str, Any]:
    """Mean loss in nats a token and bits per byte, over all sources and per source.

    `loss` gives the summed cross-entropy of a batch, with documents if `document_mask`. The first `max_sequences /
    len(sources)` sequences of each source are read. Bits per byte = total nats / ln 2 / bytes of text, with each source's
    own bytes per token; over the sources whose text is known (of foreign shards it may not be), absent where none is. A
    collective.
    """
    nats_total = tokens_total = nats_of_text = bytes_of_text = 0.0
    result: dict[str, Any] = {}
    for source in sources:
        count = min(len(source), max(1, max_sequences // len(sources)))
        mine, targets = 0.0, 0
        for batch in held_out_batches(source, count, micro_batch_size, world, document_mask=document_mask):
            mine += loss(batch)
            targets += int((batch.targets != IGNORE).sum())  # fewer than seq_len a sequence where a corpus is padded
        nats, tokens = sum_over_ranks([mine, targets], device)
        result[f"loss/{source.name}"] = nats / tokens
        nats_total, tokens_total = nats_total + nats, tokens_total + tokens
        if source.manifest.text_bytes:
            nats_of_text, bytes_of_text = nats_of_text + nats, bytes_of_text + tokens * source.bytes_per_token
    overall = {"loss": nats_total / tokens_total}
    if bytes_of_text:
        overall["bits_per_byte"] = nats_of_text / math.log(2) / bytes_of_text
    return {**overall, **(result if len(sources) > 1 else {})}


def held_out_batches(
    source: Source, count: int, micro_batch_size: int, world: World, *, document_mask: bool = False
) -> Iterator[Batch]:
    """This rank's share of sequences 0 … count - 1: as many batches on every rank, because ZeRO-3 hangs otherwise.

    Places that are left over carry IGNORE as targets.
    """
    items = _held_out_tokens(source, count, micro_batch_size, world)
    for item in split_targets([source], document_mask=document_mask)(items):
        left_over = torch.from_numpy(item["sequence"] >= count)
        targets = item["targets"].masked_fill(left_over[:, None], IGNORE)
        yield Batch(item["inputs"], targets, item.get("documents"))


def _held_out_tokens(source: Source, count: int, micro_batch_size: int, world: World) -> Iterator[Item]:
    for start in range(0, count, micro_batch_size * world.size):
        sequences = start + world.rank * micro_batch_size + np.arange(micro_batch_size)
        tokens = np.zeros((micro_batch_size, source.seq_len + 1), dtype=np.int64)
        source.read(sequences[sequences < count], tokens)
        yield {"source": np.zeros(micro_batch_size, dtype=np.int64), "sequence": sequences, "tokens": tokens}
