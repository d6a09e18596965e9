"""Loss on held-out sequences: always the same ones, the same sum whatever the number of ranks."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pretrain.data.source import Source
from pretrain.distributed import sum_over_ranks
from pretrain.loss import IGNORE
from pretrain.world import World

Batch = tuple[Tensor, Tensor]


def evaluate(
    sources: Sequence[Source],
    loss: Callable[[Batch], float],
    *,
    max_sequences: int,
    micro_batch_size: int,
    world: World,
    device: torch.device,
) -> dict[str, Any]:
    """Mean loss in nats a token and bits per byte, over all sources and per source.

    `loss` gives the summed cross-entropy of a batch. The first `max_sequences / len(sources)` sequences of each source are
    read. Bits per byte = total nats / ln 2 / bytes of text, with each source's own bytes per token. A collective.
    """
    nats_total = bytes_total = tokens_total = 0.0
    result: dict[str, Any] = {}
    for source in sources:
        count = min(len(source), max(1, max_sequences // len(sources)))
        mine = sum(loss(batch) for batch in held_out_batches(source, count, micro_batch_size, world))
        (nats,) = sum_over_ranks([mine], device)
        tokens = count * source.seq_len
        result[f"loss/{source.name}"] = nats / tokens
        nats_total, tokens_total = nats_total + nats, tokens_total + tokens
        bytes_total += tokens * source.bytes_per_token
    overall = {"loss": nats_total / tokens_total, "bits_per_byte": nats_total / math.log(2) / bytes_total}
    return {**overall, **(result if len(sources) > 1 else {})}


def held_out_batches(source: Source, count: int, micro_batch_size: int, world: World) -> Iterator[Batch]:
    """This rank's share of sequences 0 … count - 1: as many batches on every rank, because ZeRO-3 hangs otherwise.

    Places that are left over carry IGNORE as targets.
    """
    a_round = micro_batch_size * world.size
    for start in range(0, count, a_round):
        tokens = np.zeros((micro_batch_size, source.seq_len + 1), dtype=np.int64)
        targets = np.full((micro_batch_size, source.seq_len), IGNORE, dtype=np.int64)
        for row in range(micro_batch_size):
            sequence = start + world.rank * micro_batch_size + row
            if sequence < count:
                source.read(sequence, tokens[row])
                targets[row] = tokens[row, 1:]
        yield torch.from_numpy(tokens[:, :-1].copy()), torch.from_numpy(targets)
